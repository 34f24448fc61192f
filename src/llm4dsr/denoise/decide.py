"""Decide which interactions count as noise. η moves here, long after the model has scored.

| policy      | what is flagged                                                                    |
|-------------|------------------------------------------------------------------------------------|
| percentile  | scores above the η-quantile of all pooled scores of the split (published)          |
| probability | noise probabilities of at least η                                                  |
| precision   | as many as possible while their mean probability is at least η, the expected precision |
| rate        | the fraction η of the split's interactions, most suspicious first                  |

Interactions without log-odds (NaN, a history of one item) are never flagged and not among the split's interactions.

A run has four more. With `validation`, recommenders choose rate and action (evaluate/rate_selection.py). With
`false-flag-rate` and `missed-noise-rate`, η is the highest rate of such errors (risk_control.py). With `top`, η is a
number: so many interactions of all splits together are flagged, most suspicious first.
"""

from __future__ import annotations

import dataclasses
from typing import Final

import numpy as np

from llm4dsr.config import DecideConfig
from llm4dsr.core.arrays import BoolArray, FloatArray, IntArray
from llm4dsr.errors import ConfigError

POLICIES = ("percentile", "probability", "precision", "rate")
VALIDATION = "validation"  # only in a run
NO_CAP: Final = 2**31 - 1
FALSE_FLAG_RATE, MISSED_NOISE_RATE = CONTROLLED = ("false-flag-rate", "missed-noise-rate")  # only in a run
TOP: Final = "top"  # only in a run
STAND_IN: Final = "probability"  # for VALIDATION, without a recommender


def decide(
    owners: IntArray, log_odds: FloatArray, probability: FloatArray, policy: str, eta: float, cap: int
) -> BoolArray:
    """Flag interactions as noise.

    Parameters
    ----------
    owners : array of int
        [n] the window of each interaction, ascending from 0; oldest first in a window.
    log_odds, probability : array of float
        [n] scores, higher = more likely noise; log-odds are NaN in windows of one item.
    policy : str
        One of POLICIES; see the table above.
    eta : float
        The threshold η, in [0, 1].
    cap : int
        Most flagged interactions in a window, the most suspicious first. One interaction always stays.

    Returns
    -------
    array of bool
        [n] True where flagged.

    Raises
    ------
    ConfigError
        If the policy is unknown or η is out of range.

    Examples
    --------
    >>> log_odds = np.array([2.0, -1.0, 0.5])
    >>> decide(np.array([0, 0, 0]), log_odds, 1 / (1 + np.exp(-log_odds)), "probability", 0.6, cap=3)
    array([ True, False,  True])
    """
    if policy not in POLICIES:
        raise ConfigError(f"decide.policy = {policy!r}; expected one of {', '.join(POLICIES)}.")
    if not 0 <= eta <= 1:
        raise ConfigError(f"η = {eta}; expected a number between 0 and 1 for the policy {policy!r}.")
    if not np.isfinite(log_odds).any():
        return np.zeros(log_odds.shape, dtype=bool)
    allowed = _within_cap(owners, log_odds, cap)
    if policy == "probability":
        with np.errstate(invalid="ignore"):
            return allowed & (probability >= eta)
    if policy == "percentile":
        with np.errstate(invalid="ignore"):
            return np.asarray(allowed & (log_odds > np.nanquantile(log_odds, eta)))
    at = np.flatnonzero(allowed)
    order = at[np.argsort(-log_odds[at], kind="stable")]
    if policy == "rate":
        taken = order[: round(eta * int(np.isfinite(log_odds).sum()))]
    else:
        p = probability[order]
        enough = np.flatnonzero(np.cumsum(p) / np.arange(1, len(p) + 1) >= eta)
        taken = order[: enough[-1] + 1] if len(enough) else order[:0]
    out = np.zeros(log_odds.shape, dtype=bool)
    out[taken] = True
    return out


