"""What all recommenders with item vectors share: a history becomes a state, and state times item vectors scores items.

A backbone says how it learns from a window (`examples`) and how it reads a history (`encode`). The table of item
vectors, the loss, the negatives, early stopping and ranking are the same for each, so that compared rows differ in the
encoder alone.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.catalogue import PAD, IntArray, Windows
from llm4dsr.config import RecommenderConfig
from llm4dsr.errors import ConfigError

LOGITS = 4_000_000  # scores held at once, in training and in ranking: bounds the memory, and stays near the cache
GPU_LOGITS = 16  # times as many there: fewer, larger steps
INITIAL = 0.02  # standard deviation of the vectors at the start; larger ones drown the first epochs in noise
MASK = -2  # stands in an input for an item that is to be guessed

Examples = tuple[Tensor, Tensor, Tensor]


class Backbone(nn.Module):
    """A recommender that ranks by inner product. Subclasses build their layers and define `encode`."""

    name: ClassVar[str]

    def __init__(self, n_items: int, config: RecommenderConfig) -> None:
        super().__init__()
        for option in ("hidden_size", "heads", "history", "batch_size", "negatives"):
            if getattr(config, option) < 1:
                raise ConfigError(f"{self.name}: {option} = {getattr(config, option)}; expected 1 or more.")
        if config.hidden_size % config.heads:
            raise ConfigError(
                f"{self.name}: hidden_size {config.hidden_size} must be a multiple of heads {config.heads}."
            )
        if not 0 <= config.dropout < 1:
            raise ConfigError(f"{self.name}: dropout = {config.dropout}; expected a number from 0 to below 1.")
        self.n_items, self.config = n_items, config
        self.items = nn.Embedding(n_items + 2, config.hidden_size, padding_idx=n_items)  # … PAD, MASK
        nn.init.normal_(self.items.weight, std=INITIAL)
        with torch.no_grad():
            self.items.weight[n_items] = 0

    def examples(self, items: Tensor, weights: Tensor) -> Examples:
        """items, weights [B, history + 1], the newest items of each window -> (inputs, targets, weights) [B, L]:
        encode(inputs)[b, t] is to predict targets[b, t], where that is not PAD. Drawn anew at each step."""
        targets = items[:, 1:].clone()
        if self.config.supervise == "last":
            last = (targets != PAD).sum(1, keepdim=True) - 1
            targets[torch.arange(self.config.history, device=items.device) != last] = PAD
        inputs = torch.where(items[:, 1:] != PAD, items[:, :-1], PAD)  # the last item is a target only
        return inputs, targets, weights[:, 1:]

    def encode(self, x: Tensor, items: Tensor, last: bool = False) -> Tensor:
        """vectors x [B, L, d] of items [B, L], right-padded -> states [B, L, d]; with `last` only the state at each
        row's last item, [B, d]."""
        raise NotImplementedError

    def ends_with(self, items: Tensor) -> Tensor:
        """The input whose last state predicts what follows `items` [B, history]."""
        return items

    def penalty(self, inputs: Tensor) -> Tensor | float:
        """What a backbone adds to the loss of a step, for inputs [B, L]."""
        return 0.0

    @property
    def device(self) -> torch.device:
        return self.items.weight.device

    @property
    def room(self) -> int:
        """How many scores may be held at once."""
        return LOGITS * (GPU_LOGITS if self.device.type == "cuda" else 1)

    @property
    def item_vectors(self) -> Tensor:
        """[n_items, d] without the rows for padding and mask."""
        return self.items.weight[: self.n_items]

    def vectors(self, items: Tensor) -> Tensor:
        """items [...] -> [..., d]; zero for PAD."""
        rows = torch.where(items == PAD, self.n_items, torch.where(items == MASK, self.n_items + 1, items))
        return F.embedding(rows, self.items.weight, self.n_items)

    def forward(self, items: Tensor) -> Tensor:
        """items [B, L], right-padded with PAD -> states [B, L, d]."""
        return self.encode(self.vectors(items), items)

    def last_states(self, items: Tensor) -> Tensor:
        """items [B, L ≤ history] -> [B, d] states that predict what comes next; zero (items tie) for an empty row."""
        empty = (items != PAD).sum(1, keepdim=True) == 0
        ends = self.ends_with(items)
        out: Tensor = self.encode(self.vectors(ends), ends, last=True).masked_fill(empty, 0.0)
        return out

    def rank(self, histories: Windows, targets: IntArray) -> IntArray:
        """[W] rank of each target among the whole catalogue, 1 = best; nothing is filtered out.

        Ties are counted against the target (pessimistic): every other item with the same score stands before it, so a
        scorer that gives all items the same score ranks every target last. An empty history is such a case.
        """
        ranks = np.empty(len(targets), dtype=np.int64)
        for part, scores in self.scored(histories):
            wanted = torch.from_numpy(targets[part]).to(scores.device)
            # Counting what is below, and not what is above, also ranks a target last whose score is not a number.
            below = torch.count_nonzero(scores < scores.gather(1, wanted.unsqueeze(1)), dim=1)
            ranks[part] = (self.n_items - below).cpu().numpy()
        return ranks

    def scored(self, histories: Windows):  # type: ignore[no-untyped-def]
        """Yields (slice of the histories, scores [B, N] of the whole catalogue), some histories at a time."""
        items = recent(histories.items, histories.lengths, self.config.history, PAD)  # [W, history]
        was_training = self.training
        self.eval()
        size = max(1, self.room // self.n_items)
        with torch.inference_mode():
            for start in range(0, len(items), size):
                part = slice(start, start + size)
                here = torch.from_numpy(items[part]).to(self.device)
                yield part, self.last_states(here) @ self.item_vectors.T
        self.train(was_training)


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
    """A transformer layer: x + dropout(attention(norm(x))), then x + dropout(feed-forward(norm(x)))."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norm_attention, self.norm_feed = nn.LayerNorm(size), nn.LayerNorm(size)
        self.query, self.key_value, self.out = nn.Linear(size, size), nn.Linear(size, 2 * size), nn.Linear(size, size)
        self.feed = nn.Sequential(nn.Linear(size, size), nn.ReLU(), Dropout(dropout), nn.Linear(size, size))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """x [B, L, d] -> [B, L, d]. mask [B, 1, 1 or L, L]: True where a position may be seen; None = no later one.
        at [B]: the one position of each row that is wanted, [B, 1, d]; costs a part of the whole."""
        rows, length, _ = x.shape
        seen = self.norm_attention(x)
        if at is not None:
            row = torch.arange(rows, device=x.device)
            x, asking = x[row, at].unsqueeze(1), seen[row, at].unsqueeze(1)
            if mask is None:
                mask = (torch.arange(length, device=x.device) <= at[:, None])[:, None, None, :]
        else:
            asking = seen
        query = self._split(self.query(asking))
        key, value = (self._split(part) for part in self.key_value(seen).chunk(2, dim=-1))
        mixed = F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=mask is None, dropout_p=self.rate if self.training else 0.0
        )
        x = x + self.dropout(self.out(mixed.transpose(1, 2).reshape(x.shape)))
        out: Tensor = x + self.dropout(self.feed(self.norm_feed(x)))
        return out

    def _split(self, x: Tensor) -> Tensor:
        """[B, L, d] -> [B, heads, L, d / heads]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def scaled(x: Tensor) -> Tensor:
    """Vectors [..., d] as an encoder reads them: times √d, as in the transformer of Vaswani et al. (2017). The table's
    vectors are so short at the start that they would be lost in what the layers add to them."""
    return x * math.sqrt(x.shape[-1])


def last_of(items: Tensor) -> Tensor:
    """items [B, L] right-padded -> [B] position of each row's last item (0 for an empty row)."""
    return ((items != PAD).sum(1) - 1).clamp(min=0)


def positions_back(items: Tensor) -> Tensor:
    """items [B, L] -> [B, L] how far each position is from the newest item (0); long and short histories agree."""
    return (last_of(items)[:, None] - torch.arange(items.shape[1], device=items.device)).clamp(min=0)


def recent(values: npt.NDArray[np.generic], lengths: IntArray, count: int, fill: float):  # type: ignore[no-untyped-def]
    """[W, L] -> [W, count]: the last `count` entries of each row, right-padded with `fill`."""
    if not values.shape[1]:
        return np.full((len(values), count), fill, dtype=values.dtype)
    at = np.maximum(lengths - count, 0)[:, None] + np.arange(count)  # [W, count]
    taken = np.take_along_axis(values, np.minimum(at, values.shape[1] - 1), axis=1)
    return np.where(at < lengths[:, None], taken, np.asarray(fill, dtype=values.dtype))
