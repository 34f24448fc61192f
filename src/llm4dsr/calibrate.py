"""From a model's log-odds to a probability of noise that can be believed.

Nobody labels noise, and the untouched windows hold some, so they are no negatives. What there is: scores of self-made
noise (certainly noise) and scores of untouched interactions (a mixture with an unknown share of noise). That is
learning from positive and unlabelled data (Elkan & Noto 2008): a monotone fit gives the ratio of the two densities,
and the share of noise is bounded by how rarely untouched interactions score as high as self-made noise does (Blanchard
et al. 2010; Garg et al. 2021, "best bin").

Two things must hold, or the share is far off: self-made noise must be drawn as real noise falls (uniform over
interactions, not over windows: long windows hold more of both), and no model may score a history that it was tuned on,
since it has learnt that history's noise by heart and calls it fitting.

Where a model does not even tell self-made noise from the rest, the bound stays near 1. That is no knowledge of much
noise: then nothing gets a probability above 0, and a warning says so.

What no label-free estimate can tell apart is noise and a user's own odd purchases: the bound holds both. The share of
odd purchases (`score.odd_share`) is therefore an assumption, and is subtracted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llm4dsr.batch import log
from llm4dsr.catalogue import Windows
from llm4dsr.metrics import auroc, expected_calibration_error

Floats = npt.NDArray[np.float64]
Method = Literal["isotonic", "platt"]

TOLD_APART = 0.55  # AUROC of self-made noise against the untouched (0.5: chance), below which nothing is said
REGION = 0.05  # smallest share of the self-made noise that a region may hold
CONTEXTS = (0.1, 0.2, 0.3, 0.5, 1.0)  # shares of the self-made noise, those in the most coherent company
TOPS = (0.5, 0.3, 0.2, 0.1, 0.05)  # shares of these, those with the highest log-odds


@dataclass
class Sample:
    """Interactions by their log-odds [n], and their context: the mean log-odds of the other interactions of their
    window [n]; the lower, the clearer the interest that a foreign item would stand out from."""

    log_odds: Floats
    context: Floats

    @classmethod
    def of(cls, windows: Windows, log_odds: Floats) -> Sample:
        """All interactions of the windows, in the order of np.nonzero(windows.present). log_odds: [W, L]."""
        present = windows.present
        total = np.where(present, log_odds, 0.0).sum(axis=1, keepdims=True)
        context = (total - log_odds) / np.maximum(windows.lengths - 1, 1)[:, None]
        return cls(log_odds[present], context[present])

    def take(self, rows: npt.NDArray[Any]) -> Sample:
        return Sample(self.log_odds[rows], self.context[rows])


def join(samples: Sequence[Sample]) -> Sample:
    return Sample(np.concatenate([s.log_odds for s in samples]), np.concatenate([s.context for s in samples]))


@dataclass
class Calibrator:
    """Monotone map log-odds → probability of noise, as knots. noise_rate: estimated share of noisy interactions.

    ece_before, ece_after: expected calibration error of telling self-made noise from untouched interactions, on the
    half of the validation windows that the map was not fitted on.
    """

    knots: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    noise_rate: float = float("nan")
    ece_before: float = float("nan")
    ece_after: float = float("nan")

    def __call__(self, log_odds: npt.NDArray[Any]) -> Floats:
        """Same shape as `log_odds`, in [0, 1], not decreasing in it; NaN stays NaN."""
        if not self.knots:  # calibration: off
            return np.asarray(1 / (1 + np.exp(-np.clip(log_odds, -60, 60))), dtype=np.float64)
        out = np.interp(log_odds, self.knots, self.values)
        return np.where(np.isnan(log_odds), np.nan, out)


def fit(noise: Sample, untouched: Sample, method: Method, noise_rate: float) -> Calibrator:
    """noise: n1 interactions of self-made noise. untouched: n0 untouched interactions. noise_rate: the share of the
    untouched that is noise, in [0, 1]; taken for 0 where the scores hardly tell the two samples apart."""
    both = np.concatenate([noise.log_odds, untouched.log_odds])
    told = auroc(both, np.arange(len(both)) < len(noise.log_odds))
    if told < TOLD_APART:
        log.warning(
            "The model does not tell self-made noise from the rest (AUROC %.2f; chance is 0.5), so no interaction gets "
            "a probability of noise above 0. More windows, more epochs or a larger model may help.", told
        )  # fmt: skip
        noise_rate = 0.0
    knots, fitted = _monotone(noise.log_odds, untouched.log_odds, method)
    density_ratio = fitted / np.maximum(1 - fitted, 1e-9) * (len(untouched.log_odds) / len(noise.log_odds))
    return Calibrator(knots.tolist(), np.clip(noise_rate * density_ratio, 0.0, 1.0).tolist(), noise_rate)


def self_made_ece(noise: Sample, untouched: Sample, method: Method, halves: tuple[Any, Any]) -> tuple[float, float]:
    """Expected calibration error of telling self-made noise from untouched interactions, before and after the map.

    halves: boolean masks ([n1], [n0]) of the half that it is measured on; the map is fitted on the other."""
    held_noise, held_untouched = halves
    knots, fitted = _monotone(noise.log_odds[~held_noise], untouched.log_odds[~held_untouched], method)
    scores = np.concatenate([noise.log_odds[held_noise], untouched.log_odds[held_untouched]])
    outcome = np.r_[np.ones(held_noise.sum()), np.zeros(held_untouched.sum())]
    before = expected_calibration_error(1 / (1 + np.exp(-np.clip(scores, -60, 60))), outcome)
    return before, expected_calibration_error(np.interp(scores, knots, fitted), outcome)


def noise_share(pairs: Sequence[tuple[Sample, Sample]], odd_share: float = 0.0) -> float:
    """Share of the untouched interactions that is noise, in [0, 1]: the least of many upper bounds, less `odd_share`.

    pairs: (self-made noise, untouched) of each split; the share is taken to be the same in all of them.
    In any region R of (log-odds, context), P(untouched in R) = share · P(noise in R) + (1 - share) · P(clean in R), so
    that P(untouched in R) / P(noise in R) is never below the share, and comes near it where hardly anything clean is.
    odd_share: share of the untouched that looks like noise but is the user's own.
    """
    bounds = [1.0]
    for context in CONTEXTS:
        for top in TOPS:
            if context * top < REGION:
                continue
            above = mass = 0.0
            for noise, untouched in pairs:
                limit = np.quantile(noise.context, context)
                among = noise.context <= limit
                threshold = np.quantile(noise.log_odds[among], 1 - top)
                above += float(((untouched.context <= limit) & (untouched.log_odds > threshold)).sum())
                mass += float((among & (noise.log_odds > threshold)).mean()) * len(untouched.log_odds)
            # Ties can leave nothing above. One standard error more, so that the least of many noisy bounds is not
            # taken at its word.
            if mass > REGION / 2 * sum(len(untouched.log_odds) for _, untouched in pairs):
                bounds.append((above + np.sqrt(above)) / mass)
    return max(0.0, min(bounds) - odd_share)


def _monotone(noise: Floats, untouched: Floats, method: Method) -> tuple[Floats, Floats]:
    """(knots, P(self-made | log-odds) at the knots) in the pool of both samples."""
    x = np.concatenate([noise, untouched])
    y = np.r_[np.ones(len(noise)), np.zeros(len(untouched))]
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
