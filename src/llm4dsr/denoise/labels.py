"""Labels: reviewed interactions, and the noise rate that they tell."""

from __future__ import annotations

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import BoolArray, FloatArray
from llm4dsr.core.io import as_frame
from llm4dsr.denoise.calibrate import Calibrator
from llm4dsr.denoise.noise_rate import likely_rates
from llm4dsr.denoise.tables import given_table
from llm4dsr.errors import DataError

ANSWER = "answer"  # what a reviewer said; in the labels of a review
ACCEPTED = "accepted"  # many flags were accepted as noise at once, and none was looked at
ATYPICAL = "atypical"  # the user's own choice, but not their taste: no noise
EMPTY = "The table holds no labels; about a hundred are useful."
EXPECTED = (c.SPLIT, c.WINDOW, c.POSITION, c.IS_NOISE)


def judged(labels: pl.DataFrame) -> pl.DataFrame:
    """Return the labels without interactions that were accepted together: nothing is learned of rates from those."""
    labels = as_frame(labels, "The labels")
    return labels if ANSWER not in labels.columns else labels.filter(pl.col(ANSWER).ne_missing(ACCEPTED))


def check_values(labels: pl.DataFrame) -> None:
    """Check that each label is 0 or 1. Raises DataError."""
    wrong = labels.filter(pl.col(c.IS_NOISE).cast(pl.Float64, strict=False).is_in([0.0, 1.0]).not_().fill_null(True))
    if len(wrong):
        raise DataError(f"{len(wrong)} label(s) are neither 0 nor 1, such as {wrong[c.IS_NOISE][0]!r}.")


def labeled_scores(labels: pl.DataFrame, scores: dict[str, pl.DataFrame]) -> dict[str, tuple[FloatArray, BoolArray]]:
    """Return the scores and the labels of labeled interactions.

    Parameters
    ----------
    labels : DataFrame
        `split`, `window_id`, `position`, and `is_noise`, 0 or 1.
    scores : dict of str to DataFrame
        Table of scores of each split.

    Returns
    -------
    dict of str to (array of float, array of bool)
        Of each split with labels: [n] log-odds, and whether they are noise. Histories of one item have no log-odds and
        are left out.

    Raises
    ------
    DataError
        If a column is missing, there is no label or one that is not 0 or 1, a window id or position is no whole number,
        or an interaction is not among the scores or is labeled twice.
    """
    labels = as_frame(labels, "The labels")
    missing = [name for name in EXPECTED if name not in labels.columns]
    if missing:
        raise DataError(f"The labels lack {', '.join(missing)}; expected the columns {', '.join(EXPECTED)}.")
    if labels.is_empty():
        raise DataError(EMPTY)
    unknown = sorted(set(labels[c.SPLIT].unique().to_list()) - set(scores), key=str)
    if unknown:
        raise DataError(f"The labels name the split(s) {unknown}; expected {', '.join(scores)}.")
    check_values(labels)
    labels = given_table(labels, "The labels")
    if labels.select(EXPECTED[:3]).is_duplicated().any():
        raise DataError("An interaction is labeled more than once. Keep one label for each.")
    found = {}
    for name in scores:
        part = labels.filter(pl.col(c.SPLIT) == name)
        if part.is_empty():
            continue
        joined = part.join(scores[name], on=[c.WINDOW, c.POSITION], how="left", maintain_order="left")
        absent = joined.filter(pl.col(c.LOG_ODDS).is_null())
        if len(absent):
            raise DataError(
                f"Position {absent[c.POSITION][0]} of {c.WINDOW} {absent[c.WINDOW][0]} in {name} is labeled, but has "
                "no score. Targets of validation and test are not scored."
            )
        log_odds, is_noise = joined[c.LOG_ODDS].to_numpy(), joined[c.IS_NOISE].cast(pl.Float64).to_numpy() > 0
        found[name] = log_odds[np.isfinite(log_odds)], is_noise[np.isfinite(log_odds)]
    return found


def rates_by_labels(
    labels: pl.DataFrame, scores: dict[str, pl.DataFrame], maps: dict[str, Calibrator]
) -> list[tuple[float, float, float]]:
    """Estimate the noise rate from labeled interactions of one or more splits.

    Parameters
    ----------
    labels, scores
        As in `labeled_scores`. The labeled interactions may be chosen by their scores in any way.
    maps : dict of str to Calibrator
        The map to probabilities of each split.

    Returns
    -------
    list of (float, float, float)
        For each kind of noise, the 95 % interval of the fraction of interactions that is noise, with its end twice, as
        `Calibrator.with_rates` takes it; NaN if the labels exclude the kind.

    Raises
    ------
    DataError
        As `labeled_scores` does, and if the scores are uncalibrated.
    """
    ratios, truth = [], []
    for name, (log_odds, is_noise) in labeled_scores(judged(labels), scores).items():
        if not maps[name].kinds:
            raise DataError(f"The scores of {name} are uncalibrated: {maps[name].uncalibrated}. Labels cannot help.")
        ratios.append([kind.ratio(log_odds) for kind in maps[name].kinds])
        truth.append(is_noise)
    of_kinds = [np.concatenate(parts) for parts in zip(*ratios, strict=True)]
    return [(low, high, high) for low, high in likely_rates(of_kinds, np.concatenate(truth))]
