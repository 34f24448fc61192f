"""Sizes of the data that memory, disk and time of a run depend on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm4dsr import columns as c
from llm4dsr.config import Config, DecideConfig
from llm4dsr.core.hashing import Hashes, user_hashes
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.decide import configured_rule
from llm4dsr.denoise.noise_injection import USUAL_NOISE_RATE


@dataclass(frozen=True)
class Sizes:
    """Sizes of the data that memory, disk and time depend on.

    Attributes
    ----------
    items : int
        Items of the catalogue.
    characters : int
        Characters of all titles.
    windows, interactions, models : dict of str to int or float
        For each split: its windows, their interactions, and the mean number of models that score a window.
    width : int
        Items of the longest window.
    pairs : int
        Pairs of positions in training windows, which bound the pairs of items.
    tokens : float
        Mean tokens of a prompt.
    title_tokens : float
        Mean tokens of a title; 0 for soft tokens.
    rows : int
        Rows that evaluation compares.
    """

    items: int
    characters: int
    windows: dict[str, int]
    interactions: dict[str, int]
    models: dict[str, float]
    width: int
    pairs: int
    tokens: float
    title_tokens: float
    rows: int

    @classmethod
    def of(cls, data: Dataset, config: Config, tokens: float, title_tokens: float) -> Sizes:
        """Read the sizes of a dataset; tokens as above."""
        lengths = {name: w.lengths.astype(np.int64) for name, w in data.splits.items()}
        train = lengths[c.TRAIN]
        seen = user_hashes(data.splits[c.TRAIN].user_ids)
        return cls(
            len(data.catalogue),
            sum(map(len, data.catalogue.titles)),
            {name: len(w) for name, w in data.splits.items()},
            {name: int(found.sum()) for name, found in lengths.items()},
            {name: _models(w, seen, config.train.folds) for name, w in data.splits.items()},
            int(max(found.max(initial=1) for found in lengths.values())),
            int((train * (train - 1) // 2).sum()),
            tokens,
            title_tokens,
            _rows(data, config),
        )

    @property
    def all_windows(self) -> int:
        """Windows of all splits."""
        return sum(self.windows.values())

    @property
    def all_interactions(self) -> int:
        """Interactions of all splits."""
        return sum(self.interactions.values())


def _models(windows: Windows, seen: Hashes, folds: int) -> float:
    is_new = ~np.isin(user_hashes(windows.user_ids), seen)
    return 1 + (folds - 1) * float(is_new.mean()) if len(windows) else 1.0


def _rows(data: Dataset, config: Config) -> int:
    """Original, corrected, dropped, and two oracles where the truth is known."""
    known = sum(
        all(getattr(w, name) is not None for w in data.splits.values()) for name in ("noise_mask", "clean_items")
    )
    return 1 + len({config.correct.action, "drop"}) + known


def flags(sizes: Sizes, split: str, config: DecideConfig) -> float:
    """Return about how many interactions of a split are flagged: by a rate or percentile known, else a usual rate.

    Examples
    --------
    >>> sizes = Sizes(10, 90, {"train": 20}, {"train": 200}, {"train": 1.0}, 10, 900, 14.0, 0.0, 3)
    >>> configs = [DecideConfig(policy=name, eta=0.95) for name in ("probability", "percentile", "rate")]
    >>> [flags(sizes, "train", config) for config in configs]
    [20.0, 10.0, 60.0]
    """
    _, eta, cap = configured_rule(config, is_train=split == c.TRAIN)
    rate = {"percentile": 1 - eta, "rate": eta}.get(config.policy, USUAL_NOISE_RATE)
    return min(round(rate * sizes.interactions[split], 6), float(cap * sizes.windows[split]))


def distinct_pairs(sizes: Sizes) -> float:
    """Return about how many pairs of items training windows have, if all pairs were equally frequent."""
    possible = max(1.0, sizes.items * (sizes.items - 1) / 2)
    return possible * float(-np.expm1(-sizes.pairs / possible))
