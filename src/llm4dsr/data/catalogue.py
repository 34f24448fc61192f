"""The catalogue: items in a fixed order, and their titles. Everything inside the package names an item by its row."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import PAD, BoolArray, IntArray
from llm4dsr.data.ids import explain_mismatch, whole_numbers
from llm4dsr.errors import DataError

WORD = r"(?u)\w+"  # a word of a title; single letters and any script count
_ORDINARY = r"^[!-%'-~]+(?: [!-%'-~]+)*$"  # printable ASCII without &, words one space apart: tidy as it is
_QUOTES = '["＂]'  # some tokenizers read the wide " as "


def clean_title(title: str) -> str:
    """Clean a title so that it may stand between double quotes in a prompt.

    Entities are unescaped. The result is one line, without `"` and control characters.

    Examples
    --------
    >>> clean_title('Mega  Bloks &quot;Pirates&quot;\\n12 pc')
    "Mega Bloks 'Pirates' 12 pc"
    """
    return re.sub(_QUOTES, "'", _tidy(title))


def clean_titles(titles: pl.Series) -> pl.Series:
    """Clean each title until nothing changes (`&amp;amp;` becomes `&`); null stays null."""
    return tidy_titles(titles).str.replace_all(_QUOTES, "'")


def tidy_titles(titles: pl.Series) -> pl.Series:
    """Clean titles for people to read: as `clean_titles`, but quotes stay as they are."""
    titles = titles.cast(pl.String)
    odd = titles.is_not_null() & ~titles.str.contains(_ORDINARY)
    return titles.scatter(odd.arg_true(), [_steady(title) for title in titles.filter(odd)])


def _tidy(title: str) -> str:
    text = unicodedata.normalize("NFC", html.unescape(title))
    text = "".join(" " if unicodedata.category(ch) in ("Cc", "Cf", "Zl", "Zp", "Cs") else ch for ch in text)
    return re.sub(r"\s+", " ", text).strip()


def _steady(title: str) -> str:
    while (tidy := _tidy(title)) != title:
        title = tidy
    return title


@dataclass
class Catalogue:
    """Items in a fixed order.

    Parameters
    ----------
    ids : Series
        [N] the user's own ids, of any type.
    titles : list of str
        [N] cleaned titles, never empty. Prompts hold them, and titles are compared by them.
    original_titles : list of str, optional
        [N] titles as they were given. Tables hold them. Default: `titles`.
    categories : Series, optional
        [N] category of each item, for reports. No model reads it.

    Attributes
    ----------
    canonical : array of int
        [N] the first row with the same cleaned title. Items with the same title are one suggestion.
    """

    ids: pl.Series
    titles: list[str]
    original_titles: list[str] = field(default_factory=list)
    categories: pl.Series | None = None
    canonical: IntArray = field(init=False)

    def __post_init__(self) -> None:
        self.original_titles = self.original_titles or self.titles
        first: dict[str, int] = {}
        self.canonical = np.array([first.setdefault(t, i) for i, t in enumerate(self.titles)], dtype=np.int64)
        self._others: pl.DataFrame | None = None  # further columns of the items table, for messages
        self._rows = pl.DataFrame({"id": self.ids, "row": np.arange(len(self.ids))})

    def __len__(self) -> int:
        return len(self.titles)

    @classmethod
    def from_frame(cls, items: pl.DataFrame) -> Catalogue:
        """Make a catalogue from a table with `item_id` and `title`.

        Raises
        ------
        DataError
            On missing columns, repeated ids, or empty titles.
        """
        for name in (c.ITEM, c.TITLE):
            if name not in items.columns:
                raise DataError(
                    f"The items table has the columns {', '.join(items.columns)}, but {name!r} is missing. "
                    f"It needs {c.ITEM!r} and {c.TITLE!r}: rename or add the column, or name it:  "
                    f"llm4dsr data prepare DIR --column {name}=NAME  builds the windows."
                )
        if items.is_empty():
            raise DataError("The items table has no rows. Give at least one item with a title.")
        ids = whole_numbers(items[c.ITEM])
        if ids.dtype.is_nested():
            raise DataError(f"{c.ITEM!r} of the items table has the type {ids.dtype}; expected one value in each row.")
        if ids.null_count():
            raise DataError(f"{ids.null_count()} row(s) of the items table have no {c.ITEM!r}. Remove or fill them.")
        repeated = ids.filter(ids.is_duplicated()).unique().head(3).to_list()
        if repeated:
            raise DataError(f"Item ids must be unique in the items table; repeated: {repeated}. Keep one row per item.")
        originals = [t if isinstance(t, str) else "" for t in items[c.TITLE].to_list()]
        titles = clean_titles(pl.Series(originals, dtype=pl.String)).to_list()
        empty = [key for key, t in zip(ids.to_list(), titles, strict=True) if not t]
        if empty:
            raise DataError(
                f"{len(empty)} item(s) have no title, for example {c.ITEM} {empty[:3]}. The method reads titles: "
                "give each item one, or remove these items and their interactions."
            )
        categories = items[c.CATEGORY] if c.CATEGORY in items.columns else None
        out = cls(ids, titles, originals, None if categories is None or categories.dtype.is_nested() else categories)
        out._others = items.drop(c.ITEM, c.TITLE)
        return out

    def filter(self, kept: BoolArray) -> Catalogue:
        """Return the catalogue of the items where `kept` [N] is True."""
        titles, originals = (
            [titles[row] for row in np.flatnonzero(kept)] for titles in (self.titles, self.original_titles)
        )
        categories = None if self.categories is None else self.categories.filter(kept)
        return Catalogue(self.ids.filter(kept), titles, originals, categories)

    def extended(self, items: Catalogue) -> Catalogue:
        """Return a catalogue with those of `items` that this one lacks at its end.

        Parameters
        ----------
        items : Catalogue
            Ids are of this catalogue's type. Items that are known, with the same cleaned title, are left out.

        Raises
        ------
        DataError
            If the ids are of another type, or an id is known with another title.
        """
        if items.ids.dtype != self.ids.dtype and not (items.ids.dtype.is_integer() and self.ids.dtype.is_integer()):
            raise DataError(
                f"The ids of the new items are of the type {items.ids.dtype}; those of the catalogue are "
                f"{self.ids.dtype}. Write both with one type."
            )
        ids = items.ids.cast(self.ids.dtype, strict=False)
        if ids.null_count():
            wrong = items.ids.filter(ids.is_null()).head(3).to_list()
            raise DataError(f"The new item ids {wrong} are out of the range of the catalogue's type, {ids.dtype}.")
        rows = pl.DataFrame({"id": ids}).join(self._rows, on="id", how="left", maintain_order="left")["row"]
        changed = [i for i, row in enumerate(rows) if row is not None and self.titles[row] != items.titles[i]]
        if changed:
            known, given = self.titles[rows[changed[0]]], items.titles[changed[0]]
            raise DataError(
                f"{len(changed)} of the new items are known with another title, for example {c.ITEM} "
                f"{ids[changed[0]]!r}: {known!r}, not {given!r}. Give a new item an id of its own, or leave these out; "
                "training takes new titles."
            )
        new = items.filter(rows.is_null().to_numpy())
        categories = self.categories
        if categories is not None:
            more = pl.Series(categories.name, [None] * len(new), dtype=categories.dtype)
            if new.categories is not None:
                more = new.categories.cast(categories.dtype, strict=False).alias(categories.name)
            categories = pl.concat([categories, more])
        ids = pl.concat([self.ids, new.ids.cast(self.ids.dtype).alias(self.ids.name)])
        originals = [*self.original_titles, *new.original_titles]
        return Catalogue(ids, [*self.titles, *new.titles], originals, categories)

    def index(self, ids: pl.Series | Sequence[Any], where: str = "a history") -> IntArray:
        """Find the rows of item ids.

        Parameters
        ----------
        ids : Series or sequence
            n ids.
        where : str
            Their source, for messages.

        Returns
        -------
        array of int
            [n] rows.

        Raises
        ------
        DataError
            Names ids that are not in the catalogue.
        """
        given = whole_numbers(ids if isinstance(ids, pl.Series) else _as_series(ids, self.ids.dtype))
        if given.dtype.is_nested():
            raise DataError(f"Item ids in {where} are lists or records; expected one value each.")
        if not len(given):
            return np.empty(0, dtype=np.int64)
        alike = given.dtype == self.ids.dtype or (given.dtype.is_integer() and self.ids.dtype.is_integer())
        rows = pl.Series([None] * len(given), dtype=pl.Int64)
        if alike:
            rows = pl.DataFrame({"id": given}).join(self._rows, on="id", how="left", maintain_order="left")["row"]
        if rows.null_count():
            unknown = sorted(given.filter(rows.is_null()).unique().to_list(), key=repr)
            advice = "Add them to the items table, or remove these interactions."
            if 2 * rows.null_count() > len(rows) and given.null_count() < len(given):
                advice = explain_mismatch(given.filter(rows.is_null()), self.ids, where, self._others)
            raise DataError(
                f"{len(unknown)} item id(s) in {where} are not in the items table, for example {unknown[:3]} "
                f"(of type {type(unknown[0]).__name__}; the items table has {self.ids.dtype}). "
                f"{advice}"
            )
        return rows.to_numpy()

    def index_or_pad(self, ids: pl.Series, where: str) -> IntArray:
        """Find the rows of item ids; PAD for null, where the known truth is that no item belongs."""
        known = ids.is_not_null().to_numpy()
        rows = np.full(len(ids), PAD, dtype=np.int64)
        rows[known] = self.index(ids.drop_nulls(), where)
        return rows

    def ids_of(self, rows: IntArray) -> pl.Series:
        """Return the ids of rows; null for -1."""
        known = pl.Series(rows >= 0)
        return pl.select(pl.when(known).then(self.ids.gather(np.where(rows >= 0, rows, 0)))).to_series()

    def titles_of(self, rows: IntArray) -> pl.Series:
        """Return the titles of rows as they were given; null for -1."""
        return pl.Series([self.original_titles[row] if row >= 0 else None for row in rows], dtype=pl.String)

    def to_frame(self) -> pl.DataFrame:
        """Return the table `item_id, title, canonical_id`, with titles as they were given, and `category` if known."""
        columns = {c.ITEM: self.ids, c.TITLE: self.original_titles, c.CANONICAL: self.ids.gather(self.canonical)}
        return pl.DataFrame(columns | ({} if self.categories is None else {c.CATEGORY: self.categories}))


def _as_series(ids: Sequence[Any], dtype: pl.DataType) -> pl.Series:
    """A series of the items' type if all ids are of it, else of their own."""
    try:
        return pl.Series(ids, dtype=dtype, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        return pl.Series(ids, strict=False)
