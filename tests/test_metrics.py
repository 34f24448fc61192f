"""Every expected value is worked out by hand in the comment beside it, or comes from another library."""

import math

import ir_measures
import numpy as np
import pytest
from ir_measures import Qrel, ScoredDoc, Success, nDCG

from llm4dsr import metrics
from llm4dsr.errors import DataError


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([4, 3, 2, 1], 1.0),  # both noises before both clean ones
        ([1, 2, 3, 4], 0.0),  # the other way round
        ([4, 2, 3, 1], 0.75),  # pairs (4,3) (4,1) (2,1) right, (2,3) wrong
        ([5, 5, 5, 5], 0.5),  # a constant score knows nothing: each pair counts ½
    ],
)
def test_auroc_counts_ordered_pairs(scores: list[int], expected: float) -> None:
    assert metrics.auroc(scores, [1, 1, 0, 0]) == pytest.approx(expected)


def test_average_precision_is_the_mean_precision_at_each_noise() -> None:
    assert metrics.average_precision([4, 3, 2, 1], [0, 1, 0, 1]) == pytest.approx((1 / 2 + 2 / 4) / 2)
    assert metrics.average_precision([1] * 10, [1] + [0] * 9) == pytest.approx(0.1)  # chance is the noise rate


def test_detection_metrics_take_matrices() -> None:
    scores, noise = np.array([[4, 3], [2, 1]]), np.array([[True, False], [True, False]])
    assert metrics.auroc(scores, noise) == 0.75
    assert metrics.precision_recall(scores > 2, noise) == (0.5, 0.5)


@pytest.mark.parametrize("metric", [metrics.auroc, metrics.average_precision])
@pytest.mark.parametrize(("noise", "said"), [([0, 0], "clean"), ([1, 1], "noisy"), ([0, 1, 0], "2 and 3 entries")])
def test_detection_metrics_say_what_they_need(metric, noise, said) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=said):
        metric([0.1, 0.2], noise)


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="1 of 2"):
        metrics.auroc([0.1, math.nan], [0, 1])


def test_precision_recall() -> None:
    # flagged: 1 1 1 0 0; of the 3 flags 2 are right; of the 4 noises 2 are found
    assert metrics.precision_recall([1, 1, 1, 0, 0], [1, 1, 0, 1, 1]) == (2 / 3, 0.5)
    precision, recall = metrics.precision_recall([0, 0], [0, 1])
    assert math.isnan(precision)  # nothing flagged
    assert recall == 0


def test_calibration_error_weighs_bins_by_their_size() -> None:
    # bin [0, ½): three cases, mean probability 0.2, mean outcome ⅓; bin [½, 1]: one case, 1.0 against 1
    assert metrics.expected_calibration_error([0.1, 0.2, 0.3, 1.0], [0, 0, 1, 1], bins=2) == pytest.approx(
        3 / 4 * (1 / 3 - 0.2)
    )
    assert metrics.expected_calibration_error([0.0, 1.0], [0, 1]) == 0
    assert metrics.expected_calibration_error([0.0, 1.0], [1, 0]) == 1
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        metrics.expected_calibration_error([1.2], [1])


def test_ranking_metrics() -> None:
    ranks = np.array([1, 2, 20, 21])
    assert metrics.hit_rate(ranks, 20) == 0.75
    assert metrics.hit_rate(ranks, 1) == 0.25
    assert metrics.ndcg(ranks, 20) == pytest.approx((1 + 1 / math.log2(3) + 1 / math.log2(21)) / 4)
    assert metrics.ndcg(ranks, 1) == 0.25
    assert math.isnan(metrics.hit_rate([], 20))
    assert math.isnan(metrics.ndcg([], 20))


def test_ranking_metrics_are_those_of_trec_eval() -> None:
    depth, ranks = 40, np.random.default_rng(0).integers(1, 61, 300)  # a target that ranks behind 40 is not in the list
    wanted = [Qrel(str(window), "target", 1) for window in range(len(ranks))]
    lists = [
        ScoredDoc(str(window), "target" if place == rank else f"item {place}", -float(place))
        for window, rank in enumerate(ranks)
        for place in range(1, depth + 1)
    ]
    for k in (1, 5, 20):
        theirs = ir_measures.calc_aggregate([nDCG @ k, Success @ k], wanted, lists)
        assert metrics.ndcg(ranks, k) == pytest.approx(theirs[nDCG @ k], abs=1e-12, rel=0)
        assert metrics.hit_rate(ranks, k) == pytest.approx(theirs[Success @ k], abs=1e-12, rel=0)


def test_ties_count_within_a_window() -> None:
    scores, owners = np.array([0.5, 0.1, 0.5, 0.5, 0.5, 0.1]), np.array([0, 0, 0, 0, 1, 1])
    assert metrics.tie_rate(scores, owners) == 3 / 6  # the 0.5 of the second window has no equal there
    assert math.isnan(metrics.tie_rate(scores[:0], owners[:0]))


def test_coverage_and_gini_of_recommendations():
    """Item 0 is shown three times, item 1 once, items 2 and 3 never; -1 is no item."""
    shown = np.array([[0, 1], [0, -1], [0, -1]])
    assert metrics.coverage(shown, 4) == 0.5
    assert metrics.gini(shown, 4) == pytest.approx((-3 * 0 - 1 * 0 + 1 * 1 + 3 * 3) / (4 * 4))
    assert math.isnan(metrics.gini(np.array([-1]), 4))
    assert metrics.coverage(np.array([-1]), 4) == 0
