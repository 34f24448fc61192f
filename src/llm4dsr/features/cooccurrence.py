"""Co-occurrence counts: which items other users have together. They need no pre-training, and add what titles lack.

A history of model railways may hold a book that no title connects with them. If dozens of other users have both, the
book belongs there. Such counts leak into their own score: every pair of a history occurs at least once, in that very
history. So they are **leave-one-out**: a user's own pairs and items are subtracted before the user is scored. Measured
on real data, such counts alone find noise with AUROC 0.79. Joined with titles they add as much as a pre-trained
sentence encoder does (docs/concepts/embedded-model.md).

A pair counts once per user, if one window holds both items. Only counts are kept, and 64-bit hashes of which pairs a
user has; no user id is stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from llm4dsr.core.arrays import BoolArray, FloatArray, IntArray, among, ranges
from llm4dsr.core.device import in_parts
from llm4dsr.core.hashing import Hashes, digest, hash_folds, item_hashes, user_hashes
from llm4dsr.core.io import write_parquet
from llm4dsr.data.windows import Windows
from llm4dsr.features.collaborative import GROUPS, N_COSINES, CollaborativeVectors
from llm4dsr.features.pair_counts import (
    Counts,
    Run,
    joined,
    pair_hashes,
    pair_keys,
    run_of,
    slices,
    split_keys,
    summed,
    user_pairs,
    window_pairs,
)
from llm4dsr.features.ppmi import Places, by_larger, first_places

N_COUNTS = 7  # numbers that `CooccurrenceCounts.features` gives for an interaction, before the cosines
N_FEATURES = N_COUNTS + N_COSINES
CELLS = 4_000_000  # pairs of a batch that are described at once
_FILE = "cooccurrence_{}.parquet"


@dataclass(frozen=True)
class CooccurrenceCounts:
    """How many users have each item, and each pair of items in one window.

    Attributes
    ----------
    pairs : array of int
        [P] sorted keys of pairs, as `pair_keys` makes them.
    counts : array of int32
        [P] users of each pair.
    popularity : array of int
        [N] users of each item.
    own : array of uint64
        Sorted hashes of every (user, pair) and (user, item) that was counted.
    vectors : CollaborativeVectors or None
        Item vectors from the pairs, needed for `features`. They stay as they are when more windows are counted.
    """

    pairs: IntArray
    counts: Counts
    popularity: IntArray
    own: Hashes
    vectors: CollaborativeVectors | None = None

    @classmethod
    def fit(cls, windows: Windows, n_items: int, seed: int) -> CooccurrenceCounts:
        """Count windows and learn item vectors from the counts.

        Parameters
        ----------
        windows : Windows
            Training windows.
        n_items : int
            Number of items in the catalogue.
        seed : int
            Seed of the vectors.
        """
        users = user_hashes(windows.user_ids)
        counted = cls._none(n_items)._with(windows, users)
        groups = hash_folds(users, GROUPS)

        def of_group(group: int) -> Iterator[Run]:  # counted again: that takes less time than room to keep it
            rows = np.flatnonzero(groups == group)
            return (run_of(found.pairs) for found in user_pairs(windows, users, n_items, rows))

        vectors = CollaborativeVectors.of(
            counted.pairs, counted.counts, [of_group(group) for group in range(GROUPS)], users, n_items, seed
        )
        return replace(counted, vectors=vectors)

    @classmethod
    def of(cls, windows: Windows, n_items: int) -> CooccurrenceCounts:
        """Count windows, each pair of a user once."""
        return cls._none(n_items).add(windows)

    @classmethod
    def _none(cls, n_items: int) -> CooccurrenceCounts:
        none = np.empty(0, np.int64)
        return cls(none, none.astype(np.int32), np.zeros(n_items, np.int64), none.astype(np.uint64))

    def add(self, windows: Windows) -> CooccurrenceCounts:
        """Count more windows into a new object; this one is unchanged. What a user was counted for is not counted
        again.

        Parameters
        ----------
        windows : Windows
            Windows to count.
        """
        return self._with(windows, user_hashes(windows.user_ids))

    def _with(self, windows: Windows, users: Hashes) -> CooccurrenceCounts:
        """`add` windows of the users [W] with these hashes."""
        popularity, own = self.popularity.copy(), [np.empty(0, np.uint64)]

        def runs() -> Iterator[Run]:
            yield self.pairs, self.counts
            for found in user_pairs(windows, users, len(popularity), np.arange(len(windows))):
                new, new_items = ~self._is_own(found.pair_owners), ~self._is_own(found.item_owners)
                np.add.at(popularity, found.items[new_items], 1)
                own.extend([found.pair_owners[new], found.item_owners[new_items]])
                yield run_of(found.pairs[new])

        pairs, counts = summed(runs())
        added = joined(own)
        added.sort()
        merged = np.insert(self.own, np.searchsorted(self.own, added), added) if len(self.own) else added
        return CooccurrenceCounts(pairs, counts, popularity, merged, self.vectors)

    def with_items(self, n_items: int) -> CooccurrenceCounts:
        """Return counts that also know new items at the end of a catalogue of now `n_items`, which no user has yet."""
        popularity = np.zeros(n_items, np.int64)
        popularity[: len(self.popularity)] = self.popularity
        vectors = None if self.vectors is None else self.vectors.with_items(n_items)
        out = replace(self, popularity=popularity, vectors=vectors)
        starts, places = self._neighbors  # new items have none, so nothing is counted or sorted again
        more = np.repeat(starts[:, -1:], n_items - len(self.popularity), axis=1)
        vars(out).update(_neighbors=(np.append(starts, more, axis=1), places), _own_prefixes=self._own_prefixes)
        return out

    def leave_one_out_counts(self, windows: Windows) -> tuple[FloatArray, FloatArray]:
        """Count the other users of each pair and item of each window.

        Parameters
        ----------
        windows : Windows
            A batch of W windows; L is their width.

        Returns
        -------
        pair_counts : array of float
            [W, L, L] other users who have both items; 0 for padding.
        item_counts : array of float
            [W, L] other users who have the item; 0 for padding.
        """
        rows, owners, positions = windows.items, windows.owners, windows.positions
        users = user_hashes(windows.user_ids)[owners]
        pair_counts = np.zeros((len(windows), windows.width, windows.width))
        for left, right in (window_pairs(windows, part) for part in slices(windows, CELLS)):
            key = pair_keys(rows[left], rows[right])
            found = among(self.pairs, key)
            key, left, right = key[found], left[found], right[found]
            count = self.counts[np.searchsorted(self.pairs, key)]
            count = count - self._is_own(pair_hashes(users[left], key))
            window, i, j = owners[left], positions[left], positions[right]
            pair_counts[window, i, j] = pair_counts[window, j, i] = count
        item_counts = self.popularity[rows] - self._is_own(item_hashes(users, rows))
        return pair_counts, windows.matrix(item_counts.astype(np.float64), 0.0)

    def features(self, windows: Windows, unknown: BoolArray | None = None) -> npt.NDArray[np.float32]:
        """Describe each interaction by what other users have.

        Parameters
        ----------
        windows : Windows
            W windows with n interactions.
        unknown : array of bool, optional
            As in `CollaborativeVectors.features`.

        Returns
        -------
        array of float32
            [n, N_FEATURES], on scales of about 1. In this order: log of the item's users; whether it
            has none; the fraction of the window's other items that it occurs with; log of their mean cosine; log of
            their summed counts; log of their largest count; 0, 1/3, 2/3 or 1 for 0, 1, 2 or more of them; then the
            cosines of `CollaborativeVectors.features`.
        """
        assert self.vectors is not None

        def describe(part: slice) -> npt.NDArray[np.float32]:
            some = windows.take(np.arange(part.start, part.stop))
            pair_counts, item_counts = self.leave_one_out_counts(some)
            context = np.maximum(some.lengths - 1, 1)[:, None]
            cosine = pair_cosines(pair_counts, item_counts)
            known = (pair_counts > 0).sum(axis=2)
            found = (
                np.log1p(item_counts) / 2,
                item_counts == 0,
                known / context,
                np.log1p(10 * cosine.sum(axis=2) / context),
                np.log1p(pair_counts.sum(axis=2)),
                np.log1p(pair_counts.max(axis=2, initial=0)),
                np.minimum(known, 3) / 3,
            )
            return np.stack(found, axis=2)[some.present].astype(np.float32)

        size = max(1, CELLS // max(1, windows.width) ** 2)
        parts = [slice(start, min(len(windows), start + size)) for start in range(0, len(windows), size)]
        counts = [found for _, found in in_parts(parts, describe, "windows to describe")]
        return np.concatenate(
            [np.concatenate([np.empty((0, N_COUNTS), np.float32), *counts]), self.vectors.features(windows, unknown)],
            axis=1,
        )

    def neighbor_scores(self, windows: Windows, context: BoolArray) -> FloatArray:
        """Score every item of the catalogue by how it co-occurs with the items of a window.

        Parameters
        ----------
        windows : Windows
            W windows with n interactions.
        context : array of bool
            [n] True for the items that count.

        Returns
        -------
        array of float
            [W, N] sum over the context of (other users with both) / √(users of one · users of the other). Higher = fits
            better.
        """
        n_items = len(self.popularity)
        rows, items, scores = self.neighbors(windows, context)
        total = np.bincount(rows * n_items + items, weights=scores, minlength=len(windows) * n_items)
        return np.asarray(total.reshape(len(windows), n_items))

    @property
    def mean_neighbors(self) -> float:
        """Mean number of items that an item occurs with."""
        return 2 * len(self.pairs) / max(1, len(self.popularity))

    def neighbors(self, windows: Windows, context: BoolArray) -> tuple[IntArray, IntArray, FloatArray]:
        """List the items that other users have with the items of a window.

        Parameters
        ----------
        windows, context
            As in `neighbor_scores`.

        Returns
        -------
        rows, items : array of int
            [m] a window, and a neighbor of one of its items. An item comes once for each that it is a neighbor of.
        scores : array of float
            [m] what this adds to its neighbor score.
        """
        rows, items = windows.owners[context], windows.items[context]
        starts, places = self._neighbors
        begins = starts[:, items] + np.array([[0], [len(places)]])  # of pairs with smaller items, then with larger ones
        sizes = starts[:, items + 1] - starts[:, items]
        at = ranges(begins.T.ravel(), sizes.T.ravel())
        is_smaller = np.flatnonzero(at < len(places))
        at[is_smaller] = places[at[is_smaller]] + len(places)
        at -= len(places)
        sizes, users, keys = sizes.sum(axis=0), self.popularity + 1.0, self.pairs[at]
        smaller, larger = split_keys(keys)
        near = smaller + larger - np.repeat(items, sizes)
        scales = 1 / np.sqrt(np.repeat(users[items], sizes) * users[near])
        rows = np.repeat(rows, sizes)
        count = self.counts[at] - self._is_own(pair_hashes(user_hashes(windows.user_ids)[rows], keys))
        return rows, near, count * scales

    @cached_property
    def fingerprint(self) -> str:
        """A hash; equal for equal counts."""
        vectors = self.vectors.fingerprint if self.vectors else ""
        return digest(self.pairs, self.counts.astype(np.int64), self.popularity, self.own, vectors)

    @cached_property
    def _neighbors(self) -> tuple[IntArray, Places]:
        """([2, N + 1] starts, places): where pairs of each item with smaller ones are in `places`, and with larger ones
        in `pairs`; and `places` of `by_larger`."""
        starts, places = by_larger(self.pairs, len(self.popularity))
        return np.stack([starts, first_places(self.pairs, len(self.popularity))]), places

    def _is_own(self, hashes: Hashes) -> BoolArray:
        """[n] True for what was counted for its own user."""
        maybe = np.flatnonzero(self._own_prefixes[(hashes >> self._prefix_shift).astype(np.int64)])
        out = np.zeros(len(hashes), dtype=bool)
        out[maybe] = among(self.own, hashes[maybe])
        return out

    @property
    def _prefix_shift(self) -> np.uint64:
        """Leaves as many leading bits that at most one prefix in eight is that of a hash in `own`; 64 MB at most."""
        return np.uint64(64 - min(26, len(self.own).bit_length() + 4))

    @cached_property
    def _own_prefixes(self) -> BoolArray:
        """True for the leading bits of hashes in `own`: most other hashes need no search."""
        out = np.zeros(2 ** int(64 - self._prefix_shift), dtype=bool)
        for begin in range(0, len(self.own), CELLS):
            out[(self.own[begin : begin + CELLS] >> self._prefix_shift).astype(np.int64)] = True
        return out

    def save(self, folder: Path) -> None:
        """Write the counts as Parquet into a folder, and the vectors as safetensors."""
        pairs = pl.DataFrame({"pair": self.pairs, "users": self.counts.astype(np.int64)})
        write_parquet(pairs, folder / _FILE.format("pairs"))
        write_parquet(pl.DataFrame({"users": self.popularity}), folder / _FILE.format("items"))
        write_parquet(pl.DataFrame({"hash": self.own}), folder / _FILE.format("own"))
        if self.vectors is not None:
            self.vectors.save(folder)

    @classmethod
    def load(cls, folder: Path) -> CooccurrenceCounts:
        """Read what `save` wrote."""
        pairs = pl.read_parquet(folder / _FILE.format("pairs"), glob=False)
        items = pl.read_parquet(folder / _FILE.format("items"), glob=False)
        own = pl.read_parquet(folder / _FILE.format("own"), glob=False)
        return cls(pairs["pair"].to_numpy(), pairs["users"].to_numpy().astype(np.int32), items["users"].to_numpy(),
                   own["hash"].to_numpy(), CollaborativeVectors.load(folder))  # fmt: skip


def pair_cosines(pair_counts: FloatArray, item_counts: FloatArray) -> FloatArray:
    """Return the cosines [W, L, L] of counts as `leave_one_out_counts` gives them; small counts are damped."""
    return pair_counts / np.sqrt((item_counts[:, :, None] + 1) * (item_counts[:, None, :] + 1))
