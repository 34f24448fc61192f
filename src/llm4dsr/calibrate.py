"""From a model's log-odds to a probability of noise that can be believed.

Nobody labels noise, and the untouched windows hold some, so they are no negatives. What there is: scores of self-made
noise (certainly noise) and scores of untouched interactions (a mixture with an unknown share of noise). That is
learning from positive and unlabelled data (Elkan & Noto 2008): a monotone fit gives the ratio of the two densities,
and the share of noise is bounded by how rarely untouched interactions score as high as self-made noise does (Blanchard
et al. 2010; Garg et al. 2021, "best bin").
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from llm4dsr.metrics import expected_calibration_error

Floats = npt.NDArray[np.float64]

BEST_BIN_MASS = 0.02  # smallest share of the self-made noise that a bin may hold


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


def fit(noise: Floats, untouched: Floats, method: Literal["isotonic", "platt"], halves: tuple[Any, Any]) -> Calibrator:
    """noise: [n1] log-odds of self-made noise. untouched: [n0] log-odds of untouched interactions. halves: boolean
    masks ([n1], [n0]) of the half that is held out to measure the ECE."""
    held_noise, held_untouched = halves
    knots, fitted = _monotone(noise[~held_noise], untouched[~held_untouched], method)
    scores = np.concatenate([noise[held_noise], untouched[held_untouched]])
    outcome = np.r_[np.ones(held_noise.sum()), np.zeros(held_untouched.sum())]
    before = expected_calibration_error(1 / (1 + np.exp(-np.clip(scores, -60, 60))), outcome)
    after = expected_calibration_error(np.interp(scores, knots, fitted), outcome)
    knots, fitted = _monotone(noise, untouched, method)
    rate = noise_share(noise, untouched)
    density_ratio = fitted / np.maximum(1 - fitted, 1e-9) * (len(untouched) / len(noise))
    values = np.clip(rate * density_ratio, 0.0, 1.0)
    return Calibrator(knots.tolist(), values.tolist(), rate, float(before), float(after))


def noise_share(noise: Floats, untouched: Floats) -> float:
    """Share of the untouched interactions that is noise: the least ratio of the two tails, in [0, 1].

    At a threshold t, P(untouched > t) = share · P(noise > t) + (1 - share) · P(clean > t), so that the ratio
    P(untouched > t) / P(noise > t) is never below the share, and comes near it where hardly anything clean scores.
    """
    at = np.quantile(noise, 1 - np.geomspace(BEST_BIN_MASS, 1.0, 60)[:-1])
    above_noise = (noise[None, :] > at[:, None]).mean(axis=1)
    above_untouched = (untouched[None, :] > at[:, None]).mean(axis=1)
    usable = above_noise > BEST_BIN_MASS / 2
    if not usable.any():
        return float("nan")
    # One standard error of the rarer count, so that the least of many noisy ratios is not taken at its word.
    error = np.sqrt(above_untouched / len(untouched))
    return float(np.clip(np.min((above_untouched + error)[usable] / above_noise[usable]), 0.0, 1.0))


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
