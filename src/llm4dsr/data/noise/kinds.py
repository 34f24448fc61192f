"""Known noise: the only way to measure detection, since real noise is not labeled.

| kind | what happens                                                    | `rate`: fraction of interactions |
|---|---|---|
| uniform | replaced by any other item, with equal probability              | replaced |
| popularity | replaced by another item, in proportion to its interactions | replaced    |
| near-miss | replaced by an item with a similar title, or of its category    | replaced |
| burst | runs of 1 to 5 change places with runs of other users           | in such a run |
| insertion | random items inserted; the history grows                        | before which one is inserted |
| deletion | interactions removed                                            | removed |
| shuffle | a run of 2 to 5 reordered, so that none keeps its position      | in such a run; a single one stays |

Rates are expectations: each interaction is affected with probability `rate`, alone or with its run.

The truth is what belongs at each position: the item that stood there, or none where one was inserted. An interaction is
noise (`noise_mask` = 1) exactly where another item stands than belongs there. So a run from another user may hold an
item that is right by chance, which is no noise. Runs are exchanged, not copied: a copy would stand in two histories,
whose items would seem to go together because of the noise alone. In a shuffled run each item is noise, although the
user took it at another time. Removed interactions leave nothing to mark: the mask is 0, and they are kept in a table of
their own. Data folders are handled in `folder.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from llm4dsr.core.arrays import PAD, BoolArray, IntArray
from llm4dsr.data.catalogue import WORD
from llm4dsr.errors import DataError

KINDS: Final = ("uniform", "popularity", "near-miss", "burst", "insertion", "deletion", "shuffle")
LONGEST_RUN: Final = 5
SIMILAR: Final = 10  # near-miss draws among so many items
_BLOCK: Final = 20_000_000  # similarities that are held in memory at once, at most

Similar = Callable[[IntArray, np.random.Generator], IntArray]  # catalogue rows -> a similar one for each, or PAD


@dataclass
class Noisy:
    """What became of n interactions of histories that follow one another.

    Attributes
    ----------
    items : array of int
        [m] catalogue rows afterwards.
    clean : array of int
        [m] what belongs there; PAD where an item was inserted.
    source : array of int
        [m] ascending: which of the n each is, or before which of them it was inserted.
    removed : array of bool
        [n] True where the interaction was removed.
    """

    items: IntArray
    clean: IntArray
    source: IntArray
    removed: BoolArray

    @property
    def mask(self) -> BoolArray:
        """[m] True where another item stands than belongs there."""
        out: BoolArray = self.items != self.clean
        return out

    def restored(self, removed_items: IntArray) -> IntArray:
        """Return the n interactions as they were. removed_items: the removed ones, in order."""
        out = np.empty(len(self.removed), dtype=np.int64)
        out[self.removed] = removed_items
        belongs = self.clean != PAD
        out[self.source[belongs]] = self.clean[belongs]
        return out


def add_noise(
    histories: Sequence[IntArray],
    n_items: int,
    rate: float,
    seed: int,
    kind: str = "uniform",
    similar: Similar | None = None,
) -> tuple[list[IntArray], list[BoolArray]]:
    """Inject noise into histories; `corrupt` does the same and returns the whole truth.

    Call it once per user, before windows are built, so that an interaction is noise in every window that holds it.

    Parameters
    ----------
    histories : sequence of array of int
        One per user: catalogue rows in 0 … n_items - 1, oldest first. They are not changed.
    n_items : int
        Items of the catalogue, at least 2.
    rate : float
        In [0, 1].
    seed : int
        Seed of the draws.
    kind : str, default "uniform"
        One of KINDS.
    similar : callable, optional
        `similar_titles` or `same_category`, for near-miss.

    Returns
    -------
    histories, masks : list of array
        The noisy histories, and True where another item stands than belongs there.

    Raises
    ------
    DataError
        If an argument is out of range.
    """
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    items = np.concatenate(list(histories)).astype(np.int64) if histories else np.empty(0, dtype=np.int64)
    noisy = corrupt(items, lengths, n_items, kind, rate, seed, similar)
    if not histories:
        return [], []
    after = np.bincount(np.repeat(np.arange(len(lengths)), lengths)[noisy.source], minlength=len(lengths))
    cuts = np.cumsum(after)[:-1]
    return np.split(noisy.items, cuts), np.split(noisy.mask, cuts)


def corrupt(
    items: IntArray,
    lengths: IntArray,
    n_items: int,
    kind: str,
    rate: float,
    seed: int,
    similar: Similar | None = None,
    users: IntArray | None = None,
    fixed: BoolArray | None = None,
) -> Noisy:
    """Inject noise into histories that follow one another.

    Parameters
    ----------
    items : array of int
        [n] catalogue rows, oldest first in each history.
    lengths : array of int
        [H] of the histories; they add up to n.
    n_items, kind, rate, seed, similar
        As in `add_noise`.
    users : array of int, optional
        [H] ascending, whose history each is, for burst. Default: each another user's.
    fixed : array of bool, optional
        [n] True where an interaction must keep its position, for shuffle.

    Returns
    -------
    Noisy

    Raises
    ------
    DataError
        As `add_noise`, and if a kind has nothing to draw from.
    """
    if kind not in KINDS:
        raise DataError(f"The kind of noise is {kind!r}; expected one of {', '.join(KINDS)}.")
    if not 0.0 <= rate <= 1.0:
        raise DataError(f"The noise rate is {rate}; expected a probability between 0 and 1.")
    if n_items < 2:
        raise DataError(f"The catalogue has {n_items} item(s); noise needs at least two, one to stand in for another.")
    if len(items) and not 0 <= items.min() <= items.max() < n_items:
        raise DataError(f"Items are rows {items.min()} to {items.max()}; expected 0 to {n_items - 1}, catalogue rows.")
    if kind == "near-miss" and similar is None:
        raise DataError("near-miss noise needs to know what is similar: give similar_titles or same_category.")

    rng = np.random.default_rng(seed)
    everything, none = np.arange(len(items)), np.zeros(len(items), dtype=bool)
    if kind in ("burst", "shuffle"):
        run = _runs(lengths, fixed if kind == "shuffle" else None, rng)
        chosen = (rng.random(int(run.max(initial=-1)) + 1) < rate)[run]
        if kind == "shuffle":
            moved = _reordered(items, run, rng)
        else:
            whose = np.repeat(np.arange(len(lengths)) if users is None else users, lengths)
            moved = _exchanged(items, run, chosen, whose, rng)
        return Noisy(np.where(chosen, moved, items), items.copy(), everything, none)

    chosen = rng.random(len(items)) < rate
    if kind == "deletion":
        left = np.flatnonzero(~chosen)
        return Noisy(items[left], items[left], left, chosen)
    if kind == "insertion":
        source = np.repeat(everything, 1 + chosen)
        inserted = np.zeros(len(source), dtype=bool)
        inserted[1:] = source[1:] == source[:-1]
        inserted = np.append(inserted[1:], False)  # the first of two that share a source
        foreign = _uniform(items, n_items, rng)[source]
        return Noisy(np.where(inserted, foreign, items[source]), np.where(inserted, PAD, items[source]), source, none)
    if kind == "popularity":
        other = _popular(items, n_items, rng)
    else:
        other = _uniform(items, n_items, rng)
        if similar is not None and kind == "near-miss" and chosen.any():
            found = similar(items[chosen], rng)
            other[chosen] = np.where(found == PAD, other[chosen], found)  # nothing is like it: any other item
    return Noisy(np.where(chosen, other, items), items.copy(), everything, none)


# --- what comes instead ----------------------------------------------------------------------------------------------


def _uniform(items: IntArray, n_items: int, rng: np.random.Generator) -> IntArray:
    """[n] another item for each: a draw among n_items - 1 numbers that steps over the original."""
    drawn = rng.integers(0, n_items - 1, size=len(items))
    other: IntArray = drawn + (drawn >= items)
    return other


def _popular(items: IntArray, n_items: int, rng: np.random.Generator) -> IntArray:
    """[n] another item for each: a draw among the interactions with all other items, ordered by item."""
    counts = np.bincount(items, minlength=n_items)
    own = counts[items]
    if len(items) and counts.max() == len(items):
        raise DataError("All interactions are with one item; noise by popularity needs two that occur. Use uniform.")
    ends = np.cumsum(counts)
    drawn = rng.integers(0, len(items) - own)
    return np.searchsorted(ends, drawn + (drawn >= ends[items] - own) * own, side="right")


def _runs(lengths: IntArray, fixed: BoolArray | None, rng: np.random.Generator) -> IntArray:
    """[n] the number of the run that each interaction is in.

    All runs of a history have one length, from 2 to LONGEST_RUN, except those at its ends. Fixed interactions are runs
    of their own.
    """
    size = rng.integers(2, LONGEST_RUN + 1, size=len(lengths))
    phase = rng.integers(0, size)
    history = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(history)) - (np.cumsum(lengths) - lengths)[history]
    begins = (place == 0) | ((place + phase[history]) % size[history] == 0)
    if fixed is not None:
        begins |= fixed
        begins[1:] |= fixed[:-1]
    return np.cumsum(begins) - 1


def _reordered(items: IntArray, run: IntArray, rng: np.random.Generator) -> IntArray:
    """[n] each run in a random order without fixed points: each item takes the next position in a random ring."""
    ring = np.lexsort((rng.random(len(items)), run))
    first, count = _first_and_count(run)
    place = np.arange(len(items)) - first[run]
    out = np.empty_like(items)
    out[ring[first[run] + (place + 1) % count[run]]] = items[ring]
    return out


def _exchanged(
    items: IntArray, run: IntArray, chosen: BoolArray, users: IntArray, rng: np.random.Generator
) -> IntArray:
    """[n] chosen runs change places with runs of the same length of other users. users: [n].

    A run stays where a single user has most of the chosen runs of its length.
    """
    if len(items) and users.min() == users.max():
        raise DataError("All interactions are of one user; a burst needs another user's. Use uniform.")
    first, count = _first_and_count(run)
    out, place = items.copy(), rng.permutation(int(users.max(initial=-1)) + 1)
    for size in np.unique(count[run[chosen]]):
        begin = first[(count == size) & chosen[first]]
        begin = begin[np.lexsort((rng.random(len(begin)), place[users[begin]]))]  # user after user, in random order
        runs_of = np.bincount(users[begin])
        most = min(int(runs_of.max()), len(begin) - int(runs_of.max()))  # that a single user can exchange
        of_leader = users[begin] == runs_of.argmax()
        begin = begin[~of_leader | (np.cumsum(of_leader) <= most)] if runs_of.max() > most else begin
        donor, step = np.roll(begin, -int(np.bincount(users[begin], minlength=1).max())), np.arange(size)
        out[begin[:, None] + step] = items[donor[:, None] + step]
    return out


def _first_and_count(run: IntArray) -> tuple[IntArray, IntArray]:
    """([runs] first interaction of each, [runs] its interactions)."""
    return np.flatnonzero(np.diff(run, prepend=-1)), np.bincount(run)


# --- what is similar -------------------------------------------------------------------------------------------------


def same_category(categories: Sequence[Any]) -> Similar:
    """Return a function that draws other items of an item's category. categories: [N]; None is similar to nothing."""
    code: dict[Any, int] = {}
    group = np.array([PAD if key is None else code.setdefault(key, len(code)) for key in categories], dtype=np.int64)
    members = np.argsort(group, kind="stable")
    count = np.bincount(group + 1)
    begin = np.cumsum(count) - count
    rank = np.empty(len(group), dtype=np.int64)  # of an item among its group
    rank[members] = np.arange(len(group)) - begin[group[members] + 1]

    def draw(rows: IntArray, rng: np.random.Generator) -> IntArray:
        size = count[group[rows] + 1]
        some = (size > 1) & (group[rows] != PAD)
        drawn = rng.integers(0, np.where(some, size - 1, 1))
        drawn += drawn >= rank[rows]
        return np.where(some, members[np.where(some, begin[group[rows] + 1] + drawn, 0)], PAD)

    return draw


