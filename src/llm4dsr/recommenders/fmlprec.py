"""FMLP-Rec (Zhou et al., WWW 2022, arXiv 2202.13556): learnable frequency filters in place of attention.

A filter mixes all positions of a row, later items and padding included, and counts positions from the end of the row.
Two consequences:

- Windows are right-padded, so `encode` shifts each row to the right end of `history` positions, with zeros before it.
- Only the state at the newest item has seen no later item. So the model learns from the last item of a window only.

Departure from the paper: the loss is the one that all backbones share. It has the options and the training budget of
SASRec; nothing else is tuned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llm4dsr.config import RecommenderConfig
from llm4dsr.core.arrays import PAD
from llm4dsr.errors import ConfigError
from llm4dsr.recommenders.backbone import INITIAL, Backbone, Dropout


class FMLPRec(Backbone):
    """Blocks of filter and feed-forward layer (width 4 d, GELU), post-norm, as published.

    Parameters
    ----------
    n_items : int
        Number of items in the catalogue.
    config : RecommenderConfig
        Options of the recommender.

    Raises
    ------
    ConfigError
        If `supervise` is not "last", or as for any `Backbone`.
    """

    name = "FMLP-Rec"

    def __init__(self, n_items: int, config: RecommenderConfig) -> None:
        super().__init__(n_items, config)
        if config.supervise != "last":
            raise ConfigError(
                f"{self.name} mixes all positions of a window, so it can only learn from the last one: "
                f"supervise = {config.supervise!r}; expected 'last'."
            )
        size = config.hidden_size
        self.positions = nn.Parameter(torch.randn(config.history, size) * INITIAL)
        self.norm = nn.LayerNorm(size)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(FilterBlock(config.history, size, config.dropout) for _ in range(config.blocks))

    def encode(self, x: Tensor, items: Tensor, last: bool = False) -> Tensor:
        """Encode histories; see `Backbone.encode`.

        States before a row's last item have seen later items, so only the last state may predict.
        """
        shift = self.config.history - (items != PAD).sum(1, keepdim=True)  # [B, 1]
        source = torch.arange(self.config.history, device=items.device) - shift  # [B, history]
        x = self.dropout(self.norm(_take(x, source) + self.positions)) * (source >= 0).unsqueeze(-1)
        final = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block(x, last and i == final)
        if last:
            return x.squeeze(1)
        return _take(x, torch.arange(items.shape[1], device=items.device) + shift)  # shift back


class FilterBlock(nn.Module):
    """A post-norm layer: norm(x + dropout(filter(x))), then norm(x + dropout(feed-forward(x))).

    Parameters
    ----------
    length : int
        Positions L of a row.
    size : int
        Width d of the states.
    dropout : float
        Dropout probability in [0, 1).
    """

    def __init__(self, length: int, size: int, dropout: float) -> None:
        super().__init__()
        self.length = length
        self.filter = nn.Parameter(torch.randn(length // 2 + 1, size, 2) * INITIAL)  # real and imaginary part
        self.norm_filter, self.norm_feed = nn.LayerNorm(size), nn.LayerNorm(size)
        self.feed = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, last: bool = False) -> Tensor:
        """Apply the layer to x [B, L, d]; with `last` only at the last position, [B, 1, d]."""
        mixed = self.filtered(x, last)
        x = self.norm_filter((x[:, -1:] if last else x) + self.dropout(mixed))
        out: Tensor = self.norm_feed(x + self.dropout(self.feed(x)))
        return out

    def filtered(self, x: Tensor, last: bool = False) -> Tensor:
        """Multiply each frequency of each column of x [B, L, d] by its learned complex number.

        Parameters
        ----------
        x : Tensor of float
            [B, L, d] states.
        last : bool, default False
            Compute only the last position.

        Returns
        -------
        Tensor of float
            [B, L, d], or [B, 1, d] with `last`.
        """
        filters = torch.view_as_complex(self.filter)  # [L // 2 + 1, d]
        if last:  # a filter is a circular convolution, and one position of it is a weighted sum
            kernel = torch.fft.irfft(filters, n=self.length, dim=0)  # [L, d]
            mixed: Tensor = (x * kernel.flip(0)).sum(1, keepdim=True)
        else:
            mixed = torch.fft.irfft(torch.fft.rfft(x, dim=1) * filters, n=self.length, dim=1)
        return mixed


def _take(x: Tensor, positions: Tensor) -> Tensor:
    """x [B, L, d], positions [B, M] -> [B, M, d] entries at these positions; arbitrary where out of range."""
    rows = torch.arange(len(x), device=x.device)[:, None]
    return x[rows, positions.clamp(0, x.shape[1] - 1)]
