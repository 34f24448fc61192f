"""Write what a run has corrected, in the format that the next program reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.io import as_output_error, new_folder, write_parquet
from llm4dsr.data.histories import WEIGHT
from llm4dsr.data.read import to_windows
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.correct import correct
from llm4dsr.errors import ConfigError
from llm4dsr.export.formats import (
    soft_weights,
    to_recbole,
    to_recbole_splits,
    to_rectools,
    to_replay,
    write_datasets,
)
from llm4dsr.export.log_decisions import LEAVE_OUT, atypical_rows, decide_rows, not_fixed, with_twins
from llm4dsr.export.log_files import LogEdits
from llm4dsr.export.log_rows import LogRows, find_rows, log_origin
from llm4dsr.pipeline import Run

NAME: Final = "corrected"  # of a dataset of RecBole
CHANGED: Final = "changes.csv"
INTERACTIONS: Final = "interactions.parquet"


@dataclass(frozen=True)
class ExportOptions:
    """How a run is exported.

    Attributes
    ----------
    soft : bool
        Nothing is changed; each interaction has the weight 1 - noise probability.
    leave_out_atypical : bool
        Interactions that a reviewer called the user's own, but not their taste, are left out too; where there are
        weights, their weight is 0.
    log : Path or None
        Where the log is now, if not where it was.
    """

    soft: bool = False
    leave_out_atypical: bool = False
    log: Path | None = None


def export_run(run: Run, form: str, out: str | Path, options: ExportOptions = ExportOptions()) -> dict[str, Any]:
    """Write a corrected run in another format.

    Parameters
    ----------
    run : Run
        Corrected.
    form : str
        One of FORMATS.
    out : str or Path
        A new folder. It appears complete, or not at all.
    options : ExportOptions
        What is left out or weighted.

    Returns
    -------
    dict
        Numbers: what was written, changed and left out.

    Raises
    ------
    ConfigError
        If the format is unknown.
    DataError
        If the format needs the rows of a log, and the windows came from none, or it is gone.
    OutputError
        If a stage is missing, the log has changed, or `out` exists or cannot be written.
    """
    if form not in FORMATS:
        raise ConfigError(f"There is no format {form!r}; expected one of {', '.join(FORMATS)}.")
    run.need("prepare", "score", "decide", "correct", by="export")
    out = Path(out)
    with as_output_error(out), new_folder(out) as folder:
        return FORMATS[form](run, folder, options)


# --- the rows of a log -----------------------------------------------------------------------------------------------


def _decided(run: Run, options: ExportOptions) -> tuple[LogRows, pl.DataFrame]:
    data = run.data()
    rows = find_rows(log_origin(run, options.log), data.splits, data.catalogue)
    if options.leave_out_atypical:
        atypical_rows(run)
    return rows, decide_rows(run, rows, options.leave_out_atypical)


def _weights(decisions: pl.DataFrame, soft: bool) -> pl.Expr | None:
    """Weight of each decided row; None if decisions are to drop or replace."""
    left_out = pl.col(c.ACTION).eq_missing(pl.lit(LEAVE_OUT))
    noise = pl.col(c.NOISE_PROBABILITY).fill_null(0.0)
    if soft:
        return pl.when(left_out).then(0.0).otherwise(1 - noise)
    if (decisions[c.ACTION] == "downweight").any():
        return pl.when(left_out).then(0.0).when(pl.col(c.ACTION) == "downweight").then(1 - noise).otherwise(1.0)
    return None


def export_log(run: Run, folder: Path, options: ExportOptions) -> dict[str, Any]:
    """Write the log as it came, without flagged records, with other items, or with a column of weights."""
    rows, decisions = _decided(run, options)
    decisions = with_twins(decisions, rows.twins)
    weight = _weights(decisions, options.soft)
    size, titles = len(rows.keys), dict(_titles(run).iter_rows())
    dropped = np.zeros(size, dtype=bool)
    replaced, weights = dict[int, tuple[Any, str]](), None
    if weight is None:
        gone = decisions.filter(pl.col(c.ACTION).is_in(["drop", LEAVE_OUT]))
        dropped[gone["row"].to_numpy()] = True
        new = decisions.filter(pl.col(c.ACTION) == "replace").select("row", c.KEPT)
        replaced = {row: (item, titles[item]) for row, item in new.iter_rows()}
    else:
        weights = np.ones(size)
        weights[decisions["row"].to_numpy()] = decisions.select(weight.alias(WEIGHT))[WEIGHT].to_numpy()
    edits, number = LogEdits(dropped, replaced, weights), 0
    for file in rows.files:
        root = log_root(rows)
        target = folder / (file.path.relative_to(root) if root else file.path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        number = file.write(target, edits, number)
    changes = decisions.filter(pl.col(c.ACTION).is_not_null()) if not options.soft else decisions.clear()
    keys = rows.keys.select(c.USER, c.ITEM, c.TIME).with_row_index("row").cast({"row": pl.Int64})
    told = changes.join(keys, on="row", how="left", maintain_order="left").select(
        (pl.col("row") + 1).alias("record"), c.USER, c.ITEM, c.TIME, c.ACTION, c.KEPT, c.NOISE_PROBABILITY, "windows",
        "flagged",
    )  # fmt: skip
    told.write_csv(folder / CHANGED)
    return {
        "records": size, "judged": int((decisions["windows"] > 0).sum()), "dropped": int(dropped.sum()),
        "replaced": len(replaced), "weighted": 0 if weights is None else int((weights < 1).sum()),
    }  # fmt: skip


def log_root(rows: LogRows) -> Path | None:
    """Return the folder of the part files of a log; None if it is a single file."""
    paths = [file.path for file in rows.files]
    return None if len(paths) == 1 else Path(os.path.commonpath([path.parent for path in paths]))


def _titles(run: Run) -> pl.DataFrame:
    catalogue = run.data().catalogue
    return pl.DataFrame({c.ITEM: catalogue.ids, c.TITLE: catalogue.original_titles})


def _interactions(run: Run, options: ExportOptions) -> pl.DataFrame:
    """The interactions that are in a window of the run, corrected: user, item, time, rating if any, weight, split."""
    rows, decisions = _decided(run, options)
    weight = _weights(decisions, options.soft)
    keys = rows.keys.with_row_index("row").cast({"row": pl.Int64})
    table = decisions.join(keys, on="row", how="left", maintain_order="left")
    table = table.with_columns((pl.lit(1.0) if weight is None else weight).alias(WEIGHT))
    if weight is None:
        table = table.filter(~pl.col(c.ACTION).is_in(["drop", LEAVE_OUT]).fill_null(False))
        table = table.with_columns(pl.coalesce(c.KEPT, c.ITEM).alias(c.ITEM))
    rating = [c.RATING] if table[c.RATING].null_count() < len(table) else []
    return table.select(c.USER, c.ITEM, c.TIME, *rating, WEIGHT, c.SPLIT)


def export_recbole(run: Run, folder: Path, options: ExportOptions) -> dict[str, Any]:
    """Write corrected.inter and corrected.item."""
    table = _interactions(run, options)
    to_recbole(table, run.data().catalogue, folder / NAME, NAME)
    return {"interactions": len(table)}


def export_rectools(run: Run, folder: Path, options: ExportOptions) -> dict[str, Any]:
    """Write a table for RecTools' `Dataset.construct`, with the split of each interaction."""
    table = _interactions(run, options)
    frame = pl.from_pandas(to_rectools(table)).with_columns(table[c.SPLIT])
    write_parquet(frame, folder / INTERACTIONS)
    return {"interactions": len(frame)}


