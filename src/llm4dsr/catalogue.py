"""The catalogue (items and their titles) and windows as integer matrices: what every stage computes on."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from llm4dsr import columns as c
from llm4dsr.errors import DataError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

PAD = -1  # fills the end of a row of `Windows.items`
_ORDINARY = r"^[!#-%'-~]+(?: [!#-%'-~]+)*$"  # printable ASCII without " and &, words one space apart: clean as it is


def clean_title(title: str) -> str:
    """Title as it may stand between double quotes in a prompt.

    Entities are undone; it has one line, no `"` and no control characters.

    >>> clean_title('Mega  Bloks &quot;Pirates&quot;\\n12 pc')
    "Mega Bloks 'Pirates' 12 pc"
    """
    text = unicodedata.normalize("NFC", html.unescape(title))
    text = "".join(" " if unicodedata.category(ch) in ("Cc", "Cf", "Zl", "Zp", "Cs") else ch for ch in text)
    return re.sub(r"\s+", " ", re.sub('["＂]', "'", text)).strip()  # some tokenizers read the wide " as "


def clean_titles(titles: pl.Series) -> pl.Series:
    """`clean_title` for each, again and again until it changes nothing more (`&amp;amp;` is `&` then); null stays."""
    titles = titles.cast(pl.String)
    odd = titles.is_not_null() & ~titles.str.contains(_ORDINARY)
    return titles.scatter(odd.arg_true(), [_steady(title) for title in titles.filter(odd)])


def _steady(title: str) -> str:
    while (clean := clean_title(title)) != title:
        title = clean
    return title


@dataclass
class Catalogue:
    """Items in a fixed order. Everything inside the package speaks of an item by its row number here (`index`).

    ids: the user's own ids, any type that Polars holds. titles: cleaned, never empty.
    canonical: [N] row number of the first item with the same title; two items with one title are one suggestion.
    """

    ids: pl.Series
    titles: list[str]
    canonical: IntArray = field(init=False)

    def __post_init__(self) -> None:
        first: dict[str, int] = {}
        self.canonical = np.array([first.setdefault(t, i) for i, t in enumerate(self.titles)], dtype=np.int64)
        self._rows = pl.DataFrame({"id": self.ids, "row": np.arange(len(self.ids))})

    def __len__(self) -> int:
        return len(self.titles)

    @classmethod
    def from_frame(cls, items: pl.DataFrame) -> Catalogue:
        """From a table with `item_id` and `title`. Raises DataError on missing columns, repeats or empty titles."""
        for name in (c.ITEM, c.TITLE):
            if name not in items.columns:
                raise DataError(
                    f"The items table has the columns {items.columns}, but {name!r} is missing. "
                    f"It needs {c.ITEM!r} and {c.TITLE!r}: rename or add the column."
                )
        if items.is_empty():
            raise DataError("The items table has no rows. Give at least one item with a title.")
        ids = items[c.ITEM]
        if ids.dtype.is_nested():
            raise DataError(f"{c.ITEM!r} of the items table has the type {ids.dtype}; expected one value in each row.")
        if ids.null_count():
            raise DataError(f"{ids.null_count()} row(s) of the items table have no {c.ITEM!r}. Remove or fill them.")
        repeated = ids.filter(ids.is_duplicated()).unique().head(3).to_list()
        if repeated:
            raise DataError(f"Item ids must be unique in the items table; repeated: {repeated}. Keep one row per item.")
        titles = [clean_title(t) if isinstance(t, str) else "" for t in items[c.TITLE].to_list()]
        empty = [key for key, t in zip(ids.to_list(), titles, strict=True) if not t]
        if empty:
            raise DataError(
                f"{len(empty)} item(s) have no title, for example {c.ITEM} {empty[:3]}. The method reads titles: "
                "give each item one, or remove these items and their interactions."
            )
        return cls(ids, titles)

    def index(self, ids: pl.Series | Sequence[Any], where: str = "a history") -> IntArray:
        """Row numbers of ids. Raises DataError that names the unknown ones."""
        given = ids if isinstance(ids, pl.Series) else _as_series(ids, self.ids.dtype)
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
            raise DataError(
                f"{len(unknown)} item id(s) in {where} are not in the items table, for example {unknown[:3]} "
                f"(of type {type(unknown[0]).__name__}; the items table has {self.ids.dtype}). "
                "Add them to the items table, or remove these interactions."
            )
        return rows.to_numpy()

    def index_or_pad(self, ids: pl.Series, where: str) -> IntArray:
        """[N] row numbers of ids, PAD for null: in a known truth no item belongs where one was inserted."""
        known = ids.is_not_null().to_numpy()
        rows = np.full(len(ids), PAD, dtype=np.int64)
        rows[known] = self.index(ids.drop_nulls(), where)
        return rows

    def ids_of(self, rows: IntArray) -> pl.Series:
        """The user's ids of catalogue rows; null for -1."""
        known = pl.Series(rows >= 0)
        return pl.select(pl.when(known).then(self.ids.gather(np.where(rows >= 0, rows, 0)))).to_series()

    def titles_of(self, rows: IntArray) -> pl.Series:
        """Titles of catalogue rows; null for -1."""
        return pl.Series([self.titles[row] if row >= 0 else None for row in rows], dtype=pl.String)

    def to_frame(self) -> pl.DataFrame:
        return pl.DataFrame({c.ITEM: self.ids, c.TITLE: self.titles, c.CANONICAL: self.ids.gather(self.canonical)})


