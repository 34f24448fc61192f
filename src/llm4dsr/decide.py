"""Deciding: which interactions count as noise. η moves here, long after the model has scored."""

from __future__ import annotations

from typing import Final

import numpy as np

from llm4dsr.catalogue import BoolArray, FloatArray, IntArray
from llm4dsr.config import DecideConfig
from llm4dsr.errors import ConfigError

POLICIES = ("percentile", "probability", "precision", "rate")
VALIDATION = "validation"  # of a run: the rate is chosen by a recommender (choose.py)
STAND_IN: Final = "probability"  # for VALIDATION, where no recommender is asked


def decide(log_odds: FloatArray, probability: FloatArray, policy: str, eta: float, cap: int) -> BoolArray:
    """[W, L] True where an interaction is flagged as noise.

    log_odds, probability: [W, L], NaN where a window has no item. At most `cap` are flagged in a window, the most
    suspicious first, and one interaction of a window always stays. η (`eta`) by policy:

    - "percentile": flag what scores above this quantile of all pooled scores of the split (published), in [0, 1];
    - "probability": flag where the probability of noise is at least η;
    - "precision": flag as many as possible while the mean probability of the flagged is at least η, so that η is the
      expected share of rightly flagged ones;
    - "rate": flag this share of the split's interactions, the most suspicious first; fewer where the cap is too low.

    Raises ConfigError for an unknown policy or an η outside [0, 1].
    """
    if policy not in POLICIES:
        raise ConfigError(f"decide.policy = {policy!r}; expected one of {', '.join(POLICIES)}.")
    if not 0 <= eta <= 1:
        raise ConfigError(f"η = {eta}; expected a number between 0 and 1 for the policy {policy!r}.")
    if not np.isfinite(log_odds).any():
        return np.zeros(log_odds.shape, dtype=bool)
    allowed = _within_cap(log_odds, cap)
    if policy == "probability":
        with np.errstate(invalid="ignore"):
            return allowed & (probability >= eta)
    if policy == "percentile":
        with np.errstate(invalid="ignore"):
            return np.asarray(allowed & (log_odds > np.nanquantile(log_odds, eta)))
    rows, cols = np.nonzero(allowed)
    order = np.argsort(-log_odds[rows, cols], kind="stable")
    if policy == "rate":
        taken = order[: round(eta * int(np.isfinite(log_odds).sum()))]
    else:
        p = probability[rows[order], cols[order]]
        enough = np.flatnonzero(np.cumsum(p) / np.arange(1, len(p) + 1) >= eta)
        taken = order[: enough[-1] + 1] if len(enough) else order[:0]
    out = np.zeros(log_odds.shape, dtype=bool)
    out[rows[taken], cols[taken]] = True
    return out


def _within_cap(log_odds: FloatArray, cap: int) -> BoolArray:
    present = np.isfinite(log_odds)
    allowed: BoolArray = present & (ranks(log_odds) <= np.minimum(cap, present.sum(axis=1) - 1)[:, None])
    return allowed


def ranks(log_odds: FloatArray) -> IntArray:
    """[W, L] 1 = the most suspicious interaction of its window; ties by age, absent positions (NaN) last."""
    order = np.argsort(np.where(np.isfinite(log_odds), -log_odds, np.inf), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(1, order.shape[1] + 1), order.shape), axis=1)
    return rank


def asked(policy: str | None, eta: float | None, configured: str) -> str:
    """The policy in force where these are asked for. η alone is a probability where validation would have chosen it.

    Raises ConfigError where validation is asked for with an η, which it chooses by itself."""
    if policy == VALIDATION and eta is not None:
        raise ConfigError(f"The policy {VALIDATION!r} chooses η by itself. Leave --eta out.")
    if policy is not None:
        return policy
    return STAND_IN if eta is not None and configured == VALIDATION else configured


def settings(config: DecideConfig, is_train: bool) -> tuple[str, float, int]:
    """(policy, η, cap) for a split, without a recommender; the published settings differ between training and test
    histories."""
    cap = config.cap if is_train or config.cap_test is None else config.cap_test
    policy = STAND_IN if config.policy == VALIDATION else config.policy
    return policy, config.eta if is_train or config.eta_test is None else config.eta_test, cap
