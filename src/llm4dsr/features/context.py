"""Context: does an interaction fit what is near it in time, what is far, and the run that it may be in?

Three similarities of items are read: by co-occurrence counts, by collaborative vectors, and by titles. A run of foreign
items, as a child leaves them, supports itself: each item fits its neighbors. What gives it away is that it does not fit
the rest, which in turn fits itself. So similarities are read apart for near and far positions, and for the run around
an interaction that stands out most.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llm4dsr.core.arrays import FloatArray
from llm4dsr.data.windows import Windows
from llm4dsr.features.collaborative import SIZES
from llm4dsr.features.cooccurrence import CooccurrenceCounts, pair_cosines

NEAR = 2  # positions
LONGEST = 5  # items of a run
N_OF_KIND = 8  # numbers for each kind of similarity
N_CONTEXT = N_OF_KIND * (2 + len(SIZES)) + 2
CELLS = 1_000_000  # pairs that are held at once

Floats = npt.NDArray[np.float32]


def context_features(windows: Windows, counts: CooccurrenceCounts, titles: Floats) -> Floats:
    """Describe each interaction by how it fits near and far positions, and the run that it may be in.

    Parameters
    ----------
    windows : Windows
        W windows with n interactions.
    counts : CooccurrenceCounts
        What is known before these windows.
    titles : array of float32
        [N, V] title vectors.

    Returns
    -------
    array of float32
        [n, N_CONTEXT]. For the cosines of counts, of vectors of each of SIZES, and of titles: mean and largest with
        positions up to NEAR; mean and largest with all others; then of the run of at most LONGEST around the
        interaction that stands out most: how much, the mean cosine in it, between it and the rest, and in the rest.
        At last the number of items before and after the interaction.
    """
    out = [np.empty((0, N_CONTEXT), np.float32)]
    for _, batch in windows.batches(max(1, CELLS // max(1, windows.width))):
        out.append(_describe(batch, counts, titles))
    return np.concatenate(out)


def _describe(windows: Windows, counts: CooccurrenceCounts, titles: Floats) -> Floats:
    cosine = pair_cosines(*counts.leave_one_out_counts(windows))
    assert counts.vectors is not None
    vectors = [counts.vectors.pair_cosines(windows, size) for size in SIZES]
    words = titles[windows.item_matrix]
    words /= np.maximum(np.linalg.norm(words, axis=2, keepdims=True), 1e-9)
    kinds = (np.log1p(10 * cosine), *vectors, words @ words.transpose(0, 2, 1))
    columns = [column for kind in kinds for column in _of_kind(windows, kind)]
    before = np.cumsum(windows.present, axis=1) - 1.0
    columns += [before, windows.lengths[:, None] - 1 - before]
    return np.stack(columns, axis=2)[windows.present].astype(np.float32)


def _of_kind(windows: Windows, similarities: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """N_OF_KIND columns, each [B, L], of similarities [B, L, L]."""
    present, width = windows.present, windows.width
    pairs = present[:, :, None] & present[:, None, :]
    pairs[:, range(width), range(width)] = False
    found = np.where(pairs, similarities, 0.0)
    apart = np.abs(np.subtract.outer(np.arange(width), np.arange(width)))
    columns = []
    for near in (apart <= NEAR, apart > NEAR):
        among = pairs & near
        columns.append((found * near).sum(axis=2) / np.maximum(among.sum(axis=2), 1))
        columns.append(np.where(among, found, 0.0).max(axis=2, initial=0.0))
    return columns + _best_run(found, windows.lengths)


def _best_run(found: FloatArray, lengths: npt.NDArray[np.int64]) -> list[FloatArray]:
    """For each position, of the run around it that stands out most: contrast, mean inside, across, and outside."""
    size, width, _ = found.shape
    sums = np.zeros((size, width + 1, width + 1))  # of all rows and columns before
    sums[:, 1:, 1:] = found.cumsum(axis=1).cumsum(axis=2)
    best = np.full((4, size, width), -np.inf)
    for run in range(1, min(LONGEST, width) + 1):
        rest = lengths - run
        for start in range(width - run + 1):
            end = start + run
            inside = sums[:, end, end] - sums[:, start, end] - sums[:, end, start] + sums[:, start, start]
            across = sums[:, end, -1] - sums[:, start, -1] - inside
            outside = sums[:, -1, -1] - inside - 2 * across
            inside = inside / max(1, run * (run - 1))
            across = across / np.maximum(1, run * rest)
            outside = outside / np.maximum(1, rest * (rest - 1))
            contrast = outside - across + (0.5 * (inside - across) if run > 1 else 0.0)
            contrast = np.where((lengths >= end) & (rest >= 2), contrast, -np.inf)
            here = np.stack([contrast, inside, across, outside])[:, :, None]
            better = contrast[:, None] > best[0, :, start:end]
            best[:, :, start:end] = np.where(better, here, best[:, :, start:end])
    return list(np.where(np.isfinite(best), best, 0.0))
