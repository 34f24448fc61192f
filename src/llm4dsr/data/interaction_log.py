"""An interaction log as columns of numbers, read in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import BoolArray
from llm4dsr.errors import DataError

if TYPE_CHECKING:
    from llm4dsr.core.progress import Progress

Ints = npt.NDArray[np.integer[Any]]

READ: Final = 500_000  # rows that are turned into numbers at once
_STRANGE: Final = 1_000  # unknown ids that are kept, to tell why they do not match


@dataclass
class InteractionLog:
    """Interactions as columns, one entry per row of the log.

    Attributes
    ----------
    users : array of int
        [N] number of the user: the row of the log where it appears first.
    items : array of int
        [N] catalogue rows.
    order : array
        [N] sort key of a user's interactions; equal keys keep their order.
    seconds : array of int or None
        [N] seconds since 1970; None if unknown.
    noise_mask, clean_items : array or None
        [N] the known truth, if any; PAD where an item was inserted.
    """

    users: Ints
    items: Ints
    order: npt.NDArray[Any]
    seconds: Ints | None
    noise_mask: BoolArray | None = None
    clean_items: Ints | None = None

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns that are known, by name."""
        return {name: column for name, column in vars(self).items() if column is not None}

    def take(self, rows: npt.NDArray[Any]) -> InteractionLog:
        """Return the log with these rows only, given by number or as a mask."""
        if rows.dtype == bool and rows.all():
            return self
        found: dict[str, Any] = {name: column[rows] for name, column in self.columns().items()}
        return InteractionLog(**{"seconds": None, **found})


@dataclass
class ReadLog:
    """What is known of a log once it was read, besides its rows.

    Attributes
    ----------
    rows_in, rows_left : int
        Rows of the batches, and those that were not dropped.
    dropped : dict of str to int
        Rows that were dropped, by reason.
    is_timed : bool
        Whether any row has a time; rows without one are then dropped.
    seen : array of bool
        [n_items] True for an item that a row has, as its item or as its truth.
    unknown : Series or None
        Some of the item ids that are not in the catalogue, if those of most rows are not.
    """

    rows_in: int
    rows_left: int
    dropped: dict[str, int]
    is_timed: bool
    seen: BoolArray
    unknown: pl.Series | None


