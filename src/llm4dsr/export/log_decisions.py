"""One decision for each interaction of a log, which stands in many windows.

An interaction is changed if it is in at least half of the windows in which it was scored and which the run corrects.
What is done is what most of these do, else the newest. A reviewer's answer about it in any window decides alone, the
newest if there are several.
"""

from __future__ import annotations

from shlex import quote

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import BoolArray, IntArray
from llm4dsr.data.windows import Windows, locate
from llm4dsr.denoise.labels import ANSWER, ATYPICAL
from llm4dsr.errors import OutputError
from llm4dsr.export.log_rows import LogRows
from llm4dsr.pipeline import Run
from llm4dsr.pipeline.deciding import REVIEWED

CHANGES = ("replace", "drop", "downweight")
LEAVE_OUT = "leave out"  # the action for an interaction that is the user's own, but not their taste


def reviewed_rows(run: Run) -> pl.DataFrame:
    """Return the reviewed interactions that the decisions followed; empty if there are none."""
    path = run.verified("decide") / REVIEWED
    schema = {c.SPLIT: pl.String, c.WINDOW: pl.Int64, c.POSITION: pl.Int64, c.IS_NOISE: pl.Int64, ANSWER: pl.String}
    if not path.is_file():
        return pl.DataFrame(schema=schema)
    table = pl.read_parquet(path, glob=False)
    if ANSWER not in table.columns:
        table = table.with_columns(pl.lit(None, pl.String).alias(ANSWER))
    return table.select(pl.col(name).cast(kind) for name, kind in schema.items())


def atypical_rows(run: Run) -> pl.DataFrame:
    """Return what a reviewer called the user's own, but not their taste. Raises OutputError if there is nothing."""
    found = reviewed_rows(run).filter(pl.col(ANSWER) == ATYPICAL)
    if found.is_empty():
        raise OutputError(
            f"The decisions of {run.folder} followed no answer “theirs, but not their taste”. Review some, and apply "
            f"them:  llm4dsr decide --run {quote(str(run.folder))} --reviewed labels.csv --overwrite"
        )
    return found


def decide_rows(run: Run, rows: LogRows, leave_out_atypical: bool = False) -> pl.DataFrame:
    """Return one decision for each interaction of the log that is in a window of the run.

    Parameters
    ----------
    run : Run
        Corrected.
    rows : LogRows
        Of all its splits.
    leave_out_atypical : bool, default False
        Interactions that are the user's own, but not their taste, get the action "leave out".

    Returns
    -------
    DataFrame
        By `row`, the number of the record: `split`, the first one whose windows have it; `action`, null if nothing is
        done; `kept_item_id`; `noise_probability`, the mean over windows, null if it was never scored; `windows` that
        were corrected and have it, and `flagged` ones of them.
    """
    how, splits = run.correction, run.data().splits
    edits, scores = run.edits(), run.scores()
    parts = []
    for number, (name, windows) in enumerate(splits.items()):
        keys = _places(windows)
        at = locate(scores[name], windows)
        probability = np.full(len(windows.items), np.nan)
        probability[at] = scores[name][c.NOISE_PROBABILITY].to_numpy()
        votes = np.zeros(len(windows.items), dtype=bool)
        if name == c.TRAIN or how.histories:
            votes[at] = True
            votes &= not_fixed(windows, name, how.train_targets)
        of_row = edits[name].select(c.WINDOW, c.POSITION, c.ACTION, c.KEPT)
        part = keys.with_columns(
            row=pl.Series(rows.of_windows[name]), split_number=pl.lit(number), vote=pl.Series(votes),
            probability=pl.Series(probability).fill_nan(None),
            time=pl.Series(np.repeat(windows.timestamps, windows.lengths)),
        ).join(of_row, on=[c.WINDOW, c.POSITION], how="left", maintain_order="left")  # fmt: skip
        parts.append(part.with_columns(pl.lit(name).alias(c.SPLIT)))
    table = pl.concat(parts).with_columns(
        changed=pl.col("vote") & pl.col(c.ACTION).is_in(CHANGES),
        newest=pl.struct("time", "split_number", c.WINDOW).rank("ordinal"),
    )
    table = table.join(reviewed_rows(run), on=[c.SPLIT, c.WINDOW, c.POSITION], how="left", maintain_order="left")
    all_rows = table.sort("split_number", maintain_order=True).group_by("row", maintain_order=True).agg(
        pl.col(c.SPLIT).first(), pl.col("probability").mean().alias(c.NOISE_PROBABILITY),
        pl.col("vote").sum().alias("windows"), pl.col("changed").sum().alias("flagged"),
        pl.col(c.IS_NOISE, ANSWER).sort_by("newest").drop_nulls().last(),
    )  # fmt: skip
    most = (
        table.filter("changed").group_by("row", c.ACTION, c.KEPT).agg(count=pl.len(), newest=pl.col("newest").max())
        .sort("count", "newest", descending=True).unique("row", keep="first", maintain_order=True)
        .select("row", c.ACTION, c.KEPT)
    )  # fmt: skip
    joined = all_rows.join(most, on="row", how="left", maintain_order="left")
    flagged = (pl.col("flagged") > 0) & (2 * pl.col("flagged") >= pl.col("windows"))
    done = pl.coalesce(pl.col(c.IS_NOISE) == 1, flagged)
    action: pl.Expr = pl.when(done).then(c.ACTION)
    if leave_out_atypical:
        action = pl.when(pl.col(ANSWER) == ATYPICAL).then(pl.lit(LEAVE_OUT)).otherwise(action)
    out = joined.with_columns(action.alias(c.ACTION))
    out = out.with_columns(pl.when(pl.col(c.ACTION).is_in(CHANGES)).then(c.KEPT).alias(c.KEPT))
    return out.select("row", c.SPLIT, c.ACTION, c.KEPT, c.NOISE_PROBABILITY, "windows", "flagged").sort("row")


def not_fixed(windows: Windows, split: str, train_targets: bool) -> BoolArray:
    """Return [n] whether an interaction may be changed; targets only in training, and there if `train_targets`."""
    return np.asarray(~windows.is_last | (split == c.TRAIN and train_targets))


def _places(windows: Windows) -> pl.DataFrame:
    return pl.DataFrame({c.WINDOW: windows.window_ids[windows.owners], c.POSITION: windows.positions})


def with_twins(decisions: pl.DataFrame, twins: IntArray) -> pl.DataFrame:
    """Return the decisions with those of records that repeat the user, the item and the time of a decided one."""
    repeats = pl.DataFrame({"row": np.arange(len(twins)), "twin": twins}).filter(pl.col("row") != pl.col("twin"))
    of_twins = repeats.join(decisions, left_on="twin", right_on="row", how="inner").drop("twin")
    return pl.concat([decisions, of_twins.select(decisions.columns)]).unique("row", keep="first").sort("row")
