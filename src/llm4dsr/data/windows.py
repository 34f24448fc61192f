"""Windows: histories with their target, as integer matrices that every stage computes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import PAD, BoolArray, FloatArray, IntArray, pad
from llm4dsr.core.hashing import history_ids
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.errors import DataError


@dataclass
class Windows:
    """W windows as a right-padded matrix of up to L items.

    Attributes
    ----------
    items : array of int
        [W, L] catalogue rows, oldest first, PAD at the end.
    lengths : array of int
        [W] items of each window.
    window_ids : array of int
        [W].
    user_ids : Series
        [W].
    timestamps : array of int
        [W] time of the target in seconds; -1 = unknown.
    noise_mask : array of bool or None
        [W, L] the known truth, for measuring only.
    clean_items : array of int or None
        [W, L] what belongs there; PAD where an item was inserted.
    weights : array of float or None
        [W, L] in [0, 1]; None = all 1.
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
        """Return the catalogue rows of one window, without padding."""
        items: list[int] = self.items[index, : self.lengths[index]].tolist()
        return items

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

        def pick(a: Any) -> Any:
            return None if a is None else a[rows]

        return Windows(
            self.items[rows], self.lengths[rows], self.window_ids[rows], self.user_ids.gather(rows),
            self.timestamps[rows], pick(self.noise_mask), pick(self.clean_items), pick(self.weights),
        )  # fmt: skip

    def histories(self) -> Windows:
        """Return the windows without their target (the last item)."""
        lengths = self.lengths - 1
        gone = np.arange(self.items.shape[1])[None, :] >= lengths[:, None]

        def cut(a: Any, fill: Any) -> Any:
            return None if a is None else np.where(gone, fill, a)[:, :-1]

        return Windows(
            cut(self.items, PAD), lengths, self.window_ids, self.user_ids, self.timestamps,
            cut(self.noise_mask, False), cut(self.clean_items, PAD), cut(self.weights, 1.0),
        )  # fmt: skip

    def targets(self) -> IntArray:
        """Return [W] the last item of each window."""
        out: IntArray = self.items[np.arange(len(self)), self.lengths - 1]
        return out

    @classmethod
    def from_lists(cls, rows: Sequence[npt.NDArray[Any] | Sequence[int]], **columns: Any) -> Windows:
        """Make windows from ragged rows of catalogue rows.

        Window ids default to 0, 1, 2, …, and user ids to those of `history_ids`, which no real user has.
        """
        lengths = np.array([len(r) for r in rows], dtype=np.int64)
        size = len(rows)
        defaults: dict[str, Any] = {
            "window_ids": np.arange(size), "user_ids": history_ids(rows), "timestamps": np.full(size, -1),
        }  # fmt: skip
        return cls(pad(rows, PAD), lengths, **{**defaults, **columns})

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
        """Return the table that `from_frame` reads, with the user's own ids."""
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


def limit_windows(windows: Windows, n: int, seed: int) -> Windows:
    """Return a seeded sample of `n` windows in their order; all if n is 0 or there are no more."""
    if n <= 0 or n >= len(windows):
        return windows
    return windows.take(np.sort(np.random.default_rng(seed).choice(len(windows), n, replace=False)))


def to_matrix(table: pl.DataFrame, windows: Windows, column: str | None) -> Any:
    """Spread a column of a table over windows.

    Parameters
    ----------
    table : DataFrame
        Rows by `window_id` and `position`.
    windows : Windows
        W windows of up to L items.
    column : str or None
        The column. None: True where there is a row.

    Returns
    -------
    array
        [W, L]; NaN (or False) where the table has no row.

    Raises
    ------
    DataError
        If the table names an unknown window, or a position outside its window.
    """
    row = {int(w): i for i, w in enumerate(windows.window_ids)}
    try:
        at = (
            np.array([row[w] for w in table[c.WINDOW].to_list()], dtype=np.int64),
            table[c.POSITION].cast(pl.Int64).to_numpy(),
        )
    except KeyError as missing:
        raise DataError(
            f"The table names {c.WINDOW} {missing.args[0]}, which is not among the histories given."
        ) from None
    beyond = np.flatnonzero((at[1] < 0) | (at[1] >= windows.lengths[at[0]]))
    if len(beyond):
        window, position = table.row(int(beyond[0]), named=True)[c.WINDOW], int(at[1][beyond[0]])
        raise DataError(
            f"The table names position {position} of {c.WINDOW} {window}, which has the positions 0 to "
            f"{windows.lengths[row[window]] - 1}. Give the table and the histories of the same run."
        )
    if column is None:
        mask: BoolArray = np.zeros(windows.items.shape, dtype=bool)
        mask[at] = True
        return mask
    values = np.full(windows.items.shape, np.nan)
    values[at] = table[column].to_numpy()
    return values


def hold_out(windows: Windows, seed: int, fraction: float = 0.1) -> tuple[Windows, Windows]:
    """Split windows by user: those to learn from, and a fraction of the users. Neither is empty."""
    user = np.unique(windows.user_ids.to_numpy(), return_inverse=True)[1]
    held = np.random.default_rng(seed).random(user.max() + 1)[user] < fraction
    held[:1] = True
    held[-1:] = False
    return windows.take(np.flatnonzero(~held)), windows.take(np.flatnonzero(held))
