"""SASRec (Kang and McAuley, 2018, arXiv 1808.09781): a causal transformer over the history.

Departures from the paper:

- The loss is the one that all backbones share (sampled softmax by default), so rows of a result table differ in the
  encoder alone.
- Item vectors are scaled by √d, and layers start small (normal, 0.02). So the newest item dominates at first.
- Windows are right-padded, with positions counted back from the newest item. So the causal mask alone keeps padding out
  of every state of an item.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.config import RecommenderConfig
from llm4dsr.recommenders.backbone import INITIAL, Backbone, Block, Dropout, last_of, positions_back, scaled


class SASRec(Backbone):
    """A causal transformer: the state of an item depends on this item and the earlier ones.

    Parameters
    ----------
    n_items : int
        Number of items in the catalogue.
    config : RecommenderConfig
        Options of the recommender.
    """

    name = "SASRec"

    def __init__(self, n_items: int, config: RecommenderConfig) -> None:
        super().__init__(n_items, config)
        size = config.hidden_size
        self.positions = nn.Embedding(config.history, size)
        self.blocks = nn.ModuleList(Block(size, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(size)
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.positions.weight, std=INITIAL)
        for part in self.blocks.modules():
            if isinstance(part, nn.Linear):  # layers that add little at first do not hide the newest item
                nn.init.normal_(part.weight, std=INITIAL)
                nn.init.zeros_(part.bias)

    def encode(self, x: Tensor, items: Tensor, last: bool = False) -> Tensor:
        """Encode histories; see `Backbone.encode`."""
        x = self.dropout(scaled(x) + F.embedding(positions_back(items), self.positions.weight))
        final = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block(x, at=last_of(items) if last and i == final else None)
        out: Tensor = self.norm(x)
        return out.squeeze(1) if last else out
