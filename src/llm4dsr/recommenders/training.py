"""Training a backbone: one loss, one way to draw negatives and one rule to stop, whatever the encoder."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm4dsr.batch import pick_device, seeded
from llm4dsr.catalogue import PAD, IntArray, Windows
from llm4dsr.config import RecommenderConfig
from llm4dsr.errors import DataError
from llm4dsr.metrics import ndcg
from llm4dsr.recommenders.backbone import Backbone, last_of, recent

VALIDATION_K = 20
Progress = Callable[[int, int, str], None]


class Recommender(Protocol):
    def rank(self, histories: Windows, targets: IntArray) -> IntArray:
        """[W] rank of each target among the whole catalogue, 1 = best; ties count against the target."""


@dataclass
class Trained:
    """The model at its best epoch. curve: validation NDCG@20 after each epoch, so curve[best_epoch] is the best.
    valid_ranks: [V] ranks of the validation targets at that epoch, 1 = best."""

    model: Recommender
    curve: list[float]
    best_epoch: int
    seconds: float
    valid_ranks: IntArray


def train(kind: type[Backbone], windows: Windows, valid: Windows, n_items: int, config: RecommenderConfig, seed: int,
          progress: Progress | None = None) -> Trained:  # fmt: skip
    """Train until the validation NDCG@20 has not risen for `patience` epochs; give back the model of the best epoch.

    Windows of fewer than two items are skipped, and of longer ones the last `history` + 1 items count. Where
    `windows.weights` is given, the loss of predicting an interaction is multiplied by that interaction's weight.
    Works on the GPU where there is one. The same seed gives the same model on the same machine, but for what a GPU adds
    up in no fixed order; the caller's random state is left as it was.
    `progress` gets (epochs done, epochs at most, message). Raises DataError if nothing can be trained on or validated.
    """
    started = time.perf_counter()
    windows = windows.take(np.flatnonzero(windows.lengths >= 2))
    if not len(windows):
        raise DataError(f"No training window has two items or more: {kind.name} has nothing to learn from.")
    valid = valid.take(np.flatnonzero(valid.lengths >= 2))
    if not len(valid):
        raise DataError(f"No validation window has two items or more: {kind.name} needs some to know when to stop.")
    histories, wanted = valid.histories(), valid.targets()
    items = torch.from_numpy(recent(windows.items, windows.lengths, config.history + 1, PAD))
    weights, device = torch.ones(items.shape), pick_device()
    if windows.weights is not None:
        weights = torch.from_numpy(recent(windows.weights, windows.lengths, config.history + 1, 1.0)).float()

    items, weights = items.to(device), weights.to(device)
    with seeded(seed):  # initial weights, dropout, order and negatives
        model = kind(n_items, config).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
        best, curve = -1, list[float]()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        for epoch in range(config.epochs):
            model.train()
            total = torch.zeros((), device=device)
            batches = torch.split(torch.randperm(len(items)).to(device), config.batch_size)
            for rows in batches:
                total += _step(model, optimizer, *model.examples(items[rows], weights[rows]))
            ranks = model.rank(histories, wanted)
            curve.append(ndcg(ranks, VALIDATION_K))
            if best < 0 or curve[epoch] > curve[best]:
                best, best_ranks = epoch, ranks
                state = {name: value.clone() for name, value in model.state_dict().items()}
            if progress:
                message = f"loss {float(total) / len(batches):.4f}, validation NDCG@{VALIDATION_K} {curve[epoch]:.4f}"
                progress(epoch + 1, config.epochs, message)
            if epoch - best >= max(config.patience, 1):
                break
    model.load_state_dict(state)
    model.eval()
    return Trained(model, curve, best, time.perf_counter() - started, best_ranks)


def _step(model: Backbone, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor,
          weights: Tensor) -> Tensor:  # fmt: skip
    """One optimizer step on a batch, [B, L] each; in several backward passes where its scores would not fit."""
    config, device = model.config, model.device
    negatives = torch.randint(model.n_items, (config.negatives,), device=device)  # [M] one draw for the whole batch
    width = {"full": model.n_items, "sampled": config.negatives, "bce": 1}[config.loss]
    count = int((targets != PAD).sum())
    per_row = -(-count // len(targets)) * width
    total = torch.zeros((), device=device)
    optimizer.zero_grad()
    for rows in torch.split(torch.arange(len(inputs), device=device), max(1, model.room // max(1, per_row))):
        here = targets[rows] != PAD  # [B, L]
        losses = _losses(model, inputs[rows], targets[rows], negatives)
        loss = (losses * weights[rows][here]).sum() / count
        loss = loss + model.penalty(inputs[rows]) * (len(rows) / len(inputs))
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    optimizer.step()
    return total


def _losses(model: Backbone, inputs: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """inputs, targets [B, L], negatives [M] -> [P] losses of the P predictions, in the order of targets."""
    here = targets != PAD
    wanted = targets[here]  # [P]
    loss = model.config.loss
    if loss == "full":
        negatives = negatives[:0]
    elif loss == "bce":
        negatives = torch.randint(model.n_items - 1, wanted.shape, device=model.device)
        negatives = negatives + (negatives >= wanted)  # [P] uniform over all items but the wanted one
    # One look-up for all, as the gradient of each look-up is a matrix as large as the item table
    parts = [inputs.numel(), len(wanted), len(negatives)]
    read, liked, disliked = torch.split(model.vectors(torch.cat([inputs.flatten(), wanted, negatives])), parts)
    read = read.view(*inputs.shape, -1)
    ends = bool(((here.sum(1) == 1) & (here.int().argmax(1) == last_of(inputs))).all())
    states = model.encode(read, inputs, last=True) if ends else model.encode(read, inputs)[here]  # [P, d]
    if loss == "full":
        return F.cross_entropy(states @ model.item_vectors.T, wanted, reduction="none")
    if loss == "bce":
        return F.softplus(-(states * liked).sum(1)) + F.softplus((states * disliked).sum(1))
    stands_for = math.log(model.n_items / len(negatives))  # the draw stands for the whole catalogue
    return sampled_softmax(states, liked, disliked, negatives == wanted.unsqueeze(1), stands_for)


def sampled_softmax(states: Tensor, liked: Tensor, disliked: Tensor, same: Tensor, log_share: Tensor | float) -> Tensor:
    """[..., P] -log softmax of what is wanted among itself and M drawn vectors, for states [..., P, d].

    liked [P, d] of the wanted ones, disliked [M, d] of the drawn ones; same [P, M]: True where the two are the same.
    log_share: log of how many each drawn one stands for, one number or [M].
    """
    positive = (states * liked).sum(-1)
    scores = (states @ disliked.T).masked_fill(same, -math.inf) + log_share  # [..., P, M]
    losses: Tensor = torch.cat([positive.unsqueeze(-1), scores], -1).logsumexp(-1) - positive
    return losses
