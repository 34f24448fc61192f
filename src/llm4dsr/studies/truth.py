"""Windows whose noise is known."""

from __future__ import annotations

import dataclasses

import numpy as np

from llm4dsr import columns as c
from llm4dsr.bench.suite import Suite
from llm4dsr.catalogue import Catalogue, Windows
from llm4dsr.config import TaskConfig
from llm4dsr.errors import DataError
from llm4dsr.task import draw_positions, replace

SELF_MADE = TaskConfig(replaced=0, rate=0.1)


def need_masks(suite: Suite) -> None:
    """Raises DataError where the suite does not tell which interactions are noise."""
    lacking = [name for name, windows in suite.data.splits.items() if windows.noise_mask is None]
    if lacking:
        raise DataError(
            f"This study compares probabilities with known noise, but {', '.join(lacking)} of {suite.name} have no "
            f"column {c.NOISE_MASK!r}. Make noise whose truth is known:  llm4dsr noise --data DATA --out NOISY"
        )


def known_noise(windows: Windows, catalogue: Catalogue, seed: int) -> Windows:
    """Evaluation windows with `noise_mask` and `clean_items`: as they are where they have both, else with self-made
    noise in a tenth of their histories (uniform, targets untouched); what was noise before counts as clean then."""
    if windows.noise_mask is not None and windows.clean_items is not None:
        return windows
    rng = np.random.default_rng(seed)
    chosen = draw_positions(windows.lengths - 1, windows.items.shape[1], SELF_MADE, rng)
    items = replace(windows.items, chosen, catalogue, rng)
    return dataclasses.replace(windows, items=items, noise_mask=items != windows.items, clean_items=windows.items)


def describe(judged: Windows, given: Windows) -> str:
    """For a page: whose noise it is. judged: what `known_noise` made of `given`."""
    if judged is given:
        return "Noise is the suite's own, which its mask knows."
    return (
        f"The suite does not tell its noise and what belongs there: {SELF_MADE.rate:.0%} of the test histories "
        "was replaced by uniform items, and what was noise before counts as clean."
    )
