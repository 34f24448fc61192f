"""Recommenders as denoisers: an interaction that the model did not expect is suspicious.

A model expects what it was trained on, noise included. So there are two, each trained on the users of one half: a user
of training is judged by the model that never saw this user, anyone else by the mean of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor

from llm4dsr.catalogue import PAD, Catalogue, FloatArray, IntArray, Windows
from llm4dsr.company import Hashes, user_hashes
from llm4dsr.config import RecommenderConfig
from llm4dsr.ensemble import fold_of
from llm4dsr.peers.peer import Peer
from llm4dsr.recommenders import BACKBONES
from llm4dsr.recommenders.backbone import MASK, Backbone, recent
from llm4dsr.recommenders.bert4rec import BERT4Rec
from llm4dsr.recommenders.training import train
from llm4dsr.shards import digest

EPOCHS, PATIENCE = 20, 5
STEPS = 75  # of an epoch, at least: of few windows a batch has fewer
LONGEST = 50  # items that a model sees at once, at most
KEPT = 4  # pairs of models
# With the defaults BERT4Rec is far from trained by then: validation NDCG@20 on Toys .004 after 6 epochs, so .013
OWN: dict[str, dict[str, Any]] = {"bert4rec": {"loss": "full", "learning_rate": 3e-3, "dropout": 0.2}}
Measure = Callable[[Tensor, Tensor], Tensor]  # (scores of the catalogue [B, N], the items that stand there [B]) -> [B]


def surprise(scores: Tensor, items: Tensor) -> Tensor:
    """[B, N], [B] -> [B] -log softmax of the item's score, in nats: log N where the model knows nothing."""
    return scores.logsumexp(1) - scores.gather(1, items[:, None]).squeeze(1)


def log_rank(scores: Tensor, items: Tensor) -> Tensor:
    """[B, N], [B] -> [B] log of the item's rank in the catalogue: 0 = best, log N = last, or all tie."""
    return (scores >= scores.gather(1, items[:, None])).sum(1).double().log()


@dataclass
class Halves:
    """models: the one at k was trained without the users of fold k. priors: [N] each, the log share of every item in
    the same windows (one added to each count). seen: hashes of all users in training."""

    models: list[Backbone]
    priors: list[Tensor]
    seen: Hashes

    def judge(self, windows: Windows, judge: Callable[[int, Windows], FloatArray]) -> FloatArray:
        """[W, L] what `judge(fold, windows)` gives, by the fold that has not seen the user or the mean of both; NaN
        where there is no item."""
        total, judges = np.zeros(windows.items.shape), np.zeros((len(windows), 1))
        folds, known = fold_of(windows, 2), np.isin(user_hashes(windows.user_ids), self.seen)
        for fold in range(2):
            rows = np.flatnonzero((folds == fold) | ~known)
            total[rows] += judge(fold, windows.take(rows))
            judges[rows] += 1
        return np.where(windows.present, total / judges, np.nan)

    def ask(self, windows: Windows, measure: Measure) -> FloatArray:
        """[W, L] the measure of every interaction, given what its model sees of the others."""
        return self.judge(windows, lambda fold, part: _ask(self.models[fold], self.priors[fold], part, measure))


_kept: dict[str, Halves] = {}  # by what they were made from, the oldest first


