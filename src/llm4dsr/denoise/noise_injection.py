"""Noise injection, the self-supervised task: put random items into windows (arXiv 2408.08208, section 4.1)."""

from __future__ import annotations

import dataclasses

import numpy as np

from llm4dsr.config import TaskConfig
from llm4dsr.core.arrays import PAD, BoolArray, IntArray
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows


def draw_positions(lengths: IntArray, width: int, task: TaskConfig, rng: np.random.Generator) -> BoolArray:
    """Draw the positions that get an injected item.

    Parameters
    ----------
    lengths : array of int
        [B] items of each window.
    width : int
        Most items of a window.
    task : TaskConfig
        How many, or with which probability.
    rng : Generator
        Draws.

    Returns
    -------
    array of bool
        [B, width] True where an item will be replaced. At least one item of a window always stays.
    """
    present = np.arange(width)[None, :] < lengths[:, None]
    order = np.where(present, rng.random(present.shape), 2.0)  # a uniform random order of the present positions
    if task.replaced:
        ranks = order.argsort(axis=1).argsort(axis=1)
        chosen = ranks < np.minimum(task.replaced, lengths - 1)[:, None]
    else:
        chosen = order < task.rate
        full = chosen.sum(axis=1) >= lengths
        chosen[full, 0] = False
    whole = rng.random(len(lengths)) < task.none
    out: BoolArray = chosen & present & ~whole[:, None]
    return out


def replace(items: IntArray, chosen: BoolArray, catalogue: Catalogue, rng: np.random.Generator) -> IntArray:
    """Replace items by items drawn uniformly from the catalogue.

    A draw with a title that the window already has is drawn again. If no other title exists, the position stays as it
    is.

    Parameters
    ----------
    items : array of int
        [B, L] catalogue rows.
    chosen : array of bool
        [B, L] positions to replace.
    catalogue : Catalogue
        The items to draw from.
    rng : Generator
        Draws.

    Returns
    -------
    array of int
        [B, L] a copy with the injected items.
    """
    out = items.copy()
    canonical = np.append(catalogue.canonical, PAD)  # row PAD = -1 stays PAD
    todo = chosen.copy()
    for _ in range(20):
        rows, cols = np.nonzero(todo)
        if not len(rows):
            return out
        drawn = rng.integers(0, len(catalogue), size=len(rows))
        out[rows, cols] = drawn
        clash = (canonical[items[rows]] == canonical[drawn][:, None]).any(axis=1)
        todo = np.zeros_like(chosen)
        todo[rows[clash], cols[clash]] = True
    for row, col in np.argwhere(todo):  # a small catalogue: draw among the items of other titles, if any
        other = np.flatnonzero(~np.isin(catalogue.canonical, canonical[items[row]]))
        out[row, col] = rng.choice(other) if len(other) else items[row, col]
    return out


def inject(
    windows: Windows, catalogue: Catalogue, rng: np.random.Generator
) -> tuple[Windows, BoolArray, IntArray, IntArray]:
    """Inject one item into each of as many windows as given.

    Positions are drawn uniformly over all interactions, as noise falls, so long windows are drawn more often.

    Parameters
    ----------
    windows : Windows
        W windows of up to L items.
    catalogue : Catalogue
        The items to draw from.
    rng : Generator
        Draws.

    Returns
    -------
    windows : Windows
        With one injected item each.
    chosen : array of bool
        [W, L] where it is.
    source : array of int
        [W] which window each was.
    originals : array of int
        [W] what stood there.
    """
    rows, positions = np.nonzero(windows.present)
    drawn = rng.integers(0, len(rows), size=len(windows))
    some, at = windows.take(rows[drawn]), (np.arange(len(windows)), positions[drawn])
    chosen = np.zeros(some.items.shape, dtype=bool)
    chosen[at] = True
    injected = dataclasses.replace(some, items=replace(some.items, chosen, catalogue, rng))
    return injected, chosen, rows[drawn], some.items[at]
