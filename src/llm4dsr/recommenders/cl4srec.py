"""CL4SRec (Xie et al., 2022, arXiv 2010.14395): SASRec that also learns to know a history again when it is changed.

Each history is changed twice at random (a part of it cut out, masked, or shuffled). The two states are to be nearer to
each other than to those of the batch's other histories.

Compared in SASRec's place it has SASRec's options and budget; WEIGHT and the shares below are as published, not tuned.
Windows are often short (5 to 11 items on Toys), so that a crop leaves few.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from llm4dsr.catalogue import PAD
from llm4dsr.recommenders.backbone import MASK
from llm4dsr.recommenders.sasrec import SASRec

WEIGHT = 0.1  # of the contrastive loss, as published
TEMPERATURE = 1.0
CROP, MASKED, REORDER = 0.6, 0.3, 0.6  # share of a history that is kept, masked or shuffled


class CL4SRec(SASRec):
    """SASRec in all but what is added to its loss."""

    name = "CL4SRec"

    def penalty(self, inputs: Tensor) -> Tensor:
        """inputs [B, L] -> WEIGHT · the contrastive loss of two views of each; others' views are the negatives."""
        return WEIGHT * contrast(self.last_states(torch.cat([augment(inputs), augment(inputs)])))


def contrast(states: Tensor) -> Tensor:
    """states [2 B, d], the first views of B histories and then the second ones -> mean over all views of
    -log softmax of its partner among the other 2 B - 1 views. ≥ 0, lower is better.

    A score is the inner product, as published, over √d · TEMPERATURE. Layer norm gives each state the length √d or so:
    not divided, the scores would be so far apart that only the nearest other view counts.
    """
    size, width = states.shape
    scores = states @ states.T / (math.sqrt(width) * TEMPERATURE)  # [2 B, 2 B]
    partner = torch.arange(size, device=states.device).roll(size // 2)
    return F.cross_entropy(scores.fill_diagonal_(-math.inf), partner)


def augment(items: Tensor) -> Tensor:
    """items [B, L], right-padded -> [B, L]: each row cut, masked or shuffled, drawn at random with equal chances."""
    kind = torch.randint(3, (len(items), 1), device=items.device)
    return torch.where(kind == 0, crop(items), torch.where(kind == 1, mask(items), reorder(items)))


def crop(items: Tensor) -> Tensor:
    """A run of CROP of each row's items (at least one), moved to the row's start."""
    start, count = _run(items, CROP)
    at = torch.arange(items.shape[1], device=items.device)
    return torch.where(at < count, items.gather(1, (start + at).clamp(max=items.shape[1] - 1)), PAD)


def mask(items: Tensor) -> Tensor:
    """MASK in place of MASKED of each row's items (rounded down), anywhere."""
    count = ((items != PAD).sum(1, keepdim=True) * MASKED).long()
    draws = torch.rand(items.shape, device=items.device).masked_fill(items == PAD, 2.0)  # padding comes last
    order = draws.argsort(1).argsort(1)
    return items.masked_fill(order < count, MASK)


def reorder(items: Tensor) -> Tensor:
    """A run of REORDER of each row's items in a random order; all others stay."""
    start, count = _run(items, REORDER)
    at = torch.arange(items.shape[1], device=items.device).expand(items.shape)
    inside = (at >= start) & (at < start + count)
    draws = torch.rand(items.shape, device=items.device)
    keys = torch.where(inside, start + draws * count, at)  # in [start, start + count) where inside
    return items.gather(1, keys.argsort(stable=True, dim=1))


def _run(items: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """[B, 1] start and [B, 1] length of a random run of `share` of each row's items, rounded down but at least 1."""
    length = (items != PAD).sum(1, keepdim=True)
    count = (length * share).long().clamp(min=1)
    return (torch.rand(length.shape, device=items.device) * (length - count + 1)).long(), count
