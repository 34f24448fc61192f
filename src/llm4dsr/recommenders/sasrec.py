"""SASRec (Kang and McAuley, 2018, arXiv 1808.09781): a causal transformer, pre-norm.

Windows are right-padded, so a causal mask alone keeps padding out of every real position.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.config import RecommenderConfig
from llm4dsr.recommenders.backbone import INITIAL, Backbone, Block, Dropout, last_of, positions_back, scaled


class SASRec(Backbone):
    """The state at an item has seen that item and those before it."""

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
            if isinstance(part, nn.Linear):  # a layer that adds little at the start leaves the newest item in sight
                nn.init.normal_(part.weight, std=INITIAL)
                nn.init.zeros_(part.bias)

    def encode(self, x: Tensor, items: Tensor, last: bool = False) -> Tensor:
        x = self.dropout(scaled(x) + F.embedding(positions_back(items), self.positions.weight))
        final = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block(x, at=last_of(items) if last and i == final else None)
        out: Tensor = self.norm(x)
        return out.squeeze(1) if last else out