def export_replay(run: Run, folder: Path, options: ExportOptions) -> dict[str, Any]:
    """Write a table with RePlay's columns, with the split of each interaction."""
    table = _interactions(run, options)
    write_parquet(to_replay(table).with_columns(table[c.SPLIT]), folder / INTERACTIONS)
    return {"interactions": len(table)}


# --- windows ---------------------------------------------------------------------------------------------------------


def corrected_windows(run: Run, options: ExportOptions = ExportOptions()) -> dict[str, Windows]:
    """Return the corrected windows of a run, by split.

    Parameters
    ----------
    run : Run
        Corrected.
    options : ExportOptions
        `soft` returns the original windows with weights.
    """
    data, scores, how = run.data(), run.scores(), run.correction
    left_out = atypical_rows(run) if options.leave_out_atypical else None
    folder, out = run.verified("correct"), {}
    for name, windows in data.splits.items():
        keys = pl.DataFrame({c.WINDOW: windows.window_ids[windows.owners], c.POSITION: windows.positions})
        atypical = np.zeros(len(windows.items), dtype=bool)
        if left_out is not None and (name == c.TRAIN or how.histories):
            marked = left_out.filter(pl.col(c.SPLIT) == name).select(c.WINDOW, c.POSITION, marked=True)
            found = keys.join(marked, on=[c.WINDOW, c.POSITION], how="left", maintain_order="left")["marked"]
            atypical = found.fill_null(False).to_numpy() & not_fixed(windows, name, how.train_targets)
        if options.soft:
            weights = soft_weights(windows, scores[name])
            weights[atypical] = 0.0
            out[name] = replace(windows, weights=weights)
            continue
        corrected = to_windows(pl.read_parquet(folder / f"{name}.parquet"), data.catalogue, f"corrected/{name}")
        out[name] = _without(corrected, keys.filter(pl.Series(atypical)), run.edits()[name], run, name)
    return out