def item_table(items: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return (one row for each item id, rows of the table without id or with a repeated one, by reason)."""
    for name in (c.ITEM, c.TITLE):
        if name not in items.columns:
            raise DataError(f"The items table has the columns {', '.join(items.columns)}, but {name!r} is missing.")
    known = items.select(c.ITEM, c.TITLE).filter(pl.col(c.ITEM).is_not_null())
    once = known.unique(c.ITEM, keep="first", maintain_order=True)
    return once, {"missing_id": len(items) - len(known), "repeated_id": len(known) - len(once)}


def look_up(ids: pl.Series, table: pl.DataFrame) -> Ints:
    """Return [N] the number in the second column of a table, for each id in its first one; -1 if the table lacks it."""
    name, number = table.columns
    found = ids.alias(name).to_frame().join(table, on=name, how="left", maintain_order="left")[number]
    return found.fill_null(-1).to_numpy()


def read_log(
    batches: Iterable[pl.DataFrame],
    item_ids: pl.Series,
    min_rating: float | None,
    tell: Progress,
    keep: Callable[[pl.DataFrame], None],
) -> ReadLog:
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
    keep : callable
        Called with the rows that are left of each batch, for `to_log`: user ids, numbers of rows and items, times in
        microseconds.

    Returns
    -------
    ReadLog

    Raises
    ------
    DataError
        If the log is empty or a column is missing or of the wrong type.
    """
    table = pl.DataFrame({"id": item_ids, "number": np.arange(len(item_ids), dtype=np.int32)})
    came = left = with_time = 0
    dropped = {"missing_value": 0, "unknown_item": 0}
    strange = item_ids.clear()
    seen, seen_with_time = np.zeros((2, len(item_ids)), dtype=bool)
    for batch in _joined(batches, min_rating):
        item = _item_numbers(batch[c.ITEM], table)
        gone = (batch[c.USER].is_null() | batch[c.ITEM].is_null()).to_numpy()
        dropped["missing_value"] += int(gone.sum())
        dropped["unknown_item"] += int((~gone & (item < 0)).sum())
        if len(strange) < _STRANGE:
            strange = pl.concat([strange, batch[c.ITEM].cast(item_ids.dtype).filter(~gone & (item < 0))])
            strange = strange.unique(maintain_order=True)
        gone |= item < 0
        truth: dict[str, npt.NDArray[Any]] = {}
        if c.CLEAN_ITEM in batch.columns:
            clean = _item_numbers(batch[c.CLEAN_ITEM], table)
            unknown = (clean < 0) & batch[c.CLEAN_ITEM].is_not_null().to_numpy()  # null: the item was inserted
            dropped["unknown_clean_item"] = dropped.get("unknown_clean_item", 0) + int((~gone & unknown).sum())
            gone |= unknown
            truth = {c.CLEAN_ITEM: clean, c.NOISE_MASK: item != clean}
        if c.NOISE_MASK in batch.columns:
            truth[c.NOISE_MASK] = _mask(batch[c.NOISE_MASK])
        if min_rating is not None:
            low = ~(batch[c.RATING].cast(pl.Float64) >= min_rating).fill_null(False).to_numpy()
            dropped["low_rating"] = dropped.get("low_rating", 0) + int((~gone & low).sum())
            gone |= low
        rows = pl.DataFrame({c.USER: batch[c.USER], c.ITEM: item, c.TIME: batch[c.TIME], **truth}).filter(~gone)
        rows = rows.with_columns(_row=pl.int_range(left, left + len(rows), dtype=pl.Int64))
        for known, some in ((seen, rows), (seen_with_time, rows.filter(pl.col(c.TIME).is_not_null()))):
            for name in (c.ITEM, c.CLEAN_ITEM):
                if name in truth or name == c.ITEM:
                    known[some[name].filter(some[name] >= 0).to_numpy()] = True
        keep(rows)
        left += len(rows)
        with_time += len(rows) - rows[c.TIME].null_count()
        came += len(batch)
        tell(came, 0, "read interactions")
    if with_time:
        dropped["missing_time"], left, seen = left - with_time, with_time, seen_with_time
    return ReadLog(came, left, dropped, with_time > 0, seen, strange if 2 * dropped["unknown_item"] > came else None)


def to_log(rows: pl.DataFrame, is_timed: bool) -> tuple[InteractionLog, pl.DataFrame]:
    """Return (rows as a log, their users as a table `user_id, number`, in order of the numbers).

    Parameters
    ----------
    rows : DataFrame
        From `read_log`, all rows of each of the users.
    is_timed : bool
        True drops rows without time; False takes the order of the log.
    """
    rows = rows.with_columns(_user=pl.col("_row").first().over(c.USER))
    users = rows.filter(pl.col("_user") == pl.col("_row")).select(c.USER, number="_row")
    if is_timed:
        rows = rows.filter(pl.col(c.TIME).is_not_null())
    order = rows[c.TIME if is_timed else "_row"].to_numpy()
    truth = (rows[name].to_numpy() if name in rows.columns else None for name in (c.NOISE_MASK, c.CLEAN_ITEM))
    seconds = order // 10**6 if is_timed else None
    return InteractionLog(rows["_user"].to_numpy(), rows[c.ITEM].to_numpy(), order, seconds, *truth), users


def _joined(batches: Iterable[pl.DataFrame], min_rating: float | None) -> Iterator[pl.DataFrame]:
    """Batches of at least READ rows, with the needed columns, the same in each."""
    needed = [c.USER, c.ITEM, c.TIME, *([c.RATING] if min_rating is not None else [])]
    held: list[pl.DataFrame] = []
    schema: pl.Schema | None = None
    for batch in batches:
        for name in needed:
            if name not in batch.columns:
                why = ", which min_rating needs. Name it with --column rating=NAME (in Python, with columns)"
                raise DataError(
                    f"The log has the columns {', '.join(batch.columns)}, but {name!r} is missing"
                    f"{why if name == c.RATING else ''}."
                )
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


def _item_numbers(ids: pl.Series, table: pl.DataFrame) -> Ints:
    expected = table["id"].dtype
    if ids.dtype.is_integer() and expected.is_integer():
        ids = ids.cast(expected, strict=False)
    if ids.dtype != expected and ids.null_count() < len(ids):
        raise DataError(
            f"Item ids have the type {ids.dtype} in the log, and {expected} in the items table. Give both one type."
        )
    return look_up(ids.cast(expected), table)


def _mask(values: pl.Series) -> BoolArray:
    found = values.unique().to_list()
    if not set(found) <= {0, 1}:
        raise DataError(f"{c.NOISE_MASK!r} of the log holds {found[:5]}; expected 0 or 1 in each row.")
    return values.cast(pl.Boolean).to_numpy()


def refuse_nothing(left: int, name: str, rows_in: int, dropped: dict[str, int], why: str = "") -> None:
    """Raise DataError if no interaction is left, with the reasons; `why` follows them."""
    if not left:
        reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items() if count)
        raise DataError(
            f"None of the {rows_in} interaction(s) of {name} can be used. Left out: {reasons or 'none'}. {why}".rstrip()
        )


def first_with_title(titles: pl.Series) -> npt.NDArray[np.int32]:
    """Return [n_items] the first catalogue row with the same title."""
    rows = titles.alias(c.TITLE).to_frame().with_row_index("row")
    return rows.select(pl.col("row").first().over(c.TITLE).cast(pl.Int32))["row"].to_numpy()
