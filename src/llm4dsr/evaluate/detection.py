"""Detection: how well the known noise is found. Needs a noise mask, so it is for benchmarks, not for use."""

from __future__ import annotations

import math

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr import metrics
from llm4dsr.core.arrays import BoolArray, FloatArray
from llm4dsr.data.windows import Windows, align


def detection_metrics(scores: pl.DataFrame, decisions: pl.DataFrame, windows: Windows) -> dict[str, float]:
    """Measure scores and decisions against the noise mask.

    Parameters
    ----------
    scores : DataFrame
        As `Denoiser.score` returns them.
    decisions : DataFrame
        The flagged interactions among them.
    windows : Windows
        The scored windows, with their noise mask.

    Returns
    -------
    dict of str to float
        `auroc`, `average_precision`, `precision` and `recall` (higher is better); `stated_precision`, the mean
        probability of the flagged, between `stated_low` and `stated_high`; `flagged` and `noise`, fractions of the
        scored interactions; `ece` and `ties` (lower is better). All in [0, 1]; NaN where undefined.

    Raises
    ------
    DataError
        If the noise mask is not known.
    """
    mask = windows.truth()
    log_odds, probability = align(scores, windows, c.LOG_ODDS), align(scores, windows, c.NOISE_PROBABILITY)
    flagged, scored = align(decisions, windows, None), np.isfinite(log_odds)
    truth = mask[scored]
    stated = [_mean(align(scores, windows, name)[flagged]) for name in c.PROBABILITIES]
    return {
        **flag_metrics(log_odds[scored], flagged[scored], truth),
        **dict(zip(("stated_precision", "stated_low", "stated_high"), stated, strict=True)),
        "flagged": float(flagged[scored].mean()),
        "noise": float(truth.mean()),
        "ece": metrics.expected_calibration_error(probability[scored], truth),
        "ties": metrics.tie_rate(log_odds[scored], windows.owners[scored]),
    }


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else math.nan


def has_truth(windows: Windows) -> bool:
    """Return whether the noise mask of the histories is known and holds both noisy and clean interactions."""
    if windows.noise_mask is None:
        return False
    known = windows.noise_mask[~windows.is_last]
    return bool(known.any() and not known.all())


def flag_metrics(suspicion: FloatArray, flagged: BoolArray | None, truth: BoolArray) -> dict[str, float]:
    """Measure suspicion scores and flags of the same interactions.

    Parameters
    ----------
    suspicion : array of float
        [n] higher = more likely noise, on any scale.
    flagged : array of bool or None
        [n] True where flagged. None: nothing was decided.
    truth : array of bool
        [n] True where noise.

    Returns
    -------
    dict of str to float
        `auroc`, `average_precision`, `precision`, `recall`, each in [0, 1], higher is better; NaN where undefined.
    """
    precision, recall = (math.nan, math.nan) if flagged is None else metrics.precision_recall(flagged, truth)
    both = bool(truth.any() and not truth.all())
    return {
        "auroc": metrics.auroc(suspicion, truth) if both else math.nan,
        "average_precision": metrics.average_precision(suspicion, truth) if both else math.nan,
        "precision": precision,
        "recall": recall,
    }
