"""Intervals and choices: expected values by hand, and levels that hold on simulated data without any gain."""

import math

import numpy as np
import pytest

from llm4dsr import intervals
from llm4dsr.errors import DataError

RNG = np.random.Generator


def users(rng: RNG, count: int) -> np.ndarray:
    """Codes of `count` users: 60 % with one window, the others with two to six."""
    return np.repeat(np.arange(count), np.where(rng.random(count) < 0.6, 1, rng.integers(2, 7, count)))


def gains(rng: RNG, codes: np.ndarray, seeds: int, better: float = 0.0, between: float = 0.0) -> np.ndarray:
    """[6, S, W] differences in NDCG@20 to doing nothing, for most windows 0.

    Users are easy or hard to rank for, each candidate suits some users, and trainings vary by `between`. All candidates
    have the distribution of doing nothing, but for the fourth, whose ranks are `better`.
    """
    count = codes.max() + 1
    each = np.empty((7, seeds, len(codes)))  # the last is doing nothing
    easy = rng.normal(0, 1, count)[codes] + rng.normal(0, 0.7, len(codes))
    for method in range(7):
        suits = rng.normal(0, 0.3, count)[codes]
        for seed in range(seeds):
            score = easy + suits + rng.normal(0, 0.5, len(codes)) + rng.normal(0, between) + better * (method == 3)
            rank = np.exp(np.clip(4.2 - 1.5 * score, 0, 9))
            each[method, seed] = np.where(rank <= 20, 1 / np.log2(1 + rank), 0)
    return each[:-1] - each[-1:]


def at_most(level: float, rounds: int) -> float:
    """A bound that a rate of `level` exceeds in one of forty simulations."""
    return level + 2 * math.sqrt(level * (1 - level) / rounds)


def test_mean_interval_is_students() -> None:
    # s = √(Σ(v - 3)² / 4) = √2.5; t with 4 degrees of freedom at 97.5 % = 2.776445
    assert intervals.mean_interval([1, 2, 3, 4, 5]) == pytest.approx((3, 2.776445 * math.sqrt(2.5 / 5)), rel=1e-6)
    _, narrow = intervals.mean_interval([1, 2, 3, 4, 5], confidence=0.5)
    assert narrow == pytest.approx(0.740697 * math.sqrt(0.5), rel=1e-5)
    mean, half = intervals.mean_interval([7])
    assert mean == 7
    assert math.isnan(half)


def test_paired_difference() -> None:
    # differences 1, 2, 3: mean 2, error 1/√3, t = 2√3; with 2 degrees of freedom p = 1 - t / √(t² + 2) = 1 - √(12/14)
    mean, half, p = intervals.paired_difference([3, 5, 7], [2, 3, 4])
    assert (mean, half) == pytest.approx((2, 4.302653 / math.sqrt(3)), rel=1e-6)
    assert p == pytest.approx(1 - math.sqrt(12 / 14))


def test_paired_difference_goes_by_pairs_and_by_sign() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, 20)  # the seeds differ far more than the two methods
    better = base + 0.1 + rng.normal(0, 0.01, 20)
    mean, _, p = intervals.paired_difference(better, base)
    assert mean == pytest.approx(0.1, abs=0.01)
    assert p < 1e-6
    assert intervals.paired_difference(base, better)[0] == -mean


def test_paired_difference_without_doubt_or_without_data() -> None:
    assert intervals.paired_difference([1, 2, 3], [1, 2, 3]) == (0, 0, 1)
    assert intervals.paired_difference([2, 3, 4], [1, 2, 3]) == (1, 0, 0)
    assert math.isnan(intervals.paired_difference([1], [0])[2])
    with pytest.raises(DataError):
        intervals.paired_difference([1, 2], [1])


def test_rows_that_are_equal_up_to_rounding_do_not_differ() -> None:
    """0.1 + 0.2 and 0.3 differ by 5.6e-17."""
    a, b = np.full(6, 0.1 + 0.2), np.full(6, 0.3)
    assert 0 < (a - b).max() < 1e-16
    assert intervals.paired_difference(a, b)[1:] == (0, 1)
    assert intervals.clustered_difference(a, b, [0, 0, 1, 1, 2, 2])[1:] == (0, 1)
    assert intervals.crossed_interval(a.reshape(2, 3), b.reshape(2, 3))[1:] == (0, 1)
    some = np.where(np.arange(6) < 3, a, b)  # half of them are exactly equal
    assert intervals.paired_difference(some, b)[1:] == (0, 1)
    assert intervals.clustered_difference(some, b, np.arange(6))[1:] == (0, 1)
    assert intervals.paired_difference(a + 1e-6, b)[2] == 0


