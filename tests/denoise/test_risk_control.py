"""Thresholds with a guarantee: by hand, in simulations with known truth, and in a run."""

import logging
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4dsr.data.windows import Windows
from llm4dsr.denoise.calibrate import KEPT, Calibrator, Sample, evenly_ranked, fit, join
from llm4dsr.denoise.decide import ranks
from llm4dsr.denoise.risk_control import (
    Threshold,
    allowed_errors,
    control_false_flags,
    control_missed_noise,
    false_flag_threshold,
    missed_noise_threshold,
    rows_past,
)
from llm4dsr.errors import ConfigError, DataError

NAN, INF = np.nan, np.inf
DRAWS = 2_000
NINE = np.arange(1.0, 10.0)[::-1]  # 9 to 1


def table(*windows: list[float]) -> pl.DataFrame:
    """A table of scores of these windows of log-odds."""
    owners = np.repeat(np.arange(len(windows)), [len(w) for w in windows])
    positions, log_odds = np.concatenate([np.arange(len(w)) for w in windows]), np.concatenate(windows)
    return pl.DataFrame({"window_id": owners, "position": positions, "log_odds": log_odds,
                         "rank": ranks(owners, log_odds)})  # fmt: skip


def flagged(threshold: Threshold, *windows: list[float], cap: int | None = None) -> list[tuple[int, int]]:
    return rows_past(table(*windows), threshold, cap).select("window_id", "position").rows()


def labels(split: str, is_noise: list[int]) -> pl.DataFrame:
    """Labels of the first position of the first windows."""
    return pl.DataFrame({"split": split, "window_id": range(len(is_noise)), "position": 0, "is_noise": is_noise})


# --- thresholds by hand ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "k"),
    [(0.1, 9), (0.2, 8), (0.25, 8), (0.3, 7), (0.9, 1)],  # ceil(10 · (1 - α)): 9, 8, 7.5, 7, 1
)
def test_the_threshold_of_false_flags_is_the_kth_smallest_clean_score(alpha, k):
    threshold = false_flag_threshold(NINE, alpha)
    assert threshold == Threshold(float(k), is_inclusive=False, count=9)
    assert threshold.flags(np.array([k - 1, k, k + 0.1, NAN])).tolist() == [False, False, True, False]


@pytest.mark.parametrize(
    ("alpha", "k"),
    [(0.1, 1), (0.2, 2), (0.25, 2), (0.3, 3), (0.9, 9)],  # floor(10 · α): 1, 2, 2.5, 3, 9
)
def test_the_threshold_of_missed_noise_is_the_kth_smallest_noise_score(alpha, k):
    threshold = missed_noise_threshold(NINE, alpha)
    assert threshold == Threshold(float(k), is_inclusive=True, count=9)
    assert threshold.flags(np.array([k - 0.1, k, k + 1, NAN])).tolist() == [False, True, True, False]


def test_too_few_scores_flag_nothing_or_everything():
    """A tenth of 9 scores and one more is one error; of 8 and one more it is none."""
    assert false_flag_threshold(NINE[:8], 0.1).value == INF
    assert missed_noise_threshold(NINE[:8], 0.1).value == -INF
    assert false_flag_threshold([], 0.9).value == INF
    assert not Threshold(INF, is_inclusive=False, count=8).flags(np.array([1e300, INF])).any()


@given(n=st.integers(0, 3_000), percent=st.integers(1, 99))
def test_allowed_errors_are_exact_for_decimals(n, percent):
    assert allowed_errors(n, percent / 100) == (n + 1) * percent // 100


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 5.0, NAN])
@pytest.mark.parametrize("threshold", [false_flag_threshold, missed_noise_threshold])
def test_a_rate_is_above_0_and_below_1(threshold, alpha):
    with pytest.raises(ConfigError, match="above 0 and below 1"):
        threshold(NINE, alpha)


# --- the guarantee, in simulations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "alpha"), [(19, 0.05), (50, 0.1), (99, 0.01), (200, 0.07)])
def test_the_rates_hold_on_average_and_are_nearly_reached(n, alpha):
    """Over draws of n scores, the rate among all has the mean floor((n + 1) α) / (n + 1); its error is estimated."""
    rng = np.random.default_rng(7)
    everything = np.sort(rng.gumbel(size=50_000))
    false, missed = np.empty(DRAWS), np.empty(DRAWS)
    for draw in range(DRAWS):
        known = everything[rng.integers(len(everything), size=n)]
        false[draw] = false_flag_threshold(known, alpha).flags(everything).mean()
        missed[draw] = 1 - missed_noise_threshold(known, alpha).flags(everything).mean()
    for rate in (false, missed):
        error = 3 * rate.std() / math.sqrt(DRAWS)
        assert alpha - 2 / (n + 1) < rate.mean() <= alpha + error
        assert rate.mean() == pytest.approx(math.floor((n + 1) * alpha + 1e-9) / (n + 1), abs=error + 1e-3 * alpha)


