"""How near items are to the ones that belong there: equality, clusters of titles, and what chance would reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from llm4dsr.catalogue import BoolArray, Catalogue, IntArray, Windows

CLUSTERS = 100  # by k-means; fewer in a small catalogue, of six items or more each on average
DRAWS = 20  # random items for each place

Vectors = npt.NDArray[np.float32]


def clusters(vectors: Vectors, seed: int) -> IntArray:
    """[N] cluster of each item."""
    from sklearn.cluster import KMeans

    count = max(1, min(CLUSTERS, len(vectors) // 6))
    found: IntArray = KMeans(count, n_init=3, random_state=seed).fit_predict(vectors).astype(np.int64)
    return found


def drawn(windows: Windows, rows: IntArray, catalogue: Catalogue, weights: npt.NDArray[np.float64],
          seed: int) -> IntArray:  # fmt: skip
    """[DRAWS · F] items for each of the F places in these rows, none with a title of the window; -1 where none is left.
    weights: [N] how likely each item is."""
    rng, canonical = np.random.default_rng(seed), catalogue.canonical
    out = np.empty((DRAWS, len(rows)), dtype=np.int64)
    for i, row in enumerate(rows):
        left = np.where(np.isin(canonical, canonical[windows.row(row)]), 0.0, weights)
        out[:, i] = rng.choice(len(left), DRAWS, p=left / left.sum()) if left.any() else -1
    return out.ravel()


def nearness(name: str, suggested: IntArray, originals: IntArray, catalogue: Catalogue, vectors: Vectors,
             cluster: IntArray) -> dict[str, Any]:  # fmt: skip
    """Shares in [0, 1] of suggestions that are the original (by title), or of its cluster, and their mean cosine.

    suggested: [r · F], -1 = none, which counts as wrong and has no cosine. originals: [F]."""
    truth = np.tile(originals, len(suggested) // max(1, len(originals)))
    there = suggested >= 0
    equal = there & (catalogue.canonical[suggested] == catalogue.canonical[truth])
    same = there & (cluster[suggested] == cluster[truth])
    cosine = (vectors[suggested] * vectors[truth]).sum(axis=1)[there]
    return {
        "suggested": name,
        "equal": float(equal.mean()),
        "equal ±": _half_width(equal, len(originals)),
        "same cluster": float(same.mean()),
        "same cluster ±": _half_width(same, len(originals)),
        "similarity": float(cosine.mean()) if there.any() else float("nan"),
    }


def _half_width(hits: BoolArray, places: int) -> float:
    """95 %, normal approximation, over places; draws for one place count as one."""
    of_place = hits.reshape(-1, places).mean(axis=0)
    return float(1.96 * of_place.std() / np.sqrt(max(1, places)))
