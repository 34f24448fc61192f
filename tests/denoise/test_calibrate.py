"""From log-odds to calibrated probabilities, on mixtures with a known noise rate."""

import tracemalloc

import numpy as np
import polars as pl
import pytest

from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.calibrate import (
    CELLS,
    Calibrator,
    NoiseKind,
    Sample,
    fit,
    injected_noise_ece,
    join,
)
from llm4dsr.denoise.noise_rate import LIMIT, bound_noise_rate, likely_rates
from llm4dsr.denoise.tables import score_table
from llm4dsr.metrics import expected_calibration_error


def mixture(rate: float, n: int = 160_000, apart: float = 3.0, seed: int = 0):
    """(injected noise, unlabeled, which of the unlabeled are noise). Noise scores `apart` higher; spread 1."""
    rng = np.random.default_rng(seed)
    made = Sample(rng.normal(apart, 1, n // 4), rng.normal(size=n // 4))
    is_noise = rng.random(n) < rate
    return made, Sample(rng.normal(apart * is_noise, 1), rng.normal(size=n)), is_noise


def halves(made: Sample, unlabeled: Sample):
    return np.arange(len(made.log_odds)) % 2 == 0, np.arange(len(unlabeled.log_odds)) % 2 == 0


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_the_bound_is_the_noise_rate_where_noise_stands_apart(rate):
    made, unlabeled, _ = mixture(rate, apart=4.0)
    assert bound_noise_rate([(made, unlabeled)]) == pytest.approx(rate, abs=0.02)


def test_the_bound_holds_atypical_interactions_too():
    """A tenth of the clean ones are atypical purchases that score just as noise does: nothing tells them apart."""
    rng = np.random.default_rng(1)
    made = Sample(rng.normal(4, 1, 10_000), np.zeros(10_000))
    kind = rng.choice(3, p=[0.1, 0.09, 0.81], size=40_000)  # noise, atypical, fitting
    unlabeled = Sample(np.where(kind == 2, rng.normal(0, 1, 40_000), rng.normal(4, 1, 40_000)), np.zeros(40_000))
    assert bound_noise_rate([(made, unlabeled)]) == pytest.approx(0.19, abs=0.02)


def test_a_clear_context_tightens_the_bound():
    """In windows without a clear interest noise does not stand out; those with one tell the rate."""
    rng = np.random.default_rng(2)
    clear, is_noise, made_clear = rng.random(240_000) < 0.3, rng.random(240_000) < 0.1, rng.random(80_000) < 0.3
    made = Sample(rng.normal(np.where(made_clear, 3, 2.5), 1), np.where(made_clear, -3.0, 0.0))
    fits = rng.normal(np.where(clear, 0, 1.5), 1)  # without a clear interest, what fits is suspicious too
    unlabeled = Sample(np.where(is_noise, rng.normal(np.where(clear, 3, 2.5), 1), fits), np.where(clear, -3.0, 0.0))
    blind = [Sample(s.log_odds, np.zeros(len(s.log_odds))) for s in (made, unlabeled)]
    assert bound_noise_rate([(made, unlabeled)]) == pytest.approx(0.1, abs=0.015)
    assert bound_noise_rate([(made, unlabeled)]) < bound_noise_rate([tuple(blind)])


def test_a_probability_is_the_mean_over_the_possible_rates():
    """Where noise is four times as frequent as the rest: rates from 0.1 to 0.2 give 0.4 to 0.8, their mean is 0.6."""
    calibrator = Calibrator(
        [NoiseKind([-1.0, 1.0], [0.0, 8.0], rate_low=0.1, rate_bound=0.2, rate_high=0.2)], ceiling=0.99
    )
    assert calibrator(np.array([0.0])) == pytest.approx(0.6)
    low, high = calibrator.interval(np.array([0.0, 1.0]))
    assert (low.tolist(), high.tolist()) == (pytest.approx([0.4, 0.8]), pytest.approx([0.8, 0.99]))
    assert calibrator.noise_rate == pytest.approx(0.15)


def test_a_probability_is_the_mean_over_the_kinds_of_noise():
    """Where uniform noise is six times and popular noise twice as frequent as the rest, at a rate of a tenth each."""
    kinds = [
        NoiseKind([0.0, 1.0], [ratio, ratio], rate_low=0.05, rate_bound=0.15, rate_high=0.15) for ratio in (6.0, 2.0)
    ]
    calibrator = Calibrator(kinds, ceiling=0.99)
    assert calibrator(np.array([0.5])) == pytest.approx(0.4)
    low, high = calibrator.interval(np.array([0.5]))
    assert (low[0], high[0]) == (pytest.approx(0.1), pytest.approx(0.9))  # 0.05 · 2 and 0.15 · 6
    assert (calibrator.rate_low, calibrator.rate_high, calibrator.noise_rate) == (0.05, 0.15, pytest.approx(0.1))


def test_labels_exclude_a_kind_of_noise():
    """At these scores uniform noise is ten times as frequent, popular noise half as frequent: nearly all is noise."""
    ratios = [np.full(200, 10.0), np.full(200, 0.5)]
    uniform, popular = likely_rates(ratios, np.arange(200) % 20 > 0)
    assert uniform[0] < 0.095 < uniform[1]
    assert np.isnan(popular).all()
    kinds = [NoiseKind([0.0, 1.0], [r[0], r[0]], rate_low=0.0, rate_bound=1.0, rate_high=1.0) for r in ratios]
    narrowed = Calibrator(kinds, ceiling=0.99).with_rates([(r[0], r[1], r[1]) for r in (uniform, popular)])
    assert narrowed(np.array([0.5])) == pytest.approx(0.95, abs=0.03)
    assert narrowed.rate_high == uniform[1]
    assert narrowed.with_rates([(0.1, 0.1, 0.1)] * 2).noise_rate == 0.1  # an excluded kind can come back


def test_overlapping_windows_widen_the_bound():
    """A hundred users whose interactions are counted nine times each say no more than if they were counted once."""
    made, unlabeled, _ = mixture(0.1, n=4_000, apart=4.0)
    users = np.repeat(np.arange(100), 40)
    once = Sample(unlabeled.log_odds, unlabeled.context, users=users)
    often = join([once] * 9)
    blind = Sample(often.log_odds, often.context)
    assert bound_noise_rate([(made, often)]) == pytest.approx(bound_noise_rate([(made, once)]), rel=1e-6)
    assert bound_noise_rate([(made, blind)]) < bound_noise_rate([(made, once)])


def test_the_bound_is_seldom_below_the_rate():
    """Forty draws of few users: the limit is to hold in 95 % of them, and the least of several in most."""
    below = 0
    for seed in range(40):
        made, unlabeled, _ = mixture(0.1, n=3_000, apart=4.0, seed=seed)
        sample = Sample(unlabeled.log_odds, unlabeled.context, users=np.arange(3_000) // 30)
        below += bound_noise_rate([(made, sample)], LIMIT) < 0.1
    assert below <= 4


def test_of_a_clean_log_next_to_nothing_is_noise():
    """Where no unlabeled interaction scores as high as noise, the limit is that of a count of 0: 3 at 95 %, 5.8 for
    each of many regions. It is not 1."""
    rng = np.random.default_rng(0)
    made, clean = Sample(rng.normal(8, 1, 5_000), np.zeros(5_000)), Sample(rng.normal(-8, 1, 20_000), np.zeros(20_000))
    assert 0 < bound_noise_rate([(made, clean)]) < bound_noise_rate([(made, clean)], LIMIT) < 0.001
    one = Sample(np.r_[clean.log_odds[1:], 8.0], clean.context)
    assert bound_noise_rate([(made, one)]) >= bound_noise_rate([(made, clean)])


@pytest.mark.parametrize("rate", [0.002, 0.01, 0.05])
def test_the_limit_holds_for_a_few_noisy_interactions(rate):
    """Three thousand interactions with 6 to 150 noisy ones, all of which are found: few lie in each region."""
    below = sum(
        bound_noise_rate([mixture(rate, n=3_000, apart=6.0, seed=seed)[:2]], LIMIT) < rate for seed in range(60)
    )
    assert below <= 3


@pytest.mark.parametrize("atypical", [0.0, 0.25, 0.5])
def test_the_stated_interval_holds_the_truth(atypical):
    """A part of what scores as noise does is the users' own; up to a half, the interval holds the precision."""
    rng = np.random.default_rng(3)
    made = Sample(rng.normal(4, 1, 20_000), np.zeros(20_000))
    looks, own = rng.random(80_000) < 0.1, rng.random(80_000) < atypical
    unlabeled = Sample(rng.normal(4 * looks, 1), np.zeros(80_000))
    bound = bound_noise_rate([(made, unlabeled)])
    calibrator = fit([made], unlabeled, "isotonic", [(bound / 2, bound, bound)])
    low, high = calibrator.interval(unlabeled.log_odds)
    flagged = unlabeled.log_odds > 2.5
    assert low[flagged].mean() - 0.03 < (looks & ~own)[flagged].mean() < high[flagged].mean() + 0.03


def test_many_labels_take_little_memory():
    rng = np.random.default_rng(4)
    ratio, is_noise = rng.gamma(1, 1, 100_000), rng.random(100_000) < 0.1
    tracemalloc.start()
    ((low, high),) = likely_rates([ratio], is_noise)
    assert tracemalloc.get_traced_memory()[1] < 2e8  # all labels at all rates would be 1.6 GB
    tracemalloc.stop()
    assert 0 < low < high < 1


def test_labels_narrow_the_interval_to_the_truth():
    """Two hundred labels of suspicious interactions, a third of which are the users' own."""
    rng = np.random.default_rng(4)
    made = Sample(rng.normal(4, 1, 20_000), np.zeros(20_000))
    looks = rng.random(80_000) < 0.1
    unlabeled = Sample(rng.normal(4 * looks, 1), np.zeros(80_000))
    is_noise = looks & (rng.random(80_000) < 2 / 3)
    calibrator = fit([made], unlabeled, "isotonic", [(0.05, 0.1, 0.1)])
    labeled = rng.choice(np.flatnonzero(unlabeled.log_odds > 2), 200, replace=False)
    ratio = calibrator.kinds[0].ratio(unlabeled.log_odds[labeled])
    ((low, high),) = likely_rates([ratio], is_noise[labeled])
    assert low < is_noise.mean() < high
    assert high - low < 0.03


def test_no_probability_is_1():
    """Eighty interactions score far above the rest. They cannot tell 1 from 1 - 1 / 82."""
    made = Sample(np.full(1000, 9.0), np.zeros(1000))
    unlabeled = Sample(np.r_[np.zeros(2000), np.full(80, 9.0)], np.zeros(2080))
    calibrator = fit([made], unlabeled, "isotonic", [(0.04, 0.04, 0.04)])
    assert calibrator(np.array([9.0, 99.0])).max() <= 1 - 1 / 82


def test_no_probability_is_1_without_a_map():
    probability = Calibrator()(np.array([0.0, 99.0, np.inf, np.nan]))
    np.testing.assert_allclose(probability, [0.5, 1 - 1e-6, 1 - 1e-6, np.nan])
    assert probability[1] < np.float32(1)


def test_splits_are_pooled():
    """A small split alone gives a low bound by chance; beside a large one it has little to say."""
    large = mixture(0.1, apart=4.0)[:2]
    small = [mixture(0.1, n=1_000, apart=4.0, seed=seed)[:2] for seed in range(5)]
    alone = [abs(bound_noise_rate([pair]) - 0.1) for pair in small]
    pooled = [abs(bound_noise_rate([pair, large]) - 0.1) for pair in small]
    assert max(pooled) < 0.01 < max(alone)


@pytest.mark.parametrize(("method", "ece", "off"), [("isotonic", 0.01, 0.05), ("platt", 0.04, 0.1)])
def test_probabilities_are_calibrated(method, ece, off):
    """Platt's curve goes on to rise where the ratio of the densities does not: isotonic is the default."""
    made, unlabeled, is_noise = mixture(0.1)
    probability = fit([made], unlabeled, method, [(0.1, 0.1, 0.1)])(unlabeled.log_odds)
    assert expected_calibration_error(probability, is_noise) < ece
    flagged = probability >= 0.5
    assert probability[flagged].mean() == pytest.approx(is_noise[flagged].mean(), abs=off)
    before, after = injected_noise_ece(made, unlabeled, method, halves(made, unlabeled))
    assert after < off < before


def test_a_model_at_chance_flags_nothing(caplog):
    """If both samples score alike, the noise rate has no bound. That is no reason to flag most of them."""
    made, unlabeled, _ = mixture(0.1, apart=0.0)
    rate = bound_noise_rate([(made, unlabeled)])
    assert rate > 0.8
    calibrator = fit([made], unlabeled, "isotonic", [(rate, rate, rate)])
    assert calibrator.noise_rate == 0
    assert calibrator(unlabeled.log_odds).max() == 0
    assert "does not distinguish injected noise from the rest" in caplog.text


def test_a_sample_holds_what_was_scored():
    windows = Windows.from_lists([[5], [1, 2, 3]])
    sample = Sample.of(windows, np.array([np.nan, 1.0, 2.0, 6.0]))
    assert (sample.log_odds.tolist(), sample.context.tolist()) == ([1, 2, 6], [4, 3.5, 1.5])


def test_samples_are_joined_in_order():
    joined = join([Sample(np.array([1.0]), np.array([2.0])), Sample(np.array([3.0]), np.array([4.0]))])
    assert (joined.log_odds.tolist(), joined.context.tolist()) == ([1, 3], [2, 4])


def test_higher_log_odds_never_mean_less_noise():
    made, unlabeled, _ = mixture(0.1, n=2_000)
    calibrator = fit([made], unlabeled, "isotonic", [(0.1, 0.1, 0.1)])
    probability = calibrator(np.linspace(-20, 20, 500))
    assert (np.diff(probability) >= 0).all()
    assert 0 <= probability.min() <= probability.max() <= 1


def test_the_shape_is_kept_and_padding_stays_padding():
    made, unlabeled, _ = mixture(0.1, n=2_000)
    out = fit([made], unlabeled, "isotonic", [(0.1, 0.1, 0.1)])(np.array([[0.0, np.nan], [3.0, 9.0]]))
    assert out.shape == (2, 2)
    assert np.isnan(out[0, 1])
    assert np.isfinite(out).sum() == 3


def test_without_calibration_the_logistic_function_is_used():
    np.testing.assert_allclose(Calibrator()(np.array([0.0, np.log(3)])), [0.5, 0.75])


def test_probabilities_of_many_interactions_take_little_memory():
    """A table of scores takes no more than the 250 bytes of an interaction that a run is estimated to need."""
    count = 40_000
    lengths = np.full(count, 10)
    windows = Windows(
        items=np.zeros(10 * count, np.int64), lengths=lengths, window_ids=np.arange(count),
        user_ids=pl.Series(np.arange(count)), timestamps=np.full(count, -1),
    )  # fmt: skip
    kinds = [NoiseKind([-2.0, 2.0], [0.1, 5.0], 0.02, 0.1, 0.2), NoiseKind([-1.0, 3.0], [0.3, 2.0], 0.01, 0.2, 0.3)]
    calibrator, log_odds = Calibrator(kinds), np.random.default_rng(0).normal(size=10 * count)
    tracemalloc.start()
    try:
        table = score_table(windows, log_odds, calibrator, Catalogue(pl.Series([7]), ["Robot"]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / (10 * count) < 250
    some = [0, CELLS - 1, CELLS, 10 * count - 1]  # of the first, second and last block that is read at once
    alone = [float(calibrator(log_odds[[i]])[0]) for i in some]
    assert table["noise_probability"][some].to_list() == pytest.approx(alone, rel=1e-12)