# --- windows of one user ---------------------------------------------------------------------------------------------


def test_clustered_difference_with_one_window_per_user_is_paired() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.2, 1, (2, 50))
    assert intervals.clustered_difference(a, b, rng.permutation(50)) == pytest.approx(
        intervals.paired_difference(a, b), rel=1e-12
    )


def test_clustered_difference_counts_copies_once() -> None:
    """Each window five times: paired, the interval shrinks; clustered, it is that of the windows themselves."""
    a, b = [3, 5, 7], [2, 3, 4]
    copied = [np.repeat(values, 5) for values in (a, b)]
    assert intervals.clustered_difference(*copied, np.repeat([4, 9, 2], 5)) == pytest.approx(
        intervals.paired_difference(a, b), rel=1e-12
    )
    assert intervals.paired_difference(*copied)[1] < 0.5 * intervals.paired_difference(a, b)[1]


def test_clustered_difference_without_doubt_or_without_data() -> None:
    assert intervals.clustered_difference([1, 2, 3], [1, 2, 3], [0, 0, 1]) == (0, 0, 1)
    assert intervals.clustered_difference([0.3, 0.4, 0.5], [0.1, 0.2, 0.3], [0, 0, 1])[1:] == (0, 0)
    assert math.isnan(intervals.clustered_difference([1, 2], [0, 0], [7, 7])[2])  # one user
    assert math.isnan(intervals.clustered_difference([], [], [])[0])
    with pytest.raises(DataError, match="2 user codes for 3 windows"):
        intervals.clustered_difference([1, 2, 3], [1, 2, 3], [0, 1])


def test_clustered_difference_keeps_its_level_and_paired_does_not() -> None:
    """The gain differs from user to user and is 0 on average."""
    rng, rounds = np.random.default_rng(0), 1500
    wrong = np.zeros(2)
    for _ in range(rounds):
        codes = users(rng, 150)
        gain = rng.normal(0, 1, 150)[codes] + rng.normal(0, 0.7, len(codes))
        clustered, paired = (
            intervals.clustered_difference(gain, np.zeros_like(gain), codes),
            intervals.paired_difference(gain, np.zeros_like(gain)),
        )
        wrong += [clustered[2] < 0.05, paired[2] < 0.05]
        assert (clustered[2] < 0.05) == (abs(clustered[0]) > clustered[1])  # test and interval agree
    assert wrong[0] / rounds <= at_most(0.05, rounds)
    assert wrong[1] / rounds > 0.12


# --- choice among candidates -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seeds", "between"), [(1, 0.0), (3, 0.0), (3, 0.1)])
def test_without_a_gain_a_choice_is_as_rare_as_stated(seeds: int, between: float) -> None:
    """A test of each candidate over windows picks one far more often."""
    rng, rounds, chosen, naive = np.random.default_rng(1), 200, 0, 0
    for i in range(rounds):
        codes = users(rng, 250)
        found = gains(rng, codes, seeds, between=between)
        chosen += intervals.select_candidate(found, codes, draws=300, seed=i).chosen is not None
        each = found.mean(axis=1)
        naive += any(mean > half for mean, half in map(intervals.mean_interval, each))
    assert chosen / rounds <= at_most(0.05, rounds)
    assert naive / rounds > 0.1


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_candidate_that_gains_is_found(seeds: int) -> None:
    rng, rounds = np.random.default_rng(2), 25
    found = []
    for i in range(rounds):
        codes = users(rng, 1000)
        found.append(intervals.select_candidate(gains(rng, codes, seeds, better=0.3), codes, draws=500, seed=i).chosen)
    assert found.count(3) >= 0.8 * rounds


def test_the_bound_of_one_candidate_is_close_to_students() -> None:
    """One normal candidate, one window per user: mean - t · s / √n, one-sided."""
    gain = np.random.default_rng(0).normal(0.3, 1, 400)
    mean, half = intervals.mean_interval(gain, confidence=0.9)  # its lower end is exceeded with 95 %
    found = intervals.select_candidate([gain], np.arange(400), draws=20_000)
    assert found.gain[0] == pytest.approx(mean)
    assert found.low[0] == pytest.approx(mean - half, abs=0.1 * half)
    assert found.chosen == 0


