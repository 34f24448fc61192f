"""Score windows in order of time, and map their log-odds to probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np

from llm4dsr.config import Config
from llm4dsr.core.arrays import BoolArray, FloatArray, IntArray
from llm4dsr.core.cache import PartCache
from llm4dsr.core.hashing import user_hashes
from llm4dsr.core.progress import Progress, log, subprogress
from llm4dsr.data.overlap import Origin
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.denoise import calibrate
from llm4dsr.denoise.calibrate import Calibrator, Rates, Sample
from llm4dsr.denoise.ensemble import Ensemble, ScorePart
from llm4dsr.denoise.injected import MAX_INJECTED, injected_copies, with_context
from llm4dsr.denoise.noise_rate import noise_rate_intervals
from llm4dsr.denoise.prequential import prequential

MIN_TO_RECALIBRATE = 1_000  # windows below which probabilities keep the map of `fit`


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
    keep: PartCache | None = None,
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
    keep : PartCache, optional
        Gets the states of what is scored, for suggesting; not of long histories, whose parts overlap.

    Returns
    -------
    log_odds : array of float
        [n] of the parts, higher = more likely noise; NaN as in `score_windows`.
    calibrator : Calibrator
        The map to use for them.
    """
    config = ensemble.config
    untimed = int((windows.timestamps < 0).sum())
    if has_target and ensemble.counts is not None and 0 < untimed < len(windows):
        log.warning(
            "%d of %d windows have no timestamp. They are scored with what was known before all others, and are not "
            "counted for them.", untimed, len(windows),
        )  # fmt: skip
    log_odds, samples = np.full(len(parts.items), np.nan), list[list[Sample]]()
    count = len(calibrate.KINDS) * _draws(config, parts)
    steps = _steps(ensemble, windows, parts, origin, has_target, recalibrate, progress, width, earlier)
    for rows, by_then, copies, step in steps:
        log_odds[parts.interactions(rows)] = by_then.log_odds(
            parts.take(rows), has_target, step, "score", cache, None if origin else keep
        )
        found: list[list[Sample]] = [[] for _ in calibrate.KINDS]
        for i, (kind, copy, chosen) in enumerate(copies):
            of_copy = step and subprogress(step, i, 1, count)
            values = by_then.log_odds(copy, has_target, of_copy, "score: injected noise", cache)
            found[kind].append(Sample.of(copy, values).take(chosen))
        if found[0]:
            samples.append([calibrate.join(of_kind) for of_kind in found])
    if samples and config.score.calibration != "off":
        noise = [calibrate.join(of_kind) for of_kind in zip(*samples, strict=True)]
        unlabeled = Sample.of(parts, log_odds)
        rates = _noise_rates(ensemble, calibrator, windows, noise, unlabeled)
        if rates is not None:
            calibrator = calibrate.fit(noise, unlabeled, config.score.calibration, rates)
    return log_odds, calibrator


def parts_to_score(
    ensemble: Ensemble,
    windows: Windows,
    parts: Windows,
    origin: Origin | None,
    has_target: bool,
    recalibrate: bool,
    width: int,
    earlier: Windows | None = None,
) -> Iterator[tuple[Ensemble, ScorePart]]:
    """Yield all that `score_prequentially` scores with these arguments: (the ensemble of its time, the part)."""
    for rows, by_then, copies, _ in _steps(
        ensemble, windows, parts, origin, has_target, recalibrate, None, width, earlier
    ):
        for some in chain([parts.take(rows)], (copy for _, copy, _ in copies)):
            for _, part in by_then.parts(some, has_target):
                yield by_then, part


def _steps(
    ensemble: Ensemble,
    windows: Windows,
    parts: Windows,
    origin: Origin | None,
    has_target: bool,
    recalibrate: bool,
    progress: Progress | None,
    width: int,
    earlier: Windows | None,
) -> Iterator[tuple[IntArray, Ensemble, Iterator[tuple[int, Windows, BoolArray]], Progress | None]]:
    """Yield (rows of the parts, the ensemble of their time, `injected_copies` of them, progress). Nothing is scored."""
    config = ensemble.config
    recalibrate = recalibrate and len(windows) >= MIN_TO_RECALIBRATE and config.score.calibration != "off"
    rng = np.random.default_rng(config.seed + 2)
    for histories, by_then, step in prequential(ensemble, windows, has_target, progress, width, earlier):
        rows = histories if origin is None else origin.windows_of(histories)
        copies: Iterator[tuple[int, Windows, BoolArray]] = iter(())
        if recalibrate:
            some = limit_windows(with_context(parts.take(rows)), MAX_INJECTED, config.seed)
            copies = injected_copies(by_then, some, _draws(config, parts), rng) if len(some) else copies
        yield rows, by_then, copies, step


def _draws(config: Config, parts: Windows) -> int:
    """Copies of each kind of noise."""
    return max(1, min(config.score.calibration_draws, MAX_INJECTED // max(1, len(parts))))


def _noise_rates(
    ensemble: Ensemble, calibrator: Calibrator, windows: Windows, noise: list[Sample], unlabeled: Sample
) -> Rates | None:
    """The rates that `fit` has estimated, else those of these windows; None where models have memorized their noise."""
    if not np.isnan(calibrator.noise_rate):
        return calibrator.rates
    if len(ensemble.models) == 1 and np.isin(user_hashes(windows.user_ids), ensemble.seen).any():
        log.warning(
            "Noise probabilities stay uncalibrated (%s): a single model scores users that it was tuned on, so their "
            "noise rate cannot be estimated. Use train.folds of 2 or more.", calibrator.uncalibrated or "no noise rate",
        )  # fmt: skip
        return None
    return noise_rate_intervals([(noise, unlabeled)], ensemble.config.score.atypical_share)
