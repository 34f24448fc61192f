"""What every peer gives: a suspicion for each interaction. Peers are what llm4dsr is measured against (bench/).

All are chosen and used alike. A peer may try up to four settings (`grid`), each fitted on the same sample of training
windows; the one that finds self-made noise in validation histories best (average precision) is fitted on all. Labels
are never read. What it then flags is the same share of interactions for every peer, the most suspicious first.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from llm4dsr.catalogue import Catalogue, FloatArray, Windows
from llm4dsr.data import limit_windows
from llm4dsr.metrics import average_precision
from llm4dsr.task import inject

TUNED_ON = 8_000  # training windows that settings are compared on


class Peer:
    """A way to find noise. Subclasses take their settings as keyword arguments after (catalogue, seed)."""

    name: ClassVar[str]
    source: ClassVar[str]  # the paper or library
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({},)

    def __init__(self, catalogue: Catalogue, seed: int) -> None:
        self.catalogue, self.seed = catalogue, seed

    def fit(self, train: Windows, valid: Windows) -> None:
        """Learns from training windows, target included; `valid` (with targets) says when to stop."""

    def score(self, windows: Windows) -> FloatArray:
        """[W, L] suspicion of every interaction of the windows, target included where there is one; higher = more
        likely noise, any scale, finite; NaN where there is no item."""
        raise NotImplementedError

    def rewrite(self, windows: Windows, target_fixed: bool) -> Windows | None:
        """The histories as the peer itself would correct them, the same windows in the same order; None where it only
        scores. target_fixed: the last item of each window stays the last item."""
        return None


def choose(kind: type[Peer], train: Windows, valid: Windows, catalogue: Catalogue,
           seed: int) -> tuple[Peer, list[dict[str, Any]]]:  # fmt: skip
    """(the peer with its best setting, fitted on all of `train`; what was tried: settings and average precision)."""
    tried: list[dict[str, Any]] = []
    if len(kind.grid) > 1:
        some = limit_windows(train, TUNED_ON, seed)
        foreign, chosen, _, _ = inject(valid.histories(), catalogue, np.random.default_rng(seed))
        for settings in kind.grid:
            peer = kind(catalogue, seed, **settings)
            peer.fit(some, valid)
            found = average_precision(peer.score(foreign)[foreign.present], chosen[foreign.present])
            tried.append({**settings, "average_precision": found})
    best = kind.grid[int(np.argmax([t["average_precision"] for t in tried]))] if tried else kind.grid[0]
    peer = kind(catalogue, seed, **best)
    peer.fit(train, valid)
    return peer, tried