def test_more_candidates_lower_the_bound_unless_they_are_alike() -> None:
    rng = np.random.default_rng(0)
    gain = rng.normal(0.2, 1, 400)
    bound = {
        name: intervals.select_candidate(candidates, np.arange(400)).low[0]
        for name, candidates in {
            "alone": [gain],
            "alike": [gain] * 8,
            "others": [gain, *rng.normal(0, 1, (7, 400))],
        }.items()
    }
    assert bound["alike"] == pytest.approx(bound["alone"])
    assert bound["others"] < bound["alone"] - 0.02


def test_seeds_that_disagree_lower_the_bound() -> None:
    gain = np.random.default_rng(0).normal(0.3, 0.5, 400)
    agreed = intervals.select_candidate([[gain] * 3], np.arange(400))
    disagreed = intervals.select_candidate([[gain - 0.3, gain, gain + 0.3]], np.arange(400))
    assert agreed.gain == pytest.approx(disagreed.gain)
    assert agreed.chosen == 0
    assert disagreed.chosen is None


def test_the_largest_gain_is_chosen_among_those_that_are_sure() -> None:
    """The second gains more on average, by luck of a single user; the first gains in most windows."""
    steady = np.tile([0.0, 0.2, 0.2, 0.2], 50)
    lucky = np.zeros(200)
    lucky[7] = 40.0
    found = intervals.select_candidate([steady, lucky, steady / 2], np.arange(200))
    assert np.argmax(found.gain) == 1
    assert found.chosen == 0


def test_candidates_without_variance_are_never_chosen() -> None:
    noise = np.random.default_rng(0).normal(0, 1, 60)
    assert intervals.select_candidate([np.zeros(60)] * 2, np.arange(60)).chosen is None
    found = intervals.select_candidate([np.zeros(60), noise + 2, np.full(60, 9.0)], np.arange(60))
    assert found.chosen == 1
    assert found.low[[0, 2]].tolist() == [0, 0]
    assert intervals.select_candidate([noise + 2], np.zeros(60)).chosen is None  # one user


def test_the_choice_does_not_depend_on_how_many_draws_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    gain = np.random.default_rng(0).normal(0.2, 1, (3, 60))
    whole = intervals.select_candidate(gain, np.arange(60))
    monkeypatch.setattr(intervals, "_BLOCK", 60 * 7)
    assert intervals.select_candidate(gain, np.arange(60)).low == pytest.approx(whole.low)


@pytest.mark.parametrize(("shape", "said"), [((60,), "1 dimensions"), ((2, 50), "60 user codes for 50 windows")])
def test_differences_of_another_shape_are_refused(shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        intervals.select_candidate(np.zeros(shape), np.arange(60))


def test_crossed_seeds_by_hand():
    """Rows 1, 3 and columns 2, 2 with the rest ±0.5: mean squares A = 4, B = 0, E = 1. Rows vary most: t = 2, df 1."""
    mean, half, p = intervals.crossed_interval([[0.5, 1.5], [3.5, 2.5]])
    assert mean == 2.0
    assert half == pytest.approx(12.7062 * 1.0, abs=1e-3)  # √(4 / 4) = 1
    assert p == pytest.approx(0.2952, abs=1e-4)


def test_one_kind_of_seed_is_students_interval():
    values = [0.1, 0.4, 0.2]
    expected = intervals.paired_difference(values, [0, 0, 0])
    assert intervals.crossed_interval([values]) == pytest.approx(expected)
    assert intervals.crossed_interval([[v] for v in values]) == pytest.approx(expected)
    assert math.isnan(intervals.crossed_interval([[0.3]])[1])
    assert intervals.crossed_interval([[0.5, 0.5], [0.5, 0.5]]) == (0.5, 0.0, 0.0)
    with np.errstate(all="raise"):
        assert intervals.crossed_interval([[0, 0], [0, 0]]) == (0.0, 0.0, 1.0)
    assert intervals.crossed_interval([[1.5, 2.5], [4.5, 3.5]], np.ones((2, 2))) == pytest.approx(
        intervals.crossed_interval([[0.5, 1.5], [3.5, 2.5]])
    )
    with pytest.raises(DataError, match="dimensions"):
        intervals.crossed_interval(values)


@pytest.mark.parametrize(("of_rows", "of_columns"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_without_a_gain_crossed_seeds_are_significant_as_rarely_as_stated(of_rows, of_columns):
    """3 × 3 seeds, 4,000 times: at most 6 % of p are below .05 (5 % but for the standard error of .35 %)."""
    rng = np.random.default_rng(0)
    below = 0
    for _ in range(4000):
        values = of_rows * rng.normal(size=(3, 1)) + of_columns * rng.normal(size=(1, 3)) + rng.normal(size=(3, 3))
        below += intervals.crossed_interval(values)[2] < 0.05
    assert below / 4000 < 0.06
