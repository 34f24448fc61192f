"""The noise rate: an interval without labels, for each kind of noise, and a narrower one with labels.

See `calibrate.py` for what it is used for, and for references.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2, norm

from llm4dsr.denoise.calibrate import KINDS, Floats, Rates, Sample

CHI_SQUARE = 3.841  # 95 % quantile with one degree of freedom, for the interval of a rate by labels
REGION = 0.05  # smallest fraction of the injected noise that a region may hold
CONTEXTS = (0.1, 0.2, 0.3, 0.5, 1.0)  # fractions of the injected noise, in the most coherent contexts
TOPS = (0.5, 0.3, 0.2, 0.1, 0.05)  # fractions of these, with the highest log-odds
REGIONS = [(context, top) for context in CONTEXTS for top in TOPS if context * top >= REGION]
LABELS = 2_000  # whose likelihoods at all rates are in memory at a time
LIMIT = float(norm.ppf(1 - 0.05 / len(REGIONS)))  # standard errors of upper limits that all hold at once with 95 %


def bound_noise_rate(pairs: Sequence[tuple[Sample, Sample]], errors: float = 1.0) -> float:
    """Bound the fraction of unlabeled interactions that is noise of the injected kind, from above.

    In any region R of (log-odds, context), P(unlabeled in R) = rate · P(noise in R) + (1 - rate) · P(clean in R). So
    P(unlabeled in R) / P(noise in R) is never below the rate, and near it where R holds hardly anything clean. The
    bound is the smallest of many, each with some standard errors more, so that the least of many noisy bounds is not
    taken at its word. Few interactions may lie in R, or none, so their number has the exact upper limit of a Poisson
    count (Garwood, 1936). Windows of one user overlap, so the users there are counted, weighted by their interactions.

    Parameters
    ----------
    pairs : sequence of (Sample, Sample)
        (injected noise, unlabeled) of each split. The rate is assumed to be the same in all.
    errors : float, default 1
        Standard errors that are added. With LIMIT, the bound is an upper limit that holds with 95 %.

    Returns
    -------
    float
        In [0, 1].
    """
    bounds, level, cluster = [1.0], norm.cdf(errors), 1.0
    users = [np.arange(len(u.log_odds)) if u.users is None else np.unique(u.users, return_inverse=True)[1]
             for _, u in pairs]  # fmt: skip
    for context, top in REGIONS:
        above = mass = above_variance = mass_variance = 0.0
        for (noise, unlabeled), user in zip(pairs, users, strict=True):
            limit = np.quantile(noise.context, context)
            among = noise.context <= limit
            threshold = np.quantile(noise.log_odds[among], 1 - top)
            inside = (unlabeled.context <= limit) & (unlabeled.log_odds > threshold)
            fraction, size = float((among & (noise.log_odds > threshold)).mean()), len(unlabeled.log_odds)
            above += float(inside.sum())
            above_variance += float((np.bincount(user[inside]) ** 2).sum())
            mass += fraction * size
            mass_variance += size**2 * fraction / len(noise.log_odds)
        cluster = above_variance / above if above else cluster  # interactions of a user; in an empty region, as before
        if mass > REGION / 2 * sum(len(unlabeled.log_odds) for _, unlabeled in pairs):  # ties can leave no noise above
            most = cluster * chi2.ppf(level, 2 * (above / cluster + 1)) / 2
            bounds.append(most / mass * (1 + errors * float(np.sqrt(mass_variance)) / mass))
    return min(bounds)


def noise_rate_intervals(pairs: Sequence[tuple[Sequence[Sample], Sample]], atypical_share: float) -> Rates:
    """Return the lowest rate, the bound, and the upper limit of the bound, for each kind of noise.

    Parameters
    ----------
    pairs : sequence of (sequence of Sample, Sample)
        (injected noise of each kind, unlabeled) of each split.
    atypical_share : float
        `score.atypical_share`: the lowest rate is the bound less this share.
    """
    out = []
    for kind in range(len(KINDS)):
        of_kind = [(noise[kind], unlabeled) for noise, unlabeled in pairs]
        bound = bound_noise_rate(of_kind)
        out.append((bound * (1 - atypical_share), bound, max(bound, bound_noise_rate(of_kind, LIMIT))))
    return out


def likely_rates(ratios: Sequence[Floats], is_noise: npt.NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Estimate the noise rate from labeled interactions.

    Possible are the kinds and rates whose likelihood is not significantly below the largest (95 %, likelihood ratio).
    The labeled interactions may be chosen by their scores in any way.

    Parameters
    ----------
    ratios : sequence of array of float
        For each kind of noise, [n] how many times as frequent it is at their log-odds, as `NoiseKind.ratio` gives it.
    is_noise : array of bool
        [n] the labels.

    Returns
    -------
    list of (float, float)
        For each kind, the interval of the noise rate in [0, 1]; NaN if no rate of this kind is possible.

    Examples
    --------
    Ten interactions that are five times as frequent among injected noise; half are noise, so the rate is near 0.1.

    >>> ((low, high),) = likely_rates([np.full(10, 5.0)], np.arange(10) < 5)
    >>> low < 0.1 < high
    True
    """
    rates, likelihoods = np.linspace(0, 1, 2001), []
    for ratio in ratios:
        total = np.zeros(len(rates))
        for start in range(0, len(ratio), LABELS):
            part = slice(start, start + LABELS)
            p = np.clip(rates[:, None] * ratio[part], 1e-4, 1 - 1e-4)  # no single label excludes a rate
            total += np.where(is_noise[part], np.log(p), np.log1p(-p)).sum(axis=1)
        likelihoods.append(total)
    least = max(values.max() for values in likelihoods) - CHI_SQUARE / 2
    possible = [rates[values >= least] for values in likelihoods]
    return [(float(r.min()), float(r.max())) if len(r) else (np.nan, np.nan) for r in possible]
