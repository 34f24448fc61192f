"""A dataset: a catalogue and its windows. `make_windows` makes one from an interaction log in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.io import as_data_error, write_parquet
from llm4dsr.data.buckets import Bucket
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.interaction_log import InteractionLog
from llm4dsr.data.times import readable_microseconds
from llm4dsr.data.windowing import build_windows, materialize_windows, new_rows, sort_log
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError


@dataclass
class Dataset:
    """A catalogue and its windows.

    Attributes
    ----------
    catalogue : Catalogue
        The items.
    splits : dict of str to Windows
        "train", "valid" and "test".
    report : dict of str to int
        Interactions that `make_windows` dropped, by reason; empty for ready windows.
    """

    catalogue: Catalogue
    splits: dict[str, Windows]
    report: dict[str, int] = field(default_factory=dict)

    def write(self, folder: str | Path) -> None:
        """Write items, train, valid and test as Parquet into `folder`."""
        folder = Path(folder)
        write_parquet(self.catalogue.to_frame(), folder / f"{c.ITEMS_FILE}.parquet")
        for name, windows in self.splits.items():
            write_parquet(windows.to_frame(self.catalogue), folder / f"{name}.parquet")


def make_windows(
    interactions: pl.DataFrame,
    items: pl.DataFrame,
    history: int = 10,
    k_core: int = 5,
    ratios: Sequence[int] = (8, 1, 1),
) -> Dataset:
    """Build windows from an interaction log in memory; `prepare` does the same for logs of any size.

    Windows are split by the time of their target. Where the truth is known, targets of test windows are restored to it.

    Parameters
    ----------
    interactions : DataFrame
        `user_id, item_id, timestamp` (number, date, or ISO text), in any order. Rows of a user with the same time keep
        their order. Optional truth: `noise_mask` (0/1) and `clean_item_id` (null where an item was inserted).
    items : DataFrame
        `item_id, title`.
    history : int, default 10
        Most items before the target.
    k_core : int, default 5
        Users and items with fewer interactions are dropped, repeatedly. 0: all are kept, also items without
        interactions.
    ratios : sequence of int, default (8, 1, 1)
        Train, valid and test.

    Returns
    -------
    Dataset
        With `report`.

    Raises
    ------
    DataError
        If nothing, or too little for a split, is left.
    """
    if history < 1 or len(ratios) != 3 or min(ratios) < 0 or sum(ratios) <= 0:
        raise DataError(f"history={history}, ratios={tuple(ratios)}; expected at least 1, and three shares.")
    catalogue = Catalogue.from_frame(items)
    frame, missing = _usable_rows(interactions)
    log = InteractionLog(
        users=frame.with_row_index("row").select(pl.col("row").first().over(c.USER))["row"].to_numpy().astype(np.int64),
        items=catalogue.index(frame[c.ITEM], "the interactions"),
        order=frame["order"].to_numpy(),
        seconds=frame["seconds"].to_numpy(),
    )
    if c.NOISE_MASK in frame.columns:
        log.noise_mask = frame[c.NOISE_MASK].to_numpy().astype(bool)
    if c.CLEAN_ITEM in frame.columns:
        log.clean_items = catalogue.index_or_pad(frame[c.CLEAN_ITEM], c.CLEAN_ITEM)
    log, dropped = sort_log(log)
    bucket = Bucket()
    bucket.put(log.columns(), np.arange(len(frame)), frame[c.USER])
    index = build_windows([bucket], len(catalogue), history, k_core, ratios=ratios)
    item_rows = None
    if k_core > 0:  # an item that no interaction is left of is no longer part of the catalogue
        item_rows = new_rows(index.used)
        catalogue = catalogue.filter(index.used)
    splits = {}
    for name in c.SPLITS:
        (splits[name],) = materialize_windows(index, name, item_rows, multiple=max(1, index.count(name)))
    return Dataset(catalogue, splits, {"missing_value": missing, **dropped, **index.dropped})


def _usable_rows(interactions: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """(the log with `order` and `seconds`, without incomplete rows; how many rows were incomplete)."""
    needed = [c.USER, c.ITEM, c.TIME]
    for name in needed:
        if name not in interactions.columns:
            raise DataError(
                f"The interactions have the columns {', '.join(interactions.columns)}, but {name!r} is missing. Rename "
                f"a column, or name it:  llm4dsr data prepare DIR --column {name}=NAME  builds the windows."
            )
    truth = [name for name in (c.NOISE_MASK, c.CLEAN_ITEM) if name in interactions.columns]
    log = interactions.select(*needed, *truth)
    order = readable_microseconds(log[c.TIME], "the interactions")
    log = log.with_columns(order=order, seconds=order // 10**6)
    if c.NOISE_MASK in truth and not set(log[c.NOISE_MASK].unique()) <= {0, 1}:
        found = log[c.NOISE_MASK].unique().head(5).to_list()
        raise DataError(f"{c.NOISE_MASK!r} of the interactions holds {found}; expected 0 or 1 in each row.")
    if c.CLEAN_ITEM in truth and c.NOISE_MASK not in truth:
        with as_data_error(f"{c.CLEAN_ITEM!r} and {c.ITEM!r} cannot be compared", "Give both the same type."):
            log = log.with_columns(pl.col(c.ITEM).ne_missing(pl.col(c.CLEAN_ITEM)).alias(c.NOISE_MASK))
    full = log.drop_nulls([*needed, "seconds"])
    if full.is_empty():
        raise DataError(f"The interactions have {len(log)} row(s), none of them with {', '.join(needed)}.")
    return full, len(log) - len(full)
