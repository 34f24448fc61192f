"""Going on from a tuned model: a copy of its weights, and which options it must share with the former."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import numpy.typing as npt
import torch

from llm4dsr.config import Config
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.errors import ConfigError
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prompt import PromptBuilder

FREE = ("pretrain_epochs",)  # options of `model` that a tuned model no longer needs


def check_start(former: Config, config: Config) -> None:
    """Compare options with those of a former model that tuning is to start from.

    Its weights need the same model. Its users need the same folds: with others, a model would score users that it was
    tuned on.

    Raises
    ------
    ConfigError
        Names the options that differ, with both values.
    """
    names = [("model", field.name) for field in fields(config.model) if field.name not in FREE] + [("train", "folds")]
    pairs = [(f"{part}.{name}", getattr(getattr(former, part), name), getattr(getattr(config, part), name))
             for part, name in names]  # fmt: skip
    different = [f"{name} is {there!r} there and {here!r} here" for name, there, here in pairs if there != here]
    if different:
        raise ConfigError(
            f"The model to start from has other options: {'; '.join(different[:3])}. Give the same options, or train "
            "without it."
        )


def continued_model(
    former: NoiseLM,
    config: Config,
    catalogue: Catalogue,
    vectors: npt.NDArray[np.float32] | None,
    cooccurrence: CooccurrenceCounts | None,
) -> tuple[NoiseLM, PromptBuilder]:
    """Return a copy of a tuned model that can be tuned further, and the builder of its prompts.

    Other arguments are as in `build_model`; `vectors` are in the space of those of the former model.
    """
    model = former.copied(None if vectors is None else torch.from_numpy(vectors).to(former.device))
    builder = PromptBuilder(model.tokenizer, catalogue.titles, config.model, config.train.max_tokens, cooccurrence)
    return model, builder
