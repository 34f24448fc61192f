"""Training of LLaRA: first a SASRec, then the language model, on prompts that change from text-only to hybrid."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.config import EMBEDDED, LLaRAConfig, RecommenderConfig
from llm4dsr.core.arrays import FloatArray
from llm4dsr.core.device import fp32_weights, halve_budget, pick_device, precision, run_or_oom, seeded
from llm4dsr.core.progress import Progress
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.errors import ModelError
from llm4dsr.lm.collate import collate, token_batches
from llm4dsr.lm.embedded import embedded_lm
from llm4dsr.lm.load import add_lora, load_lm
from llm4dsr.lm.tokens import Tokens
from llm4dsr.metrics import ndcg
from llm4dsr.recommenders.backbone import Backbone
from llm4dsr.recommenders.llara import HEAD, MAX_TOKENS, TAIL, HybridLM, LLaRA
from llm4dsr.recommenders.sasrec import SASRec
from llm4dsr.recommenders.training import VALIDATION_K, Trained, train

WARMUP_DIVISOR = 20  # the learning rate rises during the first 1 / 20 of the steps, and falls to 0 over all of them


def fit_llara(
    windows: Windows,
    valid: Windows,
    catalogue: Catalogue,
    recommender: RecommenderConfig,
    config: LLaRAConfig,
    seed: int,
    progress: Progress | None = None,
) -> Trained:
    """Train a SASRec on all windows, then tune the language model on a sample of them.

    The best epoch has the highest NDCG@20 on a sample of the validation windows, among the whole catalogue.

    Parameters
    ----------
    windows : Windows
        Training windows, targets included. Those of fewer than two items are skipped. If windows have weights, the loss
        of a title is multiplied by the weight of its interaction.
    valid : Windows
        Validation windows, targets included.
    catalogue : Catalogue
        The items to rank.
    recommender : RecommenderConfig
        Options of the SASRec.
    config : LLaRAConfig
        Options of the language model.
    seed : int
        Seed of the SASRec, the samples, initial weights, dropout, order of windows, and curriculum.
    progress : Progress, optional
        Called after each epoch with (epochs done, most epochs, message); SASRec's epochs come first.

    Returns
    -------
    Trained
        The model of the best epoch.

    Raises
    ------
    DataError
        If no training or no validation window has two items.
    ModelError
        If the language model cannot be loaded, or its loss is no longer finite.
    """
    started = time.perf_counter()
    total = recommender.epochs + config.epochs

    def sasrec_progress(epoch: int, _: int, doing: str) -> None:
        if progress:
            progress(epoch, total, f"SASRec: {doing}")

    sasrec = train(SASRec, windows, valid, len(catalogue), recommender, seed, sasrec_progress).model
    assert isinstance(sasrec, Backbone)
    windows = limit_windows(windows.take(np.flatnonzero(windows.lengths >= 2)), config.samples, seed)
    valid = limit_windows(valid.take(np.flatnonzero(valid.lengths >= 2)), config.validation, seed)
    histories, targets = valid.histories(), valid.targets()
    with seeded(seed):  # initial weights and dropout
        lm = build_hybrid_lm(catalogue, sasrec.item_vectors.detach(), config, seed)
        model = LLaRA(lm, sasrec, catalogue, config)
        best, curve, state = 0, list[float](), dict[str, Tensor]()
        with fp32_weights(model.lm.trainable()):
            for epoch, loss in enumerate(tune(model, windows, seed)):
                ranks = model.rank(histories, targets)
                curve.append(ndcg(ranks, VALIDATION_K))
                if curve[epoch] >= curve[best]:  # of equal epochs the last, which has been trained for longer
                    best, best_ranks = epoch, ranks
                    state = {k: p.detach().clone() for k, p in model.lm.named_parameters() if p.requires_grad}
                if progress:
                    message = f"LLaRA: loss {loss:.4f}, validation NDCG@{VALIDATION_K} {curve[epoch]:.4f}"
                    progress(recommender.epochs + epoch + 1, total, message)
    model.lm.load_state_dict(state, strict=False)
    return Trained(model, curve, best, time.perf_counter() - started, best_ranks)


def build_hybrid_lm(catalogue: Catalogue, vectors: Tensor, config: LLaRAConfig, seed: int) -> HybridLM:
    """Make or load the language model of `config.model`, ready to be tuned.

    Parameters
    ----------
    catalogue : Catalogue
        The items; the tokenizer of an embedded model is fitted to their titles.
    vectors : Tensor of float
        [N, d] item vectors of the catalogue.
    config : LLaRAConfig
        Options of LLaRA.
    seed : int
        Seed of an embedded model's initial weights.

    Returns
    -------
    HybridLM
        On the GPU if there is one.

    Raises
    ------
    ModelError
        If the model cannot be loaded.
    """
    settings = config.language_model
    if settings.source == EMBEDDED:
        from tokenizers import AddedToken

        lm, tokenizer = embedded_lm(catalogue.titles, settings, MAX_TOKENS, seed)
        # Each fixed phrase is one token, like those of the denoiser's prompt.
        tokenizer.add_tokens([AddedToken(p, single_word=True, normalized=False) for p in (HEAD, TAIL)])
        lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    else:
        lm, tokenizer = load_lm(settings.source, settings)
    if settings.tuning == "lora" and not hasattr(lm, "peft_config"):
        lm = add_lora(lm, settings)
    return HybridLM(lm, tokenizer, vectors).to(pick_device())


def tune(model: LLaRA, windows: Windows, seed: int) -> Iterator[float]:
    """Tune a model in place, one epoch for each value taken from the iterator.

    The prompt of a window is hybrid with a probability that rises from 0 to 1 over the steps (curriculum prompt
    tuning). Only the answer is learned. An embedded model, which knows no language yet, learns all titles in its first
    `model.pretrain_epochs` epochs.

    Parameters
    ----------
    model : LLaRA
        The model to tune.
    windows : Windows
        Training windows of at least two items, targets included.
    seed : int
        Seed of the order of windows and of the curriculum.

    Yields
    ------
    float
        Mean loss of the epoch, in nats per token, lower is better.

    Raises
    ------
    ModelError
        If the loss is no longer finite, or a single window does not fit into memory.

    References
    ----------
    Liao et al. (2024), arXiv 2312.02445, curriculum prompt tuning.
    """
    config, rng = model.config, np.random.default_rng(seed)
    pretrain = config.model.pretrain_epochs if config.model.source == EMBEDDED else 0
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
                group["lr"] = config.learning_rate * min((done + 1) * WARMUP_DIVISOR / total, 1 - done / total)
            hybrid = rng.random(len(rows)) < done / max(1, total - 1)
            examples = [
                model.example(windows, int(w), bool(h), all_titles=epoch < pretrain)
                for w, h in zip(rows, hybrid, strict=True)
            ]
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
    """Accumulate the gradients of one step, in passes of `budget` tokens -> (mean loss, next budget)."""
    count = sum(int(np.isfinite(weights).sum()) for _, weights in examples)

    def passes() -> float:
        total = 0.0
        for group in token_batches([len(tokens) for tokens, _ in examples], budget):
            with precision(model.config.model.dtype, model.lm.device):
                loss = _losses(model.lm, [examples[i] for i in group]).sum() / count
            scaler.scale(loss).backward()
            total += float(loss.detach())
        return total

    while (loss := run_or_oom(passes)) is None:
        budget = halve_budget(budget)
        model.lm.zero_grad()
    if not np.isfinite(loss):
        raise ModelError(
            "LLaRA: the loss is no longer a number. Lower evaluate.llara.learning_rate, or use dtype: bf16."
        )
    return loss, budget


def _losses(lm: HybridLM, examples: list[tuple[Tokens, FloatArray]]) -> Tensor:
    """[learned tokens] weighted cross-entropy of each, given everything before it."""
    batch = collate([tokens for tokens, _ in examples], lm.device)
    learned = [np.flatnonzero(np.isfinite(weights)) for _, weights in examples]
    row = np.repeat(np.arange(len(examples)), [len(at) for at in learned])
    column = np.concatenate(learned)
    weights = np.concatenate([w[at] for (_, w), at in zip(examples, learned, strict=True)])
    hidden = lm.hidden(batch)[row, column - 1]
    losses = F.cross_entropy(lm.logits(hidden), batch.ids[row, column], reduction="none")
    return losses * torch.from_numpy(weights).to(losses)