def test_ties_keep_the_rates():
    """Scores of three values: the rate of errors is lower than α, never above."""
    rng = np.random.default_rng(8)
    false, missed = [], []
    for _ in range(DRAWS):
        known, new = rng.choice([0.0, 1.0, 2.0], size=(2, 30), p=[0.85, 0.1, 0.05])
        false.append(false_flag_threshold(known, 0.1).flags(new).mean())
        missed.append(1 - missed_noise_threshold(known, 0.1).flags(new).mean())
    assert 0.02 < np.mean(false) <= 0.1
    assert np.mean(missed) == 0  # the lowest value is far more frequent than α
    assert false_flag_threshold(np.zeros(30), 0.1).flags(np.zeros(3)).tolist() == [False] * 3
    assert missed_noise_threshold(np.zeros(30), 0.1).flags(np.zeros(3)).tolist() == [True] * 3


def windows_of_noise(rng: np.random.Generator, count: int) -> tuple[Sample, list[list[float]]]:
    """Windows of 2 to 4 interactions, the first of which is noise: a sample of the noise, and log-odds by window."""
    windows = Windows.from_lists([[1] * n for n in rng.integers(2, 5, size=count)])
    is_noise = windows.positions == 0
    log_odds = rng.normal(size=len(is_noise)) + 2.5 * is_noise
    by_window = [values.tolist() for values in np.split(log_odds, windows.offsets[1:-1])]
    return Sample.of(windows, log_odds).take(is_noise), by_window


def test_missed_noise_counts_what_stays_as_the_last_of_its_window():
    """In windows of two, one always stays. Where that is the noise, it is missed whatever it scores."""
    rng = np.random.default_rng(9)
    noise, _ = windows_of_noise(rng, 20_000)
    calibrator = fit([noise], Sample(rng.normal(size=1_000), np.zeros(1_000)), "platt", [(0.1, 0.2, 0.2)])
    new, left = windows_of_noise(rng, 20_000)
    never = new.least_suspicious.mean()
    assert never > 0.01
    for alpha in (0.05, 0.2):
        threshold = control_missed_noise({"test": calibrator}, alpha)["test"]
        found = rows_past(table(*left), threshold)
        missed = 1 - (found["position"] == 0).sum() / len(left)
        assert alpha - 0.01 < missed < alpha + 0.005
    with pytest.raises(ConfigError, match="are the lowest of their window, where one item always stays"):
        control_missed_noise({"test": calibrator}, round(never / 2, 4))
    with pytest.raises(ConfigError) as refused:
        control_missed_noise({"test": calibrator}, round(never / 2, 4))
    lowest = float(str(refused.value).split()[-1].rstrip("."))
    assert np.isfinite(control_missed_noise({"test": calibrator}, lowest)["test"].value)
    with pytest.raises(ConfigError):
        control_missed_noise({"test": calibrator}, lowest - 0.001)


def test_the_least_suspicious_is_the_newest_of_equals_as_in_ranks():
    log_odds = np.array([1.0, 1.0, 3.0, 2.0, 0.0, NAN, 5.0, 4.0, 4.0, 4.0])
    windows = Windows.from_lists([[1, 2, 3], [4, 5], [6], [1, 2, 3, 4]])
    sample = Sample.of(windows, log_odds)
    assert sample.flaggable.tolist() == [1, -INF, 3, 2, -INF, 5, 4, 4, -INF]
    known = np.isfinite(log_odds)
    last = (ranks(windows.owners, log_odds) == windows.lengths[windows.owners])[known]
    assert sample.least_suspicious.tolist() == last.tolist()
    assert join([sample, sample.take(np.array([1, 2]))]).flaggable.tolist()[-2:] == [-INF, 3]


# --- scores of injected noise ----------------------------------------------------------------------------------------


def test_few_scores_of_injected_noise_are_kept_exactly():
    noise, unlabeled = Sample(np.array([3.0, 1.0, 2.0] * 50), np.zeros(150)), Sample(np.zeros(500), np.zeros(500))
    assert fit([noise], unlabeled, "isotonic", [(0.1, 0.2, 0.2)]).injected == [1.0] * 50 + [2.0] * 50 + [3.0] * 50


