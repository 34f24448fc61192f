"""Fit the calibration and the ranking of suggestions on validation windows with injected noise. No label is read.

The math of the calibration is in `calibrate.py`; here noise is injected and scored.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from llm4dsr.core.arrays import IntArray
from llm4dsr.core.cache import PartCache
from llm4dsr.core.hashing import user_hashes
from llm4dsr.core.progress import Progress, log, subprogress
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.denoise import calibrate
from llm4dsr.denoise.calibrate import Calibrator, Sample
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.denoise.noise_injection import inject
from llm4dsr.denoise.ranking import RankingWeights, fit_ranking_weights

MIN_WINDOWS = 20  # validation windows of two items below which nothing is calibrated
MIN_UNSEEN = 200  # validation windows of unseen users that are enough to calibrate on
MAX_INJECTED = 20_000  # most windows that noise is injected into


def fit_calibration(
    ensemble: Ensemble,
    windows: Windows,
    validation: Windows,
    progress: Progress | None,
    cache: PartCache,
) -> tuple[Calibrator, RankingWeights]:
    """Fit the map from log-odds to probabilities, and the weights that rank suggestions.

    Parameters
    ----------
    ensemble : Ensemble
        The tuned models.
    windows : Windows
        Training windows. With several folds they are scored out of fold and help to bound the noise rate.
    validation : Windows
        Validation histories. With a single fold, only users that the model has not seen are used, if there are enough.
    progress : Progress or None
        Called with (windows done, all windows, what is being done).
    cache : PartCache
        Keeps finished parts.

    Returns
    -------
    calibrator : Calibrator
        Without a map, and with the reason in `uncalibrated`, if calibration is off or validation too small. The latter
        is logged as a warning.
    ranking_weights : RankingWeights
        The defaults, where titles are generated.
    """
    config = ensemble.config
    if config.score.calibration == "off":
        return Calibrator(uncalibrated="score.calibration is off"), RankingWeights()
    windows, validation = with_context(windows), with_context(validation)
    if len(validation) < MIN_WINDOWS:
        why = f"{len(validation)} validation histories of at least two items; {MIN_WINDOWS} are needed"
        log.warning("Noise probabilities are uncalibrated: %s. They are the logistic function of the log-odds.", why)
        return Calibrator(uncalibrated=why), RankingWeights()
    out_of_fold = len(ensemble.models) > 1
    if not out_of_fold:
        new = np.flatnonzero(~np.isin(user_hashes(validation.user_ids), ensemble.seen))
        validation = validation.take(new) if len(new) >= MIN_UNSEEN else validation
    rng = np.random.default_rng(config.seed + 1)
    half = rng.random(len(validation)) < 0.5
    log_odds = ensemble.log_odds(validation, progress, "calibrate: unlabeled", cache)
    unlabeled, owner = Sample.of(validation, log_odds), np.nonzero(validation.present)[0]
    noise, source = injected_sample(
        ensemble, validation, config.score.calibration_draws, rng, progress, "calibrate: injected noise", cache
    )
    pairs = [(noise, unlabeled)]
    if out_of_fold:
        some = limit_windows(windows, MAX_INJECTED, config.seed)
        plain = Sample.of(some, ensemble.log_odds(some, progress, "calibrate: unlabeled, training", cache))
        training_noise, _ = injected_sample(
            ensemble, some, 1, rng, progress, "calibrate: injected noise, training", cache
        )
        pairs.append((training_noise, plain))
    rates = calibrate.noise_rate_interval(pairs, config.score.atypical_share)
    before, after = calibrate.injected_noise_ece(
        noise, unlabeled, config.score.calibration, (half[source], half[owner])
    )
    fitted = calibrate.fit(noise, unlabeled, config.score.calibration, rates)
    calibrator = dataclasses.replace(fitted, ece_before=before, ece_after=after)
    if config.model.item_input != "soft_token":
        return calibrator, RankingWeights()
    injected, chosen, _, originals = inject(validation, ensemble.catalogue, rng)
    rows = np.concatenate([rows for rows, members in ensemble.assignments(injected) if 0 in members])
    weights = fit_ranking_weights(
        ensemble.models[0],
        ensemble.builder,
        injected.take(rows),
        chosen[rows],
        originals[rows],
        ensemble.catalogue,
        config,
    )
    return calibrator, weights


def with_context(windows: Windows) -> Windows:
    """Return the windows of at least two items. In a single item, nothing tells noise from the rest."""
    return windows.take(np.flatnonzero(windows.lengths >= 2))


def injected_sample(
    ensemble: Ensemble,
    windows: Windows,
    draws: int,
    rng: np.random.Generator,
    progress: Progress | None,
    doing: str,
    cache: PartCache,
) -> tuple[Sample, IntArray]:
    """Inject noise into windows and score it.

    Parameters
    ----------
    ensemble : Ensemble
        The tuned models.
    windows : Windows
        Windows that get one injected item each, in every draw.
    draws : int
        How often.
    rng : Generator
        Draws positions and items.
    progress, doing, cache
        As in `Ensemble.log_odds`.

    Returns
    -------
    sample : Sample
        One injected item per window and draw.
    source : array of int
        The window of each.
    """
    samples, sources = [], []
    size = len(windows)
    for draw in range(draws):
        step = progress and subprogress(progress, draw * size, size, draws * size)
        injected, chosen, source, _ = inject(windows, ensemble.catalogue, rng)
        sample = Sample.of(injected, ensemble.log_odds(injected, step, doing, cache))
        samples.append(sample.take(chosen[injected.present]))
        sources.append(source)
    return calibrate.join(samples), np.concatenate(sources)
