"""Fit the calibration and the ranking of suggestions on validation windows with injected noise. No label is read.

The math of the calibration is in `calibrate.py`; here noise is injected and scored.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from llm4dsr.core.cache import PartCache
from llm4dsr.core.hashing import user_hashes
from llm4dsr.core.progress import Progress, log
from llm4dsr.data.windows import Windows, limited_rows
from llm4dsr.denoise import calibrate
from llm4dsr.denoise.calibrate import Calibrator, Rates
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.denoise.injected import MAX_INJECTED, ScoredWindows, with_context
from llm4dsr.denoise.noise_injection import inject, task_rate
from llm4dsr.denoise.noise_rate import noise_rate_intervals
from llm4dsr.denoise.prequential import prequential
from llm4dsr.denoise.ranking import RankingWeights, fit_ranking_weights
from llm4dsr.denoise.stacking import MIN_INJECTED
from llm4dsr.denoise.training_labels import NO_LABELS, UNLABELED, TrainingLabels
from llm4dsr.features.cooccurrence import CooccurrenceCounts

ENOUGH = 3 * MIN_INJECTED  # injected interactions of training windows; few windows get several draws of noise
MAX_DRAWS = 10
MIN_WINDOWS = 20  # validation windows of two items below which nothing is calibrated
MIN_UNSEEN = 200  # validation windows of unseen users that are enough to calibrate on


def fit_calibration(
    ensemble: Ensemble,
    windows: Windows,
    validation: Windows,
    progress: Progress | None,
    cache: PartCache,
    counts_before: CooccurrenceCounts | None = None,
    labels: TrainingLabels = NO_LABELS,
    rates: Rates | None = None,
) -> tuple[Ensemble, Calibrator, RankingWeights]:
    """Fit the map from log-odds to probabilities, and the weights that rank suggestions.

    Parameters
    ----------
    ensemble : Ensemble
        The tuned models. Stackers that it has stay where they find the noise of these windows better than new ones.
    windows : Windows
        Training windows. With several folds they are scored out of fold and help to bound the noise rate.
    validation : Windows
        Validation histories. With a single fold, only users that the model has not seen are used, if there are enough.
    progress : Progress or None
        Called with (windows done, all windows, what is being done).
    cache : PartCache
        Keeps finished parts.
    counts_before : CooccurrenceCounts, optional
        Counts from before validation. Default: those of the ensemble, which then does not know validation.
    labels : TrainingLabels, optional
        Reviewed items, which stackers learn from.
    rates : sequence of (float, float, float), optional
        The noise rates of each kind, where they are known from more windows. Default: estimated.

    Returns
    -------
    ensemble : Ensemble
        With its stackers, if the configuration has any.
    calibrator : Calibrator
        Without a map, and with the reason in `uncalibrated`, if calibration is off or validation too small. The latter
        is logged as a warning.
    ranking_weights : RankingWeights
        The defaults, where titles are generated.
    """
    config = ensemble.config
    if config.score.calibration == "off":
        return ensemble, Calibrator(uncalibrated="score.calibration is off"), RankingWeights()
    windows, validation = with_context(windows), with_context(validation)
    if len(validation) < MIN_WINDOWS:
        why = f"{len(validation)} validation histories of at least two items; {MIN_WINDOWS} are needed"
        log.warning("Noise probabilities are uncalibrated: %s. They are the logistic function of the log-odds.", why)
        return ensemble, Calibrator(uncalibrated=why), RankingWeights()
    out_of_fold = len(ensemble.models) > 1
    if not out_of_fold:
        new = np.flatnonzero(~np.isin(user_hashes(validation.user_ids), ensemble.seen))
        if len(new) < min(MIN_UNSEEN, len(validation)):
            log.warning(
                "Noise probabilities are calibrated on users that the single model was tuned on, so they may be far "
                "off: %d of %d validation histories are of other users; %d are needed. Use train.folds of 2 or more.",
                len(new), len(validation), MIN_UNSEEN,
            )  # fmt: skip
        validation = validation.take(new) if len(new) >= MIN_UNSEEN else validation
    rng = np.random.default_rng(config.seed + 1)
    newer, draws = ScoredWindows(), config.score.calibration_draws
    then = ensemble if counts_before is None else ensemble.with_counts(counts_before)
    for rows, by_then, step in prequential(then, validation, True, progress):
        newer.add(by_then, validation.take(rows), rows, draws, rng, step, "calibrate", cache)
    rate = task_rate(config.task, windows)
    for_newer = for_training = newer.fit_stacker(config.task, rate, config.seed, labels)
    half, pairs = rng.random(len(validation)) < 0.5, []
    if out_of_fold:
        training, some = ScoredWindows(), _sampled(windows, labels, config.seed)
        draws = int(np.clip(ENOUGH / len(some), 1, MAX_DRAWS)) if ensemble.is_stacked else 1
        training.add(ensemble, some, np.arange(len(some)), draws, rng, progress, "calibrate: training", cache,
                     validation)  # fmt: skip
        for_training = training.fit_stacker(config.task, rate, config.seed, labels)
        for_training = training.better(ensemble.stacker_training, for_training)
        for_newer = for_newer or newer.better(for_training, None)
        pairs.append(training.samples(for_training)[:2])
    for_newer = newer.better(ensemble.stacker_newer, for_newer)
    noise, unlabeled, source, owner = newer.samples(for_newer)
    pairs.append((noise, unlabeled))
    rates = noise_rate_intervals(pairs, config.score.atypical_share) if rates is None else rates
    before, after = calibrate.injected_noise_ece(
        noise[0], unlabeled, config.score.calibration, (half[source], half[owner])
    )
    fitted = calibrate.fit(noise, unlabeled, config.score.calibration, rates)
    ensemble = dataclasses.replace(ensemble, stacker_newer=for_newer, stacker_training=for_training)
    calibrator = dataclasses.replace(fitted, ece_before=before, ece_after=after)
    if config.model.item_input != "soft_token":
        return ensemble, calibrator, RankingWeights()
    injected, chosen, _, originals = inject(validation, ensemble.injectable(validation), rng)
    assigned = ensemble.assignments(injected)
    member = min(min(members) for _, members in assigned)  # with few users, some models score none of them
    rows = np.concatenate([rows for rows, members in assigned if member in members])
    weights = fit_ranking_weights(
        ensemble.models[member],
        ensemble.builder,
        injected.take(rows),
        chosen[injected.interactions(rows)],
        originals[rows],
        ensemble.catalogue,
        config,
    )
    return ensemble, calibrator, weights


def _sampled(windows: Windows, labels: TrainingLabels, seed: int) -> Windows:
    """A sample of at most MAX_INJECTED windows, and all windows with a label."""
    labeled = windows.owners[labels.find(windows) != UNLABELED]
    return windows.take(np.union1d(limited_rows(windows, MAX_INJECTED, seed), labeled))
