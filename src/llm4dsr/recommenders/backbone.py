"""What all recommenders with item vectors share: encode a history into a state, score items by state · item vector.

A backbone defines how it learns from a window (`examples`) and how it reads a history (`encode`). Item vectors, loss,
negatives, early stopping and ranking are the same for all of them. So rows of a result table differ in the encoder
alone.

To train a backbone, use `training.train`. Ranking with a language model is in `llara.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.config import RecommenderConfig
from llm4dsr.core.arrays import PAD, IntArray, ranges
from llm4dsr.core.device import in_parts
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ConfigError

MAX_SCORES = 4_000_000  # scores in memory at once, in training and in ranking; small enough to stay near the CPU cache
GPU_FACTOR = 16  # times MAX_SCORES on a GPU, which prefers fewer and larger steps
INITIAL = 0.02  # standard deviation of the initial vectors; larger ones drown the first epochs in noise
MASK = -2  # input id that stands for an item to be predicted

Examples = tuple[Tensor, Tensor, Tensor]


class Backbone(nn.Module):
    """A recommender that scores items by inner product. Subclasses add layers and define `encode`.

    Parameters
    ----------
    n_items : int
        Number of items in the catalogue.
    config : RecommenderConfig
        Options of the recommender.

    Raises
    ------
    ConfigError
        If `hidden_size` is not a multiple of `heads`, or `dropout` is outside [0, 1).
    """

    name: ClassVar[str]

    def __init__(self, n_items: int, config: RecommenderConfig) -> None:
        super().__init__()
        if config.hidden_size % config.heads:
            raise ConfigError(
                f"{self.name}: hidden_size {config.hidden_size} must be a multiple of heads {config.heads}."
            )
        if not 0 <= config.dropout < 1:
            raise ConfigError(f"{self.name}: dropout = {config.dropout}; expected a number from 0 to below 1.")
        self.n_items, self.config = n_items, config
        self._room: int | None = None
        self.items = nn.Embedding(n_items + 2, config.hidden_size, padding_idx=n_items)  # last two rows: PAD, MASK
        nn.init.normal_(self.items.weight, std=INITIAL)
        with torch.no_grad():
            self.items.weight[n_items] = 0

    def examples(self, items: Tensor, weights: Tensor) -> Examples:
        """Build the training examples of one step; random backbones draw new ones at each call.

        Parameters
        ----------
        items : Tensor of int
            [B, history + 1] the newest items of each window, right-padded with PAD.
        weights : Tensor of float
            [B, history + 1] loss weights of the interactions.

        Returns
        -------
        inputs, targets, weights : Tensor
            [B, L] each. `encode(inputs)[b, t]` has to predict `targets[b, t]`; no prediction where that is PAD.
        """
        targets = items[:, 1:].clone()
        if self.config.supervise == "last":
            last = (targets != PAD).sum(1, keepdim=True) - 1
            targets[torch.arange(self.config.history, device=items.device) != last] = PAD
        inputs = torch.where(items[:, 1:] != PAD, items[:, :-1], PAD)  # the last item is a target only
        return inputs, targets, weights[:, 1:]

    def encode(self, x: Tensor, items: Tensor, last: bool = False) -> Tensor:
        """Encode histories into states.

        Parameters
        ----------
        x : Tensor of float
            [B, L, d] vectors of the items.
        items : Tensor of int
            [B, L] the items, right-padded with PAD.
        last : bool, default False
            Return only the state at each row's last item, which is cheaper.

        Returns
        -------
        Tensor of float
            [B, L, d] states, or [B, d] with `last`.
        """
        raise NotImplementedError

    def prediction_input(self, items: Tensor) -> Tensor:
        """Return the input whose last state predicts the item after `items` [B, history]."""
        return items

    def penalty(self, inputs: Tensor) -> Tensor | float:
        """Return the term that the backbone adds to the loss of a step with inputs [B, L]. Default: 0."""
        return 0.0

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.items.weight.device

    @property
    def room(self) -> int:
        """Number of scores that may be in memory at once."""
        return self._room or MAX_SCORES * (GPU_FACTOR if self.device.type == "cuda" else 1)

    def shrink(self, room: int) -> None:
        """Let no more than `room` scores be in memory at once, after more ran out of it."""
        self._room = min(self.room, max(1, room))

    @property
    def item_vectors(self) -> Tensor:
        """[n_items, d] vectors of the catalogue, without the rows of PAD and MASK."""
        return self.items.weight[: self.n_items]

    def vectors(self, items: Tensor) -> Tensor:
        """Look up the vectors [..., d] of items [...]; PAD has the zero vector."""
        rows = torch.where(items == PAD, self.n_items, torch.where(items == MASK, self.n_items + 1, items))
        return F.embedding(rows, self.items.weight, self.n_items)

    def forward(self, items: Tensor) -> Tensor:
        """Encode items [B, L], right-padded with PAD, into states [B, L, d]."""
        return self.encode(self.vectors(items), items)

    def last_states(self, items: Tensor) -> Tensor:
        """Encode items [B, L ≤ history] into the states [B, d] that predict the next item; zero for an empty row."""
        empty = (items != PAD).sum(1, keepdim=True) == 0
        inputs = self.prediction_input(items)
        out: Tensor = self.encode(self.vectors(inputs), inputs, last=True).masked_fill(empty, 0.0)
        return out

    def rank(self, histories: Windows, targets: IntArray) -> IntArray:
        """Rank each target among the whole catalogue. Items of the history are not filtered out.

        Ties count against the target: it ranks behind all items of the same score. So a target ranks last after an
        empty history, and with a recommender that scores all items alike.

        Parameters
        ----------
        histories : Windows
            W histories, without their targets.
        targets : array of int
            [W] catalogue rows.

        Returns
        -------
        array of int
            [W] ranks from 1 to n_items, 1 = best.
        """
        ranks = np.empty(len(targets), dtype=np.int64)

        def rank(part: slice, scores: Tensor) -> None:
            columns = torch.from_numpy(targets[part]).to(scores.device)
            # Count the items below the target, not those above it: a target whose score is NaN then ranks last.
            below = torch.count_nonzero(scores < scores.gather(1, columns.unsqueeze(1)), dim=1)
            ranks[part] = (self.n_items - below).cpu().numpy()

        self.read_scores(histories, rank)
        return ranks

    def recommend(self, histories: Windows, k: int) -> IntArray:
        """Return the best items of each history. Items of the history are not filtered out.

        Parameters
        ----------
        histories : Windows
            W histories, without their targets.
        k : int
            Number of items; at most n_items.

        Returns
        -------
        array of int
            [W, k] catalogue rows, best first; PAD after an empty history.
        """
        out = np.full((len(histories), k), PAD)

        def show(part: slice, scores: Tensor) -> None:
            out[part] = scores.topk(k, dim=1).indices.cpu().numpy()

        self.read_scores(histories, show)
        out[histories.lengths == 0] = PAD
        return out

    def read_scores(self, histories: Windows, read: Callable[[slice, Tensor], None]) -> None:
        """Score the whole catalogue, in batches of histories that fit in memory.

        Parameters
        ----------
        histories : Windows
            Histories, without their targets.
        read : callable
            Called with the histories of a batch, as a slice, and their scores [B, n_items]: unbounded, higher = more
            likely next. On out-of-memory it is called again, for a part of them.
        """
        was_training = self.training
        self.eval()
        size = max(1, self.room // self.n_items)

        def score(part: slice) -> bool:
            ends, lengths = histories.offsets[1:][part], histories.lengths[part]
            batch = torch.from_numpy(recent(histories.items, ends, lengths, self.config.history, PAD))  # [B, history]
            read(part, self.last_states(batch.to(self.device)) @ self.item_vectors.T)
            return True

        count = len(histories)
        parts = [slice(start, min(count, start + size)) for start in range(0, count, size)]
        with torch.inference_mode():
            for _ in in_parts(parts, score, f"histories for {self.name}"):
                pass
        self.train(was_training)


class Dropout(nn.Module):
    """Dropout that takes a fraction of the time of nn.Dropout on a CPU: one 64-bit draw decides four entries.

    Parameters
    ----------
    rate : float
        Probability in [0, 1) to drop an entry, exact to 2⁻¹⁶.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of x and scale up the others, in training only."""
        if not self.training or not self.rate:
            return x
        draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = draws.view(torch.int16)[: x.numel()].view_as(x) >= round(self.rate * 2**16) - 2**15
        return x * kept.to(x.dtype).mul_(1 / (1 - self.rate))


class Block(nn.Module):
    """A pre-norm transformer layer: x + dropout(attention(norm(x))), then x + dropout(feed-forward(norm(x))).

    Parameters
    ----------
    size : int
        Width d of the states and of the feed-forward layer.
    heads : int
        Number of attention heads; divides `size`.
    dropout : float
        Dropout probability in [0, 1).
    """

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.norm_attention, self.norm_feed = nn.LayerNorm(size), nn.LayerNorm(size)
        self.query, self.key_value, self.out = nn.Linear(size, size), nn.Linear(size, 2 * size), nn.Linear(size, size)
        self.feed = nn.Sequential(nn.Linear(size, size), nn.ReLU(), Dropout(dropout), nn.Linear(size, size))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Parameters
        ----------
        x : Tensor of float
            [B, L, d] states.
        mask : Tensor of bool, optional
            [B, 1, 1 or L, L] True where a position may be attended to. Default: causal.
        at : Tensor of int, optional
            [B] the one position of each row to compute, which is cheaper. Default: all.

        Returns
        -------
        Tensor of float
            [B, L, d], or [B, 1, d] with `at`.
        """
        rows, length, _ = x.shape
        context = self.norm_attention(x)
        if at is not None:
            row = torch.arange(rows, device=x.device)
            x, queries = x[row, at].unsqueeze(1), context[row, at].unsqueeze(1)
            if mask is None:
                mask = (torch.arange(length, device=x.device) <= at[:, None])[:, None, None, :]
        else:
            queries = context
        query = self._split(self.query(queries))
        key, value = (self._split(part) for part in self.key_value(context).chunk(2, dim=-1))
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
    """Multiply vectors [..., d] by √d.

    The initial vectors are short. Unscaled, they would be lost in what the layers add to them.

    References
    ----------
    Vaswani et al. (2017), arXiv 1706.03762, section 3.4.
    """
    return x * math.sqrt(x.shape[-1])


