"""STEAM's lesson (arXiv 2303.02297): windows damaged on purpose, and the operations that put them right."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm4dsr.catalogue import PAD, Catalogue, IntArray, Windows

KEEP, DELETE, INSERT = 0, 1, 2
MOST = 3  # items inserted before one item, at most

Damaged = tuple[IntArray, IntArray, IntArray]


def damage(windows: Windows, catalogue: Catalogue, deleted: float, inserted: float, width: int,
           rng: np.random.Generator) -> Damaged:  # fmt: skip
    """(items [W, width], operations [W, width], gaps [W, width, MOST]): the windows damaged, the newest `width` items
    of each, and what puts them right. Padding of items and gaps is PAD.

    deleted, inserted: probability that an item is taken out, and that a random item stands in a gap between items.
    gaps: the items that stood before an item, the nearest first. `repaired` gives back the window, or the end of it
    where the damaged one was longer than `width`.
    """
    items, (rows, length) = windows.items, windows.items.shape
    at = np.arange(length + 1)
    gone = (rng.random(items.shape) < deleted) & (at[:-1] < windows.lengths[:, None] - 1)
    run = np.zeros(rows, dtype=np.int64)
    for place in range(length):  # no more in a row than one insertion can give back
        gone[:, place] &= run < MOST
        run = np.where(gone[:, place], run + 1, 0)
    foreign = rng.integers(len(catalogue), size=(rows, length + 1))
    titles = np.append(catalogue.canonical, PAD)  # row PAD = -1 stays PAD
    own = (titles[foreign][:, :, None] == titles[items][:, None, :]).any(axis=2)
    put = (rng.random(foreign.shape) < inserted) & (at <= windows.lengths[:, None]) & ~own

    all_items = np.full((rows, 2 * length + 1), PAD)  # a gap, the first item, a gap, the second item, ..., a gap
    all_items[:, 0::2], all_items[:, 1::2] = np.where(put, foreign, PAD), np.where(gone, PAD, items)
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


def repaired(items: Sequence[int], operations: Sequence[int], gaps: Sequence[Sequence[int]]) -> list[int]:
    """One sequence after its operations. gaps are read where the operation is INSERT; PAD in them is nothing."""
    out: list[int] = []
    for item, operation, gap in zip(items, operations, gaps, strict=True):
        if operation == INSERT:
            out += [other for other in reversed(gap) if other != PAD]
        if operation != DELETE:
            out.append(item)
    return out
