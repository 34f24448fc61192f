"""From a model's log-odds to a probability of noise that can be believed.

Nobody labels noise, and the untouched windows hold some, so they are no negatives. What there is: scores of self-made
noise (certainly noise) and scores of untouched interactions (a mixture with an unknown share of noise). That is
learning from positive and unlabelled data (Elkan & Noto 2008): a monotone fit gives the ratio of the two densities,
and the share of noise is bounded by how rarely untouched interactions score as high as self-made noise does (Blanchard
et al. 2010; Garg et al. 2021, "best bin").

Two things must hold, or the share is far off: self-made noise must be drawn as real noise falls (uniform over
interactions, not over windows: long windows hold more of both), and no model may score a history that it was tuned on,
since it has learnt that history's noise by heart and calls it fitting. What no label-free estimate can tell apart is
injected noise and a user's own odd purchases: both are counted here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llm4dsr.metrics import expected_calibration_error

Floats = npt.NDArray[np.float64]

REGION = 0.05  # smallest share of the self-made noise that a region may hold
CONTEXTS = (0.1, 0.2, 0.3, 0.5, 1.0)  # shares of the self-made noise, those in the most coherent company
TOPS = (0.5, 0.3, 0.2, 0.1, 0.05)  # shares of these, those with the highest log-odds


@dataclass
class Sample:
    """Interactions by their log-odds [n], and their context: the mean log-odds of the other interactions of their
    window [n]; the lower, the clearer the interest that a foreign item would stand out from."""

    log_odds: Floats
    context: Floats

    def take(self, rows: npt.NDArray[Any]) -> Sample:
        return Sample(self.log_odds[rows], self.context[rows])


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


def fit(noise: Sample, untouched: Sample, method: Literal["isotonic", "platt"], halves: tuple[Any, Any],
        more: tuple[Sample, Sample] | None = None) -> Calibrator:  # fmt: skip
    """noise: n1 interactions of self-made noise. untouched: n0 untouched interactions. halves: boolean masks ([n1],
    [n0]) of the half that is held out to measure the ECE. more: another such pair (training histories, scored out of
    fold) in which the share of noise is the same; it bounds the share too."""
    held_noise, held_untouched = halves
    knots, fitted = _monotone(noise.log_odds[~held_noise], untouched.log_odds[~held_untouched], method)
    scores = np.concatenate([noise.log_odds[held_noise], untouched.log_odds[held_untouched]])
    outcome = np.r_[np.ones(held_noise.sum()), np.zeros(held_untouched.sum())]
    before = expected_calibration_error(1 / (1 + np.exp(-np.clip(scores, -60, 60))), outcome)
    after = expected_calibration_error(np.interp(scores, knots, fitted), outcome)
    knots, fitted = _monotone(noise.log_odds, untouched.log_odds, method)
    rate = min(noise_share(*pair) for pair in ((noise, untouched), *((more,) if more else ())))
    density_ratio = fitted / np.maximum(1 - fitted, 1e-9) * (len(untouched.log_odds) / len(noise.log_odds))
    values = np.clip(rate * density_ratio, 0.0, 1.0)
    return Calibrator(knots.tolist(), values.tolist(), rate, float(before), float(after))


def noise_share(noise: Sample, untouched: Sample) -> float:
    """Share of the untouched interactions that is noise, in [0, 1]: the least of many upper bounds.

    In any region R of (log-odds, context), P(untouched in R) = share · P(noise in R) + (1 - share) · P(clean in R), so
    that P(untouched in R) / P(noise in R) is never below the share, and comes near it where hardly anything clean is.
    """
    bounds = [1.0]
    for context in CONTEXTS:
        limit = np.quantile(noise.context, context)
        among, among_untouched = noise.context <= limit, untouched.context <= limit
        for top in TOPS:
            if context * top < REGION:
                continue
            threshold = np.quantile(noise.log_odds[among], 1 - top)
            mass = float((among & (noise.log_odds > threshold)).mean())
            if mass > REGION / 2:
                above = float((among_untouched & (untouched.log_odds > threshold)).mean())
                # One standard error more, so that the least of many noisy bounds is not taken at its word.
                bounds.append((above + np.sqrt(above / len(untouched.log_odds))) / mass)
    return min(bounds)


def _monotone(noise: Floats, untouched: Floats, method: str) -> tuple[Floats, Floats]:
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
