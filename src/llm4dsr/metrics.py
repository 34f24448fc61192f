"""Numbers that say how well noise was found (detection) and how well the next item was ranked (ranking).

Detection metrics take arrays of any shape, one entry per interaction, and compare them flat. Ranking metrics take
ranks that start at 1 and know one relevant item per window. Intervals are Student t intervals of a mean.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn.metrics import average_precision_score, roc_auc_score

from llm4dsr.errors import DataError

Numbers = npt.ArrayLike


def auroc(scores: Numbers, is_noise: Numbers) -> float:
    """P(score of a noisy interaction > score of a clean one), a tie counting ½. [0, 1], higher is better, chance 0.5.

    >>> auroc([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0])  # three of the four (noisy, clean) pairs are in order
    0.75
    """
    s, y = _labelled("AUROC", scores, is_noise)
    return float(roc_auc_score(y, s))


def average_precision(scores: Numbers, is_noise: Numbers) -> float:
    """Σ (recall_n - recall_{n-1}) · precision_n over falling thresholds. (0, 1], higher is better, chance: noise rate.

    >>> round(average_precision([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0]), 4)  # (1/1 + 2/3) / 2
    0.8333
    """
    s, y = _labelled("Average precision", scores, is_noise)
    return float(average_precision_score(y, s))


def precision_recall(flagged: Numbers, is_noise: Numbers) -> tuple[float, float]:
    """(|flagged ∧ noise| / |flagged|, |flagged ∧ noise| / |noise|), each in [0, 1], higher is better; nan for 0 / 0.

    >>> precision_recall([1, 1, 0, 0, 0], [1, 0, 1, 0, 1])  # one of two flags is right; one of three noises is found
    (0.5, 0.3333333333333333)
    """
    f, y = _pair(flagged, is_noise, bool)
    hits = int((f & y).sum())
    return _ratio(hits, int(f.sum())), _ratio(hits, int(y.sum()))


def expected_calibration_error(probabilities: Numbers, outcomes: Numbers, bins: int = 15) -> float:
    """Σ_b (n_b / n) · |mean outcome in b - mean probability in b| over equal-width bins. [0, 1], lower is better.

    >>> round(expected_calibration_error([0.1, 0.1, 0.9, 0.9], [0, 0, 1, 0], bins=2), 4)  # ½ · 0.1 + ½ · 0.4
    0.25
    """
    p, y = _pair(probabilities, outcomes, float)
    if not len(p):
        return math.nan
    if not ((p >= 0) & (p <= 1)).all():
        raise DataError(f"Probabilities must be in [0, 1]; they go from {p.min()} to {p.max()}.")
    bin_of = np.minimum((p * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_of, weights=y - p, minlength=bins)  # n_b · (mean outcome - mean probability)
    return float(np.abs(gaps).sum() / len(p))


def hit_rate(ranks: Numbers, k: int) -> float:
    """Share of ranks (1 = best) that are ≤ k: HR@k, also recall@k with one relevant item. [0, 1], higher is better.

    >>> hit_rate([1, 3, 21, 400], k=20)
    0.5
    """
    r = np.asarray(ranks).ravel()
    return float((r <= k).mean()) if r.size else math.nan


def ndcg(ranks: Numbers, k: int) -> float:
    """Mean of 1 / log2(1 + rank) where rank ≤ k, else 0: NDCG@k with one relevant item. [0, 1], higher is better.

    >>> ndcg([1, 3, 21, 400], k=20)  # (1 + 1/2 + 0 + 0) / 4
    0.375
    """
    each = ndcg_of_each(ranks, k)
    return float(each.mean()) if each.size else math.nan


def ndcg_of_each(ranks: Numbers, k: int) -> npt.NDArray[np.float64]:
    """NDCG@k of each rank, in the shape of `ranks`; `ndcg` is their mean."""
    r = np.asarray(ranks, dtype=np.float64)
    return np.where(r <= k, 1 / np.log2(1 + r), 0.0)


def tie_rate(scores: npt.NDArray[Any], present: npt.NDArray[np.bool_] | None = None) -> float:
    """Share of the interactions whose score equals that of another one in their window. [0, 1], lower is better.

    scores: [W, L] one row per window. present: [W, L] False for padding; None = all present. nan if none is present.

    >>> tie_rate(np.array([[0.5, 0.5, 0.1], [0.3, 0.2, 0.1]]))  # two of six
    0.3333333333333333
    """
    here = np.ones(scores.shape, dtype=bool) if present is None else present
    if not here.any():
        return math.nan
    ordered = np.sort(np.where(here, scores, np.nan), axis=1)  # equals become neighbours; nan, equal to none, goes last
    same = ordered[:, 1:] == ordered[:, :-1]
    edge = np.zeros((len(scores), 1), dtype=bool)
    tied = np.hstack([edge, same]) | np.hstack([same, edge])
    return float(tied.sum() / here.sum())


def mean_interval(values: Numbers, confidence: float = 0.95) -> tuple[float, float]:
    """(mean, half width): the Student t interval mean ± t_{(1 + confidence) / 2} · s / √n. The half is nan if n = 1.

    >>> mean, half = mean_interval([1.0, 2.0, 3.0])  # t = 4.3027, s = 1
    >>> mean, round(half, 4)
    (2.0, 2.4841)
    """
    v = np.asarray(values, dtype=np.float64).ravel()
    if v.size < 2:
        return (float(v[0]) if v.size else math.nan), math.nan
    t = float(stats.t.ppf((1 + confidence) / 2, v.size - 1))
    return float(v.mean()), t * float(v.std(ddof=1)) / math.sqrt(v.size)


def paired_difference(a: Numbers, b: Numbers, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean of a - b, half width of its interval, two-sided p) of a paired t test; a[i] and b[i] share seed or window.

    Above 0: a is larger. p in [0, 1]: how often chance alone gives such a difference; nan with fewer than two pairs.

    >>> [round(x, 4) for x in paired_difference([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])]  # differences 1, 2, 3: t = 2 √3
    [2.0, 2.4841, 0.0742]
    """
    x, y = _pair(a, b, float)
    d = x - y
    mean, half = mean_interval(d, confidence)
    if d.size < 2:
        return mean, math.nan, math.nan
    error = float(d.std(ddof=1)) / math.sqrt(d.size)
    if error == 0:  # all differences are the same: no doubt left about their sign, and 0 / 0 if they are 0
        return mean, half, 1.0 if mean == 0 else 0.0
    return mean, half, float(2 * stats.t.sf(abs(mean) / error, d.size - 1))


def _pair(a: Numbers, b: Numbers, kind: type) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    x: npt.NDArray[Any] = np.asarray(a).ravel().astype(kind)
    y: npt.NDArray[Any] = np.asarray(b).ravel().astype(kind)
    if x.shape != y.shape:
        raise DataError(f"The two arrays to compare have {x.size} and {y.size} entries; they need one each per case.")
    return x, y


def _labelled(name: str, scores: Numbers, is_noise: Numbers) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    s, y = _pair(scores, is_noise, float)
    if y.all() or not y.any():
        what = "noisy" if y.size and y.all() else "clean"
        raise DataError(f"{name} needs noisy and clean interactions, but all {y.size} are {what}.")
    if not np.isfinite(s).all():
        raise DataError(f"{name} needs finite scores; {int((~np.isfinite(s)).sum())} of {s.size} are not.")
    return s, y


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
