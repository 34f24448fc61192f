"""What item-kNN and EASE share: both learn one matrix of item-item weights, and score items by history · weights.

A subclass defines the weights (`item_weights`). How users become a matrix, how a history is weighted, and how targets
are ranked is the same for both. Neither has epochs or a seed: the same windows give the same model.

trained = fit_neighborhood(EASE, train, valid, len(catalogue), NeighborhoodConfig())
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import polars as pl
from scipy import sparse

from llm4dsr.config import NeighborhoodConfig
from llm4dsr.core.arrays import PAD, IntArray
from llm4dsr.core.device import T, in_parts
from llm4dsr.core.progress import Progress
from llm4dsr.data.windows import Windows
from llm4dsr.metrics import ndcg
from llm4dsr.recommenders.training import VALIDATION_K, Trained, usable

MAX_ENTRIES = 4_000_000  # scores or weights computed at once


class Neighborhood:
    """A recommender that scores items by item-item weights.

    Parameters
    ----------
    users : csr_matrix of float
        [users, n_items] weight of each item of a user, as `user_matrix` makes it.
    config : NeighborhoodConfig
        Options of the recommender.

    Attributes
    ----------
    weights : csr_matrix or array of float
        [n_items, n_items] what an item of the history (row) adds to the score of an item (column); 0 on the diagonal.
    """

    name: ClassVar[str]
    tolerance: ClassVar[float] = 0.0
    """Scores that differ by no more than this are ties: the rounding error of the weights."""

    def __init__(self, users: sparse.csr_matrix, config: NeighborhoodConfig) -> None:
        self.config = config
        self.weights = self.item_weights(users)

    def item_weights(self, users: sparse.csr_matrix) -> Any:
        """Learn the weights [n_items, n_items] from users [users, n_items]."""
        raise NotImplementedError

    def rank(self, histories: Windows, targets: IntArray) -> IntArray:
        """Rank each target among the whole catalogue. Items of the history are not filtered out.

        The whole history is read. Ties count against the target: it ranks behind all items of the same score. So a
        target ranks last after an empty history, and if no item of the history is known from training.

        Parameters
        ----------
        histories : Windows
            W histories, without their targets. If they have weights, an item counts by its weight.
        targets : array of int
            [W] catalogue rows.

        Returns
        -------
        array of int
            [W] ranks from 1 to n_items, 1 = best.
        """
        ranks = np.empty(len(targets), dtype=np.int64)

        def rank(part: slice, scores: Any) -> None:
            ranks[part] = scores.shape[1] - _count_below(scores, targets[part], self.tolerance)

        self.read_scores(histories, rank)
        return ranks

    def recommend(self, histories: Windows, k: int) -> IntArray:
        """Return the best items of each history. Items of the history are not filtered out.

        Parameters
        ----------
        histories : Windows
            W histories, without their targets.
        k : int
            Number of items; at most n_items.

        Returns
        -------
        array of int
            [W, k] catalogue rows, best first; PAD where an item scores no more than an unrelated one, which is 0.
        """
        out = np.full((len(histories), k), PAD)

        def show(part: slice, scores: Any) -> None:
            if not sparse.issparse(scores):
                best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
                out[part] = np.where(np.take_along_axis(scores, best, axis=1) > self.tolerance, best, PAD)
                return
            row = np.repeat(np.arange(scores.shape[0]), scores.getnnz(axis=1))
            order = np.lexsort((scores.indices, -scores.data, row))  # history after history, best first
            rank = np.arange(len(order)) - scores.indptr[row]
            is_shown = (rank < k) & (scores.data[order] > self.tolerance)
            out[part][row[is_shown], rank[is_shown]] = scores.indices[order[is_shown]]

        self.read_scores(histories, show)
        return out

    def read_scores(self, histories: Windows, read: Callable[[slice, Any], None]) -> None:
        """Score the whole catalogue, in batches of histories that fit in memory.

        Parameters
        ----------
        histories : Windows
            Histories, without their targets.
        read : callable
            Called with the histories of a batch, as a slice, and their scores [B, n_items], sparse or dense: unbounded,
            higher = more likely next. On out-of-memory it is called again, for a part of them.
        """
        n_items = self.weights.shape[0]
        weighted = history_matrix(histories, n_items, self.config.decay)
        neighbors = self.weights.getnnz(axis=1) if sparse.issparse(self.weights) else np.full(n_items, n_items)

        def score(part: slice) -> bool:
            read(part, weighted[part] @ self.weights)
            return True

        for _ in in_parts(_batches(weighted, neighbors, n_items), score, f"histories for {self.name}"):
            pass


def fit_neighborhood(
    kind: type[Neighborhood],
    windows: Windows,
    valid: Windows,
    n_items: int,
    config: NeighborhoodConfig,
    progress: Progress | None = None,
    refit: Windows | None = None,
) -> Trained:
    """Fit item-kNN or EASE and rank the validation targets.

    Parameters
    ----------
    kind : type of Neighborhood
        The recommender.
    windows : Windows
        Training windows, targets included; see `user_matrix`. Those of fewer than two items are skipped.
    valid : Windows
        Validation windows, targets included. They are ranked only; nothing is learned from them.
    n_items : int
        Number of items in the catalogue.
    config : NeighborhoodConfig
        Options of the recommender.
    progress : Progress, optional
        Called at the end with (1, 1, message).
    refit : Windows, optional
        What the model is fitted on anew after that. Default: it is not.

    Returns
    -------
    Trained
        The model, with a curve of one value.

    Raises
    ------
    DataError
        If no training or no validation window has two items.
    ModelError
        If the weights of EASE do not fit into memory, or its ridge is too small.
    """
    started = time.perf_counter()
    windows, valid = usable(windows, valid, kind.name)
    model = kind(user_matrix(windows, n_items), config)
    ranks = model.rank(valid.histories(), valid.targets())
    found = ndcg(ranks, VALIDATION_K)
    if refit is not None:
        model = kind(user_matrix(usable(refit, valid, kind.name)[0], n_items), config)
    if progress:
        progress(1, 1, f"validation NDCG@{VALIDATION_K} {found:.4f}")
    return Trained(model, [found], 0, time.perf_counter() - started, ranks)


def user_matrix(windows: Windows, n_items: int) -> sparse.csr_matrix:
    """Count the items of each user once, however many windows repeat them.

    Parameters
    ----------
    windows : Windows
        Windows, targets included. A window without a user id is a user of its own.
    n_items : int
        Number of items in the catalogue.

    Returns
    -------
    csr_matrix of float
        [users, n_items] the largest weight that a user's windows give an item; 1 without weights. A row may be empty.

    Examples
    --------
    >>> windows = Windows.from_lists([[0, 1], [1, 2], [2, 0]], user_ids=pl.Series(["a", "a", "b"]))
    >>> user_matrix(windows, 3).toarray()[1:3]
    array([[1., 1., 1.],
           [1., 0., 1.]], dtype=float32)
    """
    size = len(windows)
    ids = windows.user_ids.rank("dense").cast(pl.Int64)  # from 1; null stays null
    users = np.where(ids.is_null().to_numpy(), size + 1 + np.arange(size), ids.fill_null(0).to_numpy())
    pairs = users[windows.owners] * n_items + windows.items
    kept, at = np.unique(pairs, return_inverse=True)
    largest = np.zeros(len(kept), dtype=np.float32)
    np.maximum.at(largest, at, np.float32(1) if windows.weights is None else windows.weights)
    matrix = sparse.csr_matrix((largest, (kept // n_items, kept % n_items)), shape=(2 * size + 1, n_items))
    matrix.eliminate_zeros()
    return matrix


def history_matrix(histories: Windows, n_items: int, decay: float) -> sparse.csr_matrix:
    """Weight the items of histories: each step back from the newest item multiplies the weight by `decay`.

    Parameters
    ----------
    histories : Windows
        W histories, without their targets.
    n_items : int
        Number of items in the catalogue.
    decay : float
        In [0, 1]. 1: all items count alike. 0: only the newest counts.

    Returns
    -------
    csr_matrix of float
        [W, n_items] weights in [0, 1], times those of the windows; an item that occurs twice has the sum.

    Examples
    --------
    >>> history_matrix(Windows.from_lists([[0, 2], [1]]), 3, 0.5).toarray()
    array([[0.5, 0. , 1. ],
           [0. , 1. , 0. ]], dtype=float32)
    """
    rows = histories.owners
    weights = decay ** (histories.lengths[rows] - 1 - histories.positions).astype(np.float64)
    if histories.weights is not None:
        weights *= histories.weights
    shape = (len(histories), n_items)
    return sparse.csr_matrix((weights.astype(np.float32), (rows, histories.items)), shape=shape)


def pair_blocks(users: sparse.csr_matrix, read: Callable[[slice, sparse.csr_matrix], T]) -> Iterator[tuple[slice, T]]:
    """Compute usersᵀ · users in blocks of rows that fit in memory.

    Parameters
    ----------
    users : csr_matrix of float
        [users, n_items] as `user_matrix` makes it.
    read : callable
        The items of a block, as a slice, and their pairs [B, n_items] → what is made of them. A pair has the sum over
        users of the product of both items' weights, without them the users of both items. On out-of-memory it is called
        again, for a part of the block.

    Yields
    ------
    part : slice
        The items of the block.
    result
        Of `read`.
    """
    items = users.T.tocsr()
    parts = _batches(items, users.getnnz(axis=1), users.shape[1])
    yield from in_parts(parts, lambda part: read(part, items[part] @ users), "items")


def _batches(left: sparse.csr_matrix, counts: IntArray, width: int) -> Iterator[slice]:
    """Slices of rows of left, whose product with a matrix of `counts` entries per row has about MAX_ENTRIES each."""
    most = np.minimum((left != 0).astype(np.int64) @ counts.astype(np.int64), width)  # entries of each row
    starts = np.flatnonzero(np.diff(np.cumsum(most) // MAX_ENTRIES, prepend=-1))
    for start, end in pairwise([*starts, len(most)]):
        yield slice(int(start), int(end))


def _count_below(scores: Any, targets: IntArray, tolerance: float) -> IntArray:
    """scores [B, n_items], sparse or dense -> [B] items that score below the target."""
    size, n_items = scores.shape
    own = np.asarray(scores[np.arange(size), targets]).reshape(size, 1) - np.float32(tolerance)
    if not sparse.issparse(scores):
        dense: IntArray = np.count_nonzero(scores < own, axis=1)
        return dense
    stored = scores.getnnz(axis=1)
    lower = scores.data < np.repeat(own[:, 0], stored)
    below = np.bincount(np.repeat(np.arange(size), stored)[lower], minlength=size)
    unstored: IntArray = np.where(own[:, 0] > 0, n_items - stored, 0)  # they score 0
    return below + unstored
