"""GRU4Rec (Hidasi et al., 2016, arXiv 1511.06939): a recurrent network reads the history item by item.

The loss is the one that all backbones here share, in place of the published BPR and TOP1; so a row of a result table
differs in the encoder alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llm4dsr.config import RecommenderConfig
from llm4dsr.recommenders.backbone import Backbone, Dropout, last_of, scaled


class GRU4Rec(Backbone):
    """One layer of gated units of width d, then a linear layer. The state at an item has seen those before it.

    One layer whatever `blocks` says: the paper found no use for more, and here two of them learn more slowly.
    """

    name = "GRU4Rec"

    def __init__(self, n_items: int, config: RecommenderConfig) -> None:
        super().__init__(n_items, config)
        size = config.hidden_size
        self.units = nn.GRU(size, size, batch_first=True)
        self.out = nn.Linear(size, size)
        self.dropout = Dropout(config.dropout)

    def encode(self, x: Tensor, items: Tensor, last: bool = False) -> Tensor:
        x, _ = self.units(self.dropout(scaled(x)))
        if last:  # what comes behind a row's last item is padding, which it has not seen
            x = x[torch.arange(len(x), device=x.device), last_of(items)]
        out: Tensor = self.out(x)
        return out