def fit_halves(backbone: str, windows: Windows, valid: Windows, catalogue: Catalogue, seed: int) -> Halves:
    """Two models. The last few are kept: peers and settings that ask for the same ones share them.

    Raises DataError where either half of the users has no window to train on.
    """
    config = RecommenderConfig(
        epochs=EPOCHS,
        patience=PATIENCE,
        batch_size=int(np.clip(len(windows) // 2 // STEPS, 16, 256)),
        history=int(np.clip(windows.items.shape[1] - 1, 1, LONGEST)),
        supervise="all",
        **OWN.get(backbone, {}),
    )
    key = digest(backbone, config, seed, len(catalogue), windows.items, user_hashes(windows.user_ids), valid.items)
    if key not in _kept:
        while len(_kept) >= KEPT:
            _kept.pop(next(iter(_kept)))
        _kept[key] = _fit(BACKBONES[backbone], windows, valid, len(catalogue), config, seed)
    return _kept[key]


def _fit(kind: type[Backbone], windows: Windows, valid: Windows, n_items: int, config: RecommenderConfig,
         seed: int) -> Halves:  # fmt: skip
    models, priors, folds = [], [], fold_of(windows, 2)
    for fold in range(2):
        others = windows.take(np.flatnonzero(folds != fold))
        models.append(cast(Backbone, train(kind, others, valid, n_items, config, seed).model))
        counts = np.bincount(others.items[others.present], minlength=n_items) + 1
        priors.append(torch.from_numpy(np.log(counts / counts.sum())).float())
    return Halves(models, priors, np.unique(user_hashes(windows.user_ids)))


def _ask(model: Backbone, prior: Tensor, windows: Windows, measure: Measure) -> FloatArray:
    """[W, L] the measure of every interaction by one model; 0 where there is no item."""
    out = np.zeros(windows.items.shape)
    rows, places = np.nonzero(windows.present)
    question = with_a_gap if isinstance(model, BERT4Rec) else before
    size, prior = max(1, model.room // model.n_items), prior.to(model.device)
    with torch.inference_mode():
        for start in range(0, len(rows), size):
            row, at = rows[start : start + size], places[start : start + size]
            given = torch.from_numpy(question(windows.items[row], windows.lengths[row], at, model.config.history))
            given = given.to(model.device)
            masked = given == MASK
            states = model(given)[masked] if masked.any() else model.last_states(given)  # [B, d]
            scores = states @ model.item_vectors.T  # [B, N]
            scores[((given == PAD) | masked).all(1)] = prior
            out[row, at] = measure(scores, torch.from_numpy(windows.items[row, at]).to(model.device)).cpu().numpy()
    return out


def before(items: IntArray, lengths: IntArray, at: IntArray, history: int) -> IntArray:
    """[B, history] the items before position `at` of each row [B, L], the newest ones, right-padded."""
    return np.asarray(recent(items, at, history, PAD))


def with_a_gap(items: IntArray, lengths: IntArray, at: IntArray, history: int) -> IntArray:
    """[B, history + 1] each row with a MASK at position `at`; of longer rows the part around it."""
    masked = items.copy()
    masked[np.arange(len(items)), at] = MASK
    ends = np.minimum(np.maximum(at + history // 2 + 1, history + 1), lengths)
    return np.asarray(recent(masked, ends, history + 1, PAD))


class SASRecLikelihood(Peer):
    """How little SASRec expected each item after those before it.

    The past alone speaks: an item is not judged by what follows. The first of a window has no past, so there the share
    of the item in training stands for the model.
    """

    name: ClassVar[str] = "sasrec-likelihood"
    source: ClassVar[str] = "Kang and McAuley (2018), arXiv 1808.09781; out-of-fold likelihood"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"by": "likelihood"}, {"by": "rank"})
    backbone: ClassVar[str] = "sasrec"

    def __init__(self, catalogue: Catalogue, seed: int, by: Literal["likelihood", "rank"] = "likelihood") -> None:
        super().__init__(catalogue, seed)
        self.measure: Measure = surprise if by == "likelihood" else log_rank

    def fit(self, train: Windows, valid: Windows) -> None:
        self.halves = fit_halves(self.backbone, train, valid, self.catalogue, self.seed)

    def score(self, windows: Windows) -> FloatArray:
        return self.halves.ask(windows, self.measure)


class BERT4RecLikelihood(SASRecLikelihood):
    """How little BERT4Rec expected each item between all others of its window: one pass for each position.

    An item that is alone in its window is judged by its share in training.
    """

    name: ClassVar[str] = "bert4rec-likelihood"
    source: ClassVar[str] = "Sun et al. (2019), arXiv 1904.06690; out-of-fold likelihood"
    backbone: ClassVar[str] = "bert4rec"
