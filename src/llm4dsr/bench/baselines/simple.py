"""Baselines without a model: chance and popularity. Any other baseline must beat them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from llm4dsr.bench.baselines.baseline import Baseline
from llm4dsr.bench.baselines.window_similarity import in_parts
from llm4dsr.core.arrays import FloatArray
from llm4dsr.data.windows import Windows
from llm4dsr.features.cooccurrence import CooccurrenceCounts


class RandomFlags(Baseline):
    """Score at random: AUROC 0.5, average precision = the noise rate."""

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "uniform random numbers"

    def score(self, windows: Windows) -> FloatArray:
        rng = np.random.default_rng(self.seed)
        return in_parts(windows, lambda part: rng.random(part.present.shape))


class Popularity(Baseline):
    """Score by -log(1 + number of other users in training who have the item): rare items are suspicious.

    Works where noise is drawn uniformly from the catalogue, since most of a catalogue is rare. Fails where noise is
    what everyone clicks. The history is not used.
    """

    name: ClassVar[str] = "popularity"
    is_seeded: ClassVar[bool] = False
    source: ClassVar[str] = "counts, each user's own left out"

    def fit(self, train: Windows, valid: Windows) -> None:
        self.cooccurrence = CooccurrenceCounts.of(train, len(self.catalogue))

    def score(self, windows: Windows) -> FloatArray:
        return in_parts(windows, lambda part: -np.log1p(self.cooccurrence.leave_one_out_counts(part)[1]))