def similar_titles(titles: Sequence[str]) -> Similar:
    """Return a function that draws among the SIMILAR items with the most similar titles.

    Similarity is the cosine of TF-IDF vectors of words. Items with the same title are left out. A title without a word
    in common with another is similar to nothing. Memory is bounded: similarities are computed in blocks, on demand.

    Parameters
    ----------
    titles : sequence of str
        [N] cleaned titles of the catalogue.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        vectors = TfidfVectorizer(token_pattern=WORD, sublinear_tf=True, dtype=np.float32).fit_transform(titles)
    except ValueError:  # no title has a letter or digit
        vectors = TfidfVectorizer(analyzer="char", sublinear_tf=True, dtype=np.float32).fit_transform(titles)
    vectors, columns = vectors.tocsr(), vectors.T.tocsr()
    canonical = np.unique(np.array(titles, dtype=object), return_inverse=True)[1]

    def nearest(rows: IntArray) -> IntArray:
        """[rows, SIMILAR] the most similar items, PAD where there are fewer."""
        out = np.full((len(rows), SIMILAR), PAD)
        step = max(1, _BLOCK // len(titles))
        for start in range(0, len(rows), step):
            block = rows[start : start + step]
            cosine = vectors[block] @ columns
            for i, row in enumerate(block):
                part = slice(cosine.indptr[i], cosine.indptr[i + 1])
                other, value = cosine.indices[part], cosine.data[part]
                keep = canonical[other] != canonical[row]
                other, value = other[keep], value[keep]
                if len(other) > SIMILAR:  # ties at the edge go to the smaller row, whatever the order in memory
                    enough = value >= np.partition(value, -SIMILAR)[-SIMILAR]
                    other, value = other[enough], value[enough]
                best = other[np.lexsort((other, -value))][:SIMILAR]
                out[start + i, : len(best)] = best
        return out

    def draw(rows: IntArray, rng: np.random.Generator) -> IntArray:
        unique, where = np.unique(rows, return_inverse=True)
        near = nearest(unique)[where]
        drawn = rng.integers(0, np.maximum(1, (near != PAD).sum(axis=1)))
        picked: IntArray = near[np.arange(len(rows)), drawn]
        return picked

    return draw