def last_of(items: Tensor) -> Tensor:
    """Return the position [B] of the last item of each row of items [B, L], right-padded; 0 for an empty row.

    Examples
    --------
    >>> last_of(torch.tensor([[7, 8, PAD], [PAD, PAD, PAD]]))
    tensor([1, 0])
    """
    return ((items != PAD).sum(1) - 1).clamp(min=0)


def positions_back(items: Tensor) -> Tensor:
    """Return the distance [B, L] of each position from the newest item, so that histories of any length agree.

    Examples
    --------
    >>> positions_back(torch.tensor([[7, 8, 9], [7, 8, PAD]]))
    tensor([[2, 1, 0],
            [1, 0, 0]])
    """
    return (last_of(items)[:, None] - torch.arange(items.shape[1], device=items.device)).clamp(min=0)


def recent(values: npt.NDArray[Any], ends: IntArray, lengths: IntArray, count: int, fill: float) -> npt.NDArray[Any]:
    """Take the newest entries of each history.

    Parameters
    ----------
    values : array
        [n] entries of histories that follow one another, oldest first.
    ends : array of int
        [W] where each history ends.
    lengths : array of int
        [W] entries of each history.
    count : int
        Most entries to take.
    fill : float
        Padding of shorter histories.

    Returns
    -------
    array
        [W, count] right-padded, of the type of `values`.

    Examples
    --------
    >>> recent(np.array([1, 2, 3, 4]), np.array([3, 4]), np.array([3, 1]), 2, PAD)
    array([[ 2,  3],
           [ 4, -1]])
    """
    taken = np.minimum(lengths, count)
    out = np.full((len(lengths), count), fill, dtype=values.dtype)
    out[np.arange(count) < taken[:, None]] = values[ranges(ends - taken, taken)]
    return out
