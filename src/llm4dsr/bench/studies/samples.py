"""Fewer windows and fewer steps, for studies that tune many models."""

from __future__ import annotations

import dataclasses

import polars as pl

from llm4dsr import columns as c
from llm4dsr.config import Config
from llm4dsr.core.cache import PartCache
from llm4dsr.core.hashing import user_hashes, versions
from llm4dsr.core.progress import Progress
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import limit_windows
from llm4dsr.denoiser import Denoiser

BATCH = 64  # windows per optimizer step: of a few thousand windows, steps of 256 would be too few to learn from


def sample(data: Dataset, train: int, valid: int, test: int, seed: int) -> Dataset:
    """Return the same catalogue with at most so many windows of each split."""
    sizes = {c.TRAIN: train, c.VALID: valid, c.TEST: test}
    return Dataset(data.catalogue, {name: limit_windows(w, sizes[name], seed) for name, w in data.splits.items()})


def budget(config: Config, epochs: int, folds: int) -> Config:
    """Limit epochs and folds, with smaller steps and one draw of injected noise for the calibration."""
    train = dataclasses.replace(config.train, epochs=min(epochs, config.train.epochs),
                                folds=min(folds, config.train.folds),
                                batch_windows=min(BATCH, config.train.batch_windows))  # fmt: skip
    return dataclasses.replace(config, train=train, score=dataclasses.replace(config.score, calibration_draws=1))


def scores_of(
    data: Dataset,
    config: Config,
    cache: PartCache,
    progress: Progress | None = None,
    splits: tuple[str, ...] = c.SPLITS,
) -> dict[str, pl.DataFrame]:
    """Score splits with a denoiser that is tuned on these very windows.

    The scores are kept in `cache`; the models are not, since a study has dozens of them. Probabilities use the map of
    validation.
    """
    windows = [
        part for w in data.splits.values() for part in (w.items, w.lengths, user_hashes(w.user_ids), w.timestamps)
    ]
    key = (versions(), config.seed, config.model, config.task, config.train, config.score, data.catalogue.titles,
           *windows, splits)  # fmt: skip

    def make() -> pl.DataFrame:
        denoiser = Denoiser(config)
        denoiser.fit(data.splits[c.TRAIN], data.catalogue, data.splits[c.VALID].histories(), progress)
        parts = []
        for name in c.SPLITS:
            here = data.splits[name]
            if name in splits:
                scores = denoiser.score(here, progress, has_target=name != c.TRAIN)
                wanted = (c.WINDOW, c.POSITION, c.LOG_ODDS, c.NOISE_PROBABILITY, c.RANK)
                parts.append(scores.select(*wanted, split=pl.lit(name)))
            if name == c.VALID:  # known by the time of test, scored or not
                denoiser.update_counts(here)
        return pl.concat(parts)

    kept = cache.table(key, make)
    return {name: kept.filter(pl.col("split") == name).drop("split") for name in splits}
