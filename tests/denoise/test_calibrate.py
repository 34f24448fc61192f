"""From log-odds to probabilities that can be believed, on mixtures whose share of noise is known."""

import numpy as np
import pytest

from llm4dsr.data.windows import Windows
from llm4dsr.denoise.calibrate import Calibrator, Sample, estimate_noise_rate, fit, injected_noise_ece, join
from llm4dsr.metrics import expected_calibration_error


def mixture(share: float, n: int = 160_000, apart: float = 3.0, seed: int = 0):
    """(injected noise, unlabeled, which of the unlabeled are noise). Noise scores `apart` higher; spread 1."""
    rng = np.random.default_rng(seed)
    made = Sample(rng.normal(apart, 1, n // 4), rng.normal(size=n // 4))
    is_noise = rng.random(n) < share
    return made, Sample(rng.normal(apart * is_noise, 1), rng.normal(size=n)), is_noise


def halves(made: Sample, unlabeled: Sample):
    return np.arange(len(made.log_odds)) % 2 == 0, np.arange(len(unlabeled.log_odds)) % 2 == 0


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_the_share_of_noise_is_found_without_labels(share):
    made, unlabeled, _ = mixture(share, apart=4.0)
    assert estimate_noise_rate([(made, unlabeled)]) == pytest.approx(share, abs=0.02)


def test_the_share_is_an_upper_bound_where_clean_interactions_look_like_noise():
    """A tenth of the clean ones are odd purchases that score just as noise does: nothing tells them apart."""
    rng = np.random.default_rng(1)
    made = Sample(rng.normal(4, 1, 10_000), np.zeros(10_000))
    kind = rng.choice(3, p=[0.1, 0.09, 0.81], size=40_000)  # noise, odd, fitting
    unlabeled = Sample(np.where(kind == 2, rng.normal(0, 1, 40_000), rng.normal(4, 1, 40_000)), np.zeros(40_000))
    assert estimate_noise_rate([(made, unlabeled)]) == pytest.approx(0.19, abs=0.02)


def test_a_clear_context_tightens_the_bound():
    """In windows without a clear interest noise does not stand out; those with one tell the share."""
    rng = np.random.default_rng(2)
    clear, is_noise, made_clear = rng.random(60_000) < 0.3, rng.random(60_000) < 0.1, rng.random(20_000) < 0.3
    made = Sample(rng.normal(np.where(made_clear, 4, 0.5), 1), np.where(made_clear, -3.0, 0.0))
    unlabeled = Sample(rng.normal(np.where(clear, 4, 0.5) * is_noise, 1), np.where(clear, -3.0, 0.0))
    blind = [Sample(s.log_odds, np.zeros(len(s.log_odds))) for s in (made, unlabeled)]
    assert estimate_noise_rate([(made, unlabeled)]) == pytest.approx(0.1, abs=0.015)
    assert estimate_noise_rate([(made, unlabeled)]) < estimate_noise_rate([tuple(blind)])


def test_what_is_odd_but_the_users_own_is_taken_off():
    made, unlabeled, _ = mixture(0.1, apart=4.0)
    bound = estimate_noise_rate([(made, unlabeled)])
    assert estimate_noise_rate([(made, unlabeled)], atypical_rate=0.03) == pytest.approx(bound - 0.03)
    assert estimate_noise_rate([(made, unlabeled)], atypical_rate=0.5) == 0


def test_splits_are_pooled():
    """A small split alone gives a low bound by chance; beside a large one it has little to say."""
    large = mixture(0.1, apart=4.0)[:2]
    small = [mixture(0.1, n=1_000, apart=4.0, seed=seed)[:2] for seed in range(5)]
    alone = [abs(estimate_noise_rate([pair]) - 0.1) for pair in small]
    pooled = [abs(estimate_noise_rate([pair, large]) - 0.1) for pair in small]
    assert max(pooled) < 0.01 < max(alone)


@pytest.mark.parametrize(("method", "ece", "off"), [("isotonic", 0.01, 0.05), ("platt", 0.04, 0.1)])
def test_probabilities_mean_what_they_say(method, ece, off):
    """Platt's curve goes on to rise where the ratio of the densities does not: isotonic is the default."""
    made, unlabeled, is_noise = mixture(0.1)
    probability = fit(made, unlabeled, method, 0.1)(unlabeled.log_odds)
    assert expected_calibration_error(probability, is_noise) < ece
    flagged = probability >= 0.5
    assert probability[flagged].mean() == pytest.approx(is_noise[flagged].mean(), abs=off)
    before, after = injected_noise_ece(made, unlabeled, method, halves(made, unlabeled))
    assert after < off < before


def test_a_model_that_knows_nothing_flags_nothing(caplog):
    """If both samples score alike, the noise rate has no bound. That is no reason to flag most of them."""
    made, unlabeled, _ = mixture(0.1, apart=0.0)
    share = estimate_noise_rate([(made, unlabeled)])
    assert share > 0.8
    calibrator = fit(made, unlabeled, "isotonic", share)
    assert calibrator.noise_rate == 0
    assert calibrator(unlabeled.log_odds).max() == 0
    assert "does not distinguish injected noise from the rest" in caplog.text


def test_a_sample_holds_what_was_scored():
    windows = Windows.from_lists([[5], [1, 2, 3]])
    sample = Sample.of(windows, np.array([[np.nan, np.nan, np.nan], [1.0, 2.0, 6.0]]))
    assert (sample.log_odds.tolist(), sample.context.tolist()) == ([1, 2, 6], [4, 3.5, 1.5])


def test_samples_are_joined_in_order():
    joined = join([Sample(np.array([1.0]), np.array([2.0])), Sample(np.array([3.0]), np.array([4.0]))])
    assert (joined.log_odds.tolist(), joined.context.tolist()) == ([1, 3], [2, 4])


def test_higher_log_odds_never_mean_less_noise():
    made, unlabeled, _ = mixture(0.1, n=2_000)
    calibrator = fit(made, unlabeled, "isotonic", 0.1)
    probability = calibrator(np.linspace(-20, 20, 500))
    assert (np.diff(probability) >= 0).all()
    assert 0 <= probability.min() <= probability.max() <= 1


def test_the_shape_is_kept_and_padding_stays_padding():
    made, unlabeled, _ = mixture(0.1, n=2_000)
    out = fit(made, unlabeled, "isotonic", 0.1)(np.array([[0.0, np.nan], [3.0, 9.0]]))
    assert out.shape == (2, 2)
    assert np.isnan(out[0, 1])
    assert np.isfinite(out).sum() == 3


def test_without_calibration_log_odds_are_taken_at_their_word():
    np.testing.assert_allclose(Calibrator()(np.array([0.0, np.log(3)])), [0.5, 0.75])
