"""Histories that are longer than a window: scored in overlapping windows, and merged to one row per interaction.

windows, origin = overlapping(histories, width=20, stride=10)
scores = merge_scores(denoiser.score(windows), origin)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import IntArray, ranges
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError


@dataclass
class Origin:
    """Where overlapping windows come from; one entry for each.

    Attributes
    ----------
    window_ids : array of int
        [W] id of the history.
    offsets : array of int
        [W] position in the history of the window's first item.
    """

    window_ids: IntArray
    offsets: IntArray

    @property
    def histories(self) -> IntArray:
        """[W] row of the history of each window, ascending."""
        return np.cumsum(self.offsets == 0) - 1  # only the first window of a history begins with it

    def windows_of(self, histories: IntArray) -> IntArray:
        """Return the rows of the overlapping windows of the histories at these rows, history after history."""
        starts = np.flatnonzero(self.offsets == 0)
        return ranges(starts[histories], np.diff(starts, append=len(self.offsets))[histories])


def split_long(histories: Windows, width: int) -> tuple[Windows, Origin | None]:
    """Return histories as they are if none has more than `width` items, else in windows that overlap by half."""
    if histories.lengths.max(initial=0) <= width:
        return histories, None
    return overlapping(histories, width, max(1, width // 2))


def overlapping(histories: Windows, width: int, stride: int) -> tuple[Windows, Origin]:
    """Cut histories into windows of at most `width` items that together hold every item.

    A history that fits is one window. A longer one gives windows of exactly `width`, each `stride` items after the one
    before; the last ends with the history, and so may overlap more. Truth and weights are carried along.

    Parameters
    ----------
    histories : Windows
        Histories of any length.
    width : int
        Most items of a window.
    stride : int
        1 … width. Half the width scores most items twice, each time with another half of their neighbors.

    Returns
    -------
    windows : Windows
        Numbered 0, 1, 2, … The timestamp is the history's where a window ends with it, else -1.
    origin : Origin

    Raises
    ------
    DataError
        If width or stride is out of range.
    """
    if width < 1 or not 1 <= stride <= width:
        raise DataError(
            f"width={width}, stride={stride}; expected a stride from 1 to the width, so that none is missed."
        )
    beyond = np.maximum(histories.lengths - width, 0)
    counts = -(-beyond // stride) + 1  # windows of each history
    of = np.repeat(np.arange(len(histories)), counts)  # [W] the history of each window
    step = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    offsets = np.minimum(step * stride, beyond[of])
    lengths = np.minimum(histories.lengths, width)[of]
    windows = histories.cut(of, lengths, ranges(histories.offsets[of] + offsets, lengths))
    timestamps = np.where(step == counts[of] - 1, windows.timestamps, -1)
    windows = replace(windows, window_ids=np.arange(len(of)), timestamps=timestamps)
    return windows, Origin(histories.window_ids[of], offsets)


def merge_scores(scores: pl.DataFrame, origin: Origin) -> pl.DataFrame:
    """Merge the scores of overlapping windows to one row per interaction.

    Parameters
    ----------
    scores : DataFrame
        As `Denoiser.score` returns them for the overlapping windows.
    origin : Origin
        From the same call of `overlapping`.

    Returns
    -------
    DataFrame
        In the order of the histories, by position. `log_odds` and the probabilities are means over the windows that
        hold the interaction, `windows` counts them, and `rank` is the rank in the history.

    Raises
    ------
    DataError
        If the scores are of windows that `origin` does not have.
    """
    number = scores[c.WINDOW].to_numpy()
    if len(number) and not 0 <= number.min() <= number.max() < len(origin.offsets):
        raise DataError(
            f"The scores are of the windows {number.min()} to {number.max()}; expected 0 to {len(origin.offsets) - 1}. "
            "Give those of the windows that came with this origin."
        )
    known = [name for name in c.PROBABILITIES if name in scores.columns]
    merged = (
        _back(scores, origin)
        .group_by(c.WINDOW, c.POSITION)
        .agg(pl.col(c.ITEM).first(), pl.col(c.LOG_ODDS, *known).mean(), pl.len().alias(c.COVER))
        .sort(c.WINDOW, pl.col(c.LOG_ODDS).neg(), c.POSITION)
        .with_columns(pl.int_range(1, pl.len() + 1).over(c.WINDOW).alias(c.RANK))
    )
    columns = (c.WINDOW, c.POSITION, c.ITEM, c.LOG_ODDS, *known, c.RANK, c.COVER)
    return _in_order(merged, origin).select(columns)


def into_windows(flagged: pl.DataFrame, windows: Windows, origin: Origin) -> pl.DataFrame:
    """Map rows of long histories to the overlapping windows, each to the window with most neighbors on both sides.

    Parameters
    ----------
    flagged : DataFrame
        Rows by `window_id` and `position` in a history.
    windows, origin
        From `overlapping`.

    Raises
    ------
    DataError
        If a row belongs to no history of `origin`.
    """
    number, here = windows.owners, windows.positions
    places = pl.DataFrame(
        {
            c.WINDOW: origin.window_ids[number],
            c.POSITION: here + origin.offsets[number],
            "number": number,
            "here": here,
            "room": windows.lengths[number],
        }
    )
    best = (
        places.with_columns(pl.min_horizontal("here", pl.col("room") - 1 - pl.col("here")).alias("room"))
        .sort("room", descending=True, maintain_order=True)
        .unique([c.WINDOW, c.POSITION], keep="first", maintain_order=True)
    )
    joined = flagged.join(best, on=[c.WINDOW, c.POSITION], how="left", maintain_order="left")
    if joined["number"].null_count():
        unknown = joined.filter(pl.col("number").is_null()).row(0, named=True)
        raise DataError(
            f"The table names position {unknown[c.POSITION]} of {c.WINDOW} {unknown[c.WINDOW]}, which is not among the "
            "histories given."
        )
    return joined.with_columns(pl.col("number").alias(c.WINDOW), pl.col("here").alias(c.POSITION)).select(
        flagged.columns
    )


def out_of_windows(table: pl.DataFrame, origin: Origin) -> pl.DataFrame:
    """Map rows of overlapping windows back to their histories; the reverse of `into_windows`."""
    return _in_order(_back(table, origin), origin)


def _back(table: pl.DataFrame, origin: Origin) -> pl.DataFrame:
    """Rows of overlapping windows, by window_id and position in their histories."""
    number = table[c.WINDOW].to_numpy()
    return table.with_columns(
        pl.Series(c.WINDOW, origin.window_ids[number]),
        pl.Series(c.POSITION, table[c.POSITION].to_numpy() + origin.offsets[number]),
    )


def _in_order(table: pl.DataFrame, origin: Origin) -> pl.DataFrame:
    """Rows in the order of the histories in `origin`, and by position."""
    order = pl.DataFrame({c.WINDOW: origin.window_ids}).unique(maintain_order=True).with_row_index("order")
    return table.join(order, on=c.WINDOW).sort("order", c.POSITION).drop("order")
