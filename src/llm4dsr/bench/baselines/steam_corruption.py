"""Training data of STEAM (arXiv 2303.02297): corrupted windows, and the operations that repair them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm4dsr.core.arrays import PAD, IntArray
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows

KEEP, DELETE, INSERT = 0, 1, 2
MOST = 3  # items inserted before one item, at most

Corrupted = tuple[IntArray, IntArray, IntArray]


def corrupt_windows(
    windows: Windows, catalogue: Catalogue, deleted: float, inserted: float, width: int, rng: np.random.Generator
) -> Corrupted:
    """Corrupt windows, and return what repairs them.

    Parameters
    ----------
    windows : Windows
        W windows.
    catalogue : Catalogue
        The items.
    deleted : float
        Probability that an item is taken out.
    inserted : float
        Probability that a random item is inserted in a gap between items.
    width : int
        Items of the result; the newest ones of longer windows.
    rng : Generator
        Draws the corruption.

    Returns
    -------
    items : array of int
        [W, width] padded with PAD.
    operations : array of int
        [W, width] KEEP, DELETE or INSERT.
    gaps : array of int
        [W, width, MOST] items that stood before an item, the nearest first, padded with PAD. `repair` restores the
        window, or the end of it if the corrupted one was longer than `width`.
    """
    items, rows, length = windows.item_matrix, len(windows), windows.width
    at = np.arange(length + 1)
    gone = (rng.random(items.shape) < deleted) & (at[:-1] < windows.lengths[:, None] - 1)
    run = np.zeros(rows, dtype=np.int64)
    for position in range(length):  # no more in a row than one insertion can give back
        gone[:, position] &= run < MOST
        run = np.where(gone[:, position], run + 1, 0)
    injected = rng.integers(len(catalogue), size=(rows, length + 1))
    titles = np.append(catalogue.canonical, PAD)  # row PAD = -1 stays PAD
    own = (titles[injected][:, :, None] == titles[items][:, None, :]).any(axis=2)
    put = (rng.random(injected.shape) < inserted) & (at <= windows.lengths[:, None]) & ~own

    all_items = np.full((rows, 2 * length + 1), PAD)  # a gap, the first item, a gap, the second item, ..., a gap
    all_items[:, 0::2], all_items[:, 1::2] = np.where(put, injected, PAD), np.where(gone, PAD, items)
    all_gaps = np.full((*all_items.shape, MOST), PAD)
    missing = np.ones(items.shape, dtype=bool)
    for back in range(1, min(MOST, length - 1) + 1):
        missing[:, :back] = False
        missing[:, back:] &= gone[:, :-back]
        all_gaps[:, 1 + 2 * back :: 2, back - 1] = np.where(missing[:, back:], items[:, :-back], PAD)
    operations = np.full(all_items.shape, DELETE)
    operations[:, 1::2] = np.where(all_gaps[:, 1::2, 0] == PAD, KEEP, INSERT)

    present = all_items != PAD
    count = present.sum(axis=1, keepdims=True)
    order = np.argsort(~present, axis=1, kind="stable")
    newest = np.maximum(count - width, 0) + np.arange(width)
    order = np.take_along_axis(order, np.minimum(newest, 2 * length), axis=1)
    some = newest < count
    row = np.arange(rows)[:, None]
    return (np.where(some, all_items[row, order], PAD), operations[row, order],
            np.where(some[:, :, None], all_gaps[row, order], PAD))  # fmt: skip


def repair(items: Sequence[int], operations: Sequence[int], gaps: Sequence[Sequence[int]]) -> list[int]:
    """Apply operations to one sequence.

    Parameters
    ----------
    items, operations : sequence of int
        Of the same length.
    gaps : sequence of sequence of int
        Read where the operation is INSERT; PAD is skipped.

    Returns
    -------
    list of int
        The repaired sequence.
    """
    out: list[int] = []
    for item, operation, gap in zip(items, operations, gaps, strict=True):
        if operation == INSERT:
            out += [other for other in reversed(gap) if other != PAD]
        if operation != DELETE:
            out.append(item)
    return out
