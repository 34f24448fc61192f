"""EASE (Steck, WWW 2019, arXiv 1905.03375): a linear autoencoder of a user's items, solved in closed form."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from llm4dsr.core.memory import available_memory
from llm4dsr.errors import ModelError
from llm4dsr.recommenders.neighborhood import Neighborhood, pair_blocks

MATRICES = 2.2  # dense matrices in memory at once: two, and working space


class EASE(Neighborhood):
    """Dense item-item weights that reconstruct each user's items from the others.

    Two matrices of n_items² 32-bit numbers are in memory at once; see `memory_needed`. Inverting takes time in
    n_items³.

    Parameters
    ----------
    users : csr_matrix of float
        [users, n_items] as `neighborhood.user_matrix` makes it.
    config : NeighborhoodConfig
        Option `ridge`, the λ of the paper; `decay` for ranking.

    Raises
    ------
    ModelError
        If the matrices do not fit into the available memory, or `ridge` is too small to invert.

    References
    ----------
    Steck (2019), arXiv 1905.03375, equation 8.
    """

    name = "EASE"
    tolerance = 1e-6  # weights of two items with the same users differ by rounding; the diagonal's scale is 1

    def item_weights(self, users: sparse.csr_matrix) -> npt.NDArray[np.float32]:
        """Compute the weights [n_items, n_items], of either sign, 0 on the diagonal."""
        n_items, ridge = users.shape[1], self.config.ridge
        needed, available = memory_needed(n_items), available_memory()
        if needed > available > 0:
            raise ModelError(
                f"EASE needs {needed / 2**30:.1f} GiB of memory for {n_items} items; {available / 2**30:.1f} GiB are "
                "available. Use evaluate.backbone: itemknn, or windows with fewer items."
            )
        gram = torch.empty(n_items, n_items)
        for part, pairs in pair_blocks(users, lambda _, pairs: torch.from_numpy(pairs.toarray())):
            gram[part] = pairs
        gram.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(gram)
        del gram
        if failed:
            raise ModelError(f"EASE: the items cannot be told apart. Raise evaluate.neighborhood.ridge ({ridge:g}).")
        inverse = torch.cholesky_inverse(factor)
        del factor
        weights = inverse if inverse.is_contiguous() else inverse.T  # symmetric; ranking reads it row by row
        weights.div_(-weights.diagonal().clone()).fill_diagonal_(0.0)
        return np.ascontiguousarray(weights.numpy())


def workers_in_memory(workers: int, n_items: int) -> int:
    """Return how many of these workers may train EASE at a time; at least 1."""
    return max(1, min(workers, available_memory() // memory_needed(n_items)))


def memory_needed(n_items: int) -> int:
    """Return the bytes that EASE needs for a catalogue.

    Examples
    --------
    >>> f"{memory_needed(50_000) / 2**30:.0f} GiB"
    '20 GiB'
    """
    return int(MATRICES * 4 * n_items**2)
