"""Artificial noise whose truth is known: the only way to measure detection, since nobody labels real noise.

| kind       | what happens                                                  | `rate` is the share of interactions   |
|------------|---------------------------------------------------------------|---------------------------------------|
| uniform    | replaced by any other item, each as likely                    | replaced                              |
| popularity | replaced by another item, as likely as it is frequent         | replaced                              |
| near-miss  | replaced by an item with a similar title, or of its category  | replaced                              |
| burst      | a run of 1 to 5 replaced by a run from another user's history | in such a run                         |
| insertion  | foreign items inserted; the history grows                     | before which one is inserted          |
| deletion   | interactions removed                                          | removed                               |
| shuffle    | a run of 2 to 5 reordered, so that none keeps its place       | in such a run; a lone one stays       |

Rates are expectations: each interaction is affected with probability `rate`, alone or with its run.

The truth is what belongs at each place: the item that stood there, or none where one was inserted. An interaction is
noise (`noise_mask` = 1) exactly where another item stands than belongs there. So a run from another user may hold an
item that is right by chance, which is no noise; in a shuffled run each item is noise although the user wanted it, at
another time. Nothing can be marked where an interaction was removed: the mask is 0 all over, and what was removed is
kept in a table of its own. Folders of data, logs as well as ready windows, are the matter of `noisy_data`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from llm4dsr.catalogue import PAD, BoolArray, IntArray
from llm4dsr.errors import DataError

KINDS: Final = ("uniform", "popularity", "near-miss", "burst", "insertion", "deletion", "shuffle")
LONGEST_RUN: Final = 5
SIMILAR: Final = 10  # near-miss draws among so many items
_BLOCK: Final = 20_000_000  # similarities that are held in memory at once, at most

Similar = Callable[[IntArray, np.random.Generator], IntArray]  # catalogue rows -> a similar one for each, or PAD


@dataclass
class Noisy:
    """What became of n interactions that stand one history after another.

    items: [m] catalogue rows afterwards. clean: [m] what belongs there, PAD where an item was inserted. source: [m]
    rising, which of the n each is, or before which of them it was inserted. removed: [n] True where it is gone.
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
        """[n] the interactions as they were, from the truth. removed_items: those that are gone, in order."""
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
    """Noise of a kind in histories; see the table above. `corrupt` does the same and gives the whole truth.

    Call it once per user and before windows are cut, so that an interaction is noise in every window that holds it.

    histories: one array per user, catalogue rows in 0 … n_items - 1, oldest first; left as they are. rate: in [0, 1].
    similar: `similar_titles` or `same_category`, for near-miss.
    Returns (noisy histories, masks): lists of arrays; a mask is True where another item stands than belongs there. They
    are as long as the given ones, but for insertion and deletion. A user may well get an item twice this way.
    Raises DataError if `rate` is outside [0, 1], if a row is outside the catalogue, or if the catalogue has fewer than
    two items (there would be nothing to replace an item by).
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
    """Noise in histories that stand one after another.

    items: [n] catalogue rows, oldest first in each history. lengths: [H] of the histories, with the sum n.
    kind, rate, seed, similar: as in `add_noise`. users: [H] rising, whose history each is, for burst; each another's
    where None. fixed: [n] True where an interaction must keep its place, for shuffle.
    Raises DataError as `add_noise` does, and where a kind has nothing to draw from.
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
            moved = _runs_of_others(items, lengths, run, np.arange(len(lengths)) if users is None else users, rng)
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
    """[n] another item for each: draw among n_items - 1 numbers and step over the original."""
    drawn = rng.integers(0, n_items - 1, size=len(items))
    other: IntArray = drawn + (drawn >= items)
    return other


def _popular(items: IntArray, n_items: int, rng: np.random.Generator) -> IntArray:
    """[n] another item for each: draw among the interactions with all other items, in order of their items."""
    counts = np.bincount(items, minlength=n_items)
    own = counts[items]
    if len(items) and counts.max() == len(items):
        raise DataError("All interactions are with one item; noise by popularity needs two that occur. Use uniform.")
    ends = np.cumsum(counts)
    drawn = rng.integers(0, len(items) - own)
    return np.searchsorted(ends, drawn + (drawn >= ends[items] - own) * own, side="right")


def _runs(lengths: IntArray, fixed: BoolArray | None, rng: np.random.Generator) -> IntArray:
    """[n] the number of the run that each interaction is in. All runs of a history have one length, from 2 to
    LONGEST_RUN, but those at its ends, which may be cut. Fixed interactions are runs of their own."""
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
    """[n] each run in a random order in which every interaction has another place: in a random ring of the places of a
    run, each takes the next one."""
    ring = np.lexsort((rng.random(len(items)), run))
    first, count = _first_and_count(run)
    place = np.arange(len(items)) - first[run]
    out = np.empty_like(items)
    out[ring[first[run] + (place + 1) % count[run]]] = items[ring]
    return out


def _runs_of_others(
    items: IntArray, lengths: IntArray, run: IntArray, users: IntArray, rng: np.random.Generator
) -> IntArray:
    """[n] for each run as long a run from another user's history, which starts over where it is too short."""
    if not len(items):
        return items
    history = np.repeat(np.arange(len(lengths)), lengths)
    end = np.cumsum(lengths)
    first, count = _first_and_count(run)
    whose = users[history[first]]  # [runs]
    own = np.bincount(users, weights=lengths, minlength=int(users.max()) + 1).astype(np.int64)
    if own.max() == len(items):
        raise DataError("All interactions are of one user; a burst needs another user's. Use uniform.")
    drawn = rng.integers(0, len(items) - own[whose])
    at = drawn + (drawn >= (np.cumsum(own) - own)[whose]) * own[whose]
    other = history[at]
    begin = np.maximum(np.minimum(at, end[other] - count), end[other] - lengths[other])
    step = np.arange(len(items)) - first[run]
    out: IntArray = items[begin[run] + step % lengths[other][run]]
    return out


def _first_and_count(run: IntArray) -> tuple[IntArray, IntArray]:
    """([runs] where each begins, [runs] how many interactions it has)."""
    return np.flatnonzero(np.diff(run, prepend=-1)), np.bincount(run)


# --- what is similar -------------------------------------------------------------------------------------------------


def same_category(categories: Sequence[Any]) -> Similar:
    """Draws from the other items of an item's category. categories: [N] of the catalogue; None is like nothing."""
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
    """Draws among the SIMILAR items whose titles have the largest cosine of TF-IDF vectors of words with an item's.

    titles: [N] cleaned, of the catalogue. Items with the very same title are left out: to the model they are one item.
    A title that shares no word with another is like nothing. Memory is bounded: similarities are computed for a block
    of items at a time, and only for those asked for.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    from llm4dsr.vectors import WORD

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
