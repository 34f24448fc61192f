"""Confident learning (Northcutt, Jiang and Chuang, 2021, arXiv 1911.00068): label errors by probabilities.

Each interaction is an example. The classifier is BERT4Rec, which sees the other items of the window; the item is the
label. So there are as many classes as items. Each user is scored by a model that was trained without that user.

The formulas are those of cleanlab.rank, with the sign turned so that higher = more suspicious. A test compares them
where cleanlab is installed. The library itself needs the matrix of all probabilities at once (interactions × items),
which does not fit in memory.

Limit: the method was made for few classes. With thousands of items, probabilities depend more on popularity than on
fit. "self-confidence" orders interactions exactly as the baseline bert4rec-likelihood does.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from llm4dsr.bench.baselines.baseline import Baseline
from llm4dsr.bench.baselines.likelihood import fit_halves, surprise
from llm4dsr.core.arrays import FloatArray, IntArray
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows


def self_confidence(scores: Tensor, items: Tensor) -> Tensor:
    """Return 1 - p(item).

    Parameters
    ----------
    scores : Tensor
        [B, N] logits of the catalogue.
    items : Tensor
        [B] the items.

    Returns
    -------
    Tensor
        [B] in [0, 1], higher = more suspicious.
    """
    return 1 - (-surprise(scores, items)).double().exp()


def normalized_margin(scores: Tensor, items: Tensor) -> Tensor:
    """Return 1 - (p(item) - largest p of another item + 1) / 2.

    Parameters
    ----------
    scores, items
        As in `self_confidence`.

    Returns
    -------
    Tensor
        [B] in [0, 1], higher = more suspicious.
    """
    p = scores.softmax(1)
    own = p.gather(1, items[:, None])
    other = p.scatter(1, items[:, None], -1.0).amax(1)
    return (1 - (own.squeeze(1).double() - other.double())) / 2  # in double: most p are tiny beside 1


def weighted_entropy(scores: Tensor, items: Tensor) -> Tensor:
    """Return the confidence-weighted entropy, log of (entropy of p / log N) / p(item).

    Parameters
    ----------
    scores, items
        As in `self_confidence`.

    Returns
    -------
    Tensor
        [B] higher = more suspicious.
    """
    logs = scores.log_softmax(1)
    entropy = -(logs.exp() * logs).sum(1) / math.log(max(scores.shape[1], 2))
    return entropy.clamp(min=1e-12).log() + surprise(scores, items)


class ConfidentLearning(Baseline):
    """Score interactions by confident learning.

    Parameters
    ----------
    by : {"self-confidence", "normalized-margin", "weighted-entropy", "thresholds"}
        "thresholds" is confident learning proper: p(item) minus the mean p of all training interactions with that item.
        An item that is not in training gets the mean over all interactions.
    """

    name: ClassVar[str] = "confident-learning"
    source: ClassVar[str] = "Northcutt et al. (2021), arXiv 1911.00068; label quality scores of cleanlab"
    grid: ClassVar[tuple[dict[str, Any], ...]] = tuple(
        {"by": by} for by in ("self-confidence", "normalized-margin", "weighted-entropy", "thresholds")
    )

    def __init__(
        self,
        catalogue: Catalogue,
        seed: int,
        by: Literal["self-confidence", "normalized-margin", "weighted-entropy", "thresholds"] = "self-confidence",
    ) -> None:
        super().__init__(catalogue, seed)
        self.by = by

    def fit(self, train: Windows, valid: Windows) -> None:
        self.halves = fit_halves("bert4rec", train, valid, self.catalogue, self.seed)
        if self.by == "thresholds":
            unlike = self.halves.measure(train, self_confidence)
            self.thresholds = class_thresholds(1 - unlike, train.items, len(self.catalogue))

    def score(self, windows: Windows) -> FloatArray:
        if self.by == "thresholds":
            return self.halves.measure(windows, self_confidence) + self.thresholds[windows.items]
        by = {"normalized-margin": normalized_margin, "weighted-entropy": weighted_entropy}
        return self.halves.measure(windows, by.get(self.by, self_confidence))


def class_thresholds(confidence: FloatArray, items: IntArray, n_items: int) -> FloatArray:
    """Return the mean p(item) of each item.

    Parameters
    ----------
    confidence : array of float
        [E] p(item) of each interaction.
    items : array of int
        [E] the items.
    n_items : int
        N, the size of the catalogue.

    Returns
    -------
    array of float
        [N]; the mean over all interactions where an item has none.
    """
    counts = np.bincount(items, minlength=n_items)
    totals = np.bincount(items, weights=confidence, minlength=n_items)
    return np.where(counts > 0, totals / np.maximum(counts, 1), confidence.mean())
