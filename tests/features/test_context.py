"""Context features: hand-computed contrasts, and a planted run that is told from two interests."""

import numpy as np
import polars as pl
import pytest

from llm4dsr.data.windows import Windows
from llm4dsr.features.context import LONGEST, N_CONTEXT, N_OF_KIND, _best_run, context_features
from llm4dsr.features.cooccurrence import CooccurrenceCounts

CARS, DOLLS, ALONE = range(10), range(10, 20), 20
TITLES = np.repeat(np.eye(3, dtype=np.float32), [10, 10, 1], axis=0) * 5 + 0.1  # alike within a taste
NEAR_MEAN, NEAR_MAX, FAR_MEAN, FAR_MAX, CONTRAST, INSIDE, ACROSS, OUTSIDE = range(N_OF_KIND)


@pytest.fixture(scope="module")
def counts() -> CooccurrenceCounts:
    rng = np.random.default_rng(0)
    rows = [rng.choice(taste, 4, replace=False).tolist() for taste in [CARS] * 200 + [DOLLS] * 200]
    return CooccurrenceCounts.fit(Windows.from_lists(rows), 21, seed=0)


def new(*rows: list[int]) -> Windows:
    return Windows.from_lists(rows, user_ids=pl.Series("user_id", [f"new{i}" for i in range(len(rows))]))


def test_the_run_that_stands_out_most_by_hand():
    """Items 0, 1, 4, 5 are alike (1.0), as are 2 and 3; nothing else is."""
    alike = np.zeros((1, 6, 6))
    for group in ([0, 1, 4, 5], [2, 3]):
        alike[0][np.ix_(group, group)] = 1.0
    alike[0][range(6), range(6)] = 0.0
    contrast, inside, across, outside = (column[0] for column in _best_run(alike, np.array([6])))
    # the run 2, 3: the rest fits itself (1.0), the run fits itself (1.0), and neither fits the other (0.0)
    np.testing.assert_allclose(contrast[2:4], 1.0 - 0.0 + 0.5 * (1.0 - 0.0))
    np.testing.assert_allclose([inside[2], across[2], outside[2]], [1.0, 0.0, 1.0])
    # of the runs with item 0 (lengths 1 to 4), 0 to 3 has 4 ones of 12 inside, 4 of 8 across, 2 of 2 outside
    assert contrast[0] == pytest.approx(1.0 - 4 / 8 + 0.5 * (4 / 12 - 4 / 8))


def test_a_planted_run_stands_out_and_its_rest_does_not(counts):
    found = context_features(new([0, 1, 2, 13, 14, 3, 4, 5]), counts, TITLES)
    assert found.shape == (8, N_CONTEXT)
    for kind in range(0, 4 * N_OF_KIND, N_OF_KIND):
        run, rest = found[3:5, kind : kind + N_OF_KIND], found[[0, 1, 6, 7], kind : kind + N_OF_KIND]
        assert run[:, NEAR_MAX].min() > run[:, FAR_MAX].max() + 0.1  # it supports itself, and nothing else does
        assert run[:, CONTRAST].min() > rest[:, CONTRAST].max() + 0.1
        assert run[:, OUTSIDE].min() > run[:, ACROSS].max() + 0.1
    np.testing.assert_array_equal(found[:, -2:], [[i, 7 - i] for i in range(8)])


def test_two_interests_that_alternate_are_no_run(counts):
    """Two people on one account: each item has company far away."""
    run = context_features(new([0, 1, 2, 13, 14, 3, 4, 5]), counts, TITLES)
    both = context_features(new([0, 10, 1, 11, 2, 12, 3, 13]), counts, TITLES)
    for kind in range(0, 4 * N_OF_KIND, N_OF_KIND):
        assert both[:, kind + FAR_MAX].min() > run[3:5, kind + FAR_MAX].max() + 0.1
        assert both[:, kind + CONTRAST].max() < run[3:5, kind + CONTRAST].min() - 0.1


def test_short_histories_and_unknown_items_say_nothing(counts):
    found = context_features(new([5], [0, 1], [ALONE, ALONE, ALONE]), counts, TITLES)
    assert found.shape == (6, N_CONTEXT)
    assert np.isfinite(found).all()
    assert not found[0, :-2].any()
    assert not found[3:, : 3 * N_OF_KIND].any()  # titles alone are known
    assert not found[1:3, CONTRAST].any()  # a rest of one item tells nothing


def test_padding_does_not_count(counts):
    windows = new([0, 1, 2, 13, 14, 3, 4, 5], list(range(LONGEST)), [0, 1, 13])
    together = context_features(windows, counts, TITLES)
    apart = np.concatenate([context_features(windows.take(np.array([i])), counts, TITLES) for i in range(3)])
    np.testing.assert_allclose(together, apart, atol=1e-6)
    assert context_features(windows.take(np.array([], dtype=np.int64)), counts, TITLES).shape == (0, N_CONTEXT)
