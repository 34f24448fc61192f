"""Calibration: from log-odds to a probability of noise, without labels.

Unlabeled windows hold noise, so they are no negatives. Known are the scores of injected noise, which is certainly
noise, and the scores of unlabeled interactions, a mixture with an unknown noise rate. That is learning from positive
and unlabeled data [1]_. A monotone fit gives the ratio of the two densities. The noise rate is bounded by how rarely
unlabeled interactions score as high as injected noise does [2]_ [3]_.

Two conditions must hold, or the rate is far off:

- Noise must be injected as real noise falls: uniform over interactions, not over windows. Long windows hold more of
  both.
- No model may score a history that it was tuned on, because it has memorized the noise in it.

If a model does not even distinguish injected noise from the rest, the bound stays near 1. That says nothing about the
noise rate. So no interaction gets a probability above 0, and a warning is logged.

No label-free estimate can distinguish noise from a user's own atypical choices: the bound holds both. So the noise rate
is an interval, from the bound less the largest share of atypical choices that is thought possible
(`score.atypical_share`), to the bound itself. A probability is the mean over the rates in it, and has an interval too.
Some hundred labels narrow it (`possible_rates`).

References
----------
.. [1] Elkan and Noto (2008), Learning classifiers from only positive and unlabeled data.
.. [2] Blanchard et al. (2010), Semi-supervised novelty detection.
.. [3] Garg et al. (2021), Mixture proportion estimation and PU learning ("best bin").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llm4dsr.core.progress import log
from llm4dsr.data.windows import Windows
from llm4dsr.metrics import auroc, expected_calibration_error

Floats = npt.NDArray[np.float64]
Method = Literal["isotonic", "platt"]

MIN_AUROC = 0.55  # AUROC of injected noise against the unlabeled (chance: 0.5) below which nothing is flagged
CHI_SQUARE = 3.841  # 95 % quantile with one degree of freedom, for the interval of a rate by labels
RATES = 33  # noise rates that a probability is averaged over
REGION = 0.05  # smallest fraction of the injected noise that a region may hold
CONTEXTS = (0.1, 0.2, 0.3, 0.5, 1.0)  # fractions of the injected noise, in the most coherent contexts
KEPT = 1_000  # most scores of injected noise that a calibrator keeps
TOPS = (0.5, 0.3, 0.2, 0.1, 0.05)  # fractions of these, with the highest log-odds


@dataclass
class Sample:
    """Scored interactions.

    Attributes
    ----------
    log_odds : array of float
        [n] higher = more likely noise.
    context : array of float
        [n] mean log-odds of the other interactions of the window. Lower = a clearer interest, from which an injected
        item stands out more.
    least_suspicious : array of bool, optional
        [n] True for the least suspicious interaction of each window, which is never flagged. None: unknown.
    """

    log_odds: Floats
    context: Floats
    least_suspicious: npt.NDArray[np.bool_] | None = None

    @classmethod
    def of(cls, windows: Windows, log_odds: Floats) -> Sample:
        """Take all scored interactions of windows, in the order of np.nonzero(windows.present). log_odds: [W, L]."""
        present = windows.present & ~np.isnan(log_odds)
        total = np.where(present, log_odds, 0.0).sum(axis=1, keepdims=True)
        context = (total - log_odds) / np.maximum(windows.lengths - 1, 1)[:, None]
        least = np.zeros(present.shape, dtype=bool)
        newest_first = np.where(present, log_odds, np.inf)[:, ::-1]  # of equals, the newest stays: see decide.ranks
        least[np.arange(len(least)), present.shape[1] - 1 - newest_first.argmin(axis=1)] = True
        return cls(log_odds[present], context[present], least[present])

    def take(self, rows: npt.NDArray[Any]) -> Sample:
        """Return the interactions at these rows."""
        least = None if self.least_suspicious is None else self.least_suspicious[rows]
        return Sample(self.log_odds[rows], self.context[rows], least)

    @property
    def flaggable(self) -> Floats:
        """[n] log-odds, and -inf for the least suspicious interaction of each window, which is never flagged."""
        least = False if self.least_suspicious is None else self.least_suspicious
        return np.where(least, -np.inf, self.log_odds)


def join(samples: Sequence[Sample]) -> Sample:
    """Concatenate samples."""
    least = [s.least_suspicious for s in samples if s.least_suspicious is not None]
    return Sample(
        np.concatenate([s.log_odds for s in samples]),
        np.concatenate([s.context for s in samples]),
        np.concatenate(least) if len(least) == len(samples) else None,
    )


@dataclass
class Calibrator:
    """Monotone map from log-odds to the probability of noise. Without knots: the logistic function.

    Attributes
    ----------
    knots, ratios : list of float
        How many times as frequent injected noise is as unlabeled interactions at some log-odds; linear between knots.
    rate_low, rate_high : float
        Interval of the fraction of interactions that is noise.
    ceiling : float
        Largest probability that the sample can support, below 1.
    ece_before, ece_after : float
        Expected calibration error of distinguishing injected noise from unlabeled interactions, before and after the
        map, on the half of the validation windows that the map was not fitted on.
    uncalibrated : str
        Why there is no map; empty if there is one.
    injected : list of float
        Sorted `Sample.flaggable` of injected noise, at most KEPT of them; `missed-noise-rate` takes its threshold from
        these (risk_control.py).
    """

    knots: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    rate_low: float = float("nan")
    rate_high: float = float("nan")
    ceiling: float = 1.0
    ece_before: float = float("nan")
    ece_after: float = float("nan")
    uncalibrated: str = ""
    injected: list[float] = field(default_factory=list)

    @property
    def noise_rate(self) -> float:
        """Middle of the interval of the noise rate; NaN if it is unknown."""
        return (self.rate_low + self.rate_high) / 2

    def __call__(self, log_odds: npt.NDArray[Any]) -> Floats:
        """Same shape as `log_odds`, in [0, 1], not decreasing in it; NaN stays NaN. The mean over possible rates."""
        if not self.knots:
            return np.asarray(1 / (1 + np.exp(-np.clip(log_odds, -60, 60))), dtype=np.float64)
        ratio = self.ratio(log_odds)
        rates = np.linspace(self.rate_low, self.rate_high, RATES)
        return np.asarray(np.mean([self._at(rate, ratio) for rate in rates], axis=0))

    def interval(self, log_odds: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        """Probabilities at the lowest and the highest noise rate, each in the shape of `log_odds`."""
        if not self.knots:
            return self(log_odds), self(log_odds)
        ratio = self.ratio(log_odds)
        return self._at(self.rate_low, ratio), self._at(self.rate_high, ratio)

    def ratio(self, log_odds: npt.NDArray[Any]) -> Floats:
        """How many times as frequent injected noise is as unlabeled interactions; in the shape of `log_odds`."""
        out = np.interp(log_odds, self.knots, self.ratios)
        return np.where(np.isnan(log_odds), np.nan, out)

    def _at(self, rate: float, ratio: Floats) -> Floats:
        return np.minimum(rate * ratio, self.ceiling)


def fit(noise: Sample, unlabeled: Sample, method: Method, rates: tuple[float, float]) -> Calibrator:
    """Fit the map.

    Parameters
    ----------
    noise : Sample
        n1 interactions of injected noise.
    unlabeled : Sample
        n0 unlabeled interactions.
    method : {"isotonic", "platt"}
        Form of the map.
    rates : (float, float)
        Interval of the fraction of the unlabeled that is noise, in [0, 1]. Taken as 0, with a warning, if the scores
        hardly distinguish the two samples.

    Returns
    -------
    Calibrator
    """
    both = np.concatenate([noise.log_odds, unlabeled.log_odds])
    separation = auroc(both, np.arange(len(both)) < len(noise.log_odds))
    if separation < MIN_AUROC:
        log.warning(
            "The model does not distinguish injected noise from the rest (AUROC %.2f; chance is 0.5), so no "
            "interaction gets a noise probability above 0. More windows, more epochs or a larger model may help.",
            separation,
        )  # fmt: skip
        rates = (0.0, 0.0)
    knots, fitted = _monotone(noise.log_odds, unlabeled.log_odds, method)
    ratios = fitted / np.maximum(1 - fitted, 1e-9) * (len(unlabeled.log_odds) / len(noise.log_odds))
    # Where the map would reach 1, n unlabeled interactions were seen. They cannot tell 1 from 1 - 1 / (n + 2).
    certain = knots[ratios * rates[1] >= 1]
    seen = int((unlabeled.log_odds >= certain.min()).sum()) if len(certain) else len(unlabeled.log_odds)
    injected = evenly_ranked(noise.flaggable).tolist()
    return Calibrator(knots.tolist(), ratios.tolist(), *rates, ceiling=1 - 1 / (seen + 2), injected=injected)


def evenly_ranked(values: Floats, most: int = KEPT) -> Floats:
    """Sort values, and keep evenly ranked ones if there are too many.

    Of n values the ranks floor(j (n + 1) / (most + 1)) stay, for j = 1 to most. They are rounded down, so a threshold
    for missed noise that is taken from these is never above the one taken from all.

    Parameters
    ----------
    values : array of float
        [n] in any order.
    most : int, default KEPT
        Most values that stay.

    Returns
    -------
    array of float
        [min(n, most)] in rising order.

    Examples
    --------
    >>> evenly_ranked(np.arange(1.0, 12.0), 3)  # of 1 to 11
    array([3., 6., 9.])
    """
    ordered = np.sort(values)
    if len(ordered) <= most:
        return ordered
    return np.asarray(ordered[np.arange(1, most + 1) * (len(ordered) + 1) // (most + 1) - 1])


def possible_rates(ratio: Floats, is_noise: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Estimate the noise rate from labeled interactions.

    Possible are the rates whose likelihood is not significantly below the largest (95 %, likelihood ratio). The labeled
    interactions may be chosen by their scores in any way.

    Parameters
    ----------
    ratio : array of float
        [n] how many times as frequent injected noise is at their log-odds, as `Calibrator.ratio` gives it.
    is_noise : array of bool
        [n] the labels.

    Returns
    -------
    low, high : float
        In [0, 1].

    Examples
    --------
    Ten interactions that are five times as frequent among injected noise; half are noise, so the rate is near 0.1.

    >>> low, high = possible_rates(np.full(10, 5.0), np.arange(10) < 5)
    >>> low < 0.1 < high
    True
    """
    rates = np.linspace(0, 1, 2001)
    p = np.clip(rates[:, None] * ratio, 1e-4, 1 - 1e-4)  # no single label excludes a rate
    likelihood = np.where(is_noise, np.log(p), np.log1p(-p)).sum(axis=1)
    possible = rates[likelihood >= likelihood.max() - CHI_SQUARE / 2]
    return float(possible.min()), float(possible.max())


