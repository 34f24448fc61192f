"""GRU4Rec (Hidasi et al., 2016, arXiv 1511.06939): a recurrent network that reads the history item by item.

Departure from the paper: the loss is the one that all backbones share, in place of BPR and TOP1. So rows of a result
table differ in the encoder alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llm4dsr.config import RecommenderConfig
from llm4dsr.recommenders.backbone import Backbone, Dropout, last_of, scaled


class GRU4Rec(Backbone):
    """One GRU layer of width d, then a linear layer. The state of an item depends on it and the earlier ones.

    The option `blocks` has no effect: the paper found no gain from more layers, and here two of them learn more slowly.

    Parameters
    ----------
    n_items : int
        Number of items in the catalogue.
    config : RecommenderConfig
        Options of the recommender.
    """

    name = "GRU4Rec"

    def __init__(self, n_items: int, config: RecommenderConfig) -> None:
        super().__init__(n_items, config)
        size = config.hidden_size
        self.units = nn.GRU(size, size, batch_first=True)
        self.out = nn.Linear(size, size)
        self.dropout = Dropout(config.dropout)

    def encode(self, x: Tensor, items: Tensor, last: bool = False) -> Tensor:
        """Encode histories; see `Backbone.encode`."""
        x, _ = self.units(self.dropout(scaled(x)))
        if last:  # padding follows the last item, so its state has not read any
            x = x[torch.arange(len(x), device=x.device), last_of(items)]
        out: Tensor = self.out(x)
        return out
