"""HSD (Zhang et al., CIKM 2022): a mask network before the recommender deletes items.

"Hierarchical Item Inconsistency Signal Learning for Sequence Denoising in Sequential Recommendation". Items are known
by their ids only. Two levels of signals say how well an item agrees with its history:

1. item level: with the items before and after it, in order (sequentiality), and with all other items in any order
   (user interest);
2. sequence level: with what the first level keeps of the other items.

Little agreement = likely noise. In training the mask is sampled (hard Gumbel-softmax with a straight-through gradient
and a falling temperature), and the remaining items predict the next one.

Departures from the paper, and limits:

- The recommender is SASRec with the loss that all recommenders share here, sampled softmax, instead of BPR.
- Without labels, a mask trained on the next-item loss alone soon keeps or drops everything. So the mean noise
  probability of a batch is pulled to `estimate_noise_rate`, and one item of a history always stays. Deleted items get
  no gradient: only that pull restores one that was deleted wrongly.
- The next-item loss hardly trains the signals. So the contexts of level 1 also learn to predict the item that they
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

from llm4dsr.bench.baselines.baseline import Baseline
from llm4dsr.bench.baselines.window_similarity import in_parts
from llm4dsr.config import RecommenderConfig
from llm4dsr.core.arrays import PAD, FloatArray
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.recommenders.sasrec import SASRec
from llm4dsr.recommenders.training import sampled_softmax, train

HOT, COLD, COOLING = 1.0, 0.2, 1000  # temperature at the start and at the least; steps to fall by a factor of e
PULL = 10.0  # weight of (mean noise probability - estimate_noise_rate)²
NEGATIVES = 128  # that the loss of the signals draws for a batch; 512 made a step 1.6 times as long


@dataclass(frozen=True)
class HSDConfig(RecommenderConfig):
    """Options of HSD and of the SASRec behind it.

    Attributes
    ----------
    estimate_noise_rate : float
        Fraction of interactions that the mask is pulled to delete, in (0, 1).
    signal_weight : float
        Weight of the loss that trains the contexts of level 1, at least 0.
    """

    dropout: float = 0.3
    epochs: int = 12
    patience: int = 3
    estimate_noise_rate: float = 0.1
    signal_weight: float = 1.0


class Network(SASRec):
    """SASRec behind the mask network."""

    name = "HSD"

    def __init__(self, n_items: int, config: HSDConfig) -> None:
        super().__init__(n_items, config)
        size = config.hidden_size
        self.estimate_noise_rate, self.signal_weight = config.estimate_noise_rate, config.signal_weight
        self.before, self.after = nn.GRU(size, size, batch_first=True), nn.GRU(size, size, batch_first=True)
        self.around, self.interest = nn.Linear(2 * size, size), nn.Linear(size, size)
        self.strictness = nn.Parameter(torch.zeros(3))  # of sequentiality, interest, sequence level; after softplus
        self.base = nn.Parameter(torch.tensor(math.log(config.estimate_noise_rate / (1 - config.estimate_noise_rate))))
        self.step = 0
        self.seen: tuple[Tensor, Tensor] | None = None  # contexts and log-odds of the last step, for `penalty`

    def mask(self, x: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the log-odds that each item is noise.

        Parameters
        ----------
        x : Tensor
            [B, L, d] item vectors.
        items : Tensor
            [B, L] right-padded.

        Returns
        -------
        contexts : Tensor
            [2, B, L, d] of level 1: sequentiality, user interest.
        log_odds : Tensor
            [B, L] higher = more likely noise.
        """
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
        """Delete items, then encode the rest. The mask is bidirectional, so only the last state may be used to predict.

        Parameters
        ----------
        x, items
            As in `mask`.
        last : bool
            Return the last state only.

        Returns
        -------
        Tensor
            [B, L, d], or [B, d] if `last`.
        """
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
        """Compute the losses beside the next-item loss: the pull to `estimate_noise_rate`, and predicting items from
        contexts.

        Parameters
        ----------
        inputs : Tensor
            [B, L] the items of the batch that `encode` has just seen.

        Returns
        -------
        Tensor
            One number, at least 0.
        """
        assert self.seen is not None
        contexts, odds = self.seen
        here = inputs != PAD
        loss = PULL * (torch.sigmoid(odds[here]).mean() - self.estimate_noise_rate) ** 2
        if not self.signal_weight:
            return loss
        targets, guesses = inputs[here], contexts[:, here]  # [P], [2, P, d]
        others = torch.randint(self.n_items, (NEGATIVES,), device=inputs.device)  # [M]
        liked, disliked, stands_for = self.vectors(targets), self.vectors(others), math.log(self.n_items / NEGATIVES)
        signals = sampled_softmax(guesses, liked, disliked, others == targets[:, None], stands_for)  # [2, P]
        return loss + self.signal_weight * signals.mean()


class HSD(Baseline):
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
        def score_part(part: Windows) -> FloatArray:
            items = torch.from_numpy(part.item_matrix).to(self.network.device)
            odds = self.network.mask(self.network.vectors(items), items)[1]
            return np.asarray(torch.sigmoid(odds.double()).cpu().numpy())

        with torch.inference_mode():
            return in_parts(windows, score_part)


def turned(items: Tensor) -> Tensor:
    """Return the indices that reverse each row; padding stays where it is. Applied twice, nothing changes.

    Parameters
    ----------
    items : Tensor
        [B, L] right-padded.

    Returns
    -------
    Tensor
        [B, L, 1].
    """
    at = torch.arange(items.shape[1], device=items.device)
    lengths = (items != PAD).sum(1, keepdim=True)
    return torch.where(at < lengths, lengths - 1 - at, at).unsqueeze(2)