def _as_series(ids: Sequence[Any], dtype: pl.DataType) -> pl.Series:
    """Of the items' type where all ids are of it, else of their own."""
    try:
        return pl.Series(ids, dtype=dtype, strict=True)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        return pl.Series(ids, strict=False)


@dataclass
class Windows:
    """Windows as a right-padded matrix.

    items: [W, L] catalogue rows, oldest first, PAD at the end. lengths: [W]. window_ids, user_ids: [W].
    noise_mask [W, L] and clean_items [W, L]: the known truth where there is one, for measuring only; PAD where no item
    belongs (an inserted one stands there).
    weights: [W, L] in [0, 1], or None (all 1). timestamps: [W], -1 = unknown.
    """

    items: IntArray
    lengths: IntArray
    window_ids: IntArray
    user_ids: pl.Series
    timestamps: IntArray
    noise_mask: BoolArray | None = None
    clean_items: IntArray | None = None
    weights: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def present(self) -> BoolArray:
        """[W, L] True where there is an item."""
        return np.arange(self.items.shape[1])[None, :] < self.lengths[:, None]

    def row(self, index: int) -> list[int]:
        """Catalogue rows of one window, oldest first, without padding."""
        items: list[int] = self.items[index, : self.lengths[index]].tolist()
        return items

    def take(self, rows: npt.NDArray[Any]) -> Windows:
        def pick(a: Any) -> Any:
            return None if a is None else a[rows]

        return Windows(
            self.items[rows], self.lengths[rows], self.window_ids[rows], self.user_ids.gather(rows),
            self.timestamps[rows], pick(self.noise_mask), pick(self.clean_items), pick(self.weights),
        )  # fmt: skip

    def histories(self) -> Windows:
        """The same windows without their target (the last item)."""
        lengths = self.lengths - 1
        gone = np.arange(self.items.shape[1])[None, :] >= lengths[:, None]

        def cut(a: Any, fill: Any) -> Any:
            return None if a is None else np.where(gone, fill, a)[:, :-1]

        return Windows(
            cut(self.items, PAD), lengths, self.window_ids, self.user_ids, self.timestamps,
            cut(self.noise_mask, False), cut(self.clean_items, PAD), cut(self.weights, 1.0),
        )  # fmt: skip

    def targets(self) -> IntArray:
        """[W] the last item of each window."""
        out: IntArray = self.items[np.arange(len(self)), self.lengths - 1]
        return out

    @classmethod
    def from_lists(cls, rows: Sequence[npt.NDArray[Any] | Sequence[int]], **columns: Any) -> Windows:
        """From ragged rows of catalogue row numbers; ids default to 0, 1, 2, …"""
        lengths = np.array([len(r) for r in rows], dtype=np.int64)
        size = len(rows)
        defaults: dict[str, Any] = {
            "window_ids": np.arange(size), "user_ids": pl.Series(c.USER, np.arange(size)),
            "timestamps": np.full(size, -1),
        }  # fmt: skip
        return cls(pad(rows, PAD), lengths, **{**defaults, **columns})

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, catalogue: Catalogue, where: str = "the windows") -> Windows:
        """From a table with `window_id, user_id, item_ids` and, if known, `timestamp, noise_mask, clean_item_ids`.

        Raises DataError on missing columns, empty histories, histories of one item and unknown item ids.
        """
        for name in (c.WINDOW, c.USER, c.ITEMS):
            if name not in frame.columns:
                raise DataError(f"{where} has the columns {frame.columns}, but {name!r} is missing.")
        if not isinstance(frame[c.ITEMS].dtype, pl.List):
            raise DataError(
                f"{c.ITEMS!r} in {where} has the type {frame[c.ITEMS].dtype}; "
                "expected a list of item ids, oldest first."
            )
        lengths = frame[c.ITEMS].list.len().fill_null(0).cast(pl.Int64).to_numpy()
        for count, name in ((0, "an empty history"), (1, "a history of one item")):
            bad = frame[c.WINDOW].filter(pl.Series(lengths == count)).to_list()
            if bad:
                raise DataError(
                    f"{len(bad)} window(s) of {where} have {name}, for example {c.WINDOW} {bad[:3]}. A window needs a "
                    "history and a target: at least two items. Remove these windows."
                )
        flat = catalogue.index(frame[c.ITEMS].explode(), where)
        present = np.arange(int(lengths.max(initial=0)))[None, :] < lengths[:, None]

        def spread(values: npt.NDArray[Any], fill: Any) -> npt.NDArray[Any]:
            out = np.full(present.shape, fill, dtype=values.dtype)
            out[present] = values
            return out

        def optional(name: str) -> pl.Series | None:
            if name not in frame.columns or frame[name].null_count():
                return None
            if not (frame[name].list.len().to_numpy() == lengths).all():
                raise DataError(f"{name!r} in {where} must have as many entries per window as {c.ITEMS!r}.")
            return frame[name].explode()

        mask, clean, weights = optional(c.NOISE_MASK), optional(c.CLEAN_ITEMS), optional(c.WEIGHTS)
        return cls(
            items=spread(flat, PAD),
            lengths=lengths,
            window_ids=frame[c.WINDOW].cast(pl.Int64).to_numpy(),
            user_ids=frame[c.USER],
            timestamps=frame[c.TIME].cast(pl.Int64).to_numpy() if c.TIME in frame.columns else np.full(len(frame), -1),
            noise_mask=None if mask is None else spread(mask.cast(pl.Int64).to_numpy().astype(bool), False),
            clean_items=None if clean is None else spread(catalogue.index_or_pad(clean, where), PAD),
            weights=None if weights is None else spread(weights.cast(pl.Float64).to_numpy(), 1.0),
        )

    def to_frame(self, catalogue: Catalogue) -> pl.DataFrame:
        """Back to the table of `from_frame`, with the user's own ids."""
        present = self.present

        def lists(values: pl.Series) -> pl.Series:
            offsets = np.repeat(np.arange(len(self)), self.lengths)
            grouped = pl.DataFrame({"row": offsets, "v": values}).group_by("row", maintain_order=True).agg("v")
            whole = pl.DataFrame({"row": np.arange(len(self))}).join(
                grouped, on="row", how="left", maintain_order="left"
            )
            return whole["v"].fill_null(pl.lit([], dtype=whole["v"].dtype))

        data: dict[str, Any] = {
            c.WINDOW: self.window_ids, c.USER: self.user_ids,
            c.ITEMS: lists(catalogue.ids.gather(self.items[present])), c.TIME: self.timestamps,
        }  # fmt: skip
        if self.noise_mask is not None:
            data[c.NOISE_MASK] = lists(pl.Series(self.noise_mask[present].astype(np.int8)))
        if self.clean_items is not None:
            data[c.CLEAN_ITEMS] = lists(catalogue.ids_of(self.clean_items[present]))
        if self.weights is not None:
            data[c.WEIGHTS] = lists(pl.Series(self.weights[present]))
        return pl.DataFrame(data)


def pad(rows: Sequence[npt.NDArray[Any] | Sequence[int]], fill: int) -> IntArray:
    """[len(rows), longest] right-padded."""
    out = np.full((len(rows), max((len(r) for r in rows), default=0)), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
