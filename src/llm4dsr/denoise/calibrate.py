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
(`score.atypical_share`), to the upper limit of the bound.

Nor is it known of which kind the real noise is. Popular items look less like noise than others. So noise of several
KINDS is injected, each with its own ratio of densities and its own interval of the rate. A probability is the mean over
kinds and rates up to the bound, and has an interval that holds all of them. The rates are estimated in
`noise_rate.py`, and some hundred labels narrow them.

References
----------
.. [1] Elkan and Noto (2008), Learning classifiers from only positive and unlabeled data.
.. [2] Blanchard et al. (2010), Semi-supervised novelty detection.
.. [3] Garg et al. (2021), Mixture proportion estimation and PU learning ("best bin").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llm4dsr.core.hashing import user_hashes
from llm4dsr.core.progress import log
from llm4dsr.data.windows import Windows
from llm4dsr.metrics import auroc, expected_calibration_error

Floats = npt.NDArray[np.float64]
Method = Literal["isotonic", "platt"]
Rates = Sequence[tuple[float, float, float]]  # of each kind of noise: lowest, bound, and upper limit of the bound

MIN_AUROC = 0.55  # AUROC of injected noise against the unlabeled (chance: 0.5) below which nothing is flagged
RATES = 33  # noise rates that a probability is averaged over
KINDS = ("uniform", "popular")  # of injected noise: items drawn uniformly, and in proportion to their interactions
KEPT = 1_000  # most scores of injected noise that a calibrator keeps
CELLS = 50_000  # positions that are read at once
UNMAPPED_CEILING = 1 - 1e-6  # largest probability without a map: nothing is certain


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
    users : array, optional
        [n] codes of users, whose windows overlap. None: each interaction is independent of all others.
    """

    log_odds: Floats
    context: Floats
    least_suspicious: npt.NDArray[np.bool_] | None = None
    users: npt.NDArray[Any] | None = None

    @classmethod
    def of(cls, windows: Windows, log_odds: Floats) -> Sample:
        """Take all interactions of windows whose log-odds, [n], are not NaN."""
        return join([cls._of_batch(batch, log_odds[here]) for here, batch in windows.batches(CELLS)])

    @classmethod
    def _of_batch(cls, windows: Windows, values: Floats) -> Sample:
        log_odds = windows.matrix(values, np.nan)
        present = ~np.isnan(log_odds)
        total = np.where(present, log_odds, 0.0).sum(axis=1, keepdims=True)
        context = (total - log_odds) / np.maximum(windows.lengths - 1, 1)[:, None]
        least = np.zeros(present.shape, dtype=bool)
        newest_first = np.where(present, log_odds, np.inf)[:, ::-1]  # of equals, the newest stays: see decide.ranks
        least[np.arange(len(least)), present.shape[1] - 1 - newest_first.argmin(axis=1)] = True
        users = np.broadcast_to(user_hashes(windows.user_ids)[:, None], present.shape)
        return cls(log_odds[present], context[present], least[present], users[present])

    def take(self, rows: npt.NDArray[Any]) -> Sample:
        """Return the interactions at these rows."""
        least, users = (None if a is None else a[rows] for a in (self.least_suspicious, self.users))
        return Sample(self.log_odds[rows], self.context[rows], least, users)

    @property
    def flaggable(self) -> Floats:
        """[n] log-odds, and -inf for the least suspicious interaction of each window, which is never flagged."""
        least = False if self.least_suspicious is None else self.least_suspicious
        return np.where(least, -np.inf, self.log_odds)


def join(samples: Sequence[Sample]) -> Sample:
    """Concatenate samples."""

    def joined(parts: list[Any]) -> Any:
        return None if any(part is None for part in parts) else np.concatenate(parts)

    return Sample(*(joined([getattr(s, f.name) for s in samples]) for f in fields(Sample)))


@dataclass
class NoiseKind:
    """What is known of one kind of noise.

    Attributes
    ----------
    knots, ratios : list of float
        How many times as frequent injected noise of this kind is as unlabeled interactions at some log-odds; linear
        between knots.
    rate_low, rate_bound, rate_high : float
        Fraction of interactions that is noise, if it is of this kind: the lowest; the bound, up to which rates are
        likely; and the upper limit of the bound, which few windows leave high. NaN: labels exclude the kind.
    """

    knots: list[float]
    ratios: list[float]
    rate_low: float
    rate_bound: float
    rate_high: float

    def ratio(self, log_odds: npt.NDArray[Any]) -> Floats:
        """Return the ratio of densities, in the shape of `log_odds`; NaN stays NaN."""
        return np.where(np.isnan(log_odds), np.nan, np.interp(log_odds, self.knots, self.ratios))


@dataclass
class Calibrator:
    """Monotone map from log-odds to the probability of noise. Without kinds: the logistic function.

    Attributes
    ----------
    kinds : list of NoiseKind
        In the order of KINDS.
    ceiling : float
        Largest probability that the sample can support, below 1.
    ece_before, ece_after : float
        Expected calibration error of distinguishing injected noise from unlabeled interactions, before and after the
        map, on the half of the validation windows that the map was not fitted on.
    uncalibrated : str
        Why there is no map; empty if there is one.
    injected : list of float
        Sorted `Sample.flaggable` of uniformly injected noise, at most KEPT of them; `missed-noise-rate` takes its
        threshold from these (risk_control.py).
    """

    kinds: list[NoiseKind] = field(default_factory=list)
    ceiling: float = UNMAPPED_CEILING
    ece_before: float = float("nan")
    ece_after: float = float("nan")
    uncalibrated: str = ""
    injected: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kinds = [kind if isinstance(kind, NoiseKind) else NoiseKind(**kind) for kind in self.kinds]

    @property
    def possible(self) -> list[NoiseKind]:
        """Kinds that labels do not exclude."""
        return [kind for kind in self.kinds if not np.isnan(kind.rate_high)]

    @property
    def rate_low(self) -> float:
        """Lowest noise rate of all kinds; NaN if it is unknown."""
        return min((kind.rate_low for kind in self.possible), default=float("nan"))

    @property
    def rate_high(self) -> float:
        """Highest noise rate of all kinds; NaN if it is unknown."""
        return max((kind.rate_high for kind in self.possible), default=float("nan"))

    @property
    def noise_rate(self) -> float:
        """Middle of the likely noise rates, mean over kinds; NaN if it is unknown."""
        middles = [(kind.rate_low + kind.rate_bound) / 2 for kind in self.possible]
        return float(np.mean(middles)) if middles else float("nan")

    @property
    def rates(self) -> list[tuple[float, float, float]]:
        """Noise rates of each kind: lowest, bound, and highest."""
        return [(kind.rate_low, kind.rate_bound, kind.rate_high) for kind in self.kinds]

    def with_rates(self, rates: Rates) -> Calibrator:
        """Return the map with other noise rates, of each kind."""
        kinds = [
            replace(kind, rate_low=low, rate_bound=bound, rate_high=high)
            for kind, (low, bound, high) in zip(self.kinds, rates, strict=True)
        ]
        return replace(self, kinds=kinds)

    def __call__(self, log_odds: npt.NDArray[Any]) -> Floats:
        """Return the mean over kinds and likely rates, in the shape of `log_odds`; never decreasing; NaN stays NaN."""
        if not self.kinds:
            return np.asarray(np.minimum(1 / (1 + np.exp(-np.clip(log_odds, -60, 60))), self.ceiling), dtype=np.float64)
        total = np.zeros(np.shape(log_odds))
        for kind in self.possible:
            ratio = kind.ratio(log_odds)
            for rate in np.linspace(kind.rate_low, kind.rate_bound, RATES):
                total += self._at(rate, ratio)
        return np.asarray(total / (RATES * len(self.possible)))

    def interval(self, log_odds: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        """Return the lowest and the highest probability of all kinds and rates, each in the shape of `log_odds`."""
        if not self.kinds:
            return self(log_odds), self(log_odds)
        low = [self._at(kind.rate_low, kind.ratio(log_odds)) for kind in self.possible]
        high = [self._at(kind.rate_high, kind.ratio(log_odds)) for kind in self.possible]
        return np.minimum.reduce(low), np.maximum.reduce(high)

    def _at(self, rate: float, ratio: Floats) -> Floats:
        return np.minimum(rate * ratio, self.ceiling)


def fit(noise: Sequence[Sample], unlabeled: Sample, method: Method, rates: Rates) -> Calibrator:
    """Fit the map.

    Parameters
    ----------
    noise : sequence of Sample
        Injected noise of each kind, in the order of KINDS.
    unlabeled : Sample
        n0 unlabeled interactions.
    method : {"isotonic", "platt"}
        Form of the map.
    rates : sequence of (float, float, float)
        For each kind, the lowest, bound and highest fraction of the unlabeled that is noise, in [0, 1]. Taken as 0,
        with a warning, if the scores hardly distinguish uniform noise from the unlabeled.

    Returns
    -------
    Calibrator
    """
    separation = _separation(noise[0], unlabeled)
    if separation < MIN_AUROC:
        log.warning(
            "The model does not distinguish injected noise from the rest (AUROC %.2f; chance is 0.5), so no "
            "interaction gets a noise probability above 0. More windows, more epochs or a larger model may help.",
            separation,
        )  # fmt: skip
        rates = [(0.0, 0.0, 0.0)] * len(noise)
    kinds, certain = [], np.inf
    for sample, (low, bound, high) in zip(noise, rates, strict=True):
        knots, fitted = _monotone(sample.log_odds, unlabeled.log_odds, method)
        ratios = fitted / np.maximum(1 - fitted, 1e-9) * (len(unlabeled.log_odds) / len(sample.log_odds))
        kinds.append(NoiseKind(knots.tolist(), ratios.tolist(), low, bound, high))
        certain = min(certain, knots[ratios * high >= 1].min(initial=np.inf))
    # Where the map would reach 1, n unlabeled interactions were seen. They cannot tell 1 from 1 - 1 / (n + 2).
    seen = int((unlabeled.log_odds >= certain).sum()) if np.isfinite(certain) else len(unlabeled.log_odds)
    return Calibrator(kinds, ceiling=1 - 1 / (seen + 2), injected=evenly_ranked(noise[0].flaggable).tolist())


def _separation(noise: Sample, unlabeled: Sample) -> float:
    """AUROC of injected noise against unlabeled interactions."""
    both = np.concatenate([noise.log_odds, unlabeled.log_odds])
    return auroc(both, np.arange(len(both)) < len(noise.log_odds))


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
