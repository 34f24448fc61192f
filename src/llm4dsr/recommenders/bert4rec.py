"""BERT4Rec (Sun et al., 2019, arXiv 1904.06690): a bidirectional transformer that predicts masked items (Cloze task).

Departures from the paper:

- In half of the rows only the last item is masked. The Cloze task alone leaves BERT4Rec undertrained
  (arXiv 2207.02905): a random gap rarely resembles ranking, a gap at the end does.
- Layers are those of our SASRec without the causal mask: pre-norm, and a feed-forward layer of width d with ReLU.
- The loss is the one that all backbones share.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.config import RecommenderConfig
from llm4dsr.core.arrays import PAD
from llm4dsr.recommenders.backbone import (
    INITIAL,
    MASK,
    Backbone,
    Block,
    Dropout,
    Examples,
    last_of,
    positions_back,
    scaled,
)

MASK_RATE = 0.2  # probability to mask a position, in rows with random gaps
LAST_RATE = 0.5  # probability that a row masks its last item alone


class BERT4Rec(Backbone):
    """A bidirectional transformer: the state at a MASK predicts the item there.

    To predict the next item, a MASK is appended to the history. The option `supervise` has no effect, because the model
    learns from gaps.

    Parameters
    ----------
    n_items : int
        Number of items in the catalogue.
    config : RecommenderConfig
        Options of the recommender.
    """

    name = "BERT4Rec"

    def __init__(self, n_items: int, config: RecommenderConfig) -> None:
        super().__init__(n_items, config)
        size = config.hidden_size
        self.positions = nn.Embedding(config.history + 1, size)  # a history and its MASK
        self.blocks = nn.ModuleList(Block(size, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(size)
        self.dropout = Dropout(config.dropout)
        # As large as the scaled item vectors: a MASK can attend to its neighbors by its position only.
        nn.init.normal_(self.positions.weight, std=INITIAL * size**0.5)

    def examples(self, items: Tensor, weights: Tensor) -> Examples:
        """Mask one or more items of each row [B, history + 1]; the masked items are the targets."""
        last = torch.arange(items.shape[1], device=items.device) == last_of(items)[:, None]  # [B, history + 1]
        gaps = (torch.rand(items.shape, device=items.device) < MASK_RATE) & (items != PAD)
        only_last = torch.rand(len(items), 1, device=items.device) < LAST_RATE
        only_last |= ~gaps.any(1, keepdim=True)  # a row without a gap has nothing to learn from
        masked = torch.where(only_last, last, gaps)
        return items.masked_fill(masked, MASK), items.masked_fill(~masked, PAD), weights

    def prediction_input(self, items: Tensor) -> Tensor:
        """Append a MASK to the last item of each row: [B, L] -> [B, L + 1]."""
        longer = F.pad(items, (0, 1), value=PAD)
        count = (items != PAD).sum(1, keepdim=True)
        return longer.scatter(1, count, MASK)

    def encode(self, x: Tensor, items: Tensor, last: bool = False) -> Tensor:
        """Encode histories; see `Backbone.encode`."""
        x = self.dropout(scaled(x) + F.embedding(positions_back(items), self.positions.weight))
        present = (items != PAD)[:, None, None, :]  # [B, 1, 1, L]
        final = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block(x, present, at=last_of(items) if last and i == final else None)
        out: Tensor = self.norm(x)
        return out.squeeze(1) if last else out