def injected_noise_ece(
    noise: Sample, unlabeled: Sample, method: Method, halves: tuple[Any, Any]
) -> tuple[float, float]:
    """Measure the calibration of distinguishing injected noise from unlabeled interactions.

    Parameters
    ----------
    noise, unlabeled : Sample
        n1 and n0 interactions.
    method : {"isotonic", "platt"}
        Form of the map.
    halves : (array of bool, array of bool)
        [n1] and [n0] True for the half that is measured on; the map is fitted on the other.

    Returns
    -------
    before, after : float
        Expected calibration error in [0, 1], lower is better, with the logistic function and with the map.
    """
    held_noise, held_unlabeled = halves
    knots, fitted = _monotone(noise.log_odds[~held_noise], unlabeled.log_odds[~held_unlabeled], method)
    scores = np.concatenate([noise.log_odds[held_noise], unlabeled.log_odds[held_unlabeled]])
    outcome = np.r_[np.ones(held_noise.sum()), np.zeros(held_unlabeled.sum())]
    before = expected_calibration_error(1 / (1 + np.exp(-np.clip(scores, -60, 60))), outcome)
    return before, expected_calibration_error(np.interp(scores, knots, fitted), outcome)


def bound_noise_rate(pairs: Sequence[tuple[Sample, Sample]]) -> float:
    """Bound the fraction of unlabeled interactions that is noise, from above.

    In any region R of (log-odds, context), P(unlabeled in R) = rate · P(noise in R) + (1 - rate) · P(clean in R). So
    P(unlabeled in R) / P(noise in R) is never below the rate, and near it where R holds hardly anything clean. The
    bound is the smallest of many.

    Parameters
    ----------
    pairs : sequence of (Sample, Sample)
        (injected noise, unlabeled) of each split. The rate is assumed to be the same in all.

    Returns
    -------
    float
        In [0, 1].
    """
    bounds = [1.0]
    for context in CONTEXTS:
        for top in TOPS:
            if context * top < REGION:
                continue
            above = mass = 0.0
            for noise, unlabeled in pairs:
                limit = np.quantile(noise.context, context)
                among = noise.context <= limit
                threshold = np.quantile(noise.log_odds[among], 1 - top)
                above += float(((unlabeled.context <= limit) & (unlabeled.log_odds > threshold)).sum())
                mass += float((among & (noise.log_odds > threshold)).mean()) * len(unlabeled.log_odds)
            # Ties can leave nothing above. One standard error more, so that the least of many noisy bounds is not
            # taken at its word.
            if mass > REGION / 2 * sum(len(unlabeled.log_odds) for _, unlabeled in pairs):
                bounds.append((above + np.sqrt(above)) / mass)
    return min(bounds)


