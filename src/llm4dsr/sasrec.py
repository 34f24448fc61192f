"""SASRec (Kang and McAuley, 2018): the recommender that shows what a corrected history is worth.

A causal transformer reads a history; the state at its last item, multiplied with the item vectors, scores the whole
catalogue. Windows are right-padded, so a causal mask alone keeps padding out of every real position.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.catalogue import PAD, IntArray, Windows
from llm4dsr.config import RecommenderConfig
from llm4dsr.errors import ConfigError, DataError
from llm4dsr.metrics import ndcg

LOGITS = 4_000_000  # scores held at once, in training and in ranking: bounds the memory, and stays near the cache
VALIDATION_K = 20
INITIAL = 0.02  # standard deviation of the vectors at the start; larger ones drown the first epochs in noise


class SASRec(nn.Module):
    """Self-attentive sequential recommendation, pre-norm, with one item table for input and output."""

    def __init__(self, n_items: int, config: RecommenderConfig) -> None:
        super().__init__()
        for name in ("hidden_size", "heads", "history", "batch_size", "negatives"):
            if getattr(config, name) < 1:
                raise ConfigError(f"SASRec: {name} = {getattr(config, name)}; expected 1 or more.")
        if config.hidden_size % config.heads:
            raise ConfigError(f"SASRec: hidden_size {config.hidden_size} must be a multiple of heads {config.heads}.")
        if not 0 <= config.dropout < 1:
            raise ConfigError(f"SASRec: dropout = {config.dropout}; expected a number from 0 to below 1.")
        self.n_items, self.config = n_items, config
        size = config.hidden_size
        self.items = nn.Embedding(n_items + 1, size, padding_idx=n_items)
        self.positions = nn.Embedding(config.history, size)
        self.blocks = nn.ModuleList(Block(size, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(size)
        self.dropout = Dropout(config.dropout)
        for table in (self.items, self.positions):
            nn.init.normal_(table.weight, std=INITIAL)
        with torch.no_grad():
            self.items.weight[n_items] = 0

    @property
    def item_vectors(self) -> Tensor:
        """[n_items, d] without the row for padding."""
        return self.items.weight[: self.n_items]

    def vectors(self, items: Tensor) -> Tensor:
        """items [...] -> [..., d]; zero for PAD."""
        return F.embedding(torch.where(items == PAD, self.n_items, items), self.items.weight, self.n_items)

    def forward(self, items: Tensor) -> Tensor:
        """items [B, L ≤ history], right-padded with PAD -> states [B, L, d]; state t has seen no item after t."""
        return self.encode(self.vectors(items), items)

    def encode(self, x: Tensor, items: Tensor) -> Tensor:
        """vectors [B, L, d] of items [B, L] -> states [B, L, d]. Positions count back from the newest item (0)."""
        lengths = (items != PAD).sum(1, keepdim=True)
        back = (lengths - 1 - torch.arange(items.shape[1], device=items.device)).clamp(min=0)  # [B, L]
        x = self.dropout(x + F.embedding(back, self.positions.weight))
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.norm(x)
        return out

    def last_states(self, items: Tensor) -> Tensor:
        """items [B, L] -> [B, d] the state at each row's last item; zero (all items tie) for an empty history."""
        lengths = (items != PAD).sum(1)
        states = self(items)[torch.arange(len(items), device=items.device), (lengths - 1).clamp(min=0)]
        out: Tensor = states * (lengths > 0).unsqueeze(1)
        return out


