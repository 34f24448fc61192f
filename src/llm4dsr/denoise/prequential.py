"""Prequential scoring: score a part of the windows, then count it, in order of time.

So each part is scored with what was known before it, and never with the future or with its own histories.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llm4dsr.core.arrays import FloatArray, IntArray
from llm4dsr.core.cache import PartCache
from llm4dsr.core.progress import Progress, subprogress
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.denoise import calibrate
from llm4dsr.denoise.calibrate import Calibrator, Sample
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.denoise.fit_calibration import MAX_INJECTED, injected_sample
from llm4dsr.lm.prompt import PromptBuilder

PARTS = 10  # of a split, in order of time
MIN_TO_RECALIBRATE = 1_000  # windows below which probabilities keep the map of `fit`


def prequential(
    builder: PromptBuilder, windows: Windows, has_target: bool, progress: Progress | None
) -> Iterator[tuple[IntArray, Progress | None]]:
    """Yield parts of the windows in order of time, with the counts known before each.

    While a part is being scored, `builder.cooccurrence` holds what was known before it. At the end, the counts are
    those from before the call. Without counts, targets, or any timestamp, all windows are one part.

    Parameters
    ----------
    builder : PromptBuilder
        Holds the co-occurrence counts.
    windows : Windows
        The windows, with their targets if there are any.
    has_target : bool
        The last item of each window is an evaluation target.
    progress : Progress or None
        Of all windows.

    Yields
    ------
    rows : array of int
        The windows of the part.
    progress : Progress or None
        Of the part, reported as progress of all windows.
    """
    before = builder.cooccurrence
    if before is None or not has_target or (windows.timestamps < 0).any():
        yield np.arange(len(windows)), progress
        return
    done = 0
    try:
        for rows in np.array_split(np.argsort(windows.timestamps, kind="stable"), PARTS):
            if len(rows):
                yield rows, progress and subprogress(progress, done, len(rows), len(windows))
                assert builder.cooccurrence is not None
                builder.cooccurrence = builder.cooccurrence.add(windows.take(rows))
                done += len(rows)
    finally:
        builder.cooccurrence = before


def score_prequentially(
    ensemble: Ensemble,
    calibrator: Calibrator,
    windows: Windows,
    has_target: bool,
    recalibrate: bool,
    progress: Progress | None,
    cache: PartCache,
) -> tuple[FloatArray, Calibrator]:
    """Score windows in order of time.

    Parameters
    ----------
    ensemble : Ensemble
        The tuned models.
    calibrator : Calibrator
        The map to probabilities that `fit` made.
    windows : Windows
        W windows, with their targets if there are any.
    has_target : bool
        The last item of each window is an evaluation target: it is not scored.
    recalibrate : bool
        Fit a new map, on noise injected into these windows. Ignored below MIN_TO_RECALIBRATE windows.
    progress : Progress or None
        Called with (windows done, all windows, what is being done).
    cache : PartCache
        Keeps finished parts.

    Returns
    -------
    log_odds : array of float
        [W, L] higher = more likely noise; NaN where a history has no item.
    calibrator : Calibrator
        The map to use for them.
    """
    config = ensemble.config
    histories = windows.histories() if has_target else windows
    method = config.score.calibration
    recalibrate = recalibrate and len(windows) >= MIN_TO_RECALIBRATE
    draws = max(1, min(config.score.calibration_draws, MAX_INJECTED // max(1, len(windows))))
    rng = np.random.default_rng(config.seed + 2)
    log_odds, samples = np.full(histories.items.shape, np.nan), []
    for rows, step in prequential(ensemble.builder, windows, has_target, progress):
        part = histories.take(rows)
        log_odds[rows] = ensemble.log_odds(part, step, "score", cache)
        if recalibrate and method != "off":
            some = limit_windows(part, MAX_INJECTED, config.seed)
            samples.append(injected_sample(ensemble, some, draws, rng, step, "score: injected noise", cache)[0])
    if samples and method != "off":
        noise, unlabeled = calibrate.join(samples), Sample.of(histories, log_odds)
        calibrator = calibrate.fit(noise, unlabeled, method, calibrator.noise_rate)
    return log_odds, calibrator
