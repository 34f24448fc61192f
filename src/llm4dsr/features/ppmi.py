"""Pairs of items as the rows of a symmetric matrix, and the positive PMI of each [1]_, discounted [2]_.

Pairs are sorted by their smaller item, so those of an item with larger ones stand together. `by_larger` finds those
with smaller ones. So no pair is stored twice, except in the matrix itself, which is filled a block of pairs at a time.

References
----------
.. [1] Levy and Goldberg (2014), Neural word embedding as implicit matrix factorization.
.. [2] Pantel and Lin (2002), Discovering word senses from text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from llm4dsr.core.arrays import FloatArray, IntArray
from llm4dsr.features.pair_counts import AT_ONCE, SHIFT, Counts, split_keys

Places = npt.NDArray[np.int32] | IntArray  # in the array of all pairs


def first_places(pairs: IntArray, n_items: int) -> IntArray:
    """Return [N + 1] where the pairs of each item with larger ones begin, and the end of the last."""
    return np.searchsorted(pairs, np.arange(n_items + 1) * SHIFT)


def by_larger(pairs: IntArray, n_items: int) -> tuple[IntArray, Places]:
    """Sort pairs by their larger item.

    Parameters
    ----------
    pairs : array of int
        [P] sorted keys of pairs, as `pair_keys` makes them.
    n_items : int
        Number N of items in the catalogue.

    Returns
    -------
    starts : array of int
        [N + 1] where the pairs of each larger item begin in `places`, and the end of the last.
    places : array of int32, or int64 for more than 2³¹ pairs
        [P] places in `pairs`, by the larger item and then by the smaller one.

    Examples
    --------
    >>> from llm4dsr.features.pair_counts import pair_keys
    >>> by_larger(pair_keys(np.array([0, 0, 1]), np.array([1, 3, 3])), 4)[1]
    array([0, 1, 2], dtype=int32)
    """
    from scipy.sparse import csr_matrix

    kind = _index_type(len(pairs))
    larger = np.empty(len(pairs), kind)
    np.bitwise_and(pairs, SHIFT - 1, out=larger, dtype=np.int64, casting="unsafe")  # `split_keys`, into fewer bytes
    starts = first_places(pairs, n_items).astype(kind)
    table = csr_matrix((np.arange(len(pairs), dtype=kind), larger, starts), shape=(n_items, n_items)).tocsc()
    return table.indptr.astype(np.int64), table.data


def ppmi(pairs: IntArray, counts: Counts, places: Places, n_items: int) -> Any:
    """Return the discounted positive PMI of all items with all.

    Parameters
    ----------
    pairs : array of int
        [P] sorted keys of pairs.
    counts : array of int
        [P] users of each; 0 is as if there was no such pair.
    places : array of int
        [P] as `by_larger` returns them.
    n_items : int
        Number N of items in the catalogue.

    Returns
    -------
    csr_matrix
        [N, N] in float64, symmetric, columns in rising order.
    """
    from scipy.sparse import csr_matrix

    totals = np.zeros(n_items)
    for block in _blocks(len(pairs)):
        for side in split_keys(pairs[block]):
            totals += np.bincount(side, weights=counts[block], minlength=n_items)
    everything = max(totals.sum(), 1.0)

    def pmi(at: Any) -> FloatArray:
        row, column = split_keys(pairs[at])
        count, rarer = counts[at].astype(np.float64), np.minimum(totals[row], totals[column])
        found = np.log(np.maximum(count, 1) * everything / np.maximum(totals[row] * totals[column], 1.0))
        found *= count / (count + 1) * rarer / (rarer + 1)
        return np.asarray(found)

    positive = np.zeros(len(pairs), dtype=bool)
    sizes = np.zeros((2, n_items), np.int64)  # of each row, left and right of the diagonal
    for block in _blocks(len(pairs)):
        positive[block] = pmi(block) > 0
        smaller, larger = split_keys(pairs[block][positive[block]])
        sizes += [np.bincount(larger, minlength=n_items), np.bincount(smaller, minlength=n_items)]
    starts = np.append(0, np.cumsum(sizes.sum(axis=0)))
    columns, values = np.empty(starts[-1], _index_type(starts[-1])), np.empty(starts[-1])
    for is_right in (False, True):
        before = starts[:-1] + sizes[0] * is_right - np.cumsum(sizes[int(is_right)]) + sizes[int(is_right)]
        done = 0
        for block in _blocks(len(pairs)):
            at = np.arange(block.start, block.stop) if is_right else places[block]
            at = at[positive[at]]
            smaller, larger = split_keys(pairs[at])
            row, column = (smaller, larger) if is_right else (larger, smaller)
            here = before[row] + np.arange(done, done + len(at))
            columns[here], values[here] = column, pmi(at)
            done += len(at)
    return csr_matrix((values, columns, starts.astype(columns.dtype)), shape=(n_items, n_items))


def _index_type(size: int) -> type[np.int32] | type[np.int64]:
    """The smallest type for places among so many."""
    return np.int32 if size < 2**31 else np.int64


def _blocks(size: int) -> Iterator[slice]:
    """All of so many, AT_ONCE at a time."""
    return (slice(begin, min(begin + AT_ONCE, size)) for begin in range(0, size, AT_ONCE))
