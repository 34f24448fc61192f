"""CL4SRec (Xie et al., 2022, arXiv 2010.14395): SASRec with a contrastive loss between two views of each history.

Each history is augmented twice at random (cropped, masked or reordered). The states of the two views should be closer
to each other than to those of the other histories in the batch.

Departure from the paper: scores of the contrastive loss are divided by √d, because layer norm gives states a length of
about √d. Without the division, only the closest negative would count.

It has the options and the training budget of SASRec. The constants below are as published, not tuned. Windows are often
short (5 to 11 items on Toys), so a crop leaves few items.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from llm4dsr.core.arrays import PAD
from llm4dsr.recommenders.backbone import MASK
from llm4dsr.recommenders.sasrec import SASRec

WEIGHT = 0.1  # of the contrastive loss
TEMPERATURE = 1.0
CROP_RATE, MASK_RATE, REORDER_RATE = 0.6, 0.3, 0.6  # fraction of a history that is kept, masked or shuffled


class CL4SRec(SASRec):
    """SASRec with a contrastive loss.

    Parameters
    ----------
    n_items : int
        Number of items in the catalogue.
    config : RecommenderConfig
        Options of the recommender.
    """

    name = "CL4SRec"

    def penalty(self, inputs: Tensor) -> Tensor:
        """Return WEIGHT · `contrast` of two random views of inputs [B, L]."""
        return WEIGHT * contrast(self.last_states(torch.cat([augment(inputs), augment(inputs)])))


def contrast(states: Tensor) -> Tensor:
    """Compute the contrastive loss of two views of each history.

    The score of two views is their inner product / (√d · TEMPERATURE). Views of other histories are the negatives.

    Parameters
    ----------
    states : Tensor of float
        [2 B, d] the first views of B histories, then their second views in the same order.

    Returns
    -------
    Tensor of float
        Scalar ≥ 0, lower is better: mean of -log softmax of the score of a view's partner among the 2 B - 1 others.
    """
    size, width = states.shape
    scores = states @ states.T / (math.sqrt(width) * TEMPERATURE)  # [2 B, 2 B]
    partner = torch.arange(size, device=states.device).roll(size // 2)
    return F.cross_entropy(scores.fill_diagonal_(-math.inf), partner)


def augment(items: Tensor) -> Tensor:
    """Crop, mask or reorder each row of items [B, L], with equal probability."""
    kind = torch.randint(3, (len(items), 1), device=items.device)
    return torch.where(kind == 0, crop(items), torch.where(kind == 1, mask(items), reorder(items)))


def crop(items: Tensor) -> Tensor:
    """Keep a random run of CROP_RATE of each row's items [B, L] (at least one), moved to the start."""
    start, count = _run(items, CROP_RATE)
    at = torch.arange(items.shape[1], device=items.device)
    return torch.where(at < count, items.gather(1, (start + at).clamp(max=items.shape[1] - 1)), PAD)


def mask(items: Tensor) -> Tensor:
    """Replace MASK_RATE of each row's items [B, L] (rounded down) by MASK."""
    count = ((items != PAD).sum(1, keepdim=True) * MASK_RATE).long()
    draws = torch.rand(items.shape, device=items.device).masked_fill(items == PAD, 2.0)  # padding comes last
    order = draws.argsort(1).argsort(1)
    return items.masked_fill(order < count, MASK)


def reorder(items: Tensor) -> Tensor:
    """Shuffle a random run of REORDER_RATE of each row's items [B, L]."""
    start, count = _run(items, REORDER_RATE)
    at = torch.arange(items.shape[1], device=items.device).expand(items.shape)
    inside = (at >= start) & (at < start + count)
    draws = torch.rand(items.shape, device=items.device)
    keys = torch.where(inside, start + draws * count, at)  # in [start, start + count) where inside
    return items.gather(1, keys.argsort(stable=True, dim=1))


def _run(items: Tensor, rate: float) -> tuple[Tensor, Tensor]:
    """[B, 1] start and [B, 1] length of a random run of `rate` of each row's items, at least 1."""
    length = (items != PAD).sum(1, keepdim=True)
    count = (length * rate).long().clamp(min=1)
    return (torch.rand(length.shape, device=items.device) * (length - count + 1)).long(), count