class Dropout(nn.Module):
    """nn.Dropout at a fraction of its time on a CPU: one 64-bit draw decides on four entries (rate exact to 2⁻¹⁶)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.rate:
            return x
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = draws.view(torch.int16)[: x.numel()].view_as(x) >= round(self.rate * 2**16) - 2**15
        return x * kept.to(x.dtype).mul_(1 / (1 - self.rate))


class Block(nn.Module):
    """x + dropout(attention(norm(x))), then x + dropout(feed-forward(norm(x)))."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norm_attention, self.norm_feed = nn.LayerNorm(size), nn.LayerNorm(size)
        self.query_key_value, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.feed = nn.Sequential(nn.Linear(size, size), nn.ReLU(), Dropout(dropout), nn.Linear(size, size))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, size = x.shape
        split = self.query_key_value(self.norm_attention(x)).view(rows, length, 3, self.heads, size // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each [B, heads, L, d / heads]
        mixed = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.rate if self.training else 0.0
        )
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(rows, length, size)))
        out: Tensor = x + self.dropout(self.feed(self.norm_feed(x)))
        return out


@dataclass
class TrainedSASRec:
    """The model at its best epoch. curve: validation NDCG@20 after each epoch, so curve[best_epoch] is the best."""

    model: SASRec
    curve: list[float]
    best_epoch: int
    seconds: float