def noise_rate_interval(pairs: Sequence[tuple[Sample, Sample]], atypical_share: float) -> tuple[float, float]:
    """Return (low, high): `bound_noise_rate` less the largest share of atypical choices, and the bound itself."""
    bound = bound_noise_rate(pairs)
    return bound * (1 - atypical_share), bound


def _monotone(noise: Floats, unlabeled: Floats, method: Method) -> tuple[Floats, Floats]:
    """(knots, P(injected | log-odds) at the knots) in the pool of both samples."""
    x = np.concatenate([noise, unlabeled])
    y = np.r_[np.ones(len(noise)), np.zeros(len(unlabeled))]
    if method == "platt":
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=1e6).fit(x[:, None], y)
        knots = np.linspace(x.min(), x.max(), 200)
        return knots, np.asarray(model.predict_proba(knots[:, None])[:, 1])
    from sklearn.isotonic import IsotonicRegression

    # Means of equal-count bins first: isotonic alone claims certainty (0 or 1) at the few most extreme scores.
    order = np.argsort(x, kind="stable")
    bins = np.array_split(order, max(2, min(400, len(x) // 60)))
    centres = np.array([x[b].mean() for b in bins])
    rates = np.array([(y[b].sum() + 0.5) / (len(b) + 1) for b in bins])
    fitted = IsotonicRegression(out_of_bounds="clip").fit(centres, rates, sample_weight=[len(b) for b in bins])
    unique, first = np.unique(centres, return_index=True)
    return unique, np.asarray(fitted.predict(centres[first]))
