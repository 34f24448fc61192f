"""Training of a backbone: the same loss, negatives and early stopping for every encoder.

`train` is for backbones with item vectors. LLaRA is trained by `llara_training.fit_llara`, and `recommenders.fit`
chooses between the two by name.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm4dsr.config import RecommenderConfig
from llm4dsr.core.arrays import PAD, IntArray
from llm4dsr.core.device import halve_batch, pick_device, random_state, run_or_oom, seeded
from llm4dsr.core.progress import Progress
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError
from llm4dsr.metrics import ndcg
from llm4dsr.recommenders.backbone import Backbone, last_of, recent

VALIDATION_K = 20  # cutoff of the validation NDCG, for early stopping


class Recommender(Protocol):
    """Interface of a trained recommender, as evaluation uses it."""

    def rank(self, histories: Windows, targets: IntArray) -> IntArray:
        """Rank each target among the whole catalogue: [W] from 1 = best; ties count against the target."""

    def recommend(self, histories: Windows, k: int) -> IntArray:
        """Return the k best items [W, k] of each history, best first; PAD where nothing tells items apart."""


@dataclass
class Trained:
    """A recommender at its best epoch.

    Attributes
    ----------
    model : Recommender
        The recommender, in evaluation mode.
    curve : list of float
        Validation NDCG@20 after each epoch, in [0, 1], higher is better.
    best_epoch : int
        Epoch of the best value in `curve`, from 0.
    seconds : float
        Training time.
    valid_ranks : array of int
        [V] ranks of the validation targets at the best epoch, 1 = best.
    """

    model: Recommender
    curve: list[float]
    best_epoch: int
    seconds: float
    valid_ranks: IntArray


def train(
    kind: type[Backbone],
    windows: Windows,
    valid: Windows,
    n_items: int,
    config: RecommenderConfig,
    seed: int,
    progress: Progress | None = None,
    refit: Windows | None = None,
) -> Trained:
    """Train a backbone until validation NDCG@20 has not risen for `patience` epochs.

    Uses the GPU if there is one. The same seed gives the same model on the same machine; on a GPU, sums in varying
    order may change the last digits. The caller's random state is restored.

    Parameters
    ----------
    kind : type of Backbone
        The backbone.
    windows : Windows
        Training windows. Those of fewer than two items are skipped, and only the newest `history` + 1 items are used.
        If windows have weights, the loss of predicting an interaction is multiplied by its weight.
    valid : Windows
        Validation windows, targets included.
    n_items : int
        Number of items in the catalogue.
    config : RecommenderConfig
        Options of the recommender.
    seed : int
        Seed of initial weights, dropout, order of windows, and negatives.
    progress : Progress, optional
        Called after each epoch with (epochs done, most epochs, message).
    refit : Windows, optional
        What the model is trained on anew, for as many epochs as were best on validation. Default: it is not.

    Returns
    -------
    Trained
        The model of the best epoch, or the one that was trained anew.

    Raises
    ------
    DataError
        If no training or no validation window has two items.
    """
    started = time.perf_counter()
    windows, valid = usable(windows, valid, kind.name)
    trained = _train(kind, windows, valid, n_items, config, seed, progress)
    if refit is not None:
        refit, _ = usable(refit, valid, kind.name)
        trained.model = _train(kind, refit, None, n_items, replace(config, epochs=trained.best_epoch + 1), seed).model
    trained.seconds = time.perf_counter() - started
    return trained


def _train(
    kind: type[Backbone],
    windows: Windows,
    valid: Windows | None,
    n_items: int,
    config: RecommenderConfig,
    seed: int,
    progress: Progress | None = None,
) -> Trained:
    """Train on usable windows, and keep the best epoch; without validation windows, the last of all epochs."""
    ends, lengths = windows.offsets[1:], windows.lengths
    items = torch.from_numpy(recent(windows.items, ends, lengths, config.history + 1, PAD))
    weights, device = torch.ones(items.shape), pick_device()
    if windows.weights is not None:
        weights = torch.from_numpy(recent(windows.weights, ends, lengths, config.history + 1, 1.0)).float()
    items, weights = items.to(device), weights.to(device)
    asked = None if valid is None else (valid.histories(), valid.targets())
    with seeded(seed):  # initial weights, dropout, order and negatives
        model = kind(n_items, config).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
        found, state = Trained(model, [], -1, 0.0, np.empty(0, np.int64)), model.state_dict()
        for epoch in range(config.epochs):
            model.train()
            total = torch.zeros((), device=device)
            batches = torch.split(torch.randperm(len(items)).to(device), config.batch_size)
            for rows in batches:
                total += _step(model, optimizer, *model.examples(items[rows], weights[rows]))
            if asked is None:
                continue
            ranks = model.rank(*asked)
            found.curve.append(ndcg(ranks, VALIDATION_K))
            if found.best_epoch < 0 or found.curve[epoch] > found.curve[found.best_epoch]:
                found.best_epoch, found.valid_ranks = epoch, ranks
                state = {name: value.clone() for name, value in model.state_dict().items()}
            if progress:
                message = (
                    f"loss {float(total) / len(batches):.4f}, validation NDCG@{VALIDATION_K} {found.curve[-1]:.4f}"
                )
                progress(epoch + 1, config.epochs, message)
            if epoch - found.best_epoch >= max(config.patience, 1):
                break
    model.load_state_dict(state)
    model.eval()
    return found


def usable(windows: Windows, valid: Windows, name: str) -> tuple[Windows, Windows]:
    """Skip windows of fewer than two items.

    Parameters
    ----------
    windows, valid : Windows
        Training and validation windows, targets included.
    name : str
        Name of the recommender, for the message.

    Returns
    -------
    windows, valid : Windows
        Those with a history and a target.

    Raises
    ------
    DataError
        If none is left of either.
    """
    windows = windows.take(np.flatnonzero(windows.lengths >= 2))
    if not len(windows):
        raise DataError(f"No training window has two items or more: {name} has nothing to learn from.")
    valid = valid.take(np.flatnonzero(valid.lengths >= 2))
    if not len(valid):
        raise DataError(f"No validation window has two items or more: {name} has nothing to be measured on.")
    return windows, valid


def _step(
    model: Backbone, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, weights: Tensor
) -> Tensor:
    """Take one optimizer step on a batch, [B, L] each; in several backward passes if its scores would not fit."""
    config, device = model.config, model.device
    negatives = torch.randint(model.n_items, (config.negatives,), device=device)  # [M] one draw for the whole batch
    width = {"full": model.n_items, "sampled": config.negatives, "bce": 1}[config.loss]
    count = int((targets != PAD).sum())
    per_row = -(-count // len(targets)) * width
    restore = random_state()

    def passes() -> Tensor:
        total = torch.zeros((), device=device)
        optimizer.zero_grad()
        for rows in torch.split(torch.arange(len(inputs), device=device), size):
            predicted = targets[rows] != PAD  # [B, L]
            losses = _losses(model, inputs[rows], targets[rows], negatives)
            loss = (losses * weights[rows][predicted]).sum() / count
            loss = loss + model.penalty(inputs[rows]) * (len(rows) / len(inputs))
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    size = min(len(inputs), max(1, model.room // max(1, per_row)))
    while (total := run_or_oom(passes)) is None:  # again, in smaller passes with the same draws
        size = halve_batch(size, f"windows of {model.name}")
        model.shrink(size * per_row)
        restore()
    optimizer.step()
    return total


def _losses(model: Backbone, inputs: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """inputs, targets [B, L], negatives [M] -> [P] losses of the P predictions, in the order of targets."""
    predicted = targets != PAD  # [B, L]
    positives = targets[predicted]  # [P]
    loss = model.config.loss
    if loss == "full":
        negatives = negatives[:0]
    elif loss == "bce":
        negatives = torch.randint(model.n_items - 1, positives.shape, device=model.device)
        negatives = negatives + (negatives >= positives)  # [P] uniform over all items except the target
    # One look-up for all: the gradient of each look-up is a matrix as large as the item table.
    sizes = [inputs.numel(), len(positives), len(negatives)]
    x, positive, negative = torch.split(model.vectors(torch.cat([inputs.flatten(), positives, negatives])), sizes)
    x = x.view(*inputs.shape, -1)
    only_last = bool(((predicted.sum(1) == 1) & (predicted.int().argmax(1) == last_of(inputs))).all())
    states = model.encode(x, inputs, last=True) if only_last else model.encode(x, inputs)[predicted]  # [P, d]
    if loss == "full":
        return F.cross_entropy(states @ model.item_vectors.T, positives, reduction="none")
    if loss == "bce":
        return F.softplus(-(states * positive).sum(1)) + F.softplus((states * negative).sum(1))
    log_weight = math.log(model.n_items / len(negatives))  # the draw stands for the whole catalogue
    return sampled_softmax(states, positive, negative, negatives == positives.unsqueeze(1), log_weight)


def sampled_softmax(
    states: Tensor, positive: Tensor, negative: Tensor, same: Tensor, log_weight: Tensor | float
) -> Tensor:
    """Compute -log softmax of each target among itself and shared negatives.

    Parameters
    ----------
    states : Tensor of float
        [..., P, d] states that predict the targets.
    positive : Tensor of float
        [P, d] vectors of the targets.
    negative : Tensor of float
        [M, d] vectors of the negatives.
    same : Tensor of bool
        [P, M] True where a negative is the target; it is left out.
    log_weight : float or Tensor
        Log of the number of items that each negative stands for; one number or [M].

    Returns
    -------
    Tensor of float
        [..., P] losses ≥ 0, lower is better.
    """
    positive_scores = (states * positive).sum(-1)  # [..., P]
    negative_scores = (states @ negative.T).masked_fill(same, -math.inf) + log_weight  # [..., P, M]
    scores = torch.cat([positive_scores.unsqueeze(-1), negative_scores], -1)
    losses: Tensor = scores.logsumexp(-1) - positive_scores
    return losses
