"""Stacking: log-odds and co-occurrence features become one score, learned from injected noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llm4dsr.data.windows import Windows
from llm4dsr.denoise.stacking import N_EVIDENCE, Evidence, Stacker, evidence
from llm4dsr.features.context import context_features
from llm4dsr.features.cooccurrence import N_FEATURES, CooccurrenceCounts
from llm4dsr.metrics import auroc

RATE = 0.15


def sample(size: int, seed: int, values: np.ndarray) -> Evidence:
    return Evidence(values.astype(np.float32), np.random.default_rng(seed).integers(0, 2, size))


def drifted(seed: int) -> tuple[Evidence, Evidence]:
    """Noise has log-odds around 2, clean items around 0; but a third of the clean items are new, with 4 on average."""
    rng = np.random.default_rng(seed)
    noise = np.stack([rng.normal(2, 1, 3000), np.zeros(3000)], axis=1)
    is_new = rng.random(6000) < 1 / 3
    clean = np.stack([rng.normal(np.where(is_new, 4, 0), 1), is_new], axis=1)
    return sample(3000, seed, noise), sample(6000, seed + 1, clean)


def test_new_items_are_no_longer_taken_for_noise() -> None:
    noise, clean = drifted(0)
    stacker = Stacker.fit([(noise, 1.0)], clean, RATE, seed=0)
    assert stacker is not None
    truth = np.arange(9000) < 3000
    both = Evidence.join([noise, clean])
    assert auroc(both.values[:, 0], truth) < 0.7
    assert auroc(stacker(both), truth) > 0.9


def test_log_odds_assume_the_given_rate() -> None:
    """One feature is 1 for 90 % of the noise and 10 % of the rest: odds of 9 to 1, times those of the rate."""
    n = 4000
    rng = np.random.default_rng(0)
    noise = sample(n, 1, np.stack([rng.normal(size=n), rng.random(n) < 0.9], axis=1))
    clean = sample(3 * n, 2, np.stack([rng.normal(size=3 * n), rng.random(3 * n) < 0.1], axis=1))
    stacker = Stacker.fit([(noise, 1.0)], clean, RATE, seed=0)
    assert stacker is not None
    seen = stacker(Evidence(np.array([[0, 1], [0, 0]], np.float32), np.zeros(2, np.int64)))
    base = np.log(RATE / (1 - RATE))
    np.testing.assert_allclose(seen, [np.log(9) + base, -np.log(9) + base], atol=0.5)


def test_no_user_is_scored_by_a_network_that_was_fitted_on_it() -> None:
    noise, clean = drifted(0)
    first = Stacker.fit([(noise, 1.0)], clean, RATE, seed=0)
    changed = Evidence(np.where(noise.half[:, None] == 0, noise.values + 0.5, noise.values), noise.half)
    second = Stacker.fit([(changed, 1.0)], clean, RATE, seed=0)
    assert first is not None
    assert second is not None
    own = clean.half == 0
    np.testing.assert_array_equal(first(clean)[own], second(clean)[own])
    assert not np.allclose(first(clean)[~own], second(clean)[~own])


def test_a_kind_of_noise_counts_by_its_share_and_not_by_its_number() -> None:
    """Single items have feature 1, runs feature 2. Which of the two looks more like noise depends on the shares."""
    rng = np.random.default_rng(0)

    def of(*values: float, size: int = 2000, seed: int) -> Evidence:
        return sample(size, seed, np.column_stack([rng.normal(size=size), np.tile(values, (size, 1))]))

    single, runs, clean = of(1, 0, seed=1), of(0, 1, size=8000, seed=2), of(0, 0, size=6000, seed=3)
    clean = Evidence.join([clean, of(1, 0, size=300, seed=4), of(0, 1, size=300, seed=5)])
    asked = Evidence(np.array([[0, 1, 0], [0, 0, 1]], np.float32), np.zeros(2, np.int64))
    for share in (0.1, 0.9):
        stacker = Stacker.fit([(single, 1 - share), (runs, share)], clean, RATE, seed=0)
        assert stacker is not None
        of_single, of_run = stacker(asked)
        assert of_run - of_single == pytest.approx(np.log(share / (1 - share)), abs=0.5)


def test_it_is_left_out_where_it_helps_nothing_or_has_too_little_to_learn_from() -> None:
    separate = np.stack([np.full(2000, 5.0), np.zeros(2000)], axis=1)
    noise, clean = sample(2000, 0, separate), sample(2000, 1, -separate)
    assert Stacker.fit([(noise, 1.0)], clean, RATE, seed=0) is None  # the log-odds alone are perfect
    noise, clean = drifted(0)
    few = Evidence(noise.values[:600], noise.half[:600])
    assert Stacker.fit([(few, 1.0)], clean, RATE, seed=0) is None


def test_one_that_was_fitted_on_more_stays_where_it_finds_more() -> None:
    """As after `partial_fit`, whose week has few windows."""
    rng = np.random.default_rng(3)

    def sample(n: int, shift: float) -> Evidence:
        values = rng.normal(size=(n, 2)).astype(np.float32)
        values[:, 1] += shift
        return Evidence(values, np.arange(n) % 2)

    noise, clean = sample(4_000, 1.5), sample(20_000, 0.0)
    former = Stacker.fit([(noise, 1.0)], clean, RATE, seed=0)
    blind = Stacker.fit([(sample(4_000, 0.1), 1.0)], sample(20_000, 0.0), RATE, seed=0)
    assert former is not None
    assert blind is not None
    week = sample(200, 1.5), sample(2_000, 0.0)
    assert former.helps(*week)
    assert former.helps(*week, blind)
    assert not blind.helps(*week, former)


def test_the_same_seed_gives_the_same_networks_and_they_are_saved_whole(tmp_path: Path) -> None:
    noise, clean = drifted(0)
    first, second = (Stacker.fit([(noise, 1.0)], clean, RATE, seed=3) for _ in range(2))
    assert first is not None
    assert second is not None
    assert first.fingerprint == second.fingerprint
    first.save(tmp_path, "newer")
    loaded = Stacker.load(tmp_path, "newer")
    assert loaded is not None
    assert loaded.fingerprint == first.fingerprint
    assert Stacker.load(tmp_path, "training") is None


@pytest.fixture
def windows() -> Windows:
    return Windows.from_lists([[0, 1, 2], [3, 1]], user_ids=pl.Series(["a", "b"]))


def test_evidence_starts_with_the_log_odds_and_those_of_the_rest_of_the_window(windows: Windows) -> None:
    counts = CooccurrenceCounts.fit(windows, 4, seed=0)
    titles = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    found = evidence(windows, np.array([1.0, -2.0, 4.0, 3.0, 0.5]), counts, titles)
    assert found.shape == (5, N_EVIDENCE)
    expected = [[1, 1, 4, 3], [-2, 2.5, 4, 3], [4, -0.5, 1, 3], [3, 0.5, 0.5, 2], [0.5, 3, 3, 2]]
    np.testing.assert_allclose(found[:, :4], expected)
    np.testing.assert_array_equal(found[:, 4 : 4 + N_FEATURES], counts.features(windows))
    np.testing.assert_array_equal(found[:, 4 + N_FEATURES :], context_features(windows, counts, titles))


def test_an_interaction_has_the_same_log_odds_whatever_is_scored_beside_it() -> None:
    """To the last bit, so that parts and workers give the bytes of the whole. Products by BLAS did not."""
    rng = np.random.default_rng(3)
    weights = {
        "center": np.zeros((2, N_EVIDENCE)), "scale": np.ones((2, N_EVIDENCE)),
        "hidden_weight": rng.standard_normal((2, 3, N_EVIDENCE, 32)), "hidden_bias": rng.standard_normal((2, 3, 1, 32)),
        "out_weight": rng.standard_normal((2, 3, 32, 1)), "out_bias": rng.standard_normal((2, 3, 1, 1)),
    }  # fmt: skip
    stacker = Stacker(**{name: values.astype(np.float32) for name, values in weights.items()})
    found = sample(4_001, 4, rng.standard_normal((4_001, N_EVIDENCE)).astype(np.float32))
    whole = stacker(found)
    for size in (1, 2, 7, 1_000):
        some = np.arange(4_001) < size
        assert (stacker(found.take(some)) == whole[some]).all()
