"""Item-kNN: an item scores by how similar its users are to those of the items of the history."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from llm4dsr.core.arrays import FloatArray
from llm4dsr.recommenders.neighborhood import Neighborhood, pair_blocks


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

    References
    ----------
    Sarwar et al. (2001), WWW, section 3.1.1; Deshpande and Karypis (2004), ACM TOIS 22, section 4.
    """

    name = "item-kNN"

    def item_weights(self, users: sparse.csr_matrix) -> sparse.csr_matrix:
        """Compute the similarities [n_items, n_items], in [0, 1], 0 on the diagonal."""
        squares = np.asarray(users.power(2).sum(axis=0), dtype=np.float64).ravel()  # [n_items]
        blocks = [self._similar(part, pairs, squares) for part, pairs in pair_blocks(users)]
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
