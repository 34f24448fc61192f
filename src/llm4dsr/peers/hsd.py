"""HSD (Zhang et al., "Hierarchical Item Inconsistency Signal Learning for Sequence Denoising in Sequential
Recommendation", CIKM 2022): a mask network deletes items from a history, and learns from what the recommender behind it
then predicts. It knows items by their ids only.

Two levels of signals say how well an item agrees with its history:

1. item level: with the items before and after it, in their order (sequentiality), and with the other items whatever
   their order (user interest);
2. sequence level: with what the first level keeps of the rest.

Little agreement = likely noise. In training the mask is drawn (hard Gumbel-softmax with a straight-through gradient,
the temperature falls), and the items that are left predict the next one.

Re-implemented from the published description; what differs, and what it cannot do:

- The recommender is SASRec with the loss that all recommenders share here (sampled softmax), in place of BPR.
- There are no labels. A mask that is only told how the next item was predicted soon keeps all, or drops all. Against
  that, the mean noise probability of a batch is drawn to `noise_share` (a guess), and one item of a history always
  stays. Deleted items send no gradient: that pull alone brings a wrongly deleted one back.
- The next-item loss alone hardly teaches the signals, so the contexts of level 1 also learn to name the item that they
  surround, with weight `signal_weight` (0 = the next-item loss alone).
- Training windows are scored by the network that was trained on them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.catalogue import PAD, Catalogue, FloatArray, Windows
from llm4dsr.config import RecommenderConfig
from llm4dsr.peers.peer import Peer
from llm4dsr.peers.similarity import in_parts
from llm4dsr.recommenders.sasrec import SASRec
from llm4dsr.recommenders.training import sampled_softmax, train

HOT, COLD, COOLING = 1.0, 0.2, 1000  # temperature at the start and at the least; steps to fall by a factor of e
PULL = 10.0  # weight of (mean noise probability - noise_share)²
NEGATIVES = 128  # that the loss of the signals draws for a batch; 512 made a step 1.6 times as long


@dataclass(frozen=True)
class HSDConfig(RecommenderConfig):
    """noise_share, in (0, 1): the share of interactions that the mask is drawn to delete."""

    dropout: float = 0.3
    epochs: int = 12
    patience: int = 3
    noise_share: float = 0.1
    signal_weight: float = 1.0


class Network(SASRec):
    """SASRec behind the mask network."""

    name = "HSD"

    def __init__(self, n_items: int, config: HSDConfig) -> None:
        super().__init__(n_items, config)
        size = config.hidden_size
        self.noise_share, self.signal_weight = config.noise_share, config.signal_weight
        self.before, self.after = nn.GRU(size, size, batch_first=True), nn.GRU(size, size, batch_first=True)
        self.around, self.interest = nn.Linear(2 * size, size), nn.Linear(size, size)
        self.strictness = nn.Parameter(torch.zeros(3))  # of sequentiality, interest, sequence level; after softplus
        self.base = nn.Parameter(torch.tensor(math.log(config.noise_share / (1 - config.noise_share))))
        self.step = 0
        self.seen: tuple[Tensor, Tensor] | None = None  # contexts and log-odds of the last step, for `penalty`

    def mask(self, x: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """vectors x [B, L, d] of items [B, L] -> (level-1 contexts [2, B, L, d], log-odds of noise [B, L])."""
        here = (items != PAD).unsqueeze(2).to(x.dtype)  # [B, L, 1]
        x = x * here
        back = turned(items)  # [B, L, 1]
        zero = torch.zeros_like(x[:, :1])
        left = torch.cat([zero, self.before(x)[0][:, :-1]], 1)  # [B, L, d] has read what is before the position
        right = self.after(x.gather(1, back.expand_as(x)))[0]  # from the newest item to the oldest
        right = torch.cat([zero, right[:, :-1]], 1).gather(1, back.expand_as(x))
        order = self.around(torch.cat([left, right], 2))
        others = (x.sum(1, keepdim=True) - x) / (here.sum(1, keepdim=True) - 1).clamp(min=1)
        contexts = torch.stack([order, self.interest(others)])  # [2, B, L, d]
        weight = F.softplus(self.strictness)
        first = self.base - (weight[:2, None, None] * (contexts * x).sum(3)).sum(0)  # [B, L]
        keep = torch.sigmoid(-first.detach()).unsqueeze(2) * here
        kept = x * keep
        rest = (kept.sum(1, keepdim=True) - kept) / (keep.sum(1, keepdim=True) - keep).clamp(min=1e-6)
        return contexts, first - weight[2] * (self.interest(rest) * x).sum(2)

    def encode(self, x: Tensor, items: Tensor, last: bool = False) -> Tensor:
        """Deletes before it encodes. The mask reads both ways, so only the last state may be asked to predict."""
        contexts, odds = self.mask(x, items)
        self.seen = contexts, odds
        if self.training:
            self.step += 1
            heat = max(COLD, HOT * math.exp(-self.step / COOLING))
            gate = F.gumbel_softmax(torch.stack([-odds, odds], 2), tau=heat, hard=True)[:, :, 0]  # [B, L] 1 = keep
        else:
            gate = (odds <= 0).to(x.dtype)
        here = items != PAD
        surest = odds.masked_fill(~here, math.inf).argmin(1, keepdim=True)
        stays = ((gate > 0.5) | torch.zeros_like(here).scatter(1, surest, True)) & here
        gate = torch.where(stays & (gate < 0.5), gate + 1, gate)
        left = torch.argsort((~stays).to(torch.int8), dim=1, stable=True)  # those that stay, in their order, first
        short = torch.where(stays, items, PAD).gather(1, left)
        return super().encode((x * gate.unsqueeze(2)).gather(1, left.unsqueeze(2).expand_as(x)), short, last)

    def penalty(self, inputs: Tensor) -> Tensor:
        """The pull to `noise_share`, and the loss of naming each item from its contexts of level 1."""
        assert self.seen is not None
        contexts, odds = self.seen
        here = inputs != PAD
        loss = PULL * (torch.sigmoid(odds[here]).mean() - self.noise_share) ** 2
        if not self.signal_weight:
            return loss
        wanted, guesses = inputs[here], contexts[:, here]  # [P], [2, P, d]
        others = torch.randint(self.n_items, (NEGATIVES,), device=inputs.device)  # [M]
        liked, disliked, stands_for = self.vectors(wanted), self.vectors(others), math.log(self.n_items / NEGATIVES)
        signals = sampled_softmax(guesses, liked, disliked, others == wanted[:, None], stands_for)  # [2, P]
        return loss + self.signal_weight * signals.mean()


class HSD(Peer):
    """Scores are noise probabilities in [0, 1] of the mask network, before anything is drawn."""

    name: ClassVar[str] = "hsd"
    source: ClassVar[str] = "Zhang et al. (2022), CIKM, doi 10.1145/3511808.3557348"
    grid: ClassVar[tuple[dict[str, Any], ...]] = (
        {"signal_weight": 0.0},
        {"signal_weight": 1.0},
        {"signal_weight": 1.0, "dropout": 0.5},
    )

    def __init__(self, catalogue: Catalogue, seed: int, **settings: Any) -> None:
        super().__init__(catalogue, seed)
        self.config = HSDConfig(**settings)

    def fit(self, train_windows: Windows, valid: Windows) -> None:
        """The epoch with the best NDCG@20 on validation is taken."""
        trained = train(Network, train_windows, valid, len(self.catalogue), self.config, self.seed)
        self.epochs = len(trained.curve)
        self.network: Network = trained.model  # type: ignore[assignment]

    def score(self, windows: Windows) -> FloatArray:
        def judge(part: Windows) -> FloatArray:
            items = torch.from_numpy(part.items).to(self.network.device)
            odds = self.network.mask(self.network.vectors(items), items)[1]
            return np.where(part.present, torch.sigmoid(odds.double()).cpu().numpy(), np.nan)

        with torch.inference_mode():
            return in_parts(windows, judge)


def turned(items: Tensor) -> Tensor:
    """items [B, L], right-padded -> [B, L, 1] places that read each row from its last item to its first; padding stays
    where it is. Turning twice changes nothing."""
    at = torch.arange(items.shape[1], device=items.device)
    lengths = (items != PAD).sum(1, keepdim=True)
    return torch.where(at < lengths, lengths - 1 - at, at).unsqueeze(2)
