"""Artificial noise with a known mask: the only way to measure detection, since nobody labels real noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from llm4dsr.catalogue import BoolArray, IntArray
from llm4dsr.errors import DataError


def add_noise(
    histories: Sequence[IntArray], n_items: int, rate: float, seed: int
) -> tuple[list[IntArray], list[BoolArray]]:
    """Replace each interaction, with probability `rate`, by another item drawn uniformly from the catalogue.

    Call it once per user and before windows are cut, so that an interaction is noise in every window that holds it.

    histories: one array per user, catalogue rows in 0 … n_items - 1, oldest first; left as they are.
    Returns (noisy histories, masks): lists of arrays as long as the given ones; a mask is True where the item was
    replaced, and a replaced item always differs from what stood there. A user may well get an item twice this way.
    Raises DataError if `rate` is outside [0, 1], if a row is outside the catalogue, or if the catalogue has fewer than
    two items (there would be nothing to replace an item by).
    """
    if not 0.0 <= rate <= 1.0:
        raise DataError(f"The noise rate is {rate}; expected a probability between 0 and 1.")
    if n_items < 2:
        raise DataError(f"The catalogue has {n_items} item(s); noise needs at least two, one to stand in for another.")
    if not histories:
        return [], []
    clean = np.concatenate(list(histories)).astype(np.int64)
    if len(clean) and not 0 <= clean.min() <= clean.max() < n_items:
        raise DataError(f"Items are rows {clean.min()} to {clean.max()}; expected 0 to {n_items - 1}, catalogue rows.")

    rng = np.random.default_rng(seed)
    mask = rng.random(len(clean)) < rate
    # Uniform over the other n - 1 items: draw among n - 1 numbers and step over the original.
    drawn = rng.integers(0, n_items - 1, size=len(clean))
    other = drawn + (drawn >= clean)
    noisy = np.where(mask, other, clean)

    cuts = np.cumsum([len(history) for history in histories])[:-1]
    return np.split(noisy, cuts), np.split(mask, cuts)
