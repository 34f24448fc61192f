"""What costs nothing: chance, and how often an item is bought at all. What a peer gives beyond these is its own."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from llm4dsr.catalogue import FloatArray, Windows
from llm4dsr.company import Company
from llm4dsr.peers.peer import Peer
from llm4dsr.peers.similarity import in_parts


class RandomFlags(Peer):
    """Chance: AUROC 0.5, average precision = the share of noise."""

    name: ClassVar[str] = "random"
    source: ClassVar[str] = "uniform random numbers"

    def score(self, windows: Windows) -> FloatArray:
        drawn = np.random.default_rng(self.seed).random(windows.items.shape)
        return np.where(windows.present, drawn, np.nan)


class Popularity(Peer):
    """-log(1 + number of other users in training who have the item): rare items are suspicious.

    Right where noise is drawn uniformly from the catalogue, as most of a catalogue is rare; wrong where noise is what
    everybody clicks. It looks at no history.
    """

    name: ClassVar[str] = "popularity"
    source: ClassVar[str] = "counts, each user's own left out"

    def fit(self, train: Windows, valid: Windows) -> None:
        self.company = Company.of(train, len(self.catalogue))

    def score(self, windows: Windows) -> FloatArray:
        def judge(part: Windows) -> FloatArray:
            return np.where(part.present, -np.log1p(self.company.others(part)[1]), np.nan)

        return in_parts(windows, judge)
