"""Training of LLaRA: a SASRec first, then the language model, on prompts of text alone that become mixed ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.batch import attempt, collate, less, pick_device, precision, seeded, token_batches
from llm4dsr.catalogue import Catalogue, FloatArray, Windows
from llm4dsr.config import EMBEDDED, LLaRAConfig, RecommenderConfig
from llm4dsr.data import limit_windows
from llm4dsr.errors import ModelError
from llm4dsr.metrics import ndcg
from llm4dsr.model import add_lora, embedded_lm, load_lm
from llm4dsr.prompt import Tokens
from llm4dsr.recommenders.backbone import Backbone
from llm4dsr.recommenders.llara import HEAD, MAX_TOKENS, TAIL, LLaRA, MixedLM
from llm4dsr.recommenders.sasrec import SASRec
from llm4dsr.recommenders.training import VALIDATION_K, Progress, Trained, train

WARMUP = 20  # the learning rate rises for one step of so many, and falls to 0 in the others


def fit_llara(windows: Windows, valid: Windows, catalogue: Catalogue, recommender: RecommenderConfig,
              config: LLaRAConfig, seed: int, progress: Progress | None = None) -> Trained:  # fmt: skip
    """Trains a SASRec on all windows, then tunes the language model on a sample of them; gives back its best epoch.

    The best epoch has the highest NDCG@20, in the whole catalogue, on a sample of the validation windows. Where
    `windows.weights` is given, the loss of a title is multiplied by its interaction's weight. Seed, device and
    `progress` as in `training.train`, SASRec's epochs first. Raises DataError as `train` does, ModelError where the
    language model cannot be loaded or its loss is no number.
    """
    started = time.perf_counter()
    total = recommender.epochs + config.epochs

    def first(epoch: int, _: int, doing: str) -> None:
        if progress:
            progress(epoch, total, f"SASRec: {doing}")

    sasrec = train(SASRec, windows, valid, len(catalogue), recommender, seed, first).model
    assert isinstance(sasrec, Backbone)
    windows = limit_windows(windows.take(np.flatnonzero(windows.lengths >= 2)), config.samples, seed)
    valid = limit_windows(valid.take(np.flatnonzero(valid.lengths >= 2)), config.validation, seed)
    histories, wanted = valid.histories(), valid.targets()
    with seeded(seed):  # initial weights and dropout
        model = LLaRA(language_model(catalogue, sasrec.item_vectors.detach(), config, seed), sasrec, catalogue, config)
        best, curve, state = 0, list[float](), dict[str, Tensor]()
        for epoch, loss in enumerate(tune(model, windows, seed)):
            ranks = model.rank(histories, wanted)
            curve.append(ndcg(ranks, VALIDATION_K))
            if curve[epoch] >= curve[best]:  # of two that are alike, the one that has learnt for longer
                best, best_ranks = epoch, ranks
                state = {k: p.detach().clone() for k, p in model.lm.named_parameters() if p.requires_grad}
            if progress:
                message = f"LLaRA: loss {loss:.4f}, validation NDCG@{VALIDATION_K} {curve[epoch]:.4f}"
                progress(recommender.epochs + epoch + 1, total, message)
    model.lm.load_state_dict(state, strict=False)
    return Trained(model, curve, best, time.perf_counter() - started, best_ranks)


def language_model(catalogue: Catalogue, vectors: Tensor, config: LLaRAConfig, seed: int) -> MixedLM:
    """The model of `config.model`, ready to be tuned. vectors: [N, d] of the catalogue's items."""
    settings = config.language_model
    if settings.source == EMBEDDED:
        from tokenizers import AddedToken

        lm, tokenizer = embedded_lm(catalogue.titles, settings, MAX_TOKENS, seed)
        # Each fixed phrase is one token, as those of the denoiser's prompt are.
        tokenizer.add_tokens([AddedToken(p, single_word=True, normalized=False) for p in (HEAD, TAIL)])
        lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    else:
        lm, tokenizer = load_lm(settings.source, settings)
    if settings.tuning == "lora" and not hasattr(lm, "peft_config"):
        lm = add_lora(lm, settings)
    return MixedLM(lm, tokenizer, vectors).to(pick_device())


def tune(model: LLaRA, windows: Windows, seed: int) -> Iterator[float]:
    """Tunes `model` in place, one epoch for each mean loss that is taken.

    A window is mixed with a probability that rises from 0 to 1 (the curriculum of the paper). Only the answer
    is learnt; but the embedded model, which knows no language yet, learns from all titles in its first
    `model.warmup_epochs` epochs.
    """
    config, rng = model.config, np.random.default_rng(seed)
    warm = config.model.warmup_epochs if config.model.source == EMBEDDED else 0
    parameters = model.lm.trainable()
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate)
    scaler = torch.amp.GradScaler("cuda", enabled=config.model.dtype == "fp16" and model.lm.device.type == "cuda")
    steps, budget = -(-len(windows) // config.batch_windows), config.batch_tokens
    total, done = steps * config.epochs, 0
    for epoch in range(config.epochs):
        losses = []
        model.lm.train()
        for rows in np.array_split(rng.permutation(len(windows)), steps):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * min((done + 1) * WARMUP / total, 1 - done / total)
            mixed = rng.random(len(rows)) < done / max(1, total - 1)
            examples = [model.example(windows, int(w), bool(m), epoch < warm) for w, m in zip(rows, mixed, strict=True)]
            loss, budget = _backward(model, examples, budget, scaler)
            losses.append(loss)
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            done += 1
        yield float(np.mean(losses))


def _backward(model: LLaRA, examples: list[tuple[Tokens, FloatArray]], budget: int, scaler: Any) -> tuple[float, int]:
    """The gradients of one step, in passes of `budget` tokens; returns its loss, the mean over the tokens that are
    learnt, and the budget for the next."""
    count = sum(int(np.isfinite(weights).sum()) for _, weights in examples)

    def passes() -> float:
        total = 0.0
        for group in token_batches([len(tokens) for tokens, _ in examples], budget):
            with precision(model.config.model.dtype, model.lm.device):
                loss = _losses(model.lm, [examples[i] for i in group]).sum() / count
            scaler.scale(loss).backward()
            total += float(loss.detach())
        return total

    while (loss := attempt(passes)) is None:
        budget = less(budget)
        model.lm.zero_grad()
    if not np.isfinite(loss):
        raise ModelError(
            "LLaRA: the loss is no longer a number. Lower evaluate.llara.learning_rate, or use dtype: bf16."
        )
    return loss, budget


def _losses(lm: MixedLM, examples: list[tuple[Tokens, FloatArray]]) -> Tensor:
    """[tokens that are learnt] weighted cross-entropy of each, given all that stands before it."""
    batch = collate([tokens for tokens, _ in examples], lm.device)
    learnt = [np.flatnonzero(np.isfinite(weights)) for _, weights in examples]
    row = np.repeat(np.arange(len(examples)), [len(at) for at in learnt])
    column = np.concatenate(learnt)
    weights = np.concatenate([w[at] for (_, w), at in zip(examples, learnt, strict=True)])
    hidden = lm.hidden(batch)[row, column - 1]
    losses = F.cross_entropy(lm.logits(hidden), batch.ids[row, column], reduction="none")
    return losses * torch.from_numpy(weights).to(losses)
