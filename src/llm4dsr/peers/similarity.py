"""What the items of a window are to each other, for peers that compare pairs: the less alike, the more suspicious."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llm4dsr.catalogue import BoolArray, FloatArray, Windows

CELLS = 1_000_000  # pairs of positions that are held at once


def suspicion(similarity: FloatArray, present: BoolArray, nearest: int, alone: float) -> FloatArray:
    """[W, L] minus the mean similarity of each item to the `nearest` others that are most like it (0: to all others).

    similarity: [W, L, L]. present: [W, L]. `alone` is the similarity of an item that has no others in its window. NaN
    where there is no item.
    """
    other = present[:, :, None] & present[:, None, :] & ~np.eye(present.shape[1], dtype=bool)
    count = other.sum(axis=2)
    if nearest:
        closest = -np.sort(np.where(other, -similarity, np.inf), axis=2)[:, :, :nearest]
        total, count = np.where(np.isfinite(closest), closest, 0.0).sum(axis=2), np.minimum(count, nearest)
    else:
        total = np.where(other, similarity, 0.0).sum(axis=2)
    mean = np.where(count > 0, total / np.maximum(count, 1), alone)
    return np.where(present, -mean, np.nan)


def in_parts(windows: Windows, judge: Callable[[Windows], FloatArray]) -> FloatArray:
    """[W, L] what `judge` gives for some windows at a time, so few that their pairs of positions fit in memory (and
    what else there is of each position)."""
    out = np.full(windows.items.shape, np.nan)
    size = max(1, CELLS // max(1, windows.items.shape[1]) ** 2)
    for start in range(0, len(windows), size):
        rows = np.arange(start, min(start + size, len(windows)))
        out[rows] = judge(windows.take(rows))
    return out