def train_sasrec(
    train: Windows,
    valid: Windows,
    n_items: int,
    config: RecommenderConfig,
    seed: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> TrainedSASRec:
    """Train until the validation NDCG@20 has not risen for `patience` epochs; give back the model of the best epoch.

    Windows of fewer than two items are skipped, and of longer ones the last `history` + 1 items count. Where
    `train.weights` is given, the loss of predicting an interaction is multiplied by that interaction's weight.
    The same seed gives the same model on the same machine; the caller's random state is left as it was.
    `progress` gets (epochs done, epochs at most, message). Raises DataError if nothing can be trained on or validated.
    """
    started = time.perf_counter()
    inputs, targets, weights = _examples(train, config)
    valid = valid.take(np.flatnonzero(valid.lengths >= 2))
    if not len(valid):
        raise DataError("No validation window has two items or more: SASRec needs some to know when to stop.")
    histories, wanted = valid.histories(), valid.targets()

    with torch.random.fork_rng(devices=[]):  # initial weights, dropout, order and negatives all draw from this state
        torch.default_generator.manual_seed(seed)
        model = SASRec(n_items, config)
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
        best, curve = -1, list[float]()
        state = {name: value.clone() for name, value in model.state_dict().items()}
        for epoch in range(config.epochs):
            model.train()
            total = 0.0
            batches = torch.split(torch.randperm(len(inputs)), config.batch_size)
            for rows in batches:
                total += _step(model, optimizer, inputs[rows], targets[rows], weights[rows])
            curve.append(ndcg(rank_targets(model, histories, wanted), VALIDATION_K))
            if best < 0 or curve[epoch] > curve[best]:
                best = epoch
                state = {name: value.clone() for name, value in model.state_dict().items()}
            if progress:
                message = f"loss {total / len(batches):.4f}, validation NDCG@{VALIDATION_K} {curve[epoch]:.4f}"
                progress(epoch + 1, config.epochs, message)
            if epoch - best >= max(config.patience, 1):
                break
    model.load_state_dict(state)
    model.eval()
    return TrainedSASRec(model, curve, best, time.perf_counter() - started)


def rank_targets(model: SASRec, histories: Windows, targets: IntArray) -> IntArray:
    """[W] rank of each target among the whole catalogue, 1 = best; nothing is filtered out.

    Ties are counted against the target (pessimistic): every other item with the same score stands before it, so a
    scorer that gives all items the same score ranks every target last. An empty history is such a case.
    """
    items = _recent(histories.items, histories.lengths, model.config.history, PAD)  # [W, history]
    device = model.item_vectors.device
    ranks = np.empty(len(targets), dtype=np.int64)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        size = max(1, LOGITS // model.n_items)
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            wanted = torch.from_numpy(targets[part]).to(device)
            scores = model.last_states(torch.from_numpy(items[part]).to(device)) @ model.item_vectors.T  # [B, N]
            # Counting what is below, and not what is above, also ranks a target last whose score is not a number.
            below = torch.count_nonzero(scores < scores.gather(1, wanted.unsqueeze(1)), dim=1)
            ranks[part] = (model.n_items - below).cpu().numpy()
    model.train(was_training)
    return ranks


def _examples(windows: Windows, config: RecommenderConfig) -> tuple[Tensor, Tensor, Tensor]:
    """inputs, targets, weights, each [W, history]: after the items inputs[w, : t + 1] comes targets[w, t].

    targets is PAD where nothing is to be predicted: past the end, and with supervise: last before the last item.
    """
    windows = windows.take(np.flatnonzero(windows.lengths >= 2))
    if not len(windows):
        raise DataError("No training window has two items or more: SASRec has nothing to learn from.")
    items = _recent(windows.items, windows.lengths, config.history + 1, PAD)
    weights = np.ones(items.shape)
    if windows.weights is not None:
        weights = _recent(windows.weights, windows.lengths, config.history + 1, 1.0)
    targets = items[:, 1:].copy()
    if config.supervise == "last":
        last = (targets != PAD).sum(1, keepdims=True) - 1
        targets[np.arange(config.history) != last] = PAD
    inputs = np.where(items[:, 1:] != PAD, items[:, :-1], PAD)  # the last item is a target only
    return torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(weights[:, 1:]).float()


def _step(model: SASRec, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, weights: Tensor) -> float:
    """One optimizer step on a batch, [B, history] each; in several backward passes where its scores would not fit."""
    config = model.config
    negatives = torch.randint(model.n_items, (config.negatives,))  # [M] one draw for the whole batch
    width = {"full": model.n_items, "sampled": config.negatives, "bce": 1}[config.loss]
    count = int((targets != PAD).sum())
    per_row = -(-count // len(targets)) * width
    total = 0.0
    optimizer.zero_grad()
    for rows in torch.split(torch.arange(len(inputs)), max(1, LOGITS // per_row)):
        here = targets[rows] != PAD  # [B, history]
        losses = _losses(model, inputs[rows], targets[rows], negatives)
        loss = (losses * weights[rows][here]).sum() / count
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    optimizer.step()
    return total


def _losses(model: SASRec, inputs: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """inputs, targets [B, history], negatives [M] -> [P] losses of the P predictions, in the order of targets."""
    here = targets != PAD
    wanted = targets[here]  # [P]
    if model.config.loss == "full":
        return F.cross_entropy(model(inputs)[here] @ model.item_vectors.T, wanted, reduction="none")
    if model.config.loss == "bce":
        negatives = torch.randint(model.n_items - 1, wanted.shape)
        negatives = negatives + (negatives >= wanted)  # [P] uniform over all items but the wanted one
    # One look-up for all, as the gradient of each look-up is a matrix as large as the item table
    parts = [inputs.numel(), len(wanted), len(negatives)]
    read, liked, disliked = torch.split(model.vectors(torch.cat([inputs.flatten(), wanted, negatives])), parts)
    states = model.encode(read.view(*inputs.shape, -1), inputs)[here]  # [P, d]
    positive = (states * liked).sum(1)  # [P]
    if model.config.loss == "bce":
        return F.softplus(-positive) + F.softplus((states * disliked).sum(1))
    scores = (states @ disliked.T).masked_fill(negatives == wanted.unsqueeze(1), -math.inf)  # [P, M]
    scores = scores + math.log(model.n_items / len(negatives))  # the draw stands for the whole catalogue
    losses: Tensor = torch.cat([positive.unsqueeze(1), scores], 1).logsumexp(1) - positive
    return losses


def _recent(values: npt.NDArray[Any], lengths: IntArray, count: int, fill: float) -> npt.NDArray[Any]:
    """[W, L] -> [W, count]: the last `count` entries of each row, right-padded with `fill`."""
    if not values.shape[1]:
        return np.full((len(values), count), fill, dtype=values.dtype)
    at = np.maximum(lengths - count, 0)[:, None] + np.arange(count)  # [W, count]
    taken = np.take_along_axis(values, np.minimum(at, values.shape[1] - 1), axis=1)
    return np.where(at < lengths[:, None], taken, np.asarray(fill, dtype=values.dtype))
