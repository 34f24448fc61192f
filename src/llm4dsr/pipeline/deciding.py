"""Flag the interactions of all splits, by a rule or by a threshold with a guarantee, with facts for the run card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from llm4dsr import columns as c
from llm4dsr.config import Config
from llm4dsr.denoise.calibrate import Calibrator
from llm4dsr.denoise.decide import CONTROLLED, FALSE_FLAG_RATE, MISSED_NOISE_RATE
from llm4dsr.denoise.decide import rule as decision_rule
from llm4dsr.denoise.risk_control import Threshold, control_false_flags, control_missed_noise, rows_past
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import ConfigError

KNOWN = {FALSE_FLAG_RATE: "clean_labels", MISSED_NOISE_RATE: "injected_noise"}  # names on the run card


def flag_splits(
    config: Config,
    scores: dict[str, pl.DataFrame],
    maps: dict[str, Calibrator],
    policy: str,
    eta: float | None,
    cap: int | None,
    labels: pl.DataFrame | None,
) -> Iterator[tuple[str, pl.DataFrame, dict[str, Any]]]:
    """Yield what is flagged in each split.

    Parameters
    ----------
    config : Config
        Of the run.
    scores : dict of str to DataFrame
        Table of scores of each split.
    maps : dict of str to Calibrator
        The map to probabilities of each split.
    policy : str
        One of POLICIES or CONTROLLED in `denoise/decide.py`.
    eta : float, optional
        The threshold η. With a policy in CONTROLLED the highest rate α, above 0 and below 1; needed there.
    cap : int, optional
        Most flagged interactions in a window. Default: as configured; with a policy in CONTROLLED all but one.
    labels : DataFrame, optional
        Labels of a random sample, for `false-flag-rate`; needed there.

    Yields
    ------
    name : str
        The split.
    flagged : DataFrame
        The flagged rows of its scores.
    facts : dict
        Entries for the run card. With a policy in CONTROLLED they have the threshold too, and how many scores with
        known truth it comes from.

    Raises
    ------
    ConfigError
        If an option is missing, does not fit the policy or is out of range.
    DataError
        If labels or scores of injected noise are missing, too few or unusable.
    """
    if policy in CONTROLLED:
        thresholds = _thresholds(scores, maps, policy, eta, cap, labels)
        for name, table in scores.items():
            flagged, found = rows_past(table, thresholds[name], cap), thresholds[name]
            told = {"threshold": found.value, KNOWN[policy]: found.count}
            yield name, flagged, _facts(table, flagged, policy, eta, cap) | told
        return
    denoiser = Denoiser(config)  # deciding reads scores and configuration; no model is loaded
    for name, table in scores.items():
        rule = decision_rule(config.decide, policy, eta, cap, is_train=name == c.TRAIN)
        flagged = denoiser.decide(table, *rule)
        yield name, flagged, _facts(table, flagged, *rule)


def _thresholds(
    scores: dict[str, pl.DataFrame],
    maps: dict[str, Calibrator],
    policy: str,
    eta: float | None,
    cap: int | None,
    labels: pl.DataFrame | None,
) -> dict[str, Threshold]:
    if eta is None:
        raise ConfigError(f"The policy {policy!r} needs a rate. Give --eta, such as 0.05.")
    if policy == FALSE_FLAG_RATE:
        if labels is None:
            raise ConfigError(f"The policy {policy!r} needs labels of a random sample of interactions. Give --labels.")
        return control_false_flags(scores, labels, eta)
    if cap is not None:
        raise ConfigError(f"A cap would break the guarantee of the policy {policy!r}. Leave --cap out.")
    return control_missed_noise(maps, eta)


def check_labels(policy: str, labels: pl.DataFrame | None) -> None:
    """Refuse labels where the policy has no use for them.

    Raises
    ------
    ConfigError
        If there are labels for another policy than `false-flag-rate`.
    """
    if labels is not None and policy != FALSE_FLAG_RATE:
        raise ConfigError(
            f"The policy {policy!r} reads no labels. Leave --labels out, or use the policy {FALSE_FLAG_RATE!r}. "
            "To fit noise probabilities to labels:  llm4dsr calibrate"
        )


def _facts(
    scores: pl.DataFrame, flagged: pl.DataFrame, policy: str, eta: float | None, cap: int | None
) -> dict[str, Any]:
    return {
        "flagged": len(flagged),
        "flagged_rate": len(flagged) / max(1, len(scores)),
        "expected_precision": flagged[c.NOISE_PROBABILITY].mean(),
        "policy": policy,
        "eta": eta,
        "cap": cap,
    }
