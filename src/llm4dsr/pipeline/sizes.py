"""Sizes of the data that memory, disk and time of a run depend on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from llm4dsr import columns as c
from llm4dsr.config import Config, DecideConfig
from llm4dsr.core.arrays import IntArray
from llm4dsr.core.hashing import Hashes, user_hashes
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.decide import configured_rule
from llm4dsr.denoise.noise_injection import USUAL_NOISE_RATE
from llm4dsr.features.cooccurrence import CooccurrenceCounts

SAMPLED = 50_000  # training windows whose pairs are counted
LEVELS = 8  # of frequency, from one to its double


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
        Pairs of items that some user has in a training window.
    owned : int
        Pairs and items of each training user, each once.
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
    owned: int
    tokens: float
    title_tokens: float
    rows: int

    @classmethod
    def of(cls, data: Dataset, config: Config, tokens: float, title_tokens: float) -> Sizes:
        """Read the sizes of a dataset; tokens as above."""
        lengths = {name: w.lengths.astype(np.int64) for name, w in data.splits.items()}
        train = data.splits[c.TRAIN]
        seen = user_hashes(train.user_ids)
        pairs, owned = _pairs(train, seen, len(data.catalogue))
        return cls(
            len(data.catalogue),
            sum(map(len, data.catalogue.titles)),
            {name: len(w) for name, w in data.splits.items()},
            {name: int(found.sum()) for name, found in lengths.items()},
            {name: _models(w, seen, config.train.folds) for name, w in data.splits.items()},
            int(max(found.max(initial=1) for found in lengths.values())),
            pairs,
            owned,
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
    >>> sizes = Sizes(10, 90, {"train": 20}, {"train": 200}, {"train": 1.0}, 10, 900, 45, 14.0, 0.0, 3)
    >>> configs = [DecideConfig(policy=name, eta=0.95) for name in ("probability", "percentile", "rate")]
    >>> [flags(sizes, "train", config) for config in configs]
    [20.0, 10.0, 60.0]
    """
    _, eta, cap = configured_rule(config, is_train=split == c.TRAIN)
    rate = {"percentile": 1 - eta, "rate": eta}.get(config.policy, USUAL_NOISE_RATE)
    return min(round(rate * sizes.interactions[split], 6), float(cap * sizes.windows[split]))


def _pairs(windows: Windows, users: Hashes, n_items: int) -> tuple[int, int]:
    """(pairs of items, pairs and items of users): counted for SAMPLED windows of whole users, and told for all."""
    sampled = np.argsort(users)
    if len(sampled) > SAMPLED:
        sampled = sampled[users[sampled] <= users[sampled[SAMPLED]]]
    counted = CooccurrenceCounts.of(windows.take(sampled), n_items)
    if len(sampled) == len(windows):
        return len(counted.pairs), len(counted.own)
    growth = len(windows) / len(sampled)
    of_users = growth * float(counted.counts.sum())
    different = distinct_pairs(np.bincount(windows.items, minlength=n_items), of_users)
    return round(different), round(growth * len(counted.own))


def distinct_pairs(frequencies: IntArray, pairs: float) -> float:
    """Return about how many different pairs of items there are among pairs of users, if items were independent.

    Items that are bought together make it fewer.

    Parameters
    ----------
    frequencies : array of int
        [N] how often each item occurs.
    pairs : float
        Pairs of users.

    Examples
    --------
    >>> round(distinct_pairs(np.full(1000, 7), 100))  # hardly any pair twice
    100
    >>> distinct_pairs(np.full(1000, 7), 10**9) == 1000 * 999 / 2  # each
    True
    """
    level, items = np.unique(np.round(LEVELS * np.log2(np.maximum(frequencies, 2.0**-60))), return_counts=True)
    share = 2.0 ** (level / LEVELS)  # items of about one frequency are taken together
    share /= max(float(share @ items), 1e-300)
    possible = np.outer(items, items) - np.diag(items)  # in both directions
    chance = np.outer(share, share)
    often = 2 * pairs * chance / max(float((possible * chance).sum()), 1e-300)
    return float((possible * -np.expm1(-often)).sum() / 2)
