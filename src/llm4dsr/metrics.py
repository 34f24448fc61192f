"""Metrics of noise detection and of ranking.

- Detection: `auroc`, `average_precision`, `precision_recall`, `expected_calibration_error`, `tie_rate`. Arrays have any
  shape, with one entry per interaction.
- Ranking: `hit_rate`, `ndcg`. Ranks start at 1 = best, and each window has one relevant item.

Confidence intervals and tests are in `intervals.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

from llm4dsr.core.arrays import IntArray, Numbers, flat_pair, sorted_unique
from llm4dsr.errors import DataError


def auroc(scores: Numbers, is_noise: Numbers) -> float:
    """Compute the area under the ROC curve: P(score of a noisy interaction > score of a clean one), ties count ½.

    Parameters
    ----------
    scores : array of float
        Finite, on any scale, higher = more likely noise.
    is_noise : array of bool
        The truth, as many entries as `scores`.

    Returns
    -------
    float
        In [0, 1], higher is better, chance 0.5.

    Raises
    ------
    DataError
        If all interactions are noisy or all are clean, or if a score is not finite.

    Examples
    --------
    >>> auroc([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0])  # three of the four (noisy, clean) pairs are in order
    0.75
    """
    s, y = _labeled("AUROC", scores, is_noise)
    return float(roc_auc_score(y, s))


def average_precision(scores: Numbers, is_noise: Numbers) -> float:
    """Compute average precision: Σ_n (recall_n - recall_{n-1}) · precision_n over falling thresholds.

    Parameters
    ----------
    scores : array of float
        Finite, on any scale, higher = more likely noise.
    is_noise : array of bool
        The truth, as many entries as `scores`.

    Returns
    -------
    float
        In (0, 1], higher is better, chance: the noise rate.

    Raises
    ------
    DataError
        If all interactions are noisy or all are clean, or if a score is not finite.

    Examples
    --------
    >>> round(average_precision([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0]), 4)  # (1/1 + 2/3) / 2
    0.8333
    """
    s, y = _labeled("Average precision", scores, is_noise)
    return float(average_precision_score(y, s))


def precision_recall(flagged: Numbers, is_noise: Numbers) -> tuple[float, float]:
    """Compute precision |flagged ∧ noise| / |flagged| and recall |flagged ∧ noise| / |noise|.

    Parameters
    ----------
    flagged : array of bool
        The decisions.
    is_noise : array of bool
        The truth, as many entries as `flagged`.

    Returns
    -------
    precision, recall : float
        In [0, 1], higher is better; NaN for 0 / 0.

    Examples
    --------
    >>> precision_recall([1, 1, 0, 0, 0], [1, 0, 1, 0, 1])  # one of two flags is correct; one of three noises is found
    (0.5, 0.3333333333333333)
    """
    f, y = flat_pair(flagged, is_noise, bool)
    hits = int((f & y).sum())
    return _ratio(hits, int(f.sum())), _ratio(hits, int(y.sum()))


def expected_calibration_error(probabilities: Numbers, outcomes: Numbers, bins: int = 15) -> float:
    """Compute the expected calibration error: Σ_b (n_b / n) · |mean outcome in b - mean probability in b|.

    Parameters
    ----------
    probabilities : array of float
        In [0, 1].
    outcomes : array of bool
        The truth, as many entries as `probabilities`.
    bins : int, default 15
        Number of bins of equal width.

    Returns
    -------
    float
        In [0, 1], lower is better; NaN without entries.

    Raises
    ------
    DataError
        If a probability is outside [0, 1].

    References
    ----------
    Guo et al. (2017), On Calibration of Modern Neural Networks, arXiv 1706.04599.

    Examples
    --------
    >>> round(expected_calibration_error([0.1, 0.1, 0.9, 0.9], [0, 0, 1, 0], bins=2), 4)  # ½ · 0.1 + ½ · 0.4
    0.25
    """
    p, y = flat_pair(probabilities, outcomes, float)
    if not len(p):
        return math.nan
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError(f"Probabilities must be in [0, 1]; they go from {p.min()} to {p.max()}.")
    bin_of = np.minimum((p * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_of, weights=y - p, minlength=bins)  # n_b · (mean outcome - mean probability)
    return float(np.abs(gaps).sum() / len(p))


def hit_rate(ranks: Numbers, k: int) -> float:
    """Compute HR@k: the fraction of ranks of at most k. Equals recall@k with one relevant item.

    Parameters
    ----------
    ranks : array of int
        Ranks of the relevant items, 1 = best.
    k : int
        Cutoff.

    Returns
    -------
    float
        In [0, 1], higher is better; NaN without ranks.

    Examples
    --------
    >>> hit_rate([1, 3, 21, 400], k=20)
    0.5
    """
    r = np.asarray(ranks).ravel()
    return float((r <= k).mean()) if r.size else math.nan


def ndcg(ranks: Numbers, k: int) -> float:
    """Compute NDCG@k with one relevant item: the mean of 1 / log2(1 + rank) where rank ≤ k, else 0.

    Parameters
    ----------
    ranks : array of int
        Ranks of the relevant items, 1 = best.
    k : int
        Cutoff.

    Returns
    -------
    float
        In [0, 1], higher is better; NaN without ranks.

    Examples
    --------
    >>> ndcg([1, 3, 21, 400], k=20)  # (1 + 1/2 + 0 + 0) / 4
    0.375
    """
    each = ndcg_of_each(ranks, k)
    return float(each.mean()) if each.size else math.nan


def ndcg_of_each(ranks: Numbers, k: int) -> npt.NDArray[np.float64]:
    """Compute NDCG@k of each rank; `ndcg` is their mean.

    Parameters
    ----------
    ranks : array of int
        Ranks of the relevant items, 1 = best.
    k : int
        Cutoff.

    Returns
    -------
    array of float
        In [0, 1], higher is better, in the shape of `ranks`.

    Examples
    --------
    >>> ndcg_of_each([1, 3, 21], k=20)
    array([1. , 0.5, 0. ])
    """
    r = np.asarray(ranks, dtype=np.float64)
    return np.where(r <= k, 1 / np.log2(1 + r), 0.0)


def coverage(items: npt.NDArray[Any], n_items: int) -> float:
    """Compute the fraction of the catalogue that is recommended to anybody.

    Parameters
    ----------
    items : array of int
        Recommended catalogue rows, of any shape; negative ones are no item.
    n_items : int
        Number of items in the catalogue.

    Returns
    -------
    float
        In [0, 1].

    Examples
    --------
    >>> coverage(np.array([[0, 1], [0, 2]]), 4)
    0.75
    """
    return len(sorted_unique(items[items >= 0])) / n_items


def gini(items: npt.NDArray[Any], n_items: int) -> float:
    """Compute the Gini coefficient of how often each item of the catalogue is recommended.

    Parameters
    ----------
    items, n_items
        As in `coverage`.

    Returns
    -------
    float
        In [0, 1]: 0 if all items are recommended equally often, near 1 if a few take all. NaN without items.

    Examples
    --------
    >>> gini(np.array([0, 1, 2, 3]), 4), gini(np.array([0, 0, 0, 0]), 4)
    (0.0, 0.75)
    """
    counts = np.sort(np.bincount(items[items >= 0], minlength=n_items))
    if not counts.sum():
        return math.nan
    weights = 2 * np.arange(1, n_items + 1) - n_items - 1
    return float((weights * counts).sum() / (n_items * counts.sum()))


def tie_rate(scores: npt.NDArray[Any], owners: IntArray) -> float:
    """Compute the fraction of interactions whose score equals that of another one in their window.

    Parameters
    ----------
    scores : array of float
        [n] not NaN.
    owners : array of int
        [n] the window of each interaction.

    Returns
    -------
    float
        In [0, 1], lower is better; NaN if there is no interaction.

    Examples
    --------
    >>> tie_rate(np.array([0.5, 0.5, 0.1, 0.3, 0.1]), np.array([0, 0, 0, 1, 1]))  # two of five
    0.4
    """
    order = np.lexsort((scores, owners))  # ties become neighbors
    same = (np.diff(owners[order]) == 0) & (np.diff(scores[order]) == 0)
    tied = np.append(same, False) | np.append(False, same)
    return float(tied[: len(scores)].mean()) if len(scores) else math.nan


def _labeled(metric: str, scores: Numbers, is_noise: Numbers) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    s, y = flat_pair(scores, is_noise, float)
    if y.all() or not y.any():
        kind = "noisy" if y.size and y.all() else "clean"
        raise DataError(f"{metric} needs noisy and clean interactions, but all {y.size} are {kind}.")
    if not np.isfinite(s).all():
        raise DataError(f"{metric} needs finite scores; {int((~np.isfinite(s)).sum())} of {s.size} are not.")
    return s, y


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