def _within_cap(owners: IntArray, log_odds: FloatArray, cap: int) -> BoolArray:
    scored = np.isfinite(log_odds)
    most = np.minimum(cap, np.bincount(owners[scored], minlength=int(owners[-1]) + 1) - 1)
    allowed: BoolArray = scored & (ranks(owners, log_odds) <= most[owners])
    return allowed


def ranks(owners: IntArray, log_odds: FloatArray) -> IntArray:
    """Rank the interactions of each window by suspicion.

    Parameters
    ----------
    owners, log_odds
        As in `decide`.

    Returns
    -------
    array of int
        [n] 1 = most suspicious; ties by age.
    """
    order = np.lexsort((np.where(np.isfinite(log_odds), -log_odds, np.inf), owners))
    rank = np.empty_like(order)
    rank[order] = np.arange(1, len(order) + 1) - np.searchsorted(owners, owners)  # windows stay in their place
    return rank


def effective_policy(policy: str | None, eta: float | None, configured: str, goal: str | None = None) -> str:
    """Return the policy in force where a policy, an η, both or none are asked for.

    An η alone is read as a probability if `validation` is configured, which chooses η itself.

    Raises
    ------
    ConfigError
        If `validation` is asked for together with an η, a goal together with another policy, or a policy that is not
        the configured one without an η.
    """
    if policy == VALIDATION and eta is not None:
        raise ConfigError(f"The policy {VALIDATION!r} chooses η by itself. Leave --eta out.")
    asked = policy
    if policy is None:
        policy = STAND_IN if eta is not None and configured == VALIDATION else configured
    if goal is not None and policy != VALIDATION:
        raise ConfigError(
            f"--goal {goal} says what the policy {VALIDATION!r} tries, but the policy is {policy!r}. Leave --goal out, "
            "or --policy and --eta."
        )
    _check_eta(asked, eta, configured)
    return policy


def rule(
    config: DecideConfig, policy: str | None, eta: float | None, cap: int | None, is_train: bool
) -> tuple[str, float, int]:
    """Return (policy, η, cap) in force without a recommender: arguments override the configuration.

    Raises
    ------
    ConfigError
        If the policy is only for runs, or is not the configured one and comes without an η.
    """
    if policy in CONTROLLED:
        raise ConfigError(
            f"The policy {policy!r} needs more than a table of scores, so it is only for runs:  llm4dsr decide --run … "
            f"--policy {policy} --eta …. In Python, use llm4dsr.denoise.risk_control."
        )
    if policy == TOP:
        raise ConfigError(
            f"The policy {TOP!r} compares all splits of a run:  llm4dsr decide --run … --top …. Here choose 'rate', "
            "with the fraction of the interactions."
        )
    if policy == VALIDATION:
        raise ConfigError(
            "The policy 'validation' asks a recommender, so it is only for runs:  llm4dsr decide --run … --policy "
            f"validation. Here choose one of {', '.join(POLICIES)}. For the rate that a run has chosen "
            "(decisions/tried.parquet), use the policy 'rate' with that rate."
        )
    _check_eta(policy, eta, config.policy)
    if policy is not None:
        config = dataclasses.replace(config, policy=policy)  # type: ignore[arg-type]
    if eta is not None:
        config = dataclasses.replace(config, eta=eta, eta_test=None)
    if cap is not None:
        config = dataclasses.replace(config, cap=cap, cap_test=None)
    return configured_rule(config, is_train)


def _check_eta(policy: str | None, eta: float | None, configured: str) -> None:
    """Refuse a policy that would read the η of another one."""
    configured = STAND_IN if configured == VALIDATION else configured
    if eta is None and policy in POLICIES and policy != configured:
        raise ConfigError(
            f"The policy {policy!r} needs an η; the configured one is for {configured!r}. Give --eta, in Python eta=."
        )


def configured_rule(config: DecideConfig, is_train: bool) -> tuple[str, float, int]:
    """Return the configured (policy, η, cap) of training or evaluation histories, without a recommender."""
    cap = config.cap if is_train or config.cap_test is None else config.cap_test
    policy = STAND_IN if config.policy == VALIDATION else config.policy
    return policy, config.eta if is_train or config.eta_test is None else config.eta_test, cap
