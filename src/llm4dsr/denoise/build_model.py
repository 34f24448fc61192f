"""Making a model that is ready to be tuned: loaded, or embedded and taught the titles first."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from llm4dsr.config import EMBEDDED, Config
from llm4dsr.core.device import pick_device, seeded
from llm4dsr.core.progress import Progress
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.train import next_token_loss
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.lm.collate import collate, token_batches
from llm4dsr.lm.embedded import embedded_lm
from llm4dsr.lm.load import add_lora, load_lm
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.passes import pass_tokens_of
from llm4dsr.lm.prefix_tree import check_scores
from llm4dsr.lm.prompt import PromptBuilder, is_bidirectional


def build_model(
    config: Config,
    catalogue: Catalogue,
    windows: Windows,
    vectors: Any,
    cooccurrence: CooccurrenceCounts | None,
    seed: int,
    progress: Progress | None = None,
    begun: bool = False,
) -> tuple[NoiseLM, PromptBuilder]:
    """Make or load a model that is ready to be tuned, and the builder of its prompts.

    Parameters
    ----------
    config : Config
        All options.
    catalogue : Catalogue
        The items.
    windows : Windows
        Training windows, for pre-training the embedded model on titles.
    vectors : array of float or None
        [N, V] title vectors, for soft tokens.
    cooccurrence : CooccurrenceCounts or None
        Counts behind the co-occurrence features.
    seed : int
        Seed of the initial weights.
    progress : Progress, optional
        Called with (steps done, all steps, what is being done).
    begun : bool, default False
        A checkpoint has the weights, so pre-training is skipped.

    Returns
    -------
    model : NoiseLM
    builder : PromptBuilder
    """
    if config.model.source == EMBEDDED:
        lm, tokenizer = embedded_lm(catalogue.titles, config.model, config.train.max_tokens, seed)
    else:
        lm, tokenizer = load_lm(config.model.source, config.model)
    with seeded(seed):
        model = NoiseLM(lm, tokenizer, vectors, cooccurrence is not None, is_bidirectional(config.model))
        model = model.to(pick_device())
        builder = PromptBuilder(tokenizer, catalogue.titles, config.model, config.train.max_tokens, cooccurrence)
        if config.model.source != EMBEDDED:
            check_scores(model, builder)
        elif config.model.item_input == "title" and not begun:
            pretrain_lm(model, builder, windows, config, progress)
        if config.model.tuning == "lora" and not hasattr(model.lm, "peft_config"):
            model.lm = add_lora(model.lm, config.model)
    return model, builder


def pretrain_lm(
    model: NoiseLM, builder: PromptBuilder, windows: Windows, config: Config, progress: Progress | None = None
) -> None:
    """Train the embedded model as a language model on the training histories (item_input: title), before the task."""
    rng = np.random.default_rng(config.seed)
    optimizer = torch.optim.AdamW(model.trainable(), lr=config.train.learning_rate)
    size, budget = config.train.batch_windows, pass_tokens_of(model, config)
    steps = -(-len(windows) // size)
    model.train()
    for epoch in range(config.model.pretrain_epochs):
        order = rng.permutation(len(windows))
        for step in range(steps):
            rows = [builder.prompt(windows.row(i)) for i in order[step * size : (step + 1) * size]]
            count = sum(len(r) - 1 for r in rows)
            for group in token_batches([len(r) for r in rows], budget):
                part = [rows[i] for i in group]
                batch = collate(part, model.device)
                spans = [(i, t) for i, r in enumerate(part) for t in range(1, len(r))]
                (next_token_loss(model, model.hidden(batch), batch.ids, spans) / count).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.trainable(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if progress:
                progress(
                    epoch * steps + step + 1, steps * config.model.pretrain_epochs, "warm up on titles and histories"
                )
