"""The numbers of the report, from the tables of a run."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.data.dataset import Dataset
from llm4dsr.denoise.tables import flaggable_rows
from llm4dsr.pipeline import BY_TARGET, Run

BINS = 100  # of the noise probability, from 0 to 1
TIMES = 12  # parts of the windows, in order of time
POPULARITY = (1, 3, 10, 30, 100, 300, 1000)  # users from which a group of items begins
POSITIONS = (*range(1, 12), 21, 51, 101)  # from which a group of positions begins
POSITION_NAMES = [*(str(p) for p in POSITIONS[:10]), "11 to 20", "21 to 50", "51 to 100", "over 100"]
CATEGORIES = 20  # most categories that are shown
TOP = 20  # users and items that are listed
EDITS = 1_000  # most edits that the page carries


def histogram(scores: pl.DataFrame, cap: int) -> dict[str, Any]:
    """Count interactions that may be flagged, by noise probability.

    Parameters
    ----------
    scores : DataFrame
        Of one split.
    cap : int
        Most flagged interactions of a window.

    Returns
    -------
    dict
        `total` interactions; and for each of BINS bins of the probability `n` interactions, and the sums of their
        probability `p`, and of its `low` and `high` end.
    """
    may = flaggable_rows(scores, cap).drop_nans(c.NOISE_PROBABILITY)
    bin_of = np.minimum((may[c.NOISE_PROBABILITY].to_numpy() * BINS).astype(np.int64), BINS - 1)

    def total(column: str) -> list[float]:
        sums = np.bincount(bin_of, weights=may[column].to_numpy(), minlength=BINS)
        return [round(float(v), 3) for v in sums]

    return {
        "total": int(scores[c.LOG_ODDS].is_finite().sum()),
        "n": np.bincount(bin_of, minlength=BINS).tolist(),
        "p": total(c.NOISE_PROBABILITY),
        "low": total(c.PROBABILITY_LOW),
        "high": total(c.PROBABILITY_HIGH),
    }


def first_eta(decisions: pl.DataFrame) -> int:
    """Return the η, in percent, at which the page opens: the lowest probability that the run flagged, else 50."""
    lowest = decisions[c.NOISE_PROBABILITY].drop_nans().min()
    return 50 if lowest is None else max(1, min(BINS - 1, int(float(lowest) * BINS)))  # type: ignore[arg-type]


def with_facts(scores: pl.DataFrame, decisions: pl.DataFrame, data: Dataset, split: str) -> pl.DataFrame:
    """Join scores of a split with what the report counts by.

    Returns
    -------
    DataFrame
        With `flagged`; `user_id`; `from_end`, 1 = newest scored item; `timestamp` of the window; `users` of the item
        in training; `category` if the items have one; `noise` if the truth is known.
    """
    windows, catalogue = data.splits[split], data.catalogue
    frame = windows.to_frame(catalogue)
    train = data.splits[c.TRAIN].to_frame(catalogue).select(c.USER, c.ITEMS).explode(c.ITEMS)
    users = train.rename({c.ITEMS: c.ITEM}).group_by(c.ITEM).agg(users=pl.col(c.USER).n_unique())
    of_window = frame.select(c.WINDOW, c.USER, c.TIME, size=pl.col(c.ITEMS).list.len() - int(split != c.TRAIN))
    flags = decisions.select(c.WINDOW, c.POSITION).with_columns(flagged=True)
    out = (
        scores.join(of_window, on=c.WINDOW, how="left", maintain_order="left")
        .join(flags, on=[c.WINDOW, c.POSITION], how="left", maintain_order="left")
        .join(users, on=c.ITEM, how="left", maintain_order="left")
        .with_columns(
            pl.col("flagged").fill_null(False), pl.col("users").fill_null(0),
            from_end=pl.col("size").cast(pl.Int64) - pl.col(c.POSITION),
        )
    )  # fmt: skip
    if catalogue.categories is not None:
        of_item = pl.DataFrame({c.ITEM: catalogue.ids, c.CATEGORY: catalogue.categories})
        out = out.join(of_item, on=c.ITEM, how="left", maintain_order="left")
    if c.NOISE_MASK in frame.columns:
        positions = pl.int_ranges(pl.col(c.NOISE_MASK).list.len())
        truth = frame.select(c.WINDOW, c.NOISE_MASK, positions.alias(c.POSITION)).explode(c.NOISE_MASK, c.POSITION)
        truth = truth.select(c.WINDOW, c.POSITION, noise=pl.col(c.NOISE_MASK).cast(pl.Int64))
        out = out.join(truth, on=[c.WINDOW, c.POSITION], how="left", maintain_order="left")
    return out


def rates(facts: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Count flags by position, time, popularity and category: each `group, interactions, flagged, rate`."""
    popularity = pl.col("users").cut(
        [b - 0.5 for b in POPULARITY], labels=["none", *(f"{b} or more" for b in POPULARITY)], left_closed=True
    )
    position = pl.col("from_end").cut(
        [b - 0.5 for b in POSITIONS], labels=["none", *POSITION_NAMES], left_closed=True
    )  # fmt: skip
    groups = {"position": position, "popularity": popularity}
    if facts.filter(pl.col(c.TIME) >= 0)[c.TIME].n_unique() > 1:
        timed = facts.filter(pl.col(c.TIME) >= 0)
        edges = np.unique(np.quantile(timed[c.TIME].to_numpy(), np.linspace(0, 1, TIMES + 1)[:-1], method="lower"))
        begin = pl.Series(edges[np.searchsorted(edges, facts[c.TIME].to_numpy(), side="right") - 1])
        facts = facts.with_columns(begin=begin)
        groups["time"] = pl.when(pl.col(c.TIME) >= 0).then(pl.from_epoch("begin").dt.strftime("%Y-%m-%d"))
    if c.CATEGORY in facts.columns:
        groups["category"] = pl.col(c.CATEGORY)
    out = {}
    for name, group in groups.items():
        table = (
            facts.group_by(group.alias("group"))
            .agg(interactions=pl.len(), flagged=pl.col("flagged").sum())
            .drop_nulls("group")
            .with_columns(rate=pl.col("flagged") / pl.col("interactions"))
        )
        if name == "category":
            table = table.sort("interactions", "group", descending=[True, False]).head(CATEGORIES)
        else:
            table = table.sort("group")
        out[name] = table.with_columns(pl.col("group").cast(pl.String))
    return out


