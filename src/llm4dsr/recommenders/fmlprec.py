"""FMLP-Rec (Zhou et al., WWW 2022, arXiv 2202.13556): filters over time in place of attention.

A filter mixes all places of a row, later ones and padding too, and its places are counted from the row's end. Windows
come right-padded, so `encode` moves each row to the right end of `history` places, with zeros before it. Only the
state at the newest item is one that has seen nothing it must not; so it learns from the last item of a window alone.

Compared in SASRec's place it has SASRec's options and budget; nothing of its own is tuned.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llm4dsr.catalogue import PAD
from llm4dsr.config import RecommenderConfig
from llm4dsr.errors import ConfigError
from llm4dsr.recommenders.backbone import INITIAL, Backbone, Dropout


class FMLPRec(Backbone):
    """Blocks of filter and feed-forward (width 4 d, GELU), post-norm, as published. Refuses supervise: all."""

    name = "FMLP-Rec"

    def __init__(self, n_items: int, config: RecommenderConfig) -> None:
        super().__init__(n_items, config)
        if config.supervise != "last":
            raise ConfigError(
                f"{self.name} mixes all places of a window, so it can only learn from the last one: "
                f"supervise = {config.supervise!r}; expected 'last'."
            )
        size = config.hidden_size
        self.positions = nn.Parameter(torch.randn(config.history, size) * INITIAL)
        self.norm = nn.LayerNorm(size)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(FilterBlock(config.history, size, config.dropout) for _ in range(config.blocks))

    def encode(self, x: Tensor, items: Tensor, last: bool = False) -> Tensor:
        """The states before a row's last item have seen what follows them; only the last one predicts."""
        shift = self.config.history - (items != PAD).sum(1, keepdim=True)  # [B, 1]
        source = torch.arange(self.config.history, device=items.device) - shift  # [B, history]
        x = self.dropout(self.norm(_take(x, source) + self.positions)) * (source >= 0).unsqueeze(-1)
        final = len(self.blocks) - 1
        for i, block in enumerate(self.blocks):
            x = block(x, last and i == final)
        if last:
            return x.squeeze(1)
        return _take(x, torch.arange(items.shape[1], device=items.device) + shift)  # back to where they were


class FilterBlock(nn.Module):
    """norm(x + dropout(filter(x))), then norm(x + dropout(feed-forward(x)))."""

    def __init__(self, length: int, size: int, dropout: float) -> None:
        super().__init__()
        self.length = length
        self.filter = nn.Parameter(torch.randn(length // 2 + 1, size, 2) * INITIAL)  # real and imaginary part
        self.norm_filter, self.norm_feed = nn.LayerNorm(size), nn.LayerNorm(size)
        self.feed = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, last: bool = False) -> Tensor:
        """x [B, L, d] -> [B, L, d]; with `last` only the last place, [B, 1, d]."""
        mixed = self.filtered(x, last)
        x = self.norm_filter((x[:, -1:] if last else x) + self.dropout(mixed))
        out: Tensor = self.norm_feed(x + self.dropout(self.feed(x)))
        return out

    def filtered(self, x: Tensor, last: bool = False) -> Tensor:
        """x [B, L, d] with each frequency of each column multiplied by its own complex number."""
        filters = torch.view_as_complex(self.filter)  # [L // 2 + 1, d]
        if last:  # the same as a circular convolution, of which one place is a weighted sum
            kernel = torch.fft.irfft(filters, n=self.length, dim=0)  # [L, d]
            mixed: Tensor = (x * kernel.flip(0)).sum(1, keepdim=True)
        else:
            mixed = torch.fft.irfft(torch.fft.rfft(x, dim=1) * filters, n=self.length, dim=1)
        return mixed


def _take(x: Tensor, places: Tensor) -> Tensor:
    """x [B, L, d], places [B, M] -> [B, M, d] the entry at each place; any entry where a place is none of x."""
    rows = torch.arange(len(x), device=x.device)[:, None]
    return x[rows, places.clamp(0, x.shape[1] - 1)]