@given(n=st.integers(KEPT - 2, 5 * KEPT), percent=st.integers(1, 99))
def test_many_are_thinned_to_a_threshold_that_is_no_higher(n, percent):
    """Of 1 to n the k-th smallest is k, so ranks can be read off."""
    everything = np.arange(1.0, n + 1)[::-1]
    kept = evenly_ranked(everything)
    assert len(kept) == min(n, KEPT)
    exact, thinned = (missed_noise_threshold(v, percent / 100).value for v in (everything, kept))
    assert exact - n / KEPT - 1 <= thinned <= exact


# --- splits ----------------------------------------------------------------------------------------------------------

SCORES = {"train": table(*[[float(i), -9.0] for i in range(40)]), "test": table([0.0, 1.0], [2.0, 3.0])}


def test_each_split_has_the_threshold_of_its_own_clean_labels(caplog):
    """Train: every second of 0 to 39 is clean, 20 in all; k = ceil(21 · 0.9) = 19, so 36. Test has two clean ones."""
    known = pl.concat([labels("train", [0, 1] * 20), labels("test", [0, 0])])
    with caplog.at_level(logging.WARNING, "llm4dsr"):
        found = control_false_flags(SCORES, known, 0.1)
    assert found["train"] == Threshold(36.0, is_inclusive=False, count=20)
    assert found["test"] == Threshold(INF, is_inclusive=False, count=2)
    assert "Nothing is flagged in test: test has 2 clean labels, and 9 are needed" in caplog.text
    assert rows_past(SCORES["train"], found["train"])["log_odds"].to_list() == [37, 38, 39]
    assert rows_past(SCORES["test"], found["test"]).is_empty()


def test_too_few_clean_labels_say_how_many_are_needed():
    with pytest.raises(DataError, match=r"0\.05 needs 19 clean labels in a split, but train has 18, test has 0"):
        control_false_flags(SCORES, labels("train", [0] * 18 + [1] * 9), 0.05)


def test_histories_of_one_item_have_no_clean_score():
    scores = {"test": table(*[[NAN]] * 5, *[[1.0, 0.0]] * 4)}
    with pytest.raises(DataError, match="needs 9 clean labels in a split, but test has 4"):
        control_false_flags(scores, labels("test", [0] * 9), 0.1)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (labels("train", [0, 2]), "neither 0 nor 1"),
        (labels("train", [0] * 41), "Position 0 of window_id 40 in train is labeled, but has no score"),
        (labels("dev", [0]), r"split\(s\) \['dev'\]; expected train, test"),
        (labels("train", [0]).drop("is_noise"), "lack is_noise"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(known, message):
    with pytest.raises(DataError, match=message):
        control_false_flags(SCORES, known, 0.1)


@pytest.mark.parametrize(
    ("rows", "said"), [(slice(-60, None), "higher"), (slice(60), "lower"), (slice(0, None, 5), "")]
)
def test_labels_that_were_chosen_by_score_are_noticed(caplog, rows, said):
    scores = {"test": table(*[[float(i), -1.0] for i in range(300)])}
    ordered = scores["test"].sort("log_odds")[rows].select("window_id", "position")
    with caplog.at_level(logging.WARNING, "llm4dsr"):
        control_false_flags(scores, ordered.with_columns(split=pl.lit("test"), is_noise=0), 0.1)
    assert (f"score {said} than a random sample" in caplog.text) == bool(said)


@pytest.mark.parametrize(
    ("calibrator", "message"),
    [
        (Calibrator(uncalibrated="too few"), "injected noise: too few"),
        (Calibrator(), "train and score again"),
    ],
)
def test_without_scores_of_injected_noise_none_can_be_controlled(calibrator, message):
    with pytest.raises(DataError, match=message):
        control_missed_noise({"test": calibrator}, 0.1)


# --- flags -----------------------------------------------------------------------------------------------------------


def test_one_item_stays_and_there_is_no_cap_unless_given():
    above = Threshold(0.0, is_inclusive=False, count=9)
    rows = [[3.0, 1.0, 2.0, 5.0], [0.0, 4.0], [NAN]]
    assert flagged(above, *rows) == [(0, 0), (0, 2), (0, 3), (1, 1)]
    assert flagged(above, *rows, cap=1) == [(0, 3), (1, 1)]
    assert flagged(above, *rows, cap=0) == []
    assert flagged(Threshold(0.0, is_inclusive=True, count=9), *rows[1:]) == [(0, 1)]  # 0 too, but one stays
