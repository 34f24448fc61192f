"""An interaction log as columns of numbers, read in batches, so that ids of any type take four bytes each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import PAD, BoolArray
from llm4dsr.errors import DataError

if TYPE_CHECKING:
    from llm4dsr.core.progress import Progress

Ints = npt.NDArray[np.integer[Any]]

READ: Final = 500_000  # rows that are turned into numbers at once
_STRANGE: Final = 1_000  # unknown ids that are kept, to tell why they do not match
_NO_TIME: Final = np.iinfo(np.int64).min


@dataclass
class InteractionLog:
    """Interactions as columns, one entry per row of the log.

    Attributes
    ----------
    users : array of int
        [N] number of the user, from 0.
    items : array of int
        [N] catalogue rows.
    order : array
        [N] sort key of a user's interactions; equal keys keep their order.
    seconds : array of int or None
        [N] seconds since 1970; None if unknown.
    noise_mask, clean_items : array or None
        [N] the known truth, if any; PAD where an item was inserted.
    unknown : Series or None
        Some of the item ids that are not in the catalogue, if those of most rows are not.
    """

    users: Ints
    items: Ints
    order: npt.NDArray[Any]
    seconds: Ints | None
    noise_mask: BoolArray | None = None
    clean_items: Ints | None = None
    unknown: pl.Series | None = None


def item_table(items: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return (one row for each item id, rows of the table without id or with a repeated one, by reason)."""
    for name in (c.ITEM, c.TITLE):
        if name not in items.columns:
            raise DataError(f"The items table has the columns {', '.join(items.columns)}, but {name!r} is missing.")
    known = items.select(c.ITEM, c.TITLE).filter(pl.col(c.ITEM).is_not_null())
    once = known.unique(c.ITEM, keep="first", maintain_order=True)
    return once, {"missing_id": len(items) - len(known), "repeated_id": len(known) - len(once)}


class _Numbers:
    """Ids as numbers 0, 1, 2, … in order of appearance."""

    def __init__(self) -> None:
        self.parts: list[pl.DataFrame] = []  # id, number

    def of(self, ids: pl.Series) -> npt.NDArray[np.int32]:
        new = ids.unique(maintain_order=True).alias("id").to_frame()
        if self.parts:
            new = new.join(self._table(), on="id", how="anti", maintain_order="left")
        known = sum(len(part) for part in self.parts)
        self.parts.append(new.with_columns(number=pl.int_range(known, known + len(new), dtype=pl.Int32, eager=True)))
        return _look_up(ids, self._table())

    def _table(self) -> pl.DataFrame:
        self.parts = [pl.concat(self.parts)]
        return self.parts[0]

    def ids(self) -> pl.Series:
        return self._table()["id"]


def _look_up(ids: pl.Series, table: pl.DataFrame) -> npt.NDArray[np.int32]:
    """[N] the `number` of each id; -1 if the table lacks it."""
    found = ids.alias("id").to_frame().join(table, on="id", how="left", maintain_order="left")["number"]
    return found.fill_null(-1).to_numpy()


def read_log(
    batches: Iterable[pl.DataFrame], item_ids: pl.Series, min_rating: float | None, tell: Progress
) -> tuple[InteractionLog, pl.Series, int, dict[str, int]]:
    """Read a log from batches.

    Parameters
    ----------
    batches : iterable of DataFrame
        Parts of the log, as `Source.batches` yields them.
    item_ids : Series
        Ids of the catalogue, by row.
    min_rating : float or None
        Drop interactions with a lower rating, or none.
    tell : Progress
        Called with (rows read, 0, "read interactions").

    Returns
    -------
    log : InteractionLog
    users : Series
        User ids by number.
    rows_in : int
        Rows of the batches.
    dropped : dict of str to int
        Rows that were dropped, by reason.

    Raises
    ------
    DataError
        If the log is empty or a column is missing or of the wrong type.
    """
    table = pl.DataFrame({"id": item_ids, "number": np.arange(len(item_ids), dtype=np.int32)})
    users, came = _Numbers(), 0
    dropped = {"missing_value": 0, "unknown_item": 0}
    strange = item_ids.clear()
    parts: dict[str, list[npt.NDArray[Any]]] = {c.USER: [], c.ITEM: [], c.TIME: []}
    for batch in _joined(batches, min_rating):
        item = _item_numbers(batch[c.ITEM], table)
        gone = (batch[c.USER].is_null() | batch[c.ITEM].is_null()).to_numpy()
        dropped["missing_value"] += int(gone.sum())
        dropped["unknown_item"] += int((~gone & (item < 0)).sum())
        if len(strange) < _STRANGE:
            strange = pl.concat([strange, batch[c.ITEM].cast(item_ids.dtype).filter(~gone & (item < 0))])
            strange = strange.unique(maintain_order=True)
        gone |= item < 0
        clean = mask = None
        if c.CLEAN_ITEM in batch.columns:
            clean = _item_numbers(batch[c.CLEAN_ITEM], table)
            unknown = (clean < 0) & batch[c.CLEAN_ITEM].is_not_null().to_numpy()  # null: the item was inserted
            dropped["unknown_clean_item"] = dropped.get("unknown_clean_item", 0) + int((~gone & unknown).sum())
            gone |= unknown
            mask = item != clean
        if c.NOISE_MASK in batch.columns:
            mask = _mask(batch[c.NOISE_MASK])
        if min_rating is not None:
            low = ~(batch[c.RATING].cast(pl.Float64) >= min_rating).fill_null(False).to_numpy()
            dropped["low_rating"] = dropped.get("low_rating", 0) + int((~gone & low).sum())
            gone |= low
        kept = ~gone
        found = {c.USER: users.of(batch[c.USER].filter(kept)), c.ITEM: item[kept],
                 c.TIME: batch[c.TIME].fill_null(_NO_TIME).to_numpy()[kept],
                 c.NOISE_MASK: None if mask is None else mask[kept],
                 c.CLEAN_ITEM: None if clean is None else clean[kept]}  # fmt: skip
        for name, values in found.items():
            if values is not None:
                parts.setdefault(name, []).append(values)
        came += len(batch)
        tell(came, 0, "read interactions")
    if not came:
        raise DataError("The log has no interactions; expected at least one.")
    whole = {name: np.concatenate(parts.pop(name)) for name in list(parts)}  # one column at a time holds two copies
    times = whole[c.TIME]
    log = InteractionLog(whole[c.USER], whole[c.ITEM], times, times, whole.get(c.NOISE_MASK), whole.get(c.CLEAN_ITEM))
    if 2 * dropped["unknown_item"] > came:
        log.unknown = strange
    timed = times != _NO_TIME
    if timed.any():
        dropped["missing_time"] = filter_rows(log, timed)
    else:
        log.order, log.seconds = np.arange(len(times)), None
    return log, users.ids(), came, dropped


