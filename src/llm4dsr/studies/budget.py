"""Fewer windows and fewer steps, for studies that tune many models."""

from __future__ import annotations

import dataclasses

import polars as pl

from llm4dsr import columns as c
from llm4dsr.batch import Progress
from llm4dsr.company import user_hashes
from llm4dsr.config import Config
from llm4dsr.data import Data, limit_windows
from llm4dsr.denoiser import Denoiser
from llm4dsr.shards import Shards, versions

BATCH = 64  # windows per optimizer step: of a few thousand windows, steps of 256 would be too few to learn from


def sample(data: Data, train: int, valid: int, test: int, seed: int) -> Data:
    """The same catalogue, and at most so many windows of each split."""
    sizes = {c.TRAIN: train, c.VALID: valid, c.TEST: test}
    return Data(data.catalogue, {name: limit_windows(w, sizes[name], seed) for name, w in data.splits.items()})


def budget(config: Config, epochs: int, folds: int) -> Config:
    """At most so many epochs and folds; smaller steps; self-made noise for the calibration is drawn once."""
    train = dataclasses.replace(config.train, epochs=min(epochs, config.train.epochs),
                                folds=min(folds, config.train.folds),
                                batch_windows=min(BATCH, config.train.batch_windows))  # fmt: skip
    return dataclasses.replace(config, train=train, score=dataclasses.replace(config.score, calibration_draws=1))


def scores_of(data: Data, config: Config, shards: Shards, progress: Progress | None = None,
              splits: tuple[str, ...] = c.SPLITS) -> dict[str, pl.DataFrame]:  # fmt: skip
    """Scores of these splits (`Denoiser.score`) by a denoiser that is tuned on these very windows. The scores are kept
    in `shards`; the models are not, since a study has dozens of them. Probabilities are by the map of validation."""
    windows = [part for w in data.splits.values() for part in (w.items, user_hashes(w.user_ids), w.timestamps)]
    key = (versions(), config.seed, config.model, config.task, config.train, config.score, data.catalogue.titles,
           *windows, splits)  # fmt: skip

    def make() -> pl.DataFrame:
        denoiser = Denoiser(config)
        denoiser.fit(data.splits[c.TRAIN], data.catalogue, data.splits[c.VALID].histories(), progress)
        parts = []
        for name in c.SPLITS:
            here = data.splits[name]
            if name in splits:
                scores = denoiser.score(here, progress, target_fixed=name != c.TRAIN)
                wanted = (c.WINDOW, c.POSITION, c.LOG_ODDS, c.NOISE_PROBABILITY, c.RANK)
                parts.append(scores.select(*wanted, split=pl.lit(name)))
            if name == c.VALID:  # known by the time of test, scored or not
                denoiser.observe(here)
        return pl.concat(parts)

    kept = shards.table(key, make)
    return {name: kept.filter(pl.col("split") == name).drop("split") for name in splits}
