"""Tuning: the language model learns the self-supervised task, with fresh replacements every epoch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace as with_changes
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.batch import Progress, attempt, collate, less, precision, token_batches
from llm4dsr.catalogue import Catalogue, IntArray, Windows
from llm4dsr.checkpoint import Checkpoint, Position
from llm4dsr.config import Config
from llm4dsr.errors import ModelError
from llm4dsr.model import NoiseLM
from llm4dsr.prompt import PromptBuilder, Tokens
from llm4dsr.task import draw_positions, replace

NEGATIVES = 512  # catalogue items that a suggested vector is told apart from, shared by a step
CHECKPOINT_SECONDS = 60.0
TEMPERATURE = 0.05  # of the cosine similarity in that loss


def tune(model: NoiseLM, builder: PromptBuilder, windows: Windows, catalogue: Catalogue, config: Config,
         progress: Progress | None = None, doing: str = "tune",
         checkpoint: Checkpoint | None = None) -> list[float]:  # fmt: skip
    """Tunes `model` in place on whole windows (target included); returns the mean loss of each epoch.

    From the second epoch on, the share `train.trim` of a step's untouched interactions that look most like noise has
    no say (answer: position): much of it is noise indeed, and would be taught as what belongs. Small-loss selection,
    as in co-teaching (Han et al., 2018). checkpoint: written once a minute and at the end; where it is there already,
    tuning goes on from it.
    Raises ModelError if the loss stops being a number.
    """
    settings, rng = config.train, np.random.default_rng(config.seed)
    checkpoint = checkpoint or Checkpoint(None, "")
    rows = np.arange(len(windows))
    if settings.samples and settings.samples < len(rows):
        rows = np.sort(rng.choice(rows, settings.samples, replace=False))
    parameters = model.trainable()
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    steps = -(-len(rows) // settings.batch_windows)
    total = steps * settings.epochs
    warmup = min(settings.warmup_steps, max(1, total // 10))
    half = config.model.dtype == "fp16" and model.device.type == "cuda"
    scaler = torch.amp.GradScaler("cuda", enabled=half)
    torch.manual_seed(config.seed)  # dropout
    model.train()
    at, saved = checkpoint.load(model, optimizer, scaler, rng), time.monotonic()
    while at.epoch < settings.epochs:
        if not len(at.order):
            at.order = rng.permutation(rows)
        done = at.epoch * steps + at.step
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min((done + 1) / warmup, max(0.02, 1 - done / max(1, total)))
        batch = windows.take(at.order[at.step * settings.batch_windows : (at.step + 1) * settings.batch_windows])
        trim = settings.trim if at.epoch else 0.0
        budget = at.budget or settings.batch_tokens
        loss, at.budget = _backward(model, builder, batch, catalogue, config, rng, trim, budget, scaler)
        at.losses.append(loss)
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        at.step += 1
        if progress:
            progress(done + 1, total, f"{doing}, loss {np.mean(at.losses):.3f}")
        if at.step == steps:
            curve = [*at.curve, float(np.mean(at.losses))]
            at = Position(at.epoch + 1, curve=curve, budget=at.budget)
        if time.monotonic() - saved >= CHECKPOINT_SECONDS or at.epoch == settings.epochs:
            checkpoint.save(model, optimizer, scaler, rng, at)
            saved = time.monotonic()
    if not all(torch.isfinite(p).all() for p in parameters):
        raise ModelError(
            "The tuned weights are no longer numbers. Lower train.learning_rate, or use dtype: bf16 or fp32."
        )
    model.eval()
    return at.curve


def _backward(model: NoiseLM, builder: PromptBuilder, batch: Windows, catalogue: Catalogue, config: Config,
              rng: np.random.Generator, trim: float, budget: int, scaler: Any) -> tuple[float, int]:  # fmt: skip
    """The gradients of one step, in passes of `budget` tokens; returns its loss and the budget for the next. Where the
    memory is too small, the step begins again in smaller passes, with the same draws."""
    numpy_state, torch_state = rng.bit_generator.state, torch.get_rng_state()
    cuda_state = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def passes() -> float:
        loss = 0.0
        for part in _losses(model, builder, batch, catalogue, config, rng, trim, budget):
            scaler.scale(part).backward()
            loss += float(part.detach())
        return loss

    while (loss := attempt(passes)) is None:
        budget = less(budget)
        model.zero_grad()
        rng.bit_generator.state = numpy_state
        torch.set_rng_state(torch_state)
        if cuda_state is not None:
            torch.cuda.set_rng_state(cuda_state)
    if not np.isfinite(loss):
        raise ModelError("The loss is no longer a number. Lower train.learning_rate, or use dtype: bf16 or fp32.")
    return loss, budget


def _losses(model: NoiseLM, builder: PromptBuilder, batch: Windows, catalogue: Catalogue, config: Config,
            rng: np.random.Generator, trim: float, budget: int) -> Iterator[Tensor]:  # fmt: skip
    """The step's loss in parts (one forward pass each) that add up to its mean over windows' answers."""
    chosen = draw_positions(batch.lengths, batch.items.shape[1], config.task, rng)
    corrupted = replace(batch.items, chosen, catalogue, rng)
    rows = []
    evidence = builder.evidence(with_changes(batch, items=corrupted))
    for i, n in enumerate(batch.lengths):
        noisy = np.flatnonzero(chosen[i]).tolist()
        if config.model.answer == "position" and len(noisy) > 1 and config.model.items == "text":
            noisy = [int(rng.choice(noisy))]  # one suggestion per prompt, as when suggesting
        rows.append(builder.training(corrupted[i, :n].tolist(), noisy, batch.items[i, noisy].tolist(), evidence[i]))
    negatives = rng.integers(0, len(catalogue), size=NEGATIVES)
    counts = {"verdicts": int(batch.lengths.sum()), "replaced": max(1, int(chosen.sum())),
              "answer": max(1, sum(len(r) - _loss_start(r, config) for r in rows))}  # fmt: skip
    for group in token_batches([len(r) for r in rows], budget):
        with precision(config.model.dtype, model.device):
            tokens = collate([rows[i] for i in group], model.device)
            hidden = model.hidden(tokens)  # [B, T, H]
            yield _loss(
                model,
                builder,
                hidden,
                tokens.ids,
                [rows[i] for i in group],
                with_changes(batch.take(np.array(group)), noise_mask=chosen[group]),
                negatives,
                counts,
                config,
                trim,
            )


def _loss_start(row: Tokens, config: Config) -> int:
    return 1 if config.task.whole_prompt_loss else row.answer


def _loss(model: NoiseLM, builder: PromptBuilder, hidden: Tensor, ids: Tensor, rows: list[Tokens], batch: Windows,
          negatives: IntArray, counts: dict[str, int], config: Config, trim: float) -> Tensor:  # fmt: skip
    assert batch.noise_mask is not None
    loss = hidden.new_zeros((), dtype=torch.float32)
    position, vector = config.model.answer == "position", config.model.items == "vector"
    if position:
        judged = read_states(hidden, rows)
        is_noise = torch.from_numpy(batch.noise_mask[batch.present]).to(hidden.device)
        answers = verdicts(model, builder, judged)  # [positions, 2]
        losses = F.cross_entropy(answers, is_noise.long(), reduction="none")
        if trim and not is_noise.all():
            limit = losses[~is_noise].detach().quantile(1 - trim)
            losses = losses * (is_noise | (losses <= limit))
        loss = loss + losses.sum() / counts["verdicts"]
    if vector:
        if position:
            read, truth = judged[is_noise], batch.items[batch.noise_mask]
        else:  # the last token of a prompt that asks for a replacement
            some = [i for i in range(len(rows)) if batch.noise_mask[i].any()]
            read = hidden[some, [len(rows[i]) - 1 for i in some]]
            truth = np.array([batch.items[i][batch.noise_mask[i]][0] for i in some], dtype=np.int64)
        if len(truth):
            part = _vector_loss(model, read, truth, negatives) / counts["replaced"]
            loss = loss + config.train.suggestion_weight * part
    if not position or not vector or config.task.whole_prompt_loss:
        spans = [(i, t) for i, r in enumerate(rows) for t in range(_loss_start(r, config), len(r))]
        if spans:
            loss = loss + _next_token_loss(model, hidden, ids, spans) / counts["answer"]
    return loss


def _next_token_loss(model: NoiseLM, hidden: Tensor, ids: Tensor, spans: list[tuple[int, int]]) -> Tensor:
    """Summed cross-entropy of the tokens at (row, column) `spans`, each given what stands before it."""
    at, col = [i for i, _ in spans], [t for _, t in spans]
    return F.cross_entropy(model.logits(hidden[at, [t - 1 for t in col]]), ids[at, col], reduction="sum")


def read_states(hidden: Tensor, rows: Sequence[Tokens]) -> Tensor:
    """[positions, H] the states at which the verdicts of all rows are read, row after row."""
    at = [(i, t) for i, row in enumerate(rows) for t in row.read]
    return hidden[[i for i, _ in at], [t for _, t in at]]


def verdicts(model: NoiseLM, builder: PromptBuilder, hidden: Tensor) -> Tensor:
    """[..., H] → [..., 2] logits of "no, it fits" and "yes, it is noise"."""
    weight = model.base.get_output_embeddings().weight[[builder.no, builder.yes]]  # [2, H]
    return F.linear(hidden, weight.to(hidden.dtype)).float()


def _vector_loss(model: NoiseLM, read: Tensor, truth: IntArray, negatives: IntArray) -> Tensor:
    """Summed cross-entropy of telling each replaced original's title vector from random items', by cosine."""
    assert model.vectors is not None
    predicted = F.normalize(model.out(read.float()), dim=-1)  # [R, V]
    candidates = torch.from_numpy(np.unique(np.concatenate([truth, negatives]))).to(read.device)
    label = torch.searchsorted(candidates, torch.from_numpy(truth).to(read.device))
    similarity = predicted @ F.normalize(model.vectors[candidates], dim=-1).T / TEMPERATURE  # [R, candidates]
    return F.cross_entropy(similarity, label, reduction="sum")


def warm_up(model: NoiseLM, builder: PromptBuilder, windows: Windows, config: Config,
            progress: Progress | None = None) -> None:  # fmt: skip
    """Trains the embedded model as a language model on the user's own histories (text items), before the task."""
    rng = np.random.default_rng(config.seed)
    optimizer = torch.optim.AdamW(model.trainable(), lr=config.train.learning_rate)
    size = config.train.batch_windows
    steps = -(-len(windows) // size)
    model.train()
    for epoch in range(config.model.warmup_epochs):
        order = rng.permutation(len(windows))
        for step in range(steps):
            rows = [builder.prompt(windows.row(i)) for i in order[step * size : (step + 1) * size]]
            count = sum(len(r) - 1 for r in rows)
            for group in token_batches([len(r) for r in rows], config.train.batch_tokens):
                part = [rows[i] for i in group]
                batch = collate(part, model.device)
                spans = [(i, t) for i, r in enumerate(part) for t in range(1, len(r))]
                (_next_token_loss(model, model.hidden(batch), batch.ids, spans) / count).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.trainable(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if progress:
                progress(
                    epoch * steps + step + 1, steps * config.model.warmup_epochs, "warm up on titles and histories"
                )
