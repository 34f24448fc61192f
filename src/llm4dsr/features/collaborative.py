"""Collaborative item vectors, cross-fitted: which items go together beyond the pairs that were counted.

Pair counts are sparse: most pairs of a history occur in no other one. A truncated SVD of their positive PMI, discounted
where counts are small (`ppmi`), gives items vectors that are close if they occur with the same items. A history must
not know itself. So users are split into groups, and each group has vectors learned from the users of all other groups.

Vectors of two groups have different bases, so only cosines within one group are used. They are the same in any basis.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from llm4dsr.core.arrays import BoolArray, IntArray, among, sorted_unique
from llm4dsr.core.hashing import Hashes, digest, hash_folds, user_hashes
from llm4dsr.data.windows import Windows
from llm4dsr.features.pair_counts import Counts, Run
from llm4dsr.features.ppmi import by_larger, ppmi

GROUPS = 5  # of users; each has vectors from the users of the others
SIZES = (32, 128)  # leading columns whose cosines are taken: coarse and fine tastes
N_COSINES = 3 * len(SIZES)  # numbers that `CollaborativeVectors.features` gives for an interaction
CELLS = 50_000  # positions whose vectors are held at once
FILE = "collaborative.safetensors"

Vectors = npt.NDArray[np.float32]


@dataclass
class CollaborativeVectors:
    """Item vectors for each group of users, learned without this group.

    Attributes
    ----------
    vectors : array of float32
        [GROUPS, N, V]; columns in order of importance, zero rows for items that no other group has.
    users : array of uint64
        Sorted hashes of the users that they were learned from. All others share the vectors of one group.
    """

    vectors: Vectors
    users: Hashes

    @classmethod
    def of(
        cls, pairs: IntArray, counts: Counts, groups: Sequence[Iterable[Run]], users: Hashes, n_items: int, seed: int
    ) -> CollaborativeVectors:
        """Learn the vectors from the pair counts of all users and of each group.

        Parameters
        ----------
        pairs, counts : array of int
            [P] sorted keys of pairs, as `pair_keys` makes them, and the users of each.
        groups : sequence of iterable of (array of int, array of int)
            For each group, such pairs and counts that add up to those of its users.
        users : array of uint64
            Hashes of the users of all groups.
        n_items : int
            Number N of items in the catalogue.
        seed : int
            Seed of the truncated SVD.
        """
        _, places = by_larger(pairs, n_items)

        def matrix(own: Iterable[Run]) -> Any:
            others = counts.copy()
            for some, count in own:
                others[np.searchsorted(pairs, some)] -= count
            return ppmi(pairs, others, places, n_items)

        out = np.zeros((len(groups), n_items, max(SIZES)), np.float32)
        for group, own in enumerate(groups):
            vectors = _svd_vectors(matrix(own), max(SIZES), seed)
            out[group, :, : vectors.shape[1]] = vectors
            del vectors  # else they are held beside those of the next group, as a matrix with a name would be
        return cls(out, sorted_unique(users))

    def with_items(self, n_items: int) -> CollaborativeVectors:
        """Return vectors for a catalogue with new items at the end; they have none."""

        def longer(vectors: Vectors) -> Vectors:
            groups, known, size = vectors.shape
            return np.concatenate([vectors, np.zeros((groups, n_items - known, size), vectors.dtype)], axis=1)

        out = CollaborativeVectors(longer(self.vectors), self.users)
        vars(out)["_unit_vectors"] = {size: longer(vectors) for size, vectors in self._unit_vectors.items()}
        return out

    def features(self, windows: Windows, unknown: BoolArray | None = None) -> Vectors:
        """Describe each interaction by its cosines with the rest of its window.

        Parameters
        ----------
        windows : Windows
            W windows with n interactions.
        unknown : array of bool, optional
            [N] True for items that are taken as new, without a vector. Default: none.

        Returns
        -------
        array of float32
            [n, N_COSINES]. For each of SIZES: the cosine with the sum of the other items' unit
            vectors; the largest cosine with another item; the window's mean of the first.
        """
        return np.concatenate([self._cosines(batch, unknown) for _, batch in windows.batches(CELLS)])

    def _cosines(self, windows: Windows, unknown: BoolArray | None) -> Vectors:
        """`features` of a batch."""
        items, groups, here, columns = windows.item_matrix, self._groups(windows), windows.present, []
        known = here if unknown is None else here & ~unknown[items]
        for size in SIZES:
            x = self._unit_vectors[size][groups[:, None], items] * known[:, :, None]  # [B, L, V]
            rest = x.sum(axis=1, keepdims=True) - x
            norm = np.maximum(np.linalg.norm(rest, axis=2), 1e-9)
            centroid = (x * rest).sum(axis=2) / norm
            pairs = x @ x.transpose(0, 2, 1)
            pairs[:, range(pairs.shape[1]), range(pairs.shape[1])] = -1.0
            closest = np.where(here[:, None, :], pairs, -1.0).max(axis=2)
            closest[windows.lengths < 2] = 0.0
            mean = centroid.sum(axis=1, keepdims=True) / np.maximum(here.sum(axis=1, keepdims=True), 1)
            columns += [centroid[here], closest[here], np.broadcast_to(mean, centroid.shape)[here]]
        return np.stack(columns, axis=1).astype(np.float32)

    def pair_cosines(self, windows: Windows, size: int) -> Vectors:
        """Return the cosines [B, L, L] of the leading columns of all items in a batch; 0 for padding."""
        items = self._unit_vectors[size][self._groups(windows)[:, None], windows.item_matrix]
        x = items * windows.present[:, :, None]
        return np.asarray(x @ x.transpose(0, 2, 1))

    def similarities(self, windows: Windows, context: BoolArray) -> Vectors:
        """Return the cosine [W, N] of each catalogue item with the sum of the `context` items, [n], of a window."""
        groups, sums = self.contexts(windows, context)
        out = np.empty((len(windows), self.units.shape[1]), np.float32)
        for group in np.unique(groups):
            rows = np.flatnonzero(groups == group)
            out[rows] = sums[rows] @ self.units[group].T
        return out

    def contexts(self, windows: Windows, context: BoolArray) -> tuple[IntArray, Vectors]:
        """Sum the vectors of the `context` items, [n], of each window.

        Returns
        -------
        groups : array of int
            [W] the group whose vectors are summed.
        sums : array of float32
            [W, V] of length 1; 0 where no item has a vector.
        """
        groups = self._groups(windows)
        x = self.units[groups[:, None], windows.item_matrix] * windows.matrix(context, False)[:, :, None]
        total = x.sum(axis=1)
        return groups, np.asarray(total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9))

    @property
    def units(self) -> Vectors:
        """[GROUPS, N, V] the vectors, scaled to length 1; zero rows stay."""
        return self._unit_vectors[max(SIZES)]

    def _groups(self, windows: Windows) -> IntArray:
        """[W] the group whose vectors do not know the user."""
        users = user_hashes(windows.user_ids)
        return np.where(among(self.users, users), hash_folds(users, GROUPS), 0)

    @cached_property
    def _unit_vectors(self) -> dict[int, Vectors]:
        """Size → [GROUPS, N, size] the leading columns, scaled to length 1; zero rows stay."""
        out = {}
        for size in SIZES:
            leading = self.vectors[:, :, :size]
            out[size] = leading / np.maximum(np.linalg.norm(leading, axis=2, keepdims=True), 1e-9)
        return out

    @cached_property
    def fingerprint(self) -> str:
        """A hash; equal for equal vectors."""
        return digest(self.vectors, self.users)

    def save(self, folder: Path) -> None:
        """Write the vectors as safetensors into a folder."""
        save_file({"vectors": self.vectors, "users": self.users.view(np.int64)}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> CollaborativeVectors:
        """Read what `save` wrote."""
        loaded = load_file(folder / FILE)
        return cls(loaded["vectors"], loaded["users"].view(np.uint64))


def _svd_vectors(matrix: Any, size: int, seed: int) -> npt.NDArray[Any]:
    """[N, ≤ size] truncated SVD of the positive PMI of pairs."""
    from sklearn.utils.extmath import randomized_svd

    n_items = matrix.shape[0]
    if not matrix.nnz or n_items < 2:
        return np.zeros((n_items, 1))
    left, values, right = randomized_svd(matrix, min(size, n_items - 1), n_iter=4, random_state=seed)
    # Their sum, not one side alone: items that occur only with each other are then close, too.
    return np.asarray((left + right.T) / 2 * np.sqrt(values))
