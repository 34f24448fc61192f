"""Recommenders as denoisers: an interaction that the model did not expect is suspicious.

A model expects what it was trained on, noise included. So there are two, each trained on one half of the users. A user
in training is scored by the model that was trained without that user; anyone else by the mean of both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor

from llm4dsr.bench.baselines.baseline import Baseline
from llm4dsr.config import RecommenderConfig
from llm4dsr.core.arrays import PAD, FloatArray, IntArray
from llm4dsr.core.hashing import Hashes, digest, user_folds, user_hashes
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.recommenders import BACKBONES
from llm4dsr.recommenders.backbone import MASK, Backbone, recent
from llm4dsr.recommenders.bert4rec import BERT4Rec
from llm4dsr.recommenders.training import train

EPOCHS, PATIENCE = 20, 5
STEPS = 75  # of an epoch, at least: of few windows a batch has fewer
LONGEST = 50  # items that a model sees at once, at most
KEPT = 4  # pairs of models
# With the defaults BERT4Rec is undertrained: validation NDCG@20 on Toys after 6 epochs is .004, with these .013
OPTIONS: dict[str, dict[str, Any]] = {"bert4rec": {"loss": "full", "learning_rate": 3e-3, "dropout": 0.2}}
Measure = Callable[[Tensor, Tensor], Tensor]  # (scores of the catalogue [B, N], the items that stand there [B]) -> [B]


def surprise(scores: Tensor, items: Tensor) -> Tensor:
    """Return -log softmax of the item's score.

    Parameters
    ----------
    scores : Tensor
        [B, N] logits of the catalogue.
    items : Tensor
        [B] the items.

    Returns
    -------
    Tensor
        [B] in nats; log N where all items tie.
    """
    return scores.logsumexp(1) - scores.gather(1, items[:, None]).squeeze(1)


def log_rank(scores: Tensor, items: Tensor) -> Tensor:
    """Return the log of the item's rank in the catalogue.

    Parameters
    ----------
    scores, items
        As in `surprise`.

    Returns
    -------
    Tensor
        [B] 0 = best, log N = last, or all items tie.
    """
    return (scores >= scores.gather(1, items[:, None])).sum(1).double().log()


@dataclass
class Halves:
    """Two models, each trained on half of the users.

    Attributes
    ----------
    models : list of Backbone
        Model k was trained without the users of fold k.
    priors : list of Tensor
        [N] each: log frequency of every item in the windows of that model, with one added to each count.
    seen : array of hashes
        All users in training.
    """

    models: list[Backbone]
    priors: list[Tensor]
    seen: Hashes

    def score(self, windows: Windows, score_fold: Callable[[int, Windows], FloatArray]) -> FloatArray:
        """Score windows with the model that has not seen their user, or with the mean of both.

        Parameters
        ----------
        windows : Windows
            W windows with n interactions.
        score_fold : callable
            (fold, windows) -> scores of their interactions.

        Returns
        -------
        array of float
            [n].
        """
        total, models = np.zeros(len(windows.items)), np.zeros(len(windows))
        folds, known = user_folds(windows.user_ids, 2), np.isin(user_hashes(windows.user_ids), self.seen)
        for fold in range(2):
            rows = np.flatnonzero((folds == fold) | ~known)
            total[windows.interactions(rows)] += score_fold(fold, windows.take(rows))
            models[rows] += 1
        return total / models[windows.owners]

    def measure(self, windows: Windows, measure: Measure) -> FloatArray:
        """Measure every interaction, given the items that its model sees.

        Parameters
        ----------
        windows : Windows
            W windows with n interactions.
        measure : callable
            (scores of the catalogue [B, N], items [B]) -> [B].

        Returns
        -------
        array of float
            [n].
        """
        return self.score(windows, lambda fold, part: _measure(self.models[fold], self.priors[fold], part, measure))


_kept: dict[str, Halves] = {}  # by what they were made from, the oldest first


def fit_halves(backbone: str, windows: Windows, valid: Windows, catalogue: Catalogue, seed: int) -> Halves:
    """Train two models, each on half of the users. The last KEPT pairs are cached: baselines and settings share them.

    Parameters
    ----------
    backbone : str
        Name of the recommender.
    windows, valid : Windows
        Training and validation windows, target included.
    catalogue : Catalogue
        The items.
    seed : int
        Of the models.

    Returns
    -------
    Halves

    Raises
    ------
    DataError
        If either half of the users has no window to train on.
    """
    config = RecommenderConfig(
        epochs=EPOCHS,
        patience=PATIENCE,
        batch_size=int(np.clip(len(windows) // 2 // STEPS, 16, 256)),
        history=int(np.clip(windows.width - 1, 1, LONGEST)),
        supervise="all",
        **OPTIONS.get(backbone, {}),
    )
    read = (windows.items, windows.lengths, user_hashes(windows.user_ids), valid.items, valid.lengths)
    key = digest(backbone, config, seed, len(catalogue), *read)
    if key not in _kept:
        while len(_kept) >= KEPT:
            _kept.pop(next(iter(_kept)))
        _kept[key] = _fit(BACKBONES[backbone], windows, valid, len(catalogue), config, seed)
    return _kept[key]


def _fit(
    kind: type[Backbone], windows: Windows, valid: Windows, n_items: int, config: RecommenderConfig, seed: int
) -> Halves:
    models, priors, folds = [], [], user_folds(windows.user_ids, 2)
    for fold in range(2):
        others = windows.take(np.flatnonzero(folds != fold))
        models.append(cast(Backbone, train(kind, others, valid, n_items, config, seed).model))
        counts = np.bincount(others.items, minlength=n_items) + 1
        priors.append(torch.from_numpy(np.log(counts / counts.sum())).float())
    return Halves(models, priors, np.unique(user_hashes(windows.user_ids)))


def _measure(model: Backbone, prior: Tensor, windows: Windows, measure: Measure) -> FloatArray:
    """[n] measures of one model."""
    out = np.empty(len(windows.items))
    question = with_a_gap if isinstance(model, BERT4Rec) else before
    size, prior = max(1, model.room // model.n_items), prior.to(model.device)
    with torch.inference_mode():
        for start in range(0, len(out), size):
            some = slice(start, start + size)
            given = torch.from_numpy(question(windows, np.arange(len(out))[some], model.config.history))
            given = given.to(model.device)
            masked = given == MASK
            states = model(given)[masked] if masked.any() else model.last_states(given)  # [B, d]
            scores = states @ model.item_vectors.T  # [B, N]
            scores[((given == PAD) | masked).all(1)] = prior
            out[some] = measure(scores, torch.from_numpy(windows.items[some]).to(model.device)).cpu().numpy()
    return out


def before(windows: Windows, at: IntArray, history: int) -> IntArray:
    """Return the items before an interaction.

    Parameters
    ----------
    windows : Windows
        Windows with n interactions.
    at : array of int
        [B] indices of interactions.
    history : int
        Most items, the newest ones.

    Returns
    -------
    array of int
        [B, history] right-padded.
    """
    return np.asarray(recent(windows.items, at, windows.positions[at], history, PAD))


def with_a_gap(windows: Windows, at: IntArray, history: int) -> IntArray:
    """Return the window of an interaction, with MASK in its place; of longer windows, the part around it.

    Parameters
    ----------
    windows, at, history
        As in `before`.

    Returns
    -------
    array of int
        [B, history + 1] right-padded.
    """
    rows, positions = windows.owners[at], windows.positions[at]
    ends = np.minimum(np.maximum(positions + history // 2 + 1, history + 1), windows.lengths[rows])
    out = np.asarray(recent(windows.items, windows.offsets[rows] + ends, ends, history + 1, PAD))
    out[np.arange(len(at)), positions - np.maximum(ends - history - 1, 0)] = MASK
    return out


class SASRecLikelihood(Baseline):
    """Score interactions by how unlikely SASRec finds them after the items before.

    Later items are not used. The first item of a window has no past, so it is scored by its frequency in training.

    Parameters
    ----------
    by : {"likelihood", "rank"}
        `surprise` or `log_rank`.
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
        return self.halves.measure(windows, self.measure)


class BERT4RecLikelihood(SASRecLikelihood):
    """Score interactions by how unlikely BERT4Rec finds them among the others of the window. One pass per position.

    The only item of a window is scored by its frequency in training. Parameters are those of SASRecLikelihood.
    """

    name: ClassVar[str] = "bert4rec-likelihood"
    source: ClassVar[str] = "Sun et al. (2019), arXiv 1904.06690; out-of-fold likelihood"
    backbone: ClassVar[str] = "bert4rec"
