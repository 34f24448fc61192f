"""Which items other users have together: an item that nobody else has with the rest is suspicious."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np

from llm4dsr.catalogue import Catalogue, FloatArray, Windows
from llm4dsr.company import Company, user_hashes
from llm4dsr.peers.peer import Peer
from llm4dsr.peers.similarity import in_parts, suspicion


class PMI(Peer):
    """Minus the mean positive pointwise mutual information with the window's other items.

    PMI(i, j) = log(U · users of both / (users of i · users of j)), 0 where that is negative or nobody has both (Church
    and Hanks, 1990; the positive part: Bullinaria and Levy, 2007). `of: cosine` takes
    users of both / √(users of i · users of j) instead, which trusts rare pairs less. All U users are those of training
    without the user who is judged. Counts need several users per pair: most pairs of a sparse catalogue have none, and
    such interactions tie.
    """

    name: ClassVar[str] = "pmi"
    source: ClassVar[str] = "Church and Hanks (1990), Computational Linguistics 16(1); counts of other users"
    grid: ClassVar[tuple[dict[str, Any], ...]] = tuple(
        {"of": of, "nearest": nearest} for of in ("pmi", "cosine") for nearest in (0, 3)
    )

    def __init__(self, catalogue: Catalogue, seed: int, of: Literal["pmi", "cosine"] = "pmi", nearest: int = 0) -> None:
        super().__init__(catalogue, seed)
        self.of, self.nearest = of, nearest

    def fit(self, train: Windows, valid: Windows) -> None:
        self.company = Company.of(train, len(self.catalogue))
        self.users = np.unique(user_hashes(train.user_ids))

    def score(self, windows: Windows) -> FloatArray:
        most = 1.0 if self.of == "cosine" else float(np.log(max(len(self.users), 1)))  # what similarity can be at most

        def judge(part: Windows) -> FloatArray:
            together, alone = self.company.others(part)  # [W, L, L], [W, L]
            either = alone[:, :, None] * alone[:, None, :]
            if self.of == "cosine":
                similarity = together / np.sqrt(np.maximum(either, 1))
            else:
                others = len(self.users) - np.isin(user_hashes(part.user_ids), self.users)
                lift = others[:, None, None] * together / np.maximum(either, 1)
                similarity = np.log(np.maximum(lift, 1))
            return suspicion(similarity, part.present, self.nearest, alone=most)

        return in_parts(windows, judge)
