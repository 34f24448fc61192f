"""Pairwise similarity in a window, for baselines that compare items: the less similar, the more suspicious."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from llm4dsr.core.arrays import BoolArray, FloatArray
from llm4dsr.data.windows import Windows

CELLS = 1_000_000  # pairs of positions that are held at once


def suspicion(similarity: FloatArray, present: BoolArray, nearest: int, alone: float) -> FloatArray:
    """Return minus the mean similarity of each item to the others of its window.

    Parameters
    ----------
    similarity : array of float
        [W, L, L] of every two items.
    present : array of bool
        [W, L] where there is an item.
    nearest : int
        Average over this many most similar items; 0 = all.
    alone : float
        Similarity of the only item of a window.

    Returns
    -------
    array of float
        [W, L] higher = more suspicious; NaN where there is no item.
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


def in_parts(windows: Windows, score_part: Callable[[Windows], FloatArray]) -> FloatArray:
    """Score windows in parts, so that the pairs of positions fit in memory.

    Parameters
    ----------
    windows : Windows
        W windows with n interactions.
    score_part : callable
        A batch of B windows -> their scores [B, L], padded.

    Returns
    -------
    array of float
        [n] scores of all windows.
    """
    batches = windows.batches(CELLS // max(1, windows.width))
    return np.concatenate([np.empty(0), *(score_part(b)[b.present] for _, b in batches if len(b))])
