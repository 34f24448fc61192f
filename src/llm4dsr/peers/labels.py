"""Confident learning (Northcutt, Jiang and Chuang, 2021, arXiv 1911.00068): label errors by a classifier's own
out-of-sample probabilities.

Here each interaction is an example, the other items of its window are what the classifier sees (BERT4Rec with a gap,
each user judged by a model that never saw this user), and the item is the label: as many classes as items. The formulas
are those of cleanlab.rank (a test compares them where cleanlab is installed), turned so that higher = more suspicious.
They are written out here because a matrix of all probabilities (interactions × items) fits no memory, while the
library's class thresholds want the whole of it at once.

Made for few classes. With thousands, probabilities are small and differ more by how popular an item is than by how
well it fits, and "self-confidence" orders interactions as the peer bert4rec-likelihood does.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from llm4dsr.catalogue import Catalogue, FloatArray, IntArray, Windows
from llm4dsr.peers.likelihood import fit_halves, surprise
from llm4dsr.peers.peer import Peer


def self_confidence(scores: Tensor, items: Tensor) -> Tensor:
    """[B, N], [B] -> [B] 1 - p(item)."""
    return 1 - (-surprise(scores, items)).double().exp()


def normalized_margin(scores: Tensor, items: Tensor) -> Tensor:
    """[B, N], [B] -> [B] 1 - (p(item) - the largest p of another item + 1) / 2, in [0, 1]."""
    p = scores.softmax(1)
    own = p.gather(1, items[:, None])
    other = p.scatter(1, items[:, None], -1.0).amax(1)
    return (1 - (own.squeeze(1).double() - other.double())) / 2  # in double: most p are tiny beside 1


def weighted_entropy(scores: Tensor, items: Tensor) -> Tensor:
    """[B, N], [B] -> [B] log of (entropy of p / log N) / p(item): confidence-weighted entropy."""
    logs = scores.log_softmax(1)
    entropy = -(logs.exp() * logs).sum(1) / math.log(max(scores.shape[1], 2))
    return entropy.clamp(min=1e-12).log() + surprise(scores, items)


class ConfidentLearning(Peer):
    """`thresholds` is confident learning proper: p(item) less the mean p of all training interactions with that item.

    An item that training lacks gets the mean over all interactions as its threshold.
    """

    name: ClassVar[str] = "confident-learning"
    source: ClassVar[str] = "Northcutt et al. (2021), arXiv 1911.00068; label quality scores of cleanlab"
    grid: ClassVar[tuple[dict[str, Any], ...]] = tuple(
        {"by": by} for by in ("self-confidence", "normalized-margin", "weighted-entropy", "thresholds")
    )

    def __init__(self, catalogue: Catalogue, seed: int, by: Literal["self-confidence", "normalized-margin",
                 "weighted-entropy", "thresholds"] = "self-confidence") -> None:  # fmt: skip
        super().__init__(catalogue, seed)
        self.by = by

    def fit(self, train: Windows, valid: Windows) -> None:
        self.halves = fit_halves("bert4rec", train, valid, self.catalogue, self.seed)
        if self.by == "thresholds":
            unlike = self.halves.ask(train, self_confidence)[train.present]
            self.thresholds = class_thresholds(1 - unlike, train.items[train.present], len(self.catalogue))

    def score(self, windows: Windows) -> FloatArray:
        if self.by == "thresholds":
            thresholds = np.where(windows.present, self.thresholds[windows.items], np.nan)
            return self.halves.ask(windows, self_confidence) + thresholds
        by = {"normalized-margin": normalized_margin, "weighted-entropy": weighted_entropy}
        return self.halves.ask(windows, by.get(self.by, self_confidence))


def class_thresholds(confidence: FloatArray, items: IntArray, n_items: int) -> FloatArray:
    """[E] p(item) of each interaction, [E] the items -> [N] their means by item."""
    counts = np.bincount(items, minlength=n_items)
    totals = np.bincount(items, weights=confidence, minlength=n_items)
    return np.where(counts > 0, totals / np.maximum(counts, 1), confidence.mean())