def _without(windows: Windows, atypical: pl.DataFrame, edits: pl.DataFrame, run: Run, name: str) -> Windows:
    """Corrected windows without these interactions of the original ones, whose positions dropping has moved."""
    if atypical.is_empty():
        return windows
    gone = edits.filter(pl.col(c.ACTION) == "drop").select(c.WINDOW, c.POSITION)
    before = atypical.join(gone, on=c.WINDOW, how="left", suffix="_gone")
    earlier = pl.col(f"{c.POSITION}_gone") < pl.col(c.POSITION)
    moved = before.group_by(c.WINDOW, c.POSITION).agg(by=earlier.sum())
    places = moved.select(c.WINDOW, pl.col(c.POSITION) - pl.col("by").cast(pl.Int64), marked=True)
    keys = pl.DataFrame({c.WINDOW: windows.window_ids[windows.owners], c.POSITION: windows.positions})
    found = keys.join(places, on=[c.WINDOW, c.POSITION], how="left", maintain_order="left")["marked"]
    flagged = found.fill_null(False).to_numpy()
    if windows.weights is not None:
        return replace(windows, weights=np.where(flagged, 0.0, windows.weights))
    certain = np.ones(len(flagged))
    return correct(windows, flagged, certain, None, run.data().catalogue, "drop", name != c.TRAIN).windows


def export_recbole_splits(run: Run, folder: Path, options: ExportOptions) -> dict[str, Any]:
    """Write windows as benchmark files of RecBole."""
    splits = corrected_windows(run, options)
    to_recbole_splits(splits, run.data().catalogue, folder / NAME, NAME)
    return {name: len(windows) for name, windows in splits.items()}


def export_datasets(run: Run, folder: Path, options: ExportOptions) -> dict[str, Any]:
    """Write windows for `datasets.load_dataset`."""
    splits = corrected_windows(run, options)
    write_datasets(splits, run.data().catalogue, folder)
    return {name: len(windows) for name, windows in splits.items()}


FORMATS: Final[dict[str, Callable[[Run, Path, ExportOptions], dict[str, Any]]]] = {
    "log": export_log,
    "recbole": export_recbole,
    "recbole-splits": export_recbole_splits,
    "rectools": export_rectools,
    "replay": export_replay,
    "datasets": export_datasets,
}
