"""Prequential scoring: score a part of the windows, then count it, in order of time.

So each part is scored with what was known before it, and never with the future or with its own histories.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llm4dsr.core.arrays import BoolArray, FloatArray, IntArray
from llm4dsr.core.cache import PartCache
from llm4dsr.core.hashing import user_hashes
from llm4dsr.core.progress import Progress, log, subprogress
from llm4dsr.data.overlap import Origin, overlapping
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.denoise import calibrate
from llm4dsr.denoise.calibrate import Calibrator, Sample
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.denoise.fit_calibration import MAX_INJECTED, injected_sample, with_context
from llm4dsr.lm.prompt import PromptBuilder

PARTS = 10  # of a split, in order of time
MIN_TO_RECALIBRATE = 1_000  # windows below which probabilities keep the map of `fit`


def prequential(
    builder: PromptBuilder,
    windows: Windows,
    has_target: bool,
    progress: Progress | None,
    width: int | None = None,
    earlier: Windows | None = None,
) -> Iterator[tuple[IntArray, Progress | None]]:
    """Yield parts of the windows in order of time, with the counts known before each.

    While a part is being scored, `builder.cooccurrence` holds what was known before it. At the end, the counts are
    those from before the call. Without counts, targets, or any timestamp, all windows are one part.

    Windows without a timestamp are the first part. They are not counted, because they may be newer than any other.
    Histories that are too long are a part beside those of their time. So neither changes the parts of other windows.

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
    width : int, optional
        Histories of more items are too long, and scored in overlapping windows. Default: none is.
    earlier : Windows, optional
        Windows of an earlier split, targets included. Each is counted once all windows of a part are newer; all at once
        where times are unknown. Splits may overlap in time, and nothing may know its future.

    Yields
    ------
    rows : array of int
        The windows of the part.
    progress : Progress or None
        Of the part, reported as progress of all windows.
    """
    before = builder.cooccurrence
    if before is None:
        yield np.arange(len(windows)), progress
        return

    def count(known: Windows) -> None:
        if width is not None and (known.lengths > width + 1).any():
            known, _ = overlapping(known, width + 1, max(1, width // 2))
        assert builder.cooccurrence is not None
        builder.cooccurrence = builder.cooccurrence.add(known)

    done = 0
    try:
        if not has_target or (windows.timestamps < 0).all():
            if earlier is not None:
                count(earlier)
            yield np.arange(len(windows)), progress
            return
        is_long = np.zeros(len(windows), dtype=bool) if width is None else windows.lengths - 1 > width
        for parts, is_counted in _in_time(windows.timestamps, is_long):
            if earlier is not None and is_counted:
                oldest = min(int(windows.timestamps[rows].min()) for rows in parts)
                is_older = earlier.timestamps < oldest
                count(earlier.take(np.flatnonzero(is_older)))
                earlier = earlier.take(np.flatnonzero(~is_older))
            for rows in parts:
                yield rows, progress and subprogress(progress, done, len(rows), len(windows))
                done += len(rows)
            if is_counted:
                count(windows.take(np.concatenate(parts)))
    finally:
        builder.cooccurrence = before


def _in_time(timestamps: IntArray, is_long: BoolArray) -> Iterator[tuple[list[IntArray], bool]]:
    """Yield (rows that are scored with the same counts: the usual, then the long; whether they are counted then)."""
    if (timestamps < 0).any():
        yield [np.flatnonzero(timestamps < 0)], False
    order = np.argsort(timestamps, kind="stable")
    order = order[timestamps[order] >= 0]
    usual, long = order[~is_long[order]], order[is_long[order]]
    if not len(usual):
        usual, long = long, usual
    parts = np.array_split(usual, min(PARTS, len(usual)))
    newest = np.array([timestamps[part[-1]] for part in parts])
    # A long history belongs to the first part that ends no earlier: earlier parts hold nothing newer than it.
    home = np.minimum(np.searchsorted(newest, timestamps[long]), len(parts) - 1)
    for i, part in enumerate(parts):
        yield [rows for rows in (part, long[home == i]) if len(rows)], True


def score_prequentially(
    ensemble: Ensemble,
    calibrator: Calibrator,
    windows: Windows,
    parts: Windows,
    origin: Origin | None,
    has_target: bool,
    recalibrate: bool,
    progress: Progress | None,
    cache: PartCache,
    width: int,
    earlier: Windows | None = None,
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
    parts : Windows
        P windows that are scored: the histories, those that are too long as overlapping windows.
    origin : Origin or None
        Where the parts come from. None: they are the histories.
    has_target : bool
        The last item of each window is an evaluation target: it is not among the parts.
    recalibrate : bool
        Fit a new map, on noise injected into these windows. Ignored below MIN_TO_RECALIBRATE windows. If `fit` has
        estimated no noise rate, it is estimated here, or the map is kept where models score users they were tuned on.
    progress : Progress or None
        Called with (windows done, all windows, what is being done).
    cache : PartCache
        Keeps finished parts.
    width : int
        Histories of more items are too long, as in `prequential`.
    earlier : Windows, optional
        As in `prequential`.

    Returns
    -------
    log_odds : array of float
        [P, L] higher = more likely noise; NaN as in `score_windows`.
    calibrator : Calibrator
        The map to use for them.
    """
    config = ensemble.config
    untimed = int((windows.timestamps < 0).sum())
    if has_target and ensemble.builder.cooccurrence is not None and 0 < untimed < len(windows):
        log.warning(
            "%d of %d windows have no timestamp. They are scored with what was known before all others, and are not "
            "counted for them.", untimed, len(windows),
        )  # fmt: skip
    method = config.score.calibration
    recalibrate = recalibrate and len(windows) >= MIN_TO_RECALIBRATE
    draws = max(1, min(config.score.calibration_draws, MAX_INJECTED // max(1, len(parts))))
    rng = np.random.default_rng(config.seed + 2)
    log_odds, samples = np.full(parts.items.shape, np.nan), []
    for histories, step in prequential(ensemble.builder, windows, has_target, progress, width, earlier):
        rows = histories if origin is None else origin.windows_of(histories)
        part = parts.take(rows)
        log_odds[rows] = ensemble.log_odds(part, step, "score", cache)
        if recalibrate and method != "off":
            some = limit_windows(with_context(part), MAX_INJECTED, config.seed)
            if len(some):
                samples.append(injected_sample(ensemble, some, draws, rng, step, "score: injected noise", cache)[0])
    if samples and method != "off":
        noise, unlabeled = calibrate.join(samples), Sample.of(parts, log_odds)
        rates = _noise_rates(ensemble, calibrator, windows, noise, unlabeled)
        if rates is not None:
            calibrator = calibrate.fit(noise, unlabeled, method, rates)
    return log_odds, calibrator


def _noise_rates(
    ensemble: Ensemble, calibrator: Calibrator, windows: Windows, noise: Sample, unlabeled: Sample
) -> tuple[float, float] | None:
    """The rates that `fit` has estimated, else those of these windows; None where models have memorized their noise."""
    if not np.isnan(calibrator.noise_rate):
        return calibrator.rate_low, calibrator.rate_high
    if len(ensemble.models) == 1 and np.isin(user_hashes(windows.user_ids), ensemble.seen).any():
        log.warning(
            "Noise probabilities stay uncalibrated (%s): a single model scores users that it was tuned on, so their "
            "noise rate cannot be estimated. Use train.folds of 2 or more.", calibrator.uncalibrated or "no noise rate",
        )  # fmt: skip
        return None
    return calibrate.noise_rate_interval([(noise, unlabeled)], ensemble.config.score.atypical_share)
