"""A small model that reads and writes titles as text: what study grounding sets beside the nearest vector."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from llm4dsr import columns as c
from llm4dsr.config import EMBEDDED, Config, ModelConfig, TaskConfig, TrainConfig
from llm4dsr.data import Data
from llm4dsr.denoiser import Denoiser
from llm4dsr.studies.budget import sample
from llm4dsr.studies.study import Context

WINDOWS, QUICK = (2_500, 600, 800), (64, 20, 40)  # of train, valid and test


def text_sample(context: Context) -> Data:
    """The windows of the text model: a seeded sample of each split."""
    sizes = QUICK if context.quick else WINDOWS
    return sample(context.suite.data, *sizes, context.config.seed)


def text_denoiser(context: Context) -> Denoiser:
    """It names the noisy title. Tuned on `text_sample`; its weights are kept in `text_work`.

    The model is a small embedded one, or context.config.model.source where that is another."""
    data = text_sample(context)
    return Denoiser(_config(context)).fit(
        data.splits[c.TRAIN], data.catalogue, data.splits[c.VALID].histories(), context.progress, text_work(context),
    )  # fmt: skip


def text_work(context: Context) -> Path | None:
    """Where the weights and suggestions of the text model are kept."""
    return context.shards("text-title").folder


def _config(context: Context) -> Config:
    given = context.config
    model, train = given.model, dataclasses.replace(given.train, folds=1)
    if given.model.source == EMBEDDED:  # about four minutes on one core for the sample of Toys
        model = ModelConfig(hidden_size=128, layers=2)
        train = TrainConfig(epochs=3, folds=1, batch_windows=32, batch_tokens=8_192, max_tokens=1_024,
                            learning_rate=2e-3)  # fmt: skip
        if context.quick:
            model = dataclasses.replace(model, hidden_size=32, layers=1, heads=2)
            train = dataclasses.replace(train, epochs=1)
    return dataclasses.replace(
        given,
        model=dataclasses.replace(model, items="text", answer="title"),
        task=TaskConfig(replaced=1),  # published: one foreign item in each window
        train=train,
        score=dataclasses.replace(given.score, calibration="off"),  # it is asked for titles alone
    )
