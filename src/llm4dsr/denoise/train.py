"""Tuning: the language model learns the self-supervised task, with new noise in every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace as with_changes
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from llm4dsr.config import Config
from llm4dsr.core.arrays import FloatArray, IntArray
from llm4dsr.core.device import (
    fp32_weights,
    halve_budget,
    precision,
    random_state,
    run_or_oom,
)
from llm4dsr.core.distributed import check_same, gathered, own_parts, process_count, rank, same_for_all, sum_gradients
from llm4dsr.core.hashing import derived_seed
from llm4dsr.core.memory import return_freed_memory
from llm4dsr.core.progress import Progress
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.noise_injection import Injectable, draw_noise
from llm4dsr.denoise.training_labels import LABEL_WEIGHT, NO_LABELS, UNLABELED, Labels, TrainingLabels
from llm4dsr.errors import ModelError
from llm4dsr.lm.checkpoint import Checkpoint, Position
from llm4dsr.lm.collate import collate, token_batches
from llm4dsr.lm.lora import fused_lora
from llm4dsr.lm.model import NoiseLM, noise_logits, read_states
from llm4dsr.lm.passes import keeps_memory, pass_tokens_of, tokens_at_once, width_multiple
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.lm.tokens import Tokens

NEGATIVES = 512  # random items in the suggestion loss, beside the originals of the step
CHECKPOINT_SECONDS = 60.0
# Fraction of the items without a collaborative vector, drawn in each step. In training windows only injected items are
# new; without this, the model takes every new item of later windows for noise.
UNKNOWN = 0.3
TEMPERATURE = 0.05  # of the cosine similarity in that loss


def tune(
    model: NoiseLM,
    builder: PromptBuilder,
    windows: Windows,
    catalogue: Catalogue,
    config: Config,
    progress: Progress | None = None,
    doing: str = "tune",
    checkpoint: Checkpoint | None = None,
    labels: TrainingLabels = NO_LABELS,
) -> list[float]:
    """Tune a model in place on the self-supervised task.

    With readout: likelihood, it is tuned as a language model instead: on lists of titles in random order, without
    injected noise.

    From the second epoch on, unlabeled interactions with a large loss are left out (readout: per_position). Much of
    them is noise, which would otherwise be taught as fitting. The limit is the loss that the fraction
    `train.small_loss_drop_rate` of the unlabeled interactions of the step before exceeded. So about that fraction is
    left out, and it does not depend on how a step is split into forward passes.

    Weights are tuned in fp32, with autocast on a GPU, and rounded to `model.dtype` at the end.

    Several processes (`core/distributed.py`) share the passes of each step. Its windows, noise and negatives are the
    same, so the loss curve is that of one process, up to rounding and the draws of dropout. Each has to call this
    function with the same arguments; the first one writes the checkpoint, which all can read.

    Parameters
    ----------
    model : NoiseLM
        The model.
    builder : PromptBuilder
        Its prompts.
    windows : Windows
        Training windows, target included.
    catalogue : Catalogue
        The items. Those of the windows are injected.
    config : Config
        All options.
    progress : Progress, optional
        Called with (steps done, all steps, what is being done and the loss).
    doing : str, default "tune"
        What is being done, for progress.
    checkpoint : Checkpoint, optional
        Written once a minute and at the end; tuning resumes from it.
    labels : TrainingLabels, optional
        Reviewed items. They are taught as such, with the weight LABEL_WEIGHT, and never left out (readout:
        per_position).

    Returns
    -------
    list of float
        Mean loss of each epoch.

    Raises
    ------
    ModelError
        If the loss or the weights are no longer finite, or processes that tune together differ in what they are given.

    References
    ----------
    LLM4DSR, arXiv 2408.08208, section 4.1. Small-loss selection: co-teaching, Han et al. (2018).
    """
    parameters = model.trainable()
    with fp32_weights(parameters), fused_lora(model.lm):
        checkpoint = checkpoint or Checkpoint(None, "")
        curve = _tune(model, builder, windows, catalogue, config, progress, doing, checkpoint, labels)
    if not all(torch.isfinite(p).all() for p in parameters):
        raise ModelError(
            "The tuned weights are no longer numbers. Lower train.learning_rate, or use dtype: bf16 or fp32."
        )
    model.eval()
    return curve


def _tune(
    model: NoiseLM,
    builder: PromptBuilder,
    windows: Windows,
    catalogue: Catalogue,
    config: Config,
    progress: Progress | None,
    doing: str,
    checkpoint: Checkpoint,
    labels: TrainingLabels,
) -> list[float]:
    """The steps of `tune`; mean loss of each epoch."""
    settings, rng = config.train, np.random.default_rng(config.seed)
    injectable, reviewed = Injectable.of(catalogue, windows), labels.find(windows)
    rows = np.arange(len(windows))
    if settings.samples and settings.samples < len(rows):
        labeled = windows.owners[reviewed != UNLABELED]
        rows = np.union1d(rng.choice(rows, settings.samples, replace=False), labeled)
    parameters = model.trainable()
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = -(-len(rows) // settings.batch_windows)
    total = steps * settings.epochs
    warmup = max(1, min(settings.warmup_steps, total // 10))
    half = config.model.dtype == "fp16" and model.device.type == "cuda"
    scaler = torch.amp.GradScaler("cuda", enabled=half)
    torch.manual_seed(config.seed)  # dropout
    model.train()
    check_same(checkpoint.key, model.device)
    at, saved = checkpoint.load(model, optimizer, scaler, rng), time.monotonic()
    same_for_all([*parameters, *([] if model.vectors is None else [model.vectors])])
    while at.epoch < settings.epochs:
        if not len(at.order):
            at.order = rng.permutation(rows)
        done = at.epoch * steps + at.step
        # Not the linear schedule of transformers: that falls from the end of the warm-up on and ends at 0.
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min((done + 1) / warmup, max(0.02, 1 - done / max(1, total)))
        of_step = at.order[at.step * settings.batch_windows : (at.step + 1) * settings.batch_windows]
        batch, of_batch = windows.take(of_step), reviewed[windows.interactions(of_step)]
        limit = at.loss_limit if at.epoch and settings.small_loss_drop_rate else math.inf
        budget = at.budget or pass_tokens_of(model, config)
        if process_count() > 1:  # dropout of each process, which a resumed run repeats
            torch.manual_seed(derived_seed(config.seed, at.epoch, at.step, rank()))
        loss, unlabeled, at.budget = _backward(
            model, builder, batch, of_batch, injectable, config, rng, limit, budget, scaler
        )
        at.losses.append(loss)
        if len(unlabeled):
            at.loss_limit = float(np.quantile(unlabeled, 1 - settings.small_loss_drop_rate))
        sum_gradients(parameters)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if keeps_memory(config, model.device.type != "cpu"):
            return_freed_memory()
        at.step += 1
        if progress:
            progress(done + 1, total, f"{doing}, loss {np.mean(at.losses):.3f}")
        if at.step == steps:
            curve = [*at.curve, float(np.mean(at.losses))]
            at = Position(at.epoch + 1, curve=curve, budget=at.budget, loss_limit=at.loss_limit)
        if rank() == 0 and (time.monotonic() - saved >= CHECKPOINT_SECONDS or at.epoch == settings.epochs):
            checkpoint.save(model, optimizer, scaler, rng, at)
            saved = time.monotonic()
    return at.curve


def _backward(
    model: NoiseLM,
    builder: PromptBuilder,
    batch: Windows,
    reviewed: Labels,
    injectable: Injectable,
    config: Config,
    rng: np.random.Generator,
    loss_limit: float,
    budget: int,
    scaler: Any,
) -> tuple[float, FloatArray, int]:
    """Gradients of one step, in passes of `budget` tokens; its loss, those of unlabeled interactions, the next budget.

    Gradients are those of the passes of this process; the loss and all else are those of the whole step. If any process
    runs out of memory, all start the step again in smaller passes, with the same draws.
    """
    numpy_state, restore, size = rng.bit_generator.state, random_state(), len(batch.items)

    def passes() -> FloatArray:
        loss, unlabeled = 0.0, [np.empty(0)]
        for part, of_unlabeled in _losses(model, builder, batch, reviewed, injectable, config, rng, loss_limit, budget):
            scaler.scale(part).backward()
            loss += float(part.detach())
            unlabeled.append(of_unlabeled.cpu().double().numpy())
        known = np.concatenate([[budget, loss], *unlabeled])
        return np.append(known, np.full(2 + size - len(known), np.nan))

    out_of_memory = np.zeros(2 + size)
    while True:
        found = run_or_oom(passes)
        told = gathered(out_of_memory if found is None else found, model.device)  # [processes, 2 + size]
        least = int(told[:, 0].min())
        if least == budget == int(told[:, 0].max()):
            break
        # Out of memory in one of them, or one has a smaller budget from the start
        budget = least if least else halve_budget(budget)
        model.zero_grad()
        rng.bit_generator.state = numpy_state
        restore()
    loss, unlabeled = float(told[:, 1].sum()), told[:, 2:][~np.isnan(told[:, 2:])]
    if not np.isfinite(loss):
        raise ModelError("The loss is no longer a number. Lower train.learning_rate, or use dtype: bf16 or fp32.")
    return loss, unlabeled, budget


def _losses(
    model: NoiseLM,
    builder: PromptBuilder,
    batch: Windows,
    reviewed: Labels,
    injectable: Injectable,
    config: Config,
    rng: np.random.Generator,
    loss_limit: float,
    budget: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The loss of a step in parts, one forward pass each, which add up to its mean over the answers; see `_loss`."""
    if config.model.readout == "likelihood":  # lists as they are, in random order
        order = np.lexsort((rng.random(len(batch.items)), batch.owners))
        corrupted, chosen = batch.items[order], np.zeros(len(batch.items), dtype=bool)
    else:
        corrupted, chosen = draw_noise(batch, injectable, config.task, rng)
    rows = []
    unknown = rng.random(len(injectable.catalogue)) < UNKNOWN
    features = builder.features(with_changes(batch, items=corrupted), unknown)
    for i, begin in enumerate(batch.offsets[:-1]):
        here = slice(begin, batch.offsets[i + 1])
        noisy = np.flatnonzero(chosen[here]).tolist()
        if config.model.readout == "per_position" and len(noisy) > 1 and config.model.item_input == "title":
            noisy = [int(rng.choice(noisy))]  # one suggestion per prompt, as when suggesting
        originals = batch.items[here][noisy].tolist()
        rows.append(builder.training(corrupted[here].tolist(), noisy, originals, features[i]))
    negatives = rng.integers(0, len(injectable.catalogue), size=NEGATIVES)
    candidates = np.unique(np.concatenate([batch.items[chosen], negatives]))  # the same for all passes of the step
    counts = {"noise_logits": int(batch.lengths.sum()), "replaced": max(1, int(chosen.sum())),
              "answer": max(1, sum(len(r) - _loss_start(r, config) for r in rows))}  # fmt: skip
    truth = with_changes(batch, noise_mask=chosen)
    reviewed = np.where(chosen, UNLABELED, reviewed)  # the item that was reviewed is no longer there
    lengths, multiple = [len(r) for r in rows], width_multiple(config, model.device.type != "cpu")
    for group in own_parts(list(token_batches(lengths, _even(budget, lengths)))):
        with precision(config.model.dtype, model.device):
            tokens = collate([rows[i] for i in group], model.device, multiple)
            hidden = model.hidden(tokens)  # [B, T, H]
            yield _loss(
                model,
                builder,
                hidden,
                tokens.ids,
                [rows[i] for i in group],
                truth.take(np.array(group)),
                reviewed[batch.interactions(np.array(group))],
                candidates,
                counts,
                config,
                loss_limit,
            )


