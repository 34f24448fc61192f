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

No label-free estimate can distinguish noise from a user's own atypical choices: the bound holds both. Their rate
(`score.atypical_rate`) is therefore an assumption, and is subtracted.

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
REGION = 0.05  # smallest fraction of the injected noise that a region may hold
CONTEXTS = (0.1, 0.2, 0.3, 0.5, 1.0)  # fractions of the injected noise, in the most coherent contexts
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
    """

    log_odds: Floats
    context: Floats

    @classmethod
    def of(cls, windows: Windows, log_odds: Floats) -> Sample:
        """Take all scored interactions of windows, in the order of np.nonzero(windows.present). log_odds: [W, L]."""
        present = windows.present & ~np.isnan(log_odds)
        total = np.where(present, log_odds, 0.0).sum(axis=1, keepdims=True)
        context = (total - log_odds) / np.maximum(windows.lengths - 1, 1)[:, None]
        return cls(log_odds[present], context[present])

    def take(self, rows: npt.NDArray[Any]) -> Sample:
        """Return the interactions at these rows."""
        return Sample(self.log_odds[rows], self.context[rows])


def join(samples: Sequence[Sample]) -> Sample:
    """Concatenate samples."""
    return Sample(np.concatenate([s.log_odds for s in samples]), np.concatenate([s.context for s in samples]))


@dataclass
class Calibrator:
    """Monotone map from log-odds to the probability of noise. Without knots: the logistic function.

    Attributes
    ----------
    knots, values : list of float
        The map, linear between knots.
    noise_rate : float
        Estimated fraction of interactions that is noise.
    ece_before, ece_after : float
        Expected calibration error of distinguishing injected noise from unlabeled interactions, before and after the
        map, on the half of the validation windows that the map was not fitted on.
    uncalibrated : str
        Why there is no map; empty if there is one.
    """

    knots: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    noise_rate: float = float("nan")
    ece_before: float = float("nan")
    ece_after: float = float("nan")
    uncalibrated: str = ""

    def __call__(self, log_odds: npt.NDArray[Any]) -> Floats:
        """Same shape as `log_odds`, in [0, 1], not decreasing in it; NaN stays NaN."""
        if not self.knots:
            return np.asarray(1 / (1 + np.exp(-np.clip(log_odds, -60, 60))), dtype=np.float64)
        out = np.interp(log_odds, self.knots, self.values)
        return np.where(np.isnan(log_odds), np.nan, out)


def fit(noise: Sample, unlabeled: Sample, method: Method, noise_rate: float) -> Calibrator:
    """Fit the map.

    Parameters
    ----------
    noise : Sample
        n1 interactions of injected noise.
    unlabeled : Sample
        n0 unlabeled interactions.
    method : {"isotonic", "platt"}
        Form of the map.
    noise_rate : float
        Fraction of the unlabeled that is noise, in [0, 1]. Taken as 0, with a warning, if the scores hardly distinguish
        the two samples.

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
        noise_rate = 0.0
    knots, fitted = _monotone(noise.log_odds, unlabeled.log_odds, method)
    density_ratio = fitted / np.maximum(1 - fitted, 1e-9) * (len(unlabeled.log_odds) / len(noise.log_odds))
    return Calibrator(knots.tolist(), np.clip(noise_rate * density_ratio, 0.0, 1.0).tolist(), noise_rate)


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


def estimate_noise_rate(pairs: Sequence[tuple[Sample, Sample]], atypical_rate: float = 0.0) -> float:
    """Estimate the fraction of unlabeled interactions that is noise.

    In any region R of (log-odds, context), P(unlabeled in R) = rate · P(noise in R) + (1 - rate) · P(clean in R). So
    P(unlabeled in R) / P(noise in R) is never below the rate, and near it where R holds hardly anything clean. The
    estimate is the smallest of many such bounds, minus `atypical_rate`.

    Parameters
    ----------
    pairs : sequence of (Sample, Sample)
        (injected noise, unlabeled) of each split. The rate is assumed to be the same in all.
    atypical_rate : float, default 0.0
        Fraction of the unlabeled that looks like noise but is the user's own.

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
    return max(0.0, min(bounds) - atypical_rate)


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