def _joined(batches: Iterable[pl.DataFrame], min_rating: float | None) -> Iterator[pl.DataFrame]:
    """Batches of at least READ rows, with the needed columns, the same in each."""
    needed = [c.USER, c.ITEM, c.TIME, *([c.RATING] if min_rating is not None else [])]
    held: list[pl.DataFrame] = []
    schema: pl.Schema | None = None
    for batch in batches:
        for name in needed:
            if name not in batch.columns:
                why = ", which min_rating needs" if name == c.RATING else ""
                raise DataError(f"The log has the columns {', '.join(batch.columns)}, but {name!r} is missing{why}.")
        truth = [name for name in (c.NOISE_MASK, c.CLEAN_ITEM) if name in batch.columns]
        batch = batch.select(*needed, *truth).with_columns(pl.col(c.TIME).cast(pl.Int64))
        schema = schema or batch.schema
        if batch.schema != schema:
            raise DataError(
                f"The parts of the log do not fit together: first {dict(schema)}, then {dict(batch.schema)}. "
                "Give each the same columns and types."
            )
        held.append(batch)
        if sum(map(len, held)) >= READ:
            yield pl.concat(held)
            held = []
    if held:
        yield pl.concat(held)


def _item_numbers(ids: pl.Series, table: pl.DataFrame) -> npt.NDArray[np.int32]:
    expected = table["id"].dtype
    if ids.dtype.is_integer() and expected.is_integer():
        ids = ids.cast(expected, strict=False)
    if ids.dtype != expected and ids.null_count() < len(ids):
        raise DataError(
            f"Item ids have the type {ids.dtype} in the log, and {expected} in the items table. Give both one type."
        )
    return _look_up(ids.cast(expected), table)


def _mask(values: pl.Series) -> BoolArray:
    found = values.unique().to_list()
    if not set(found) <= {0, 1}:
        raise DataError(f"{c.NOISE_MASK!r} of the log holds {found[:5]}; expected 0 or 1 in each row.")
    return values.cast(pl.Boolean).to_numpy()


def filter_rows(log: InteractionLog, kept: BoolArray) -> int:
    """Keep only the rows where `kept` is True, in place; return how many were removed."""
    if kept.all():
        return 0
    timed = log.seconds is not None
    for name in ("users", "items", "order", "noise_mask", "clean_items"):
        column = getattr(log, name)
        setattr(log, name, None if column is None else column[kept])
    log.seconds = log.order if timed else None
    return int((~kept).sum())


def refuse_nothing(log: InteractionLog, name: str, rows_in: int, dropped: dict[str, int], why: str = "") -> None:
    """Raise DataError if no interaction is left, with the reasons; `why` follows them."""
    if not len(log.users):
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items() if count)
        raise DataError(
            f"None of the {rows_in} interaction(s) of {name} can be used. Left out: {reasons or 'none'}. {why}".rstrip()
        )


def merge_titles(log: InteractionLog, titles: pl.Series, titled: BoolArray) -> BoolArray:
    """Replace items by the first item with their title, in place; return [N] where an item is not that first one."""
    rows = titles.alias(c.TITLE).to_frame().with_row_index("row")
    first = rows.select(pl.col("row").first().over(c.TITLE).cast(pl.Int32))["row"].to_numpy()
    log.items = first[log.items]
    if log.clean_items is not None:
        log.clean_items = np.append(first, np.int32(PAD))[log.clean_items]  # PAD stays PAD
    merged: BoolArray = titled & (first != np.arange(len(first)))
    return merged
