"""A prompt as token ids, with the places where items enter and answers are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt


@dataclass
class Tokens:
    """A prompt under construction.

    Attributes
    ----------
    ids : list of int
        Token ids.
    slots : list of int
        For each token, the catalogue row whose title vector is added to its embedding; -1 for none.
    read : list of int
        For each position of the window, the token at which its noise logit is read. For soft tokens, the vector of its
        replacement is read there too.
    answer : int
        Where the answer starts, for the next-token loss.
    features : array of float, optional
        [soft tokens, N_FEATURES] co-occurrence features that are added to each soft token.
    """

    ids: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    answer: int = 0
    features: npt.NDArray[np.float32] | None = None

    def add(self, ids: Sequence[int], slot: int = -1) -> None:
        """Append tokens; `slot` is a catalogue row, or -1."""
        self.ids.extend(ids)
        self.slots.extend([slot] * len(ids))

    def __len__(self) -> int:
        return len(self.ids)
