"""Item-kNN: an item scores by how similar its users are to those of the items of the history."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from llm4dsr.core.arrays import FloatArray
from llm4dsr.core.memory import available_memory
from llm4dsr.errors import ModelError
from llm4dsr.recommenders.neighborhood import Neighborhood, pair_blocks

SAMPLE = 200  # items whose neighbors are counted, to tell the memory that all need


class ItemKNN(Neighborhood):
    """Cosine of the users of two items, kept sparse.

    `neighbors` keeps the most similar items of each item only; of equal ones, those that come first in the catalogue.
    `shrink` is added to the denominator, so that pairs with few users count less.

    Parameters
    ----------
    users : csr_matrix of float
        [users, n_items] as `neighborhood.user_matrix` makes it.
    config : NeighborhoodConfig
        Options `neighbors` and `shrink`; `decay` for ranking.

    Raises
    ------
    ModelError
        If the weights do not fit into the available memory.

    References
    ----------
    Sarwar et al. (2001), WWW, section 3.1.1; Deshpande and Karypis (2004), ACM TOIS 22, section 4.
    """

    name = "item-kNN"

    def item_weights(self, users: sparse.csr_matrix) -> sparse.csr_matrix:
        """Compute the similarities [n_items, n_items], in [0, 1], 0 on the diagonal."""
        squares = np.asarray(users.power(2).sum(axis=0), dtype=np.float64).ravel()  # [n_items]
        needed, available = weight_bytes(users, self.config.neighbors), available_memory()
        if needed > available > 0:
            raise ModelError(
                f"item-kNN needs {needed / 2**30:.1f} GiB of memory for {users.shape[1]} items; "
                f"{available / 2**30:.1f} GiB are available. Lower evaluate.neighborhood.neighbors (0 keeps all), or "
                "use windows with fewer items."
            )
        blocks = [block for _, block in pair_blocks(users, lambda part, pairs: self._similar(part, pairs, squares))]
        return sparse.vstack(blocks, format="csr", dtype=np.float32)

    def _similar(self, part: slice, pairs: sparse.csr_matrix, squares: FloatArray) -> sparse.csr_matrix:
        """The rows `part` of the similarities."""
        size, n_items = pairs.shape
        pairs.sort_indices()
        counts, column = pairs.getnnz(axis=1), pairs.indices
        row = np.repeat(np.arange(size), counts)
        # One root of the product: pairs of equal similarity get equal numbers.
        similar = pairs.data / (np.sqrt(squares[part][row] * squares[column]) + self.config.shrink)
        kept = column != row + part.start
        if self.config.neighbors:
            best = np.lexsort((column, -similar, ~kept, row))  # within a row, the most similar first, itself last
            place = np.empty(len(best), dtype=np.int64)
            place[best] = np.arange(len(best)) - np.repeat(np.cumsum(counts) - counts, counts)
            kept &= place < self.config.neighbors
        data = similar[kept].astype(np.float32)
        return sparse.csr_matrix((data, (row[kept], column[kept])), shape=(size, n_items))


def weight_bytes(users: sparse.csr_matrix, neighbors: int) -> int:
    """Return the bytes that all similarities need, by those of evenly spaced items; twice while they are joined.

    Parameters
    ----------
    users : csr_matrix of float
        [users, n_items] as `neighborhood.user_matrix` makes it.
    neighbors : int
        Most that are kept for each item; 0 = all.

    Examples
    --------
    >>> weight_bytes(sparse.csr_matrix(np.ones((2, 3), np.float32)), 0)  # nine similarities, a value and a column each
    144
    """
    n_items = users.shape[1]
    some = users.T.tocsr()[:: max(1, n_items // SAMPLE)]
    stored = (some @ users).getnnz(axis=1)
    return int(2 * 8 * n_items * np.mean(np.minimum(stored, neighbors) if neighbors else stored))
