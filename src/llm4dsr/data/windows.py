"""Windows: histories with their target, as offsets and values that every stage computes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from llm4dsr import columns as c
from llm4dsr.core.arrays import PAD, BoolArray, FloatArray, IntArray, ranges
from llm4dsr.core.hashing import history_ids
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.errors import DataError


@dataclass
class Windows:
    """W windows with n interactions, one window after another.

    Memory is proportional to n. `matrix` pads values for a batch of windows.

    Attributes
    ----------
    items : array of int
        [n] catalogue rows, oldest first in each window.
    lengths : array of int
        [W] items of each window.
    window_ids : array of int
        [W].
    user_ids : Series
        [W].
    timestamps : array of int
        [W] time of the target in seconds; -1 = unknown.
    noise_mask : array of bool or None
        [n] the known truth, for measuring only.
    clean_items : array of int or None
        [n] what belongs there; PAD where an item was inserted.
    weights : array of float or None
        [n] in [0, 1]; None = all 1.
    width : int
        Columns of `matrix`; at least, and by default, the items of the longest window. Windows that are taken keep it,
        so that no number depends on the batch: sums of padded rows differ in their last digits if the padding does.
    """

    items: IntArray
    lengths: IntArray
    window_ids: IntArray
    user_ids: pl.Series
    timestamps: IntArray
    noise_mask: BoolArray | None = None
    clean_items: IntArray | None = None
    weights: FloatArray | None = None
    width: int = 0

    def __post_init__(self) -> None:
        self.width = max(self.width, int(self.lengths.max(initial=0)))
        size = int(self.lengths.sum())
        for name in ("items", "noise_mask", "clean_items", "weights"):
            values = getattr(self, name)
            if values is not None and values.shape != (size,):
                raise DataError(f"{name} has the shape {values.shape}; expected {size} values, one per interaction.")

    def __len__(self) -> int:
        return len(self.lengths)

    @cached_property
    def offsets(self) -> IntArray:
        """[W + 1] where each window begins in `items`, and the end of the last."""
        return np.append(0, np.cumsum(self.lengths))

    @property
    def owners(self) -> IntArray:
        """[n] the window of each interaction, as a row from 0 to W - 1."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @property
    def positions(self) -> IntArray:
        """[n] position of each interaction in its window, 0 = oldest."""
        return ranges(np.zeros_like(self.lengths), self.lengths)

    @property
    def is_last(self) -> BoolArray:
        """[n] True for the last interaction of each window."""
        return np.asarray(self.positions == np.repeat(self.lengths, self.lengths) - 1)

    def interactions(self, rows: npt.NDArray[Any]) -> IntArray:
        """Return the indices into `items` of the windows at these rows, window after window."""
        return ranges(self.offsets[:-1][rows], self.lengths[rows])

    @property
    def present(self) -> BoolArray:
        """[W, width] True where a padded matrix has an item. For batches."""
        return np.arange(self.width)[None, :] < self.lengths[:, None]

    def matrix(self, values: npt.NDArray[Any], fill: Any) -> npt.NDArray[Any]:
        """Pad values [n] to a matrix [W, width]; `matrix[windows.present]` are the values again. For batches."""
        out = np.full((len(self), self.width), fill, dtype=values.dtype)
        out[self.present] = values
        return out

    @property
    def item_matrix(self) -> IntArray:
        """[W, width] the items, padded with PAD. For batches."""
        return self.matrix(self.items, PAD)

    def batches(self, cells: int) -> Iterator[tuple[slice, Windows]]:
        """Yield windows in their order, as many at a time as make matrices of at most `cells` entries; at least one.

        Yields
        ------
        here : slice
            Of the interactions of the batch among all.
        batch : Windows
            B windows; none if there are none at all.
        """
        size = max(1, cells // max(1, self.width))
        for start in range(0, max(1, len(self)), size):
            end = min(start + size, len(self))
            yield slice(self.offsets[start], self.offsets[end]), self.take(np.arange(start, end))

    def row(self, index: int) -> list[int]:
        """Return the catalogue rows of one window."""
        items: list[int] = self.items[self.offsets[index] : self.offsets[index + 1]].tolist()
        return items

    def have_title(self, rows: IntArray, items: IntArray, catalogue: Catalogue) -> BoolArray:
        """Tell whether windows hold a title.

        Parameters
        ----------
        rows : array of int
            [F] windows.
        items : array of int
            [F] catalogue rows.
        catalogue : Catalogue
            The items.

        Returns
        -------
        array of bool
            [F] True where the window has an item with the title of the other one.
        """
        asked, at = np.unique(rows, return_inverse=True)
        some, size = self.take(asked), len(catalogue)
        held = some.owners * size + catalogue.canonical[some.items]
        return np.isin(at * size + catalogue.canonical[items], held)

    def truth(self) -> BoolArray:
        """Return the noise mask. Raises DataError if it is not known."""
        if self.noise_mask is None:
            raise DataError(f"These windows have no {c.NOISE_MASK!r}, so their noise is not known. Add the column.")
        return self.noise_mask

    def true_items(self) -> IntArray:
        """Return the clean items. Raises DataError if they are not known."""
        if self.clean_items is None:
            raise DataError(
                f"These windows have no {c.CLEAN_ITEMS!r}, so what belongs there instead of noise is not known."
            )
        return self.clean_items

    def take(self, rows: npt.NDArray[Any]) -> Windows:
        """Return the windows at these rows."""
        return self.cut(rows, self.lengths[rows], self.interactions(rows), self.width)

    def histories(self) -> Windows:
        """Return the windows without their target (the last item)."""
        kept = np.flatnonzero(~self.is_last)
        return self.cut(np.arange(len(self)), np.maximum(self.lengths - 1, 0), kept, self.width - 1)

    def cut(self, rows: npt.NDArray[Any], lengths: IntArray, interactions: IntArray, width: int = 0) -> Windows:
        """Return windows with some of the interactions of these.

        Parameters
        ----------
        rows : array of int
            [V] the window that each of V windows is made from.
        lengths : array of int
            [V] items of each.
        interactions : array of int
            Indices into `items` of their interactions, window after window.
        width : int, default 0
            Columns of `matrix`, if more than the longest.
        """

        def pick(a: Any) -> Any:
            return None if a is None else a[interactions]

        return Windows(
            self.items[interactions], lengths, self.window_ids[rows], self.user_ids.gather(rows),
            self.timestamps[rows], pick(self.noise_mask), pick(self.clean_items), pick(self.weights), width,
        )  # fmt: skip

    def targets(self) -> IntArray:
        """Return [W] the last item of each window."""
        out: IntArray = self.items[self.offsets[1:] - 1]
        return out

    @classmethod
    def from_lists(cls, rows: Sequence[npt.NDArray[Any] | Sequence[int]], **columns: Any) -> Windows:
        """Make windows from lists of catalogue rows.

        Window ids default to 0, 1, 2, …, and user ids to those of `history_ids`, which no real user has.
        """
        lengths = np.array([len(r) for r in rows], dtype=np.int64)
        size = len(rows)
        defaults: dict[str, Any] = {
            "window_ids": np.arange(size), "user_ids": history_ids(rows), "timestamps": np.full(size, -1),
        }  # fmt: skip
        items = np.concatenate([np.empty(0, np.int64), *(np.asarray(r, dtype=np.int64) for r in rows)])
        return cls(items, lengths, **{**defaults, **columns})

    @classmethod
    def from_frame(cls, frame: pl.DataFrame, catalogue: Catalogue, where: str = "the windows") -> Windows:
        """Make windows from a table.

        Parameters
        ----------
        frame : DataFrame
            `window_id, user_id, item_ids`, and if known `timestamp, noise_mask, clean_item_ids, weights`.
        catalogue : Catalogue
            The items.
        where : str
            The source, for messages.

        Raises
        ------
        DataError
            On missing columns, windows of fewer than two items, or unknown item ids.
        """
        for name in (c.WINDOW, c.USER, c.ITEMS):
            if name not in frame.columns:
                raise DataError(f"{where} has the columns {', '.join(frame.columns)}, but {name!r} is missing.")
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

        def optional(name: str) -> pl.Series | None:
            if name not in frame.columns or frame[name].null_count():
                return None
            if not (frame[name].list.len().to_numpy() == lengths).all():
                raise DataError(f"{name!r} in {where} must have as many entries per window as {c.ITEMS!r}.")
            return frame[name].explode()

        mask, clean, weights = optional(c.NOISE_MASK), optional(c.CLEAN_ITEMS), optional(c.WEIGHTS)
        return cls(
            items=catalogue.index(frame[c.ITEMS].explode(), where),
            lengths=lengths,
            window_ids=frame[c.WINDOW].cast(pl.Int64).to_numpy(),
            user_ids=frame[c.USER],
            timestamps=frame[c.TIME].cast(pl.Int64).to_numpy() if c.TIME in frame.columns else np.full(len(frame), -1),
            noise_mask=None if mask is None else mask.cast(pl.Int64).to_numpy().astype(bool),
            clean_items=None if clean is None else catalogue.index_or_pad(clean, where),
            weights=None if weights is None else weights.cast(pl.Float64).to_numpy(),
        )

    def to_frame(self, catalogue: Catalogue) -> pl.DataFrame:
        """Return the table that `from_frame` reads, with the user's own ids."""

        def lists(values: pl.Series) -> pl.Series:
            return pl.Series(pa.LargeListArray.from_arrays(pa.array(self.offsets), values.to_arrow()))

        data: dict[str, Any] = {
            c.WINDOW: self.window_ids, c.USER: self.user_ids,
            c.ITEMS: lists(catalogue.ids.gather(self.items)), c.TIME: self.timestamps,
        }  # fmt: skip
        if self.noise_mask is not None:
            data[c.NOISE_MASK] = lists(pl.Series(self.noise_mask.astype(np.int8)))
        if self.clean_items is not None:
            data[c.CLEAN_ITEMS] = lists(catalogue.ids_of(self.clean_items))
        if self.weights is not None:
            data[c.WEIGHTS] = lists(pl.Series(self.weights))
        return pl.DataFrame(data)


def limit_windows(windows: Windows, n: int, seed: int) -> Windows:
    """Return a seeded sample of `n` windows in their order; all if n is 0 or there are no more."""
    return windows if n <= 0 or n >= len(windows) else windows.take(limited_rows(windows, n, seed))


def limited_rows(windows: Windows, n: int, seed: int) -> IntArray:
    """Return the rows [at most n] of a seeded sample of windows, ascending."""
    if n >= len(windows):
        return np.arange(len(windows))
    return np.sort(np.random.default_rng(seed).choice(len(windows), n, replace=False))


def locate(table: pl.DataFrame, windows: Windows) -> IntArray:
    """Find the interactions that a table names, by `window_id` and `position`.

    Returns
    -------
    array of int
        One index into `windows.items` per row of the table.

    Raises
    ------
    DataError
        If the table names an unknown window, or a position outside its window.
    """
    row = {int(w): i for i, w in enumerate(windows.window_ids)}
    positions = table[c.POSITION].cast(pl.Int64).to_numpy()
    try:
        rows = np.array([row[w] for w in table[c.WINDOW].to_list()], dtype=np.int64)
    except KeyError as missing:
        raise DataError(
            f"The table names {c.WINDOW} {missing.args[0]}, which is not among the histories given."
        ) from None
    beyond = np.flatnonzero((positions < 0) | (positions >= windows.lengths[rows]))
    if len(beyond):
        window, position = table.row(int(beyond[0]), named=True)[c.WINDOW], int(positions[beyond[0]])
        raise DataError(
            f"The table names position {position} of {c.WINDOW} {window}, which has the positions 0 to "
            f"{windows.lengths[row[window]] - 1}. Give the table and the histories of the same run."
        )
    return np.asarray(windows.offsets[rows] + positions)


def align(table: pl.DataFrame, windows: Windows, column: str | None) -> Any:
    """Align a column of a table with the interactions of windows.

    Parameters
    ----------
    table : DataFrame
        Rows by `window_id` and `position`.
    windows : Windows
        W windows with n interactions.
    column : str or None
        The column. None: True where there is a row.

    Returns
    -------
    array
        [n]; NaN (or False) where the table has no row.

    Raises
    ------
    DataError
        As `locate` does.
    """
    at = locate(table, windows)
    if column is None:
        mask: BoolArray = np.zeros(len(windows.items), dtype=bool)
        mask[at] = True
        return mask
    values = np.full(len(windows.items), np.nan)
    values[at] = table[column].to_numpy()
    return values


def hold_out(windows: Windows, seed: int, fraction: float = 0.1) -> tuple[Windows, Windows]:
    """Split windows by user: those to learn from, and a fraction of the users. Neither is empty."""
    user = np.unique(windows.user_ids.to_numpy(), return_inverse=True)[1]
    held = np.random.default_rng(seed).random(user.max() + 1)[user] < fraction
    held[:1] = True
    held[-1:] = False
    return windows.take(np.flatnonzero(~held)), windows.take(np.flatnonzero(held))
