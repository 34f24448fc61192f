"""The self-supervised task (arXiv 2408.08208, section 4.1): put foreign items into windows that are mostly right."""

from __future__ import annotations

import dataclasses

import numpy as np

from llm4dsr.catalogue import PAD, BoolArray, Catalogue, IntArray, Windows
from llm4dsr.config import TaskConfig


def draw_positions(lengths: IntArray, width: int, task: TaskConfig, rng: np.random.Generator) -> BoolArray:
    """[B, width] True where an item will be replaced; at least one item of a window always stays."""
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
    """[B, L] a copy of `items` with an item drawn uniformly from the catalogue at each chosen position.

    A draw that carries a title already in the window is drawn again: it would not be foreign. Where no item of the
    catalogue is foreign, the position stays as it is.
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
    for row, col in np.argwhere(todo):  # a small catalogue: draw among the foreign items, if there is any
        foreign = np.flatnonzero(~np.isin(catalogue.canonical, canonical[items[row]]))
        out[row, col] = rng.choice(foreign) if len(foreign) else items[row, col]
    return out


def inject(windows: Windows, catalogue: Catalogue,
           rng: np.random.Generator) -> tuple[Windows, BoolArray, IntArray, IntArray]:  # fmt: skip
    """As many windows as given, each with one foreign item, at places drawn uniformly over all interactions (as
    noise falls). Returns (windows, where [W, L], which windows they were [W], what stood there [W])."""
    rows, positions = np.nonzero(windows.present)
    drawn = rng.integers(0, len(rows), size=len(windows))
    some, at = windows.take(rows[drawn]), (np.arange(len(windows)), positions[drawn])
    chosen = np.zeros(some.items.shape, dtype=bool)
    chosen[at] = True
    foreign = dataclasses.replace(some, items=replace(some.items, chosen, catalogue, rng))
    return foreign, chosen, rows[drawn], some.items[at]
