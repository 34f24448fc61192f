"""Pairs of items, and how many users have each: counted user by user, in memory that a part of the log bounds.

A user's windows overlap, so most pairs come several times. No user is in two parts of the log. So a part drops what
comes again and needs no other part for that. What is left of it is a sorted run of pairs with their users; `summed`
adds runs up, two at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from llm4dsr.core.arrays import IntArray, differ, ranges
from llm4dsr.core.device import in_parts
from llm4dsr.core.hashing import Hashes, item_hashes, mixed
from llm4dsr.data.windows import Windows

BITS: Final = 31  # of an item; there are fewer items than that, and two of them fit 63 bits
SHIFT: Final = 2**BITS
AT_ONCE = 1_000_000  # pairs of positions, or of a run, that are held at once; but all those of one user

Counts = npt.NDArray[np.int32]
Run = tuple[IntArray, Counts]  # sorted keys of pairs, and the users of each


def pair_keys(left: IntArray, right: IntArray) -> IntArray:
    """Return one number for two items each, whichever comes first. It does not depend on the size of the catalogue.

    Examples
    --------
    >>> split_keys(pair_keys(np.array([7, 2]), np.array([3, 9])))
    (array([3, 2]), array([7, 9]))
    """
    return np.asarray(np.minimum(left, right) * SHIFT + np.maximum(left, right))


def split_keys(keys: IntArray) -> tuple[IntArray, IntArray]:
    """Return the smaller and the larger catalogue row of each key of `pair_keys`."""
    return keys >> BITS, keys & (SHIFT - 1)


def pair_hashes(users: Hashes, keys: IntArray) -> Hashes:
    """Hash pairs [n] of a user, as `user_hashes` names them, and a key of `pair_keys`."""
    return mixed(users ^ keys.astype(np.uint64))


@dataclass(frozen=True)
class UserPairs:
    """What some users have, each pair and item of a user once.

    Attributes
    ----------
    pairs : array of int
        [p] keys of pairs, as `pair_keys` makes them.
    pair_owners : array of uint64
        [p] hashes of user and pair.
    items : array of int
        [q] catalogue rows.
    item_owners : array of uint64
        [q] hashes of user and item.
    """

    pairs: IntArray
    pair_owners: Hashes
    items: IntArray
    item_owners: Hashes


def user_pairs(windows: Windows, users: Hashes, n_items: int, rows: IntArray) -> Iterator[UserPairs]:
    """Yield what the users of windows have, a part of the users at a time.

    Parameters
    ----------
    windows : Windows
        W windows.
    users : array of uint64
        [W] hash of the user of each.
    n_items : int
        Number of items in the catalogue.
    rows : array of int
        The windows that count.
    """
    rows = rows[np.argsort(users[rows])]
    of_user, lengths = users[rows], windows.lengths[rows]
    begins = np.flatnonzero(differ(of_user))
    before = (np.cumsum(lengths * (lengths - 1) // 2) - lengths * (lengths - 1) // 2)[begins]  # pairs of users so far
    most = 2**63 // max(1, n_items) ** 2  # users whose pairs have numbers of 63 bits
    cut = (np.diff(before // AT_ONCE) != 0) | (np.diff(np.arange(len(begins)) // most) != 0)
    for begin, end in pairwise([0, *begins[1:][cut].tolist(), len(rows)]):
        if begin < end:
            yield _pairs_of(windows.take(rows[begin:end]), of_user[begin:end], n_items)


def _pairs_of(windows: Windows, users: Hashes, n_items: int) -> UserPairs:
    """What these users have; their windows come user by user."""
    is_first = differ(users)
    users, base = users[is_first], ((np.cumsum(is_first) - 1) * n_items)[windows.owners]

    def count(part: slice) -> IntArray:
        left, right = window_pairs(windows, part)
        one, other = windows.items[left], windows.items[right]
        return _distinct((base[left] + np.minimum(one, other)) * n_items + np.maximum(one, other))

    found = [codes for _, codes in in_parts(slices(windows, AT_ONCE), count, "interactions to count")]
    codes = found[0] if len(found) == 1 else _distinct(joined([np.empty(0, np.int64), *found]))
    owners, codes = np.divmod(codes, n_items**2)
    smaller, larger = np.divmod(codes, n_items)
    pairs = smaller * SHIFT + larger
    of_items, items = np.divmod(_distinct(base + windows.items), n_items)
    return UserPairs(pairs, pair_hashes(users[owners], pairs), items, item_hashes(users[of_items], items))


def slices(windows: Windows, most: int) -> list[slice]:
    """Return interactions as slices, whose pairs with later ones of their window are about `most` each."""
    cuts = np.flatnonzero(np.diff(np.cumsum(_later(windows)) // most)) + 1
    return [slice(int(start), int(end)) for start, end in pairwise([0, *cuts, len(windows.items)])]


def window_pairs(windows: Windows, part: slice) -> tuple[IntArray, IntArray]:
    """Return the indices of the earlier and the later interaction of all pairs of different items.

    The earlier is of the part.
    """
    first, later = np.arange(part.start, part.stop), _later(windows)[part]
    left, right = np.repeat(first, later), ranges(first + 1, later)
    differ = windows.items[left] != windows.items[right]
    return left[differ], right[differ]


def _later(windows: Windows) -> IntArray:
    """[n] interactions after each in its window."""
    return np.asarray(windows.offsets[1:][windows.owners] - np.arange(len(windows.items)) - 1)


# -- runs --------------------------------------------------------------------------------------------------------------


def run_of(keys: IntArray) -> Run:
    """Return the run of the keys of pairs that several users have, each once."""
    keys = np.sort(keys)
    is_first = differ(keys)
    return keys[is_first], np.diff(np.flatnonzero(is_first), append=len(keys)).astype(np.int32)


def summed(runs: Iterable[Run]) -> Run:
    """Add up runs; a pair of two of them has the sum.

    Runs of like size are merged at once, so that few are held, and none is merged often.

    Examples
    --------
    >>> summed([run_of(np.array([5, 3, 5])), run_of(np.array([9, 5]))])
    (array([3, 5, 9]), array([1, 3, 1], dtype=int32))
    """
    held: list[Run] = [(np.empty(0, np.int64), np.empty(0, np.int32))]
    for run in runs:
        held.append(run)
        del run
        while len(held) > 1 and len(held[-2][0]) < 2 * len(held[-1][0]):
            held.append(_merged(held.pop(), held.pop()))
    while len(held) > 1:
        held.append(_merged(held.pop(), held.pop()))
    return held[0]


def _merged(one: Run, other: Run) -> Run:
    """The sum of two runs, a block of the longer one at a time."""
    (keys, counts), (more, added) = (one, other) if len(one[0]) >= len(other[0]) else (other, one)
    if not len(more):
        return keys, counts
    out: tuple[list[IntArray], list[Counts]] = [], []
    begins = np.arange(0, len(keys), AT_ONCE)
    ends = np.append(np.searchsorted(more, keys[begins[1:]]), len(more))
    for begin, start, end in zip(begins, [0, *ends], ends, strict=False):
        block, here, new = keys[begin : begin + AT_ONCE], more[start:end], added[start:end]
        total, at = counts[begin : begin + AT_ONCE].copy(), np.searchsorted(block, here)
        known = block[np.minimum(at, len(block) - 1)] == here
        total[at[known]] += new[known]
        out[0].append(np.insert(block, at[~known], here[~known]))
        out[1].append(np.insert(total, at[~known], new[~known]))
    return joined(out[0]), joined(out[1])


# -- arrays ------------------------------------------------------------------------------------------------------------


def joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Concatenate arrays, at least one, and empty the list on the way: each is freed once it is copied.

    Examples
    --------
    >>> joined([np.array([1, 2]), np.array([3])])
    array([1, 2, 3])
    """
    out = np.empty(sum(map(len, parts)), parts[0].dtype)
    end = len(out)
    while parts:
        part = parts.pop()
        out[end - len(part) : end] = part
        end -= len(part)
    return out


def _distinct(values: IntArray) -> IntArray:
    """The different values in rising order; sorts the array that is given."""
    values.sort()  # in any order before, where `sorted_unique` is for those sorted in parts
    return values[differ(values)]
