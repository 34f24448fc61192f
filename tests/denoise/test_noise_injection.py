"""The self-supervised task: which positions are replaced, and by what."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4dsr.config import TaskConfig
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.noise_injection import (
    LONGEST_RUN,
    Injectable,
    draw_noise,
    draw_positions,
    draw_runs,
    inject,
    replace,
)

SEEDS = st.integers(0, 2**32 - 1)
LENGTHS = st.lists(st.integers(1, 11), min_size=1, max_size=20).map(np.array)


def catalogue(*titles: str) -> Catalogue:
    return Catalogue(pl.Series("item_id", range(len(titles))), list(titles))


def injectable(*titles: str) -> Injectable:
    """All items of a catalogue."""
    return Injectable(catalogue(*titles), np.arange(len(titles)), np.empty(0, dtype=np.int64), 0.0)


def of_lengths(lengths) -> Windows:
    """Windows whose items do not matter."""
    return Windows.from_lists([np.arange(n) for n in lengths])


def per_window(windows: Windows, chosen: np.ndarray) -> np.ndarray:
    """How many are chosen in each window."""
    return np.bincount(windows.owners[chosen], minlength=len(windows))


# --- positions -------------------------------------------------------------------------------------------------------


@given(LENGTHS, st.integers(1, 4), SEEDS)
def test_replaced_is_how_many_are_replaced(lengths, replaced, seed):
    """Exactly so many in a window, but one item always stays."""
    windows = of_lengths(lengths)
    chosen = draw_positions(windows, TaskConfig(replaced=replaced), np.random.default_rng(seed))
    assert per_window(windows, chosen).tolist() == [min(replaced, n - 1) for n in lengths]


@given(LENGTHS, st.floats(0, 1), SEEDS)
def test_rate_leaves_one_item(lengths, rate, seed):
    windows = of_lengths(lengths)
    chosen = draw_positions(windows, TaskConfig(replaced=0, rate=rate), np.random.default_rng(seed))
    assert (per_window(windows, chosen) < lengths).all()


def test_rate_0_and_rate_1():
    windows, rng = of_lengths([1, 3, 5]), np.random.default_rng(0)
    assert draw_positions(windows, TaskConfig(rate=0.0), rng).sum() == 0
    assert per_window(windows, draw_positions(windows, TaskConfig(rate=1.0), rng)).tolist() == [0, 2, 4]


@given(LENGTHS, st.sampled_from([TaskConfig(replaced=2), TaskConfig(replaced=0, rate=0.5, none=0.3)]), SEEDS)
def test_draws_do_not_depend_on_how_many_windows_are_drawn_at_once(lengths, task, seed):
    windows = of_lengths(lengths)
    at_once = draw_positions(windows, task, np.random.default_rng(seed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm4dsr.denoise.noise_injection.CELLS", 1)
        assert (draw_positions(windows, task, np.random.default_rng(seed)) == at_once).all()


@pytest.mark.parametrize("task", [TaskConfig(replaced=1), TaskConfig(replaced=0, rate=0.2)])
def test_every_position_is_equally_likely(task):
    """5 positions: each is chosen in a fifth of 20,000 windows; the standard error is 0.0028."""
    chosen = draw_positions(of_lengths([5] * 20_000), task, np.random.default_rng(1))
    assert chosen.reshape(-1, 5).mean(axis=0) == pytest.approx([0.2] * 5, abs=0.012)


def test_none_is_the_fraction_of_windows_without_noise():
    rng, windows = np.random.default_rng(2), of_lengths([5] * 20_000)
    assert not draw_positions(windows, TaskConfig(replaced=1, none=1.0), rng).any()
    counts = per_window(windows, draw_positions(windows, TaskConfig(replaced=2, none=0.3), rng))
    assert set(counts.tolist()) == {0, 2}
    assert (counts == 0).mean() == pytest.approx(0.3, abs=0.015)


# --- replacements ----------------------------------------------------------------------------------------------------


@given(
    windows=st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=8), min_size=1, max_size=8),
    rate=st.floats(0, 1),
    seed=SEEDS,
)
def test_replacements_are_foreign_and_nothing_else_changes(windows, rate, seed):
    """Twelve items of which the rows 9, 10, 11 share the titles of 0, 1 and 2: often few foreign items are left."""
    names = "abcdefghi"
    items = catalogue(*names, *"abc")
    before = Windows.from_lists(windows)
    rng = np.random.default_rng(seed)
    chosen = rng.random(len(before.items)) < rate
    given_items = before.items.copy()
    after = replace(before, chosen, Injectable(items, np.arange(12), np.empty(0, dtype=np.int64), 0.0), rng)

    assert (before.items == given_items).all()  # a copy: what was given is as it was
    assert (after[~chosen] == before.items[~chosen]).all()
    for w, row in enumerate(windows):
        held = {items.titles[i] for i in row}
        drawn = [items.titles[i] for i in after[chosen & (before.owners == w)]]
        assert not held & set(drawn)


def test_draws_are_uniform_over_the_foreign_items():
    """Window a b of the catalogue a b c d and a second "c": c, d and the other c are each drawn a third of the time."""
    items = injectable("a", "b", "c", "d", "c")
    windows = Windows.from_lists([[0, 1]] * 30_000)
    after = replace(windows, windows.items == 1, items, np.random.default_rng(3)).reshape(-1, 2)
    assert (after[:, 0] == 0).all()
    counts = np.bincount(after[:, 1], minlength=5) / len(after)
    assert counts == pytest.approx([0, 0, 1 / 3, 1 / 3, 1 / 3], abs=0.015)


def test_one_foreign_item_in_a_large_catalogue_of_the_same_title_is_found():
    """999 items are titled "a"; drawing at random would hardly ever hit the only other one."""
    items = injectable(*["a"] * 999, "b")
    windows = Windows.from_lists([[0, 5]] * 50)
    after = replace(windows, windows.items == 0, items, np.random.default_rng(4))
    assert after.tolist() == [999, 5] * 50


def test_without_a_foreign_item_the_window_stays():
    items = injectable("a", "b", "a")
    windows = Windows.from_lists([[0, 1], [2, 1, 0]])
    chosen = np.array([True, False, True, True, False])
    assert (replace(windows, chosen, items, np.random.default_rng(5)) == windows.items).all()


def test_the_seed_decides():
    items = injectable(*(f"title {i}" for i in range(100)))
    windows = Windows.from_lists(np.arange(40).reshape(4, 10))
    chosen = windows.items % 2 == 0
    one, same, other = (replace(windows, chosen, items, np.random.default_rng(seed)) for seed in (6, 6, 7))
    assert (one == same).all()
    assert (one != other).any()


def test_only_items_that_somebody_has_are_injected_where_all_have_several_users():
    """Of 1,000 items, users have 0 to 9. Each of the others would be recognized by having no user."""
    rng = np.random.default_rng(8)
    windows = Windows.from_lists([rng.choice(10, 4, replace=False) for _ in range(2000)])
    by_windows = Injectable.of(WIDE.catalogue, windows)
    assert by_windows.rows.tolist() == list(range(10))
    injected, chosen, _, _ = inject(windows, by_windows, rng)
    counts = np.bincount(injected.items[chosen], minlength=1000)
    assert counts[:10] == pytest.approx([200] * 10, abs=60)
    assert counts[10:].sum() == 0


@pytest.mark.parametrize(("single", "rate"), [(0, 0.0), (2, 0.2), (40, 0.5)])
def test_items_that_nobody_has_are_injected_as_often_as_real_noise_may_be_one(single, rate):
    """50 of 100 items have no user. 100 interactions hold 10 noisy ones, of which `single` may have no other user."""
    users = np.zeros(100, dtype=np.int64)
    users[:single] = 1
    users[single:50] = 2
    users[49] += 100 - users.sum()
    some = Injectable.of(catalogue(*(f"title {i}" for i in range(100))), Windows.from_lists([[0, 1]]), users)
    assert some.unused_rate == pytest.approx(rate)
    drawn = some.draw(20_000, np.random.default_rng(0))
    assert (drawn >= 50).mean() == pytest.approx(rate, abs=0.02)


# --- noise of one training step --------------------------------------------------------------------------------------


def two_tastes(size: int, length: int = 10) -> Windows:
    """Even users have items 0 to 49, odd users 50 to 99."""
    rng = np.random.default_rng(0)
    rows = [rng.choice(50, length, replace=False) + 50 * (i % 2) for i in range(size)]
    return Windows.from_lists(rows, user_ids=pl.Series("user_id", range(size)))


WIDE = injectable(*(f"title {i}" for i in range(1000)))


def test_bursts_are_runs_of_another_users_items():
    windows = two_tastes(4000)
    items, chosen = draw_noise(windows, WIDE, TaskConfig(rate=0.0, bursts=0.5), np.random.default_rng(0))
    assert (items[~chosen] == windows.items[~chosen]).all()
    assert (items[chosen] < 100).all()  # all from other windows, none from the rest of the catalogue
    size = per_window(windows, chosen)
    assert (size > 0).mean() == pytest.approx(0.5, abs=0.04)
    assert size.max() <= min(LONGEST_RUN, 4)  # less than half of ten
    foreign = chosen & ((items >= 50) != (windows.items >= 50))
    with_run = np.unique(windows.owners[foreign])
    assert set(size[with_run].tolist()) == {2, 3, 4}
    for row in with_run[:50]:
        at = np.flatnonzero(chosen & (windows.owners == row))
        assert at[-1] - at[0] == len(at) - 1  # without a gap


def test_runs_come_from_donors_whatever_the_type_of_their_ids():
    windows, others = two_tastes(200), Windows.from_lists([[500, 501, 502, 503, 504, 505, 506, 507, 508, 509]] * 50)
    assert others.user_ids.dtype != windows.user_ids.dtype
    items, runs, with_run = draw_runs(windows, WIDE.catalogue, 1.0, np.random.default_rng(0), others)
    assert with_run.all()
    assert (items[runs] >= 500).all()
    np.testing.assert_array_equal(items[~runs], windows.items[~runs])


def test_popular_items_are_drawn_by_their_interactions():
    """Item 1 is half of all interactions of other windows, so it is half of what is drawn there."""
    rows = [[0, 2, 3]] * 500 + [[1, 1, 1]] * 500
    windows = Windows.from_lists(rows)
    task = TaskConfig(replaced=1, popular=1.0)
    items, chosen = draw_noise(windows, WIDE, task, np.random.default_rng(0))
    drawn = items[chosen & (windows.owners < 500)]
    assert (drawn == 1).mean() == pytest.approx(0.5, abs=0.08)


@given(LENGTHS, SEEDS)
def test_injected_items_are_new_to_their_window_and_one_own_item_stays(lengths, seed):
    rng = np.random.default_rng(seed)
    windows = Windows.from_lists([rng.choice(1000, n, replace=False) for n in lengths])
    items, chosen = draw_noise(windows, WIDE, TaskConfig(bursts=0.5, popular=0.5), rng)
    assert (per_window(windows, chosen) < windows.lengths).all()
    assert (items[~chosen] == windows.items[~chosen]).all()
    for row, of in enumerate(windows.owners == np.arange(len(windows))[:, None]):
        assert not set(items[of & chosen].tolist()) & set(windows.row(row))
