"""Histories as people hold them, and the same table or lists again with corrections.

Three forms are taken: lists of item ids, a table with a list `item_ids` in each row, and a long table with an
interaction `user_id, item_id` in each row. Tables are of pandas, Polars or Arrow. What comes back has the form, the
columns and the order of what was given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import BoolArray, IntArray
from llm4dsr.core.hashing import history_ids
from llm4dsr.core.io import as_frame
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.ids import whole_numbers
from llm4dsr.data.times import readable_microseconds
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ConfigError, DataError

WEIGHT: Final = "weight"  # of an interaction, in a long table
LISTS, HISTORIES, INTERACTIONS = "lists", "histories", "interactions"


@dataclass
class Histories:
    """Histories in the form in which they were given.

    Attributes
    ----------
    given : list or table
        What was given; it is never changed.
    form : str
        LISTS, HISTORIES or INTERACTIONS.
    windows : Windows
        The histories to score: known items alone, and at least two of them. Without targets.
    places : array of int
        [n] where each interaction of `windows` is: its row in a long table, else its number among all items.
    lengths : array of int
        [H] items of each list; empty for a long table.
    unknown : int
        Interactions of items that are not in the catalogue, which are left out of `windows`.
    """

    given: Any
    form: str
    windows: Windows
    places: IntArray
    lengths: IntArray
    unknown: int = 0

    @classmethod
    def of(cls, given: Any, catalogue: Catalogue, strict: bool = False) -> Histories:
        """Take histories in any form.

        Parameters
        ----------
        given : list or table
            Lists of item ids, oldest first; a table with `item_ids`, optionally `user_id`; or a long table with
            `user_id, item_id`, optionally `timestamp`. Without it, the order of the rows is that of time.
        catalogue : Catalogue
            The items.
        strict : bool, default False
            Refuse items that are not in the catalogue. Otherwise they are left where they are, and `unknown`.

        Raises
        ------
        DataError
            If a column is missing or of the wrong type.
        """
        lengths = np.empty(0, np.int64)
        if isinstance(given, list | tuple):
            form, users = LISTS, None
            odd = next(
                (history for history in given if isinstance(history, str) or not hasattr(history, "__len__")), None
            )
            if odd is not None:
                raise DataError(f"A history is {odd!r}; expected a list of item ids for each, as in [[1, 2], [3]].")
            lengths = np.array([len(history) for history in given], dtype=np.int64)
            flat = [item for history in given for item in history]
            items = pl.Series(c.ITEM, flat, strict=False)
            owners, places = np.repeat(np.arange(len(lengths)), lengths), np.arange(len(flat))
        else:
            names = [str(name) for name in _names(given)]
            if c.ITEMS in names:
                form, frame = HISTORIES, _columns(given, (c.ITEMS,), (c.USER,))
                if not isinstance(frame[c.ITEMS].dtype, pl.List | pl.Array | pl.Null):
                    raise DataError(f"{c.ITEMS!r} has the type {frame[c.ITEMS].dtype}; expected a list of item ids.")
                lists = frame[c.ITEMS].cast(pl.List(getattr(frame[c.ITEMS].dtype, "inner", pl.Null)))
                lengths = lists.list.len().fill_null(0).cast(pl.Int64).to_numpy()
                items = lists.filter(pl.Series(lengths > 0)).explode().alias(c.ITEM)
                owners, places = np.repeat(np.arange(len(lengths)), lengths), np.arange(len(items))
                users = whole_numbers(frame[c.USER]) if c.USER in frame.columns else None
            elif c.ITEM in names:
                form, frame = INTERACTIONS, _columns(given, (c.USER, c.ITEM), (c.TIME,))
                places, owners, users = _by_user(frame.with_columns(whole_numbers(frame[c.USER])))
                items = frame[c.ITEM].gather(places)
            else:
                raise DataError(
                    f"The table has the columns {', '.join(names)}. Expected {c.ITEMS!r}, a list in each row, or "
                    f"{c.USER!r} and {c.ITEM!r}, an interaction in each row. Rename a column."
                )
        rows = catalogue.index(items, "the histories") if strict else _rows(items, catalogue)
        windows, kept = _windows(rows, owners, users)
        return cls(given, form, windows, places[kept], lengths, int((rows < 0).sum()))

    def corrected(self, edits: pl.DataFrame, action: str) -> Any:
        """Return what was given, with the edits of `windows` applied.

        Parameters
        ----------
        edits : DataFrame
            `window_id, position, action, kept_item_id, noise_probability`, as `denoise.correct` lists them.
        action : str
            What was asked for. "downweight" adds weights also where nothing was flagged.

        Raises
        ------
        ConfigError
            If lists should get weights, which they cannot hold.
        """
        if action == "downweight" and self.form == LISTS:
            raise ConfigError("Lists hold no weights. Give a table, or choose the action drop or replace.")
        at = self.places[self.windows.offsets[edits[c.WINDOW].to_numpy()] + edits[c.POSITION].to_numpy()]
        done = edits[c.ACTION]
        dropped = np.sort(at[(done == "drop").to_numpy()])
        replaced = (done == "replace").to_numpy()
        kept = edits[c.KEPT].filter(pl.Series(replaced)).to_list()
        new = dict(zip(at[replaced].tolist(), kept, strict=True))
        weighted = (done == "downweight").to_numpy()
        weights = None
        if action == "downweight":
            size = int(self.lengths.sum()) if self.form == HISTORIES else len(self.given)
            weights = np.ones(size)
            weights[at[weighted]] = 1 - edits[c.NOISE_PROBABILITY].to_numpy()[weighted]
        if self.form == INTERACTIONS:
            return _corrected_rows(self.given, dropped, new, weights)
        return self._corrected_lists(dropped, new, weights)

    def _corrected_lists(self, dropped: IntArray, new: dict[int, Any], weights: Any) -> Any:
        ends = np.cumsum(self.lengths)
        changed = np.unique(np.searchsorted(ends, [*dropped.tolist(), *new], side="right"))
        gone, lists = set(dropped.tolist()), {}
        given = self.given if self.form == LISTS else _column(self.given, c.ITEMS)
        for row in changed.tolist():
            begin = int(ends[row] - self.lengths[row])
            lists[row] = [
                new.get(begin + i, item) for i, item in enumerate(_as_list(given[row])) if begin + i not in gone
            ]
        if self.form == LISTS:
            return [lists.get(row, history) for row, history in enumerate(self.given)]
        of_rows = None if weights is None else np.split(weights, ends[:-1]) if len(ends) else []
        return _with_lists(self.given, given, lists, of_rows)


def _by_user(frame: pl.DataFrame) -> tuple[IntArray, IntArray, pl.Series]:
    """(Rows with a user, history after history and oldest first; the history of each; the user of each history)."""
    frame = frame.with_row_index("row").filter(pl.col(c.USER).is_not_null())
    by = ["history"]
    if c.TIME in frame.columns:
        if frame.schema[c.TIME] == pl.String:
            frame = frame.with_columns(readable_microseconds(frame[c.TIME], "the histories"))
        by.append(c.TIME)
    frame = frame.with_columns(history=pl.col("row").first().over(c.USER)).sort(by, maintain_order=True)
    users = frame.unique("history", keep="first", maintain_order=True)[c.USER]
    owners = frame["history"].rank("dense").cast(pl.Int64) - 1
    return frame["row"].cast(pl.Int64).to_numpy(), owners.to_numpy(), users


def _windows(rows: IntArray, owners: IntArray, users: pl.Series | None) -> tuple[Windows, IntArray]:
    """(Windows of the histories with two known items or more, places of their interactions among all)."""
    known = np.flatnonzero(rows >= 0)
    size = int(owners.max(initial=-1)) + 1 if users is None else len(users)
    enough = np.bincount(owners[known], minlength=size) >= 2
    kept = known[enough[owners[known]]]
    histories = np.flatnonzero(enough)
    lengths = np.bincount(owners[kept], minlength=size)[histories]
    ids = None if users is None else users.gather(histories)
    if ids is None or ids.null_count():
        own = history_ids(np.split(rows[kept], np.cumsum(lengths)[:-1])[: len(lengths)])
        ids = own if ids is None else ids.cast(pl.String).zip_with(ids.is_not_null(), own)
    windows = Windows(rows[kept], lengths, np.arange(len(lengths)), ids, np.full(len(lengths), -1))
    return windows, kept


def _rows(items: pl.Series, catalogue: Catalogue) -> IntArray:
    """[n] catalogue rows; -1 for items that are not in it."""
    known = pl.DataFrame({"id": catalogue.ids, "row": np.arange(len(catalogue))})
    given = whole_numbers(items)
    if given.dtype != catalogue.ids.dtype:
        if given.dtype.is_integer() != catalogue.ids.dtype.is_integer() and given.null_count() < len(given):
            catalogue.index(given, "the histories")  # says why ids of two types do not match
        given = given.cast(catalogue.ids.dtype, strict=False)
    found = pl.DataFrame({"id": given}).join(known, on="id", how="left", maintain_order="left")
    return found["row"].fill_null(-1).to_numpy()


# --- tables of pandas, Polars and Arrow ------------------------------------------------------------------------------


def is_pandas(table: Any) -> bool:
    """Return whether a table is of pandas, which need not be installed."""
    return type(table).__module__.split(".")[0] == "pandas"


def _names(table: Any) -> Sequence[Any]:
    if isinstance(table, pl.LazyFrame):
        raise DataError("The histories are a LazyFrame. Give them with .collect().")
    if not (is_pandas(table) or isinstance(table, pl.DataFrame) or hasattr(table, "column_names")):
        raise DataError(
            f"The histories are of type {type(table).__name__}; expected lists, or a table of pandas, Polars or Arrow."
        )
    return list(getattr(table, "column_names", getattr(table, "columns", ())))


def _columns(table: Any, needed: tuple[str, ...], optional: tuple[str, ...]) -> pl.DataFrame:
    names = _names(table)
    for name in needed:
        if name not in names:
            raise DataError(f"The histories have the columns {', '.join(map(str, names))}, but {name!r} is missing.")
    wanted = [*needed, *(name for name in optional if name in names)]
    return as_frame(table[wanted] if is_pandas(table) else table.select(wanted), "The histories")


def _column(table: Any, name: str) -> Any:
    """A column whose values are got by their row."""
    return table[name].tolist() if is_pandas(table) else table[name]


def _as_list(value: Any) -> list[Any]:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return []
    value = value.as_py() if hasattr(value, "as_py") else value
    return list(value)


def _corrected_rows(table: Any, dropped: IntArray, new: dict[int, Any], weights: Any) -> Any:
    stay: BoolArray = np.ones(len(table), dtype=bool)
    stay[dropped] = False
    rows, items = list(new), list(new.values())
    if is_pandas(table):
        import pandas as pd

        out = table.copy()
        if rows:
            ids = out[c.ITEM].copy()
            if hasattr(ids, "cat"):
                ids = ids.cat.add_categories([item for item in dict.fromkeys(items) if item not in ids.cat.categories])
            else:
                kind = as_frame(ids.head(0).to_frame(), "The histories")[c.ITEM].dtype
                if holding(kind, items) != kind:  # int8, UInt8 or uint8[pyarrow] → int64, Int64 or int64[pyarrow]
                    ids = ids.astype(re.sub(r"\d+", "64", str(ids.dtype).lstrip("uU")))
            ids.iloc[rows] = pd.array(items, dtype=ids.dtype)
            out[c.ITEM] = ids
        if weights is not None:
            out[WEIGHT] = weights * out[WEIGHT] if WEIGHT in out.columns else weights
        return out[stay]
    frame = as_frame(table, "The histories")
    if rows:
        kind = holding(frame.schema[c.ITEM], items)
        plain = frame[c.ITEM].cast(pl.String if isinstance(kind, pl.Categorical | pl.Enum) else kind)
        changed = plain.scatter(rows, pl.Series(items).cast(plain.dtype))
        frame = frame.with_columns(changed.cast(kind).alias(c.ITEM))
    if weights is not None:
        before = frame[WEIGHT] if WEIGHT in frame.columns else 1.0
        frame = frame.with_columns((pl.Series(WEIGHT, weights) * before).alias(WEIGHT))
    return _like(frame.filter(pl.Series(stay)), table)


def _with_lists(table: Any, given: Any, lists: dict[int, list[Any]], weights: list[Any] | None) -> Any:
    if is_pandas(table):
        import pandas as pd

        out = table.copy()
        values = [
            (_array_like(value, lists[row]) if isinstance(value, np.ndarray) else lists[row]) if row in lists else value
            for row, value in enumerate(given)
        ]
        held = np.empty(len(values), dtype=object)
        held[:] = values
        kind = table[c.ITEMS].dtype
        try:
            out[c.ITEMS] = pd.Series(held, index=table.index, dtype=kind)
        except ValueError as error:  # a type of Arrow
            raise DataError(f"{c.ITEMS!r} has the type {kind}: {error}. Give lists of int64 or of text.") from None
        if weights is not None:
            held = np.empty(len(values), dtype=object)
            held[:] = [part.tolist() for part in _times(weights, table, c.WEIGHTS)]
            out[c.WEIGHTS] = pd.Series(held, index=table.index)
        return out
    frame = as_frame(table, "The histories")
    if lists:
        column = frame[c.ITEMS]
        kind = holding(column.dtype.inner, [item for items in lists.values() for item in items])  # type: ignore[attr-defined]
        new = pl.Series(c.ITEMS, list(lists.values()), dtype=pl.List(kind))
        changed = pl.DataFrame({"row": list(lists), "new": new}, schema_overrides={"row": pl.UInt32})
        joined = (
            frame.select(pl.col(c.ITEMS).cast(new.dtype))
            .with_row_index("row")
            .join(changed, on="row", how="left", maintain_order="left")
        )
        frame = frame.with_columns(
            joined.select(pl.when(pl.col("row").is_in(list(lists))).then("new").otherwise(c.ITEMS)).to_series()
            .alias(c.ITEMS)
        )  # fmt: skip
    if weights is not None:
        rows = [part.tolist() for part in _times(weights, frame, c.WEIGHTS)]
        frame = frame.with_columns(pl.Series(c.WEIGHTS, rows, dtype=pl.List(pl.Float64)))
    return _like(frame, table)


def holding(kind: Any, items: list[Any]) -> Any:
    """Return the Polars type of a column of ids, widened if it cannot hold other ids.

    Examples
    --------
    >>> holding(pl.UInt8, [7, 300]), holding(pl.UInt8, [7])
    (Int64, UInt8)
    """
    if isinstance(kind, pl.Enum):
        known = kind.categories.to_list()
        return pl.Enum(list(dict.fromkeys([*known, *(item for item in items if item is not None)])))
    ids = pl.Series(items)
    if kind.is_numeric() and not ids.cast(kind, strict=False).cast(ids.dtype, strict=False).equals(ids):
        return pl.Int64 if kind.is_integer() else pl.Float64
    return kind


def _array_like(array: Any, items: list[Any]) -> Any:
    """The items as an array of the type of another one, or of a wider type if that cannot hold them."""
    wide = np.array(items)
    same = wide.astype(array.dtype)
    return same if np.array_equal(same, wide) else wide


def _times(weights: list[Any], table: Any, name: str) -> list[Any]:
    """Weights of each row, times those that the table has already."""
    if name not in _names(table):
        return weights
    out = []
    for row, (part, before) in enumerate(zip(weights, _column(table, name), strict=True)):
        known = np.ones(len(part)) if before is None else np.array(_as_list(before), dtype=np.float64)
        if len(known) != len(part):
            raise DataError(f"Row {row} of the histories has {len(part)} item(s) and {len(known)} in {name!r}.")
        out.append(part * known)
    return out


def _like(frame: pl.DataFrame, table: Any) -> Any:
    return frame if isinstance(table, pl.DataFrame) else frame.to_arrow()