def most_flagged(facts: pl.DataFrame, data: Dataset) -> dict[str, pl.DataFrame]:
    """Return the users and the items with the most flags, each with their interactions."""
    count = (pl.col("flagged").sum(), pl.len().alias("interactions"))
    flagged = (pl.col("flagged") > 0,)
    users = facts.drop_nulls(c.USER).group_by(c.USER, maintain_order=True).agg(*count).filter(*flagged)
    items = facts.group_by(c.ITEM, maintain_order=True).agg(*count).filter(*flagged)
    titles = pl.DataFrame({c.ITEM: data.catalogue.ids, c.TITLE: data.catalogue.original_titles})
    most = items.sort("flagged", descending=True, maintain_order=True).head(TOP)
    return {
        "users": users.sort("flagged", descending=True, maintain_order=True).head(TOP),
        "items": most.join(titles, on=c.ITEM, how="left", maintain_order="left").select(
            c.ITEM, c.TITLE, "flagged", "interactions"
        ),
    }


def edits(run: Run) -> pl.DataFrame:
    """Return the most suspicious edits of all splits, with their split."""
    tables = [t.with_columns(pl.lit(name).alias(c.SPLIT)) for name, t in run.edits().items()]
    columns = [c.SPLIT, c.WINDOW, c.USER, c.POSITION, c.ITEM, c.TITLE, c.NOISE_PROBABILITY, c.ACTION, c.SUGGESTED,
               c.SUGGESTED_TITLE, c.SUGGESTION_PROBABILITY]  # fmt: skip
    ids = pl.col(c.WINDOW, c.USER, c.ITEM, c.SUGGESTED).cast(pl.String)  # JavaScript rounds large numbers
    joined = pl.concat([t.select(columns).with_columns(ids) for t in tables])
    return joined.sort(c.NOISE_PROBABILITY, descending=True, maintain_order=True).head(EDITS)


def by_target(run: Run) -> pl.DataFrame | None:
    """Return gains for rare and for frequent targets; None if an earlier version evaluated the run."""
    path = run.verified("evaluate") / BY_TARGET
    return pl.read_parquet(path, glob=False) if path.is_file() else None


def as_json(value: Any) -> str:
    """Render JSON that may stand inside a script element: no tag can end it, and NaN is null."""

    def clean(x: Any) -> Any:
        if isinstance(x, dict):
            return {k: clean(v) for k, v in x.items()}
        if isinstance(x, list):
            return [clean(v) for v in x]
        return None if isinstance(x, float) and not math.isfinite(x) else x

    text = json.dumps(clean(value), ensure_ascii=False, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
