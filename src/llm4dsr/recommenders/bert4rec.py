"""BERT4Rec (Sun et al., 2019, arXiv 1904.06690): a transformer that sees both sides of the item that it guesses.

It learns from gaps (Cloze), not from what comes next, so it is known to end undertrained (arXiv 2207.02905): a random
gap seldom looks like the question of ranking, a gap at the end. So in half of the rows the last item alone is masked.
Layers are those of SASRec (pre-norm, feed-forward of width d) without the causal mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.catalogue import PAD
from llm4dsr.config import RecommenderConfig
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

MASKED = 0.2  # probability of each position to be masked, in rows with random gaps
AT_THE_END = 0.5  # share of rows whose last item alone is masked


class BERT4Rec(Backbone):
    """The state at a MASK guesses the item there; what follows a history is a MASK behind its newest items.

    `supervise` changes nothing: "last" and "all" are ways to learn what comes next, and this learns from gaps.
    """

    name = "BERT4Rec"

    def __init__(self, n_items: int, config: RecommenderConfig) -> None:
        super().__init__(n_items, config)
        size = config.hidden_size
        self.positions = nn.Embedding(config.history + 1, size)  # a history and its MASK
        self.blocks = nn.ModuleList(Block(size, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(size)
        self.dropout = Dropout(config.dropout)
        # As large as what is read of an item: a MASK has nothing but its place to ask for its neighbours by
        nn.init.normal_(self.positions.weight, std=INITIAL * size**0.5)

    def examples(self, items: Tensor, weights: Tensor) -> Examples:
        """Each row of [B, history + 1] has one masked item or more; these are its targets."""
        last = torch.arange(items.shape[1], device=items.device) == last_of(items)[:, None]  # [B, history + 1]
        gaps = (torch.rand(items.shape, device=items.device) < MASKED) & (items != PAD)
        ending = torch.rand(len(items), 1, device=items.device) < AT_THE_END
        ending |= ~gaps.any(1, keepdim=True)  # a row without a gap would teach nothing
        masked = torch.where(ending, last, gaps)
        return items.masked_fill(masked, MASK), items.masked_fill(~masked, PAD), weights

    def ends_with(self, items: Tensor) -> Tensor:
        """[B, L] -> [B, L + 1] with a MASK behind the last item of each row."""
        longer = F.pad(items, (0, 1), value=PAD)
        count = (items != PAD).sum(1, keepdim=True)
        return longer.scatter(1, count, MASK)

    def encode(self, x: Tensor, items: Tensor, last: bool = False) -> Tensor:
        x = self.dropout(scaled(x) + F.embedding(positions_back(items), self.positions.weight))
        here = (items != PAD)[:, None, None, :]  # [B, 1, 1, L]
        final = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block(x, here, at=last_of(items) if last and i == final else None)
        out: Tensor = self.norm(x)
        return out.squeeze(1) if last else out
