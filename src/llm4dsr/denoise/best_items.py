"""The best items of the catalogue at each flag: all evidence in one matrix, a block of items at a time.

The score of an item is a weighted sum (`RankingWeights`). Two of its terms are inner products, so two matrix products
give them for all flags and items of a block. Co-occurrence is sparse: its few entries are written before. Then the best
items and the sum of the softmax are taken, and the block is dropped. Memory does not depend on the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from llm4dsr.core.arrays import FloatArray, IntArray, ranges
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.predictions import Predictions
from llm4dsr.denoise.ranking import RankingWeights
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.lm.model import NoiseLM

BLOCK = 16_384  # items that are scored at once on a GPU, where few large steps are faster
CPU_BLOCK = 2_048  # on a CPU: the scores of FLAGS flags then stay in its cache
LOWEST = -1e30  # below any score, and finite


@dataclass
class BestItems:
    """The best k items at each of G flags, best first.

    Attributes
    ----------
    items : array of int
        [G, k] catalogue rows; -1 = no more are allowed.
    evidence : array of float
        [G, k] log-probability under the weights that suggestions are ordered by; -inf where there is none.
    probability : array of float
        [G, k] probability that exactly this item belongs there, in [0, 1].
    cosine : array of float
        [G, k] cosine of title vector and predicted vector.
    """

    items: IntArray
    evidence: FloatArray
    probability: FloatArray
    cosine: FloatArray


class ItemRanker:
    """Ranks all items of a catalogue as suggestions.

    Parameters
    ----------
    model : NoiseLM
        A tuned model, with title vectors.
    counts : CooccurrenceCounts or None
        Co-occurrence counts. None: the predicted vector alone ranks.
    catalogue : Catalogue
        The items.
    weights : RankingWeights
        How the evidence is weighed.
    popularity : float, default 0
        Most that popularity may weigh in the order, as in `RankingWeights.by_evidence`.
    """

    def __init__(
        self,
        model: NoiseLM,
        counts: CooccurrenceCounts | None,
        catalogue: Catalogue,
        weights: RankingWeights,
        popularity: float = 0.0,
    ) -> None:
        assert model.vectors is not None
        self.titles, self.device = model.vectors, model.vectors.device
        self.block = CPU_BLOCK if self.device.type == "cpu" else BLOCK
        self.scale = 1 / torch.linalg.vector_norm(model.vectors, dim=-1).clamp(min=1e-12)  # [N]
        self.counts, self.weights, self.canonical = counts, weights, catalogue.canonical
        self.doubles = np.flatnonzero(catalogue.canonical != np.arange(len(catalogue)))
        users = np.zeros(len(catalogue)) if counts is None else counts.popularity
        log_users = torch.log1p(torch.tensor(users).float()).to(self.device)
        ordering = weights.by_evidence(popularity).popularity
        self.bias = ordering * log_users if ordering else None  # part of the ordering
        self.extra = (weights.popularity - ordering) * log_users  # what probabilities add to it
        self.summed = torch.stack([torch.ones_like(self.extra), self.extra.exp()], dim=1)  # [N, 2]
        self.units = None
        if counts is not None and weights.collaborative:
            assert counts.vectors is not None
            self.units = torch.from_numpy(counts.vectors.units).to(self.device)  # [GROUPS, N, V]

    @torch.inference_mode()
    def best(self, predictions: Predictions, histories: Windows, of: IntArray, k: int) -> BestItems:
        """Find the best items at each flag that its history does not hold.

        Parameters
        ----------
        predictions : Predictions
            Of G flags.
        histories : Windows
            Histories, whose titles are not allowed.
        of : array of int
            [G] the history of each flag.
        k : int
            Items for each flag.
        """
        flags, n_items = len(predictions.vectors), len(self.titles)
        order, groups, contexts = self._contexts(predictions)  # rows of a group are neighbors
        place = np.argsort(order)  # the row of each flag
        query = self.weights.cosine * predictions.vectors[self._index(order)]
        near, barred = self._neighbors(predictions, place), self._barred(histories, of, place)
        found = torch.empty(flags, 0, dtype=torch.long, device=self.device)
        values = torch.empty(flags, 0, device=self.device)
        top, sums = torch.full((flags, 1), LOWEST, device=self.device), torch.zeros(flags, 2, device=self.device)
        for start in range(0, n_items, self.block):
            block = slice(start, min(n_items, start + self.block))
            scores = torch.zeros(flags, block.stop - start, device=self.device)
            flat, (at, neighbor) = scores.view(-1), near.inside(block, self.device)
            near_scores = flat.scatter_add_(0, at, neighbor)[at]  # sums; the same wherever `at` repeats
            torch.mm(query, self.titles[block].T, out=scores).mul_(self.scale[block])
            flat[at] += self.weights.cooccurrence * torch.log1p(10 * near_scores)
            for group, rows in groups:
                assert self.units is not None
                scores[rows].addmm_(contexts[rows], self.units[group, block].T)
            if self.bias is not None:
                scores += self.bias[block]
            flat[barred.inside(block, self.device)[0]] = -torch.inf
            first, last = np.searchsorted(self.doubles, [block.start, block.stop])
            scores.index_fill_(1, self._index(self.doubles[first:last] - start), -torch.inf)
            more, items = scores.topk(min(k, scores.shape[1]))
            values, chosen = torch.cat([values, more], dim=1).topk(min(k, values.shape[1] + more.shape[1]))
            found = torch.cat([found, items + start], dim=1).gather(1, chosen)
            before, top = top, torch.maximum(top, values[:, :1])
            sums = sums * (before - top).exp() + scores.sub_(top).exp_() @ self.summed[block]
        total = top + sums.log()  # [rows, 2]
        back = self._index(place)
        values, found, total = values[back], found[back], total[back]
        cosine = torch.einsum("gv,gkv->gk", predictions.vectors, F.normalize(self.titles[found], dim=-1))
        likely = (values + self.extra[found] - total[:, 1:]).exp()
        allowed = values > -torch.inf
        return BestItems(
            found.where(allowed, -1).cpu().numpy(),
            (values - total[:, :1]).where(allowed, -torch.inf).double().cpu().numpy(),
            likely.double().cpu().numpy(),
            cosine.double().cpu().numpy(),
        )

    def _index(self, rows: IntArray) -> Tensor:
        return torch.from_numpy(rows).to(self.device)

    def _contexts(self, predictions: Predictions) -> tuple[IntArray, list[tuple[int, slice]], Tensor]:
        """(The order of flags by group of users; the rows of each group; [G, V] what collaborative vectors meet)."""
        if self.units is None:
            return np.arange(len(predictions.vectors)), [], torch.empty(0)
        assert self.counts is not None
        assert self.counts.vectors is not None
        groups, contexts = self.counts.vectors.contexts(predictions.windows, predictions.context)
        order = np.argsort(groups, kind="stable")
        present, starts = np.unique(groups[order], return_index=True)
        rows = [slice(*ends) for ends in pairwise([*starts.tolist(), len(order)])]
        query = torch.from_numpy(self.weights.collaborative * contexts[order]).float().to(self.device)
        return order, list(zip(present.tolist(), rows, strict=True)), query

    def _neighbors(self, predictions: Predictions, place: IntArray) -> _Entries:
        """Neighbor scores, in parts that are to be added."""
        if self.counts is None or not self.weights.cooccurrence:
            return _Entries.of(self.block, np.empty(0, np.int64), np.empty(0, np.int64))
        rows, items, scores = self.counts.neighbors(predictions.windows, predictions.context)
        return _Entries.of(self.block, place[rows], items, scores.astype(np.float32))

    def _barred(self, histories: Windows, of: IntArray, place: IntArray) -> _Entries:
        """The titles of the history of each flag."""
        sizes = histories.lengths[of]
        items = self.canonical[histories.items[ranges(histories.offsets[of], sizes)]]
        return _Entries.of(self.block, np.repeat(place, sizes), items)


@dataclass
class _Entries:
    """Entries of a matrix of rows and items, by block of items."""

    size: int  # items of a block
    rows: IntArray
    items: IntArray
    values: npt.NDArray[np.float32]

    @classmethod
    def of(cls, size: int, rows: IntArray, items: IntArray, values: npt.NDArray[np.float32] | None = None) -> _Entries:
        if values is None:
            values = np.ones(len(rows), np.float32)
        if items.max(initial=0) < size:
            return cls(size, rows, items, values)
        order = np.argsort((items // size).astype(np.uint16), kind="stable")  # radix sort
        return cls(size, rows[order], items[order], values[order])

    @cached_property
    def _starts(self) -> IntArray:
        """Where each block begins."""
        return np.cumsum(np.bincount(self.items // self.size + 1, minlength=2))

    def inside(self, block: slice, device: torch.device) -> tuple[Tensor, Tensor]:
        """(Places in the flat block, values)."""
        first, last = self._starts.take([block.start // self.size, block.start // self.size + 1], mode="clip")
        at = self.rows[first:last] * (block.stop - block.start) + self.items[first:last] - block.start
        return torch.from_numpy(at).to(device), torch.from_numpy(self.values[first:last]).to(device)
