"""Pairs counted user by user and added up as sorted runs: as if counted by hand, whatever the parts."""

import tracemalloc
from collections import Counter
from itertools import combinations

import numpy as np
import polars as pl
import pytest

from llm4dsr.core.hashing import item_hashes, user_hashes
from llm4dsr.data.windows import Windows
from llm4dsr.features import pair_counts
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.features.pair_counts import pair_hashes, pair_keys, run_of, split_keys, summed, user_pairs


def overlapping_windows(users: int, items: int, longest: int, seed: int) -> Windows:
    """Windows of four items, one step apart, in any order; items come again within a history."""
    rng = np.random.default_rng(seed)
    rows, owners = [], []
    for user in range(users):
        history = rng.integers(0, items, rng.integers(2, longest + 1))
        for start in range(max(1, len(history) - 3)):
            rows.append(history[start : start + 4])
            owners.append(f"u{user}")
    order = rng.permutation(len(rows))
    return Windows.from_lists([rows[i] for i in order], user_ids=pl.Series("user_id", [owners[i] for i in order]))


@pytest.mark.parametrize("at_once", [1, 7, 100, 10**6], ids=lambda most: f"{most} at once")
@pytest.mark.parametrize("seed", range(5))
def test_counts_are_those_of_a_loop_over_windows(monkeypatch, at_once, seed):
    """Users × items from a sparse to a dense table; a part is from a single user to all of them."""
    users, items, longest = [(1, 3, 30), (40, 5, 8), (15, 400, 12), (60, 30, 4), (25, 9, 20)][seed]
    windows = overlapping_windows(users, items, longest, seed)
    monkeypatch.setattr(pair_counts, "AT_ONCE", at_once)
    monkeypatch.setattr("llm4dsr.features.ppmi.AT_ONCE", at_once)
    found = CooccurrenceCounts.fit(windows, items, seed=0)

    of_user: dict[str, set] = {}
    for row, user in enumerate(windows.user_ids):
        here = sorted(set(windows.row(row)))
        of_user.setdefault(user, set()).update(here, combinations(here, 2))
    counted = Counter(thing for things in of_user.values() for thing in things)
    pairs = sorted(thing for thing in counted if isinstance(thing, tuple))
    assert list(zip(*(side.tolist() for side in split_keys(found.pairs)), strict=True)) == pairs
    assert found.counts.tolist() == [counted[pair] for pair in pairs]
    assert found.popularity.tolist() == [counted[item] for item in range(items)]
    own = set()
    for user, things in of_user.items():
        (user_hash,) = user_hashes(pl.Series([user]))
        for thing in things:
            numbers = [np.array([number]) for number in (thing if isinstance(thing, tuple) else (thing,))]
            made = item_hashes if len(numbers) == 1 else lambda user, *pair: pair_hashes(user, pair_keys(*pair))
            own.add(int(made(np.array([user_hash]), *numbers)[0]))
    assert found.own.tolist() == sorted(own)


def test_a_part_has_whole_users():
    """With room for a single pair, each user is a part: the pairs of all windows of a user are there, each once."""
    windows = Windows.from_lists([[0, 1, 2], [5, 4], [1, 2, 3]], user_ids=pl.Series("user_id", ["ann", "ben", "ann"]))
    users, everything = user_hashes(windows.user_ids), np.arange(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pair_counts, "AT_ONCE", 1)
        parts = list(user_pairs(windows, users, 6, everything))
    found = {tuple(zip(*(side.tolist() for side in split_keys(part.pairs)), strict=True)) for part in parts}
    assert found == {((0, 1), (0, 2), (1, 2), (1, 3), (2, 3)), ((4, 5),)}
    assert sorted(part.items.tolist() for part in parts) == [[0, 1, 2, 3], [4, 5]]
    (whole,) = user_pairs(windows, users, 6, everything)
    assert len(whole.pairs) == 6
    assert list(user_pairs(windows, users, 6, np.arange(0))) == []


@pytest.mark.parametrize("at_once", [1, 2, 5, 10**6])
def test_runs_add_up_whatever_their_number_and_size(monkeypatch, at_once):
    monkeypatch.setattr(pair_counts, "AT_ONCE", at_once)
    rng = np.random.default_rng(at_once)
    for sizes in ([], [0], [0, 3, 0], [1] * 9, [20, 1, 7, 7], [2, 40, 3, 40]):
        keys = [rng.integers(0, 30, size) for size in sizes]
        pairs, counts = summed(map(run_of, keys))
        expected, often = np.unique(np.concatenate([np.empty(0, np.int64), *keys]), return_counts=True)
        assert (pairs.tolist(), counts.tolist()) == (expected.tolist(), often.tolist())
        assert (pairs.dtype, counts.dtype) == (np.int64, np.int32)


def test_items_of_a_large_catalogue_need_parts_of_fewer_users():
    """2^31 - 1 items: the pairs of more than two users would not fit 63 bits."""
    last = 2**31 - 2
    windows = Windows.from_lists([[last, 0], [last - 1, last], [0, last], [last - 1, 0]])
    parts = list(user_pairs(windows, user_hashes(windows.user_ids), last + 1, np.arange(4)))
    assert len(parts) == 2
    found = sorted(pair for part in parts for pair in zip(*map(np.ndarray.tolist, split_keys(part.pairs)), strict=True))
    assert found == [(0, last - 1), (0, last), (0, last), (last - 1, last)]


def test_memory_is_bounded_by_a_part_and_the_result(monkeypatch):
    """300 users with 100 windows of 12 items each, all of the same history: 2 million pairs of positions.

    An array with a single number for each of them has 15 MiB. No more than 20,000 of them are held at once, and the
    result has 66 pairs for each user.
    """
    monkeypatch.setattr(pair_counts, "AT_ONCE", 20_000)
    users, times, width = 300, 100, 12
    items = np.tile(np.arange(width), users * times)
    ids = pl.Series("user_id", np.repeat(np.arange(users), times)).cast(pl.String)
    size = len(ids)
    windows = Windows(items, np.full(size, width), np.arange(size), ids, np.full(size, -1))
    hashes = user_hashes(ids)
    counts = CooccurrenceCounts.of(windows.take(np.arange(0)), width)
    tracemalloc.start()
    try:
        found = counts._with(windows, hashes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    positions = size * width * (width - 1) // 2
    assert len(found.own) == users * (66 + width)
    assert (found.counts == users).all()
    assert peak < 8 * positions / 2
