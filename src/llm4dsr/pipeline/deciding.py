"""Flag the interactions of all splits, by a rule or by a threshold with a guarantee, with facts for the run card."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import polars as pl

from llm4dsr import columns as c
from llm4dsr.config import Config
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.denoise.calibrate import Calibrator
from llm4dsr.denoise.decide import (
    CONTROLLED,
    FALSE_FLAG_RATE,
    MISSED_NOISE_RATE,
    POLICIES,
    TOP,
    VALIDATION,
    configured_rule,
)
from llm4dsr.denoise.decide import rule as decision_rule
from llm4dsr.denoise.labels import judged, labeled_scores
from llm4dsr.denoise.risk_control import Threshold, control_false_flags, control_missed_noise, rows_past
from llm4dsr.denoise.tables import given_table, most_suspicious
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import ConfigError, DataError

REVIEWED = "reviewed.parquet"  # in decisions/: the reviewed interactions that overruled the policy

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
        One of POLICIES, CONTROLLED or TOP in `denoise/decide.py`.
    eta : float, optional
        The threshold η. With a policy in CONTROLLED the highest rate α, above 0 and below 1; with TOP the number of
        interactions of all splits; needed there.
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
    if policy == TOP:
        yield from _top(config, scores, eta, cap)
        return
    denoiser = Denoiser(config)  # deciding reads scores and configuration; no model is loaded
    for name, table in scores.items():
        rule = decision_rule(config.decide, policy, eta, cap, is_train=name == c.TRAIN)
        flagged = denoiser.decide(table, *rule)
        yield name, flagged, _facts(table, flagged, *rule)


def _top(
    config: Config, scores: dict[str, pl.DataFrame], count: float | None, cap: int | None
) -> Iterator[tuple[str, pl.DataFrame, dict[str, Any]]]:
    if count is None or count < 1 or count != int(count):
        raise ConfigError(f"--top {count}: expected a whole number of interactions, from 1 on.")
    caps = {n: configured_rule(config.decide, n == c.TRAIN)[2] if cap is None else cap for n in scores}
    chosen = most_suspicious(scores, caps).head(int(count))
    for name, table in scores.items():
        rows = chosen.filter(pl.col(c.SPLIT) == name).select(c.WINDOW, c.POSITION)
        flagged = table.join(rows, on=[c.WINDOW, c.POSITION], how="semi", maintain_order="left")
        yield name, flagged, _facts(table, flagged, TOP, int(count), caps[name])


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
        return control_false_flags(scores, judged(labels), eta)
    if cap is not None:
        raise ConfigError(f"A cap would break the guarantee of the policy {policy!r}. Leave --cap out.")
    return control_missed_noise(maps, eta)


def check_policy(policy: str, labels: pl.DataFrame | None) -> None:
    """Refuse an unknown policy, and labels where the policy has no use for them.

    Raises
    ------
    ConfigError
        If there is no such policy, or there are labels for another one than `false-flag-rate`.
    """
    if policy not in (known := (*POLICIES, VALIDATION, *CONTROLLED)) and policy != TOP:
        raise ConfigError(f"decide.policy = {policy!r}; expected one of {', '.join(known)}.")
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


def overruled(
    found: Iterable[tuple[str, pl.DataFrame, dict[str, Any]]],
    scores: dict[str, pl.DataFrame],
    reviewed: pl.DataFrame,
    catalogue: Catalogue,
) -> Iterator[tuple[str, pl.DataFrame, dict[str, Any]]]:
    """Yield what `flag_splits` yields, with reviewed interactions flagged as they were answered.

    One interaction of each window stays, the least suspicious one.

    Parameters
    ----------
    found : iterable
        From `flag_splits`.
    scores : dict of str to DataFrame
        Table of scores of each split.
    reviewed : DataFrame
        `split, window_id, position, is_noise`, and optional `replacement_item_id`.
    catalogue : Catalogue
        The items.

    Raises
    ------
    DataError
        As `labeled_scores` and `check_replacements` do.
    """
    labeled_scores(reviewed, scores)
    reviewed = given_table(reviewed, "The labels")
    check_replacements(reviewed, catalogue)
    noise = pl.col(c.IS_NOISE).cast(pl.Float64) > 0
    for name, flagged, told in found:
        of_split = reviewed.filter(pl.col(c.SPLIT) == name).select(c.WINDOW, c.POSITION, noise.alias(c.IS_NOISE))
        flags = flagged.select(c.WINDOW, c.POSITION).with_columns(flagged=True)
        table = scores[name].join(flags, on=[c.WINDOW, c.POSITION], how="left", maintain_order="left")
        table = table.join(of_split, on=[c.WINDOW, c.POSITION], how="left", maintain_order="left")
        is_flagged = pl.coalesce(c.IS_NOISE, "flagged").fill_null(False)
        whole = (is_flagged.all() & (pl.col(c.RANK) == pl.len())).over(c.WINDOW)
        table = table.filter(is_flagged & ~whole).drop(c.IS_NOISE, "flagged")
        facts = _facts(scores[name], table, told["policy"], told["eta"], told["cap"])
        yield name, table, told | facts | {"reviewed": len(of_split)}


def check_replacements(reviewed: pl.DataFrame, catalogue: Catalogue) -> pl.DataFrame:
    """Return the reviewed interactions for which an item was chosen: `split, window_id, position`, `id` and `name`.

    Raises
    ------
    DataError
        If such an item is not in the catalogue, or a window id or position is no whole number.
    """
    reviewed = given_table(reviewed, "The labels")
    if c.REPLACEMENT not in reviewed.columns:
        reviewed = reviewed.with_columns(pl.lit(None, dtype=pl.String).alias(c.REPLACEMENT))
    chosen = reviewed.filter(pl.col(c.REPLACEMENT).is_not_null()).with_columns(pl.col(c.REPLACEMENT).cast(pl.String))
    names = pl.DataFrame({"id": catalogue.ids, "name": catalogue.original_titles})
    names = names.with_columns(pl.col("id").cast(pl.String).alias(c.REPLACEMENT))
    chosen = chosen.join(names, on=c.REPLACEMENT, how="left", maintain_order="left")
    if chosen["name"].null_count():
        unknown = chosen.filter(pl.col("name").is_null())[c.REPLACEMENT][0]
        raise DataError(f"The reviewed interactions name the item {unknown!r}, which is not in the catalogue.")
    return chosen.select(c.SPLIT, c.WINDOW, c.POSITION, "id", "name")


def replaced_as_reviewed(
    suggestions: pl.DataFrame, reviewed: pl.DataFrame, split: str, catalogue: Catalogue
) -> pl.DataFrame:
    """Return suggestions of a split with the items that a reviewer chose. Raises DataError as `check_replacements`."""
    keys = check_replacements(reviewed, catalogue).filter(pl.col(c.SPLIT) == split).drop(c.SPLIT)
    joined = suggestions.join(keys, on=[c.WINDOW, c.POSITION], how="left", maintain_order="left")
    is_chosen = pl.col("name").is_not_null()
    values = {
        c.SUGGESTED: pl.col("id"), c.SUGGESTED_TITLE: pl.col("name"), c.GENERATED: None,
        c.GROUNDING: pl.lit(c.REVIEWED), c.DISTANCE: 0.0, c.SUGGESTION_PROBABILITY: 1.0,
    }  # fmt: skip
    columns = [pl.when(is_chosen).then(value).otherwise(pl.col(name)).alias(name) for name, value in values.items()]
    return joined.with_columns(columns).drop("id", "name")
