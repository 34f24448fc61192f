"""EASE (Steck, WWW 2019, arXiv 1905.03375): a linear autoencoder of a user's items, solved in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from torch import Tensor

from llm4dsr.core.memory import available_memory
from llm4dsr.errors import ModelError
from llm4dsr.recommenders.neighborhood import Neighborhood, pair_blocks

MATRICES = 2.2  # dense matrices in memory at once: two, and working space
COLUMNS = 1024  # of the weights that are computed at once


class EASE(Neighborhood):
    """Dense item-item weights that reconstruct each user's items from the others.

    Two matrices of n_items² 32-bit numbers are in memory at once; see `memory_needed`. Inverting takes time in
    n_items³, or in users³ where there are fewer users than items.

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
        kept = users[users.getnnz(axis=1) > 0]
        inverse = _inverse_by_users(kept, ridge) if kept.shape[0] < n_items else _inverse_by_items(users, ridge)
        if inverse is None:
            raise ModelError(f"EASE: the items cannot be told apart. Raise evaluate.neighborhood.ridge ({ridge:g}).")
        weights = inverse if inverse.is_contiguous() else inverse.T  # symmetric; ranking reads it row by row
        weights.div_(-weights.diagonal().clone()).fill_diagonal_(0.0)
        return np.ascontiguousarray(weights.numpy())


def _inverse_by_items(users: sparse.csr_matrix, ridge: float) -> Tensor | None:
    """(XᵀX + λI)⁻¹ [n_items, n_items], in time n_items³; None if it does not exist in 32-bit numbers."""

    def gram() -> Tensor:
        out = torch.empty(users.shape[1], users.shape[1])
        for part, pairs in pair_blocks(users, lambda _, pairs: torch.from_numpy(pairs.toarray())):
            out[part] = pairs
        return out

    return _inverse(gram, ridge)


def _inverse_by_users(users: sparse.csr_matrix, ridge: float) -> Tensor | None:
    """The same, in time users³ + interactions × n_items: (I - Xᵀ(XXᵀ + λI)⁻¹X) / λ, by the identity of Woodbury."""
    of_users = _inverse(lambda: torch.from_numpy((users @ users.T).toarray()), ridge) if ridge else None
    if of_users is None:
        return None  # without λ, fewer users than items tell none apart
    items, n_items = users.T.tocsr(), users.shape[1]
    out = torch.eye(n_items)
    for start in range(0, n_items, COLUMNS):
        block = slice(start, start + COLUMNS)
        half = np.ascontiguousarray((items[block] @ of_users.numpy()).T)  # [users, B]
        out[:, block] -= torch.from_numpy(items @ half)
    return out.div_(ridge)


def _inverse(gram: Callable[[], Tensor], ridge: float) -> Tensor | None:
    """(G + λI)⁻¹ of a symmetric matrix G; None if it does not exist in 32-bit numbers."""
    matrix = gram()
    matrix.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    del matrix
    return None if failed else torch.cholesky_inverse(factor)


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
