"""Pairwise co-occurrence: an item that other users rarely have together with the rest of the window is suspicious."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from llm4dsr.bench.baselines.baseline import Baseline
from llm4dsr.bench.baselines.window_similarity import in_parts, suspicion
from llm4dsr.core.arrays import FloatArray
from llm4dsr.core.hashing import user_hashes
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.features.cooccurrence import CooccurrenceCounts


class PMI(Baseline):
    """Score interactions by minus the mean positive pointwise mutual information with the window's other items.

    PMI(i, j) = log(U · users of both / (users of i · users of j)), and 0 where that is negative or no user has both.
    "cosine" is users of both / √(users of i · users of j), which trusts rare pairs less. U counts the users in training
    without the scored user.

    Limit: in a sparse catalogue most pairs have no user, and such interactions tie.

    Parameters
    ----------
    of : {"pmi", "cosine"}
        The similarity of two items.
    nearest : int
        Average over this many most similar items of the window; 0 = all.

    References
    ----------
    Church and Hanks (1990); the positive part: Bullinaria and Levy (2007).
    """

    name: ClassVar[str] = "pmi"
    is_seeded: ClassVar[bool] = False
    source: ClassVar[str] = "Church and Hanks (1990), Computational Linguistics 16(1); counts of other users"
    grid: ClassVar[tuple[dict[str, Any], ...]] = tuple(
        {"of": of, "nearest": nearest} for of in ("pmi", "cosine") for nearest in (0, 3)
    )

    def __init__(self, catalogue: Catalogue, seed: int, of: Literal["pmi", "cosine"] = "pmi", nearest: int = 0) -> None:
        super().__init__(catalogue, seed)
        self.of, self.nearest = of, nearest

    def fit(self, train: Windows, valid: Windows) -> None:
        self.cooccurrence = CooccurrenceCounts.of(train, len(self.catalogue))
        self.users = np.unique(user_hashes(train.user_ids))

    def score(self, windows: Windows) -> FloatArray:
        most = 1.0 if self.of == "cosine" else float(np.log(max(len(self.users), 1)))  # what similarity can be at most

        def score_part(part: Windows) -> FloatArray:
            pair_counts, item_counts = self.cooccurrence.leave_one_out_counts(part)  # [W, L, L], [W, L]
            either = item_counts[:, :, None] * item_counts[:, None, :]
            if self.of == "cosine":
                similarity = pair_counts / np.sqrt(np.maximum(either, 1))
            else:
                others = len(self.users) - np.isin(user_hashes(part.user_ids), self.users)
                lift = others[:, None, None] * pair_counts / np.maximum(either, 1)
                similarity = np.log(np.maximum(lift, 1))
            return suspicion(similarity, part.present, self.nearest, alone=most)

        return in_parts(windows, score_part)