def _even(budget: int, lengths: list[int]) -> int:
    """The tokens of a pass, at most about `budget`, such that all processes have the same work."""
    if process_count() == 1:
        return budget
    rounds = -(-sum(lengths) // (budget * process_count()))
    return min(budget, max(lengths) + sum(lengths) // (rounds * process_count()))


def _loss_start(row: Tokens, config: Config) -> int:
    return 1 if config.task.whole_prompt_loss else row.answer


def _loss(
    model: NoiseLM,
    builder: PromptBuilder,
    hidden: Tensor,
    ids: Tensor,
    rows: list[Tokens],
    batch: Windows,
    reviewed: Labels,
    candidates: IntArray,
    counts: dict[str, int],
    config: Config,
    loss_limit: float,
) -> tuple[Tensor, Tensor]:
    """(the loss of a pass, the noise losses of its unlabeled interactions before any is left out)."""
    assert batch.noise_mask is not None
    loss = hidden.new_zeros((), dtype=torch.float32)
    unlabeled = loss.new_empty(0)
    position, vector = config.model.readout == "per_position", config.model.item_input == "soft_token"
    if position:
        states = read_states(hidden, rows)
        is_noise = torch.from_numpy(batch.noise_mask).to(hidden.device)
        label = torch.from_numpy(reviewed).to(hidden.device)
        answers = noise_logits(model, builder, states)  # [positions, 2]
        losses = F.cross_entropy(answers, (is_noise | (label == 1)).long(), reduction="none")
        is_known = is_noise | (label != UNLABELED)
        unlabeled = losses[~is_known].detach()
        losses = losses * (is_known | (losses <= loss_limit))
        losses = torch.where(label == UNLABELED, losses, LABEL_WEIGHT * losses)
        loss = loss + losses.sum() / counts["noise_logits"]
    if vector:
        if position:
            read, truth = states[is_noise], batch.items[batch.noise_mask]
        else:  # the last token of a prompt that asks for a replacement
            some, first = np.unique(batch.owners[batch.noise_mask], return_index=True)
            read = hidden[some, [len(rows[i]) - 1 for i in some]]
            truth = batch.items[batch.noise_mask][first]
        if len(truth):
            part = _vector_loss(model, read, truth, candidates) / counts["replaced"]
            loss = loss + config.train.suggestion_weight * part
    if not position or not vector or config.task.whole_prompt_loss:
        spans = [(i, t) for i, r in enumerate(rows) for t in range(_loss_start(r, config), len(r))]
        if spans:
            loss = loss + next_token_loss(model, hidden, ids, spans) / counts["answer"]
    return loss, unlabeled


def next_token_loss(model: NoiseLM, hidden: Tensor, ids: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """Summed cross-entropy of the tokens at (row, column) `spans`, each given what precedes it."""
    at, col = [i for i, _ in spans], [t for _, t in spans]
    states, wanted = hidden[at, [t - 1 for t in col]], ids[at, col]
    size = tokens_at_once(model.base.get_output_embeddings().weight.shape[0])
    if len(wanted) <= size:
        return _cross_entropy(model, states, wanted)
    losses = [  # logits are computed again for the gradient
        checkpointed(_cross_entropy, model, states[i : i + size], wanted[i : i + size], use_reentrant=False)
        for i in range(0, len(wanted), size)
    ]
    return torch.stack(losses).sum()


def _cross_entropy(model: NoiseLM, states: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(model.logits(states), wanted, reduction="sum")


def _vector_loss(model: NoiseLM, read: Tensor, truth: IntArray, candidates: IntArray) -> Tensor:
    """Summed cross-entropy of choosing each original's title vector among those of candidates, by cosine."""
    assert model.vectors is not None
    predicted = F.normalize(model.out(read.float()), dim=-1)  # [R, V]
    label = torch.from_numpy(np.searchsorted(candidates, truth)).to(read.device)
    vectors = model.vectors[torch.from_numpy(candidates).to(read.device)]
    similarity = predicted @ F.normalize(vectors, dim=-1).T / TEMPERATURE  # [R, candidates]
    return F.cross_entropy(similarity, label, reduction="sum")
