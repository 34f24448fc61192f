"""Noise injection, the self-supervised task: put foreign items into windows (arXiv 2408.08208, section 4.1).

Published is one item per window, drawn uniformly. A model that saw only this takes a run of foreign items for the
user's own, because they support each other. So some windows get a run of another user's items, and some items are
drawn by popularity, as real noise is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from llm4dsr.config import TaskConfig
from llm4dsr.core.arrays import PAD, BoolArray, IntArray
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows

LONGEST_RUN = 5  # items of a run
USUAL_NOISE_RATE = 0.1  # assumed where the noise rate is not known yet


@dataclass(frozen=True)
class Injectable:
    """The items that may be injected.

    A catalogue can hold many items without users. They would be recognized by that alone, and real noise seldom is
    one of them. So most injected items are drawn from those that users have.

    Attributes
    ----------
    catalogue : Catalogue
        All items.
    rows : array of int
        Catalogue rows that users have.
    unused : array of int
        Catalogue rows without users.
    unused_rate : float
        Probability to draw one of these.
    """

    catalogue: Catalogue
    rows: IntArray
    unused: IntArray
    unused_rate: float

    @classmethod
    def of(cls, catalogue: Catalogue, windows: Windows, popularity: IntArray | None = None) -> Injectable:
        """Tell items that somebody has from others.

        A noisy item that no other user has is an item of a single user. So unused items are drawn no more often than
        if all items of a single user were noise, and no more often than a draw from the whole catalogue would.

        Parameters
        ----------
        catalogue : Catalogue
            All items.
        windows : Windows
            Windows that get noise; they tell where numbers of users are unknown.
        popularity : array of int, optional
            [N] users of each item.
        """
        if popularity is None:
            users = np.zeros(len(catalogue), dtype=np.int64)
            users[windows.items[windows.present]] = 2
        else:
            users = popularity
        rows, unused = np.flatnonzero(users), np.flatnonzero(users == 0)
        if not len(rows):
            return cls(catalogue, unused, unused, 0.0)
        noise = USUAL_NOISE_RATE * max(1, int(users.sum()))
        return cls(catalogue, rows, unused, min(len(unused) / len(catalogue), float((users == 1).sum() / noise)))

    def draw(self, size: int, rng: np.random.Generator) -> IntArray:
        """Draw catalogue rows, uniformly among the items that users have and among the others."""
        drawn = rng.choice(self.rows, size=size)
        if not self.unused_rate:
            return drawn
        return np.where(rng.random(size) < self.unused_rate, rng.choice(self.unused, size=size), drawn)


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


def draw_noise(
    windows: Windows, injectable: Injectable, task: TaskConfig, rng: np.random.Generator
) -> tuple[IntArray, BoolArray]:
    """Draw the noise of one training step.

    Parameters
    ----------
    windows : Windows
        B windows of up to L items. Runs are drawn from each other, and popular items from all of them.
    injectable : Injectable
        The items to draw from.
    task : TaskConfig
        How much of which noise.
    rng : Generator
        Draws.

    Returns
    -------
    items : array of int
        [B, L] catalogue rows with injected items.
    chosen : array of bool
        [B, L] True where an item was injected.
    """
    chosen = draw_positions(windows.lengths, windows.items.shape[1], task, rng)
    pool = windows.items[windows.present]
    popular = pool[rng.integers(0, len(pool), size=chosen.shape)] if task.popular else windows.items
    popular = np.where(rng.random(chosen.shape) < task.popular, popular, PAD)
    if task.replaced or not task.bursts:
        return replace(windows.items, chosen, injectable, rng, popular), chosen
    foreign, runs, with_run = draw_runs(windows, injectable.catalogue, task.bursts, rng)
    chosen[with_run] = False
    items = replace(windows.items, chosen, injectable, rng, popular)
    return np.where(runs, foreign, items), chosen | runs


def draw_runs(
    windows: Windows, catalogue: Catalogue, rate: float, rng: np.random.Generator
) -> tuple[IntArray, BoolArray, BoolArray]:
    """Draw runs of another user's items.

    Parameters
    ----------
    windows : Windows
        B windows of up to L items; runs are drawn from each other.
    catalogue : Catalogue
        The items.
    rate : float
        Probability that a window gets a run, where it can hold one and the other window is of another user.
    rng : Generator
        Draws.

    Returns
    -------
    items : array of int
        [B, L] catalogue rows; those of the other user in a run.
    runs : array of bool
        [B, L] True where such an item stands. An item that the window has anyway is no noise.
    with_run : array of bool
        [B] True where a run was drawn.
    """
    runs, foreign = _runs_of_others(windows, rate, rng)
    with_run: BoolArray = np.asarray(runs.any(axis=1))
    canonical = np.append(catalogue.canonical, PAD)
    runs &= ~(canonical[windows.items][:, :, None] == canonical[foreign][:, None, :]).any(axis=1)
    return np.where(runs, foreign, windows.items), runs, with_run


def _runs_of_others(windows: Windows, rate: float, rng: np.random.Generator) -> tuple[BoolArray, IntArray]:
    """(positions of a run in a fraction `rate` of the windows, items of another user there), [B, L] each.

    A run has 2 to LONGEST_RUN items and less than half of the window, which else could not tell whose it is.
    """
    lengths, size = windows.lengths, len(windows)
    longest = np.minimum(LONGEST_RUN, (lengths - 1) // 2)
    donor = rng.integers(0, size, size=size)
    users = windows.user_ids
    foreign_user = (users.gather(donor) != users).fill_null(True).to_numpy()
    run = np.minimum(rng.integers(2, LONGEST_RUN + 1, size=size), longest)
    used = (rng.random(size) < rate) & (longest >= 2) & foreign_user
    start = (rng.random(size) * (lengths - run + 1)).astype(np.int64)
    begin = (rng.random(size) * np.maximum(1, lengths[donor] - run + 1)).astype(np.int64)
    at = np.arange(windows.items.shape[1])[None, :] - start[:, None]
    inside = used[:, None] & (at >= 0) & (at < run[:, None])
    taken = (begin[:, None] + np.maximum(at, 0)) % np.maximum(lengths[donor], 1)[:, None]
    return inside, windows.items[donor[:, None], taken]


def task_rate(task: TaskConfig, windows: Windows) -> float:
    """Return the fraction of the interactions that single injected items replace, in (0, 1)."""
    rate = task.replaced / max(1.0, windows.lengths.mean()) if task.replaced else task.rate
    return float(np.clip((1 - task.none) * rate, 0.01, 0.99))


def replace(
    items: IntArray,
    chosen: BoolArray,
    injectable: Injectable,
    rng: np.random.Generator,
    first: IntArray | None = None,
) -> IntArray:
    """Replace items by items drawn uniformly from those that may be injected.

    A draw with a title that the window already has is drawn again. If no other title exists, the position stays as it
    is.

    Parameters
    ----------
    items : array of int
        [B, L] catalogue rows.
    chosen : array of bool
        [B, L] positions to replace.
    injectable : Injectable
        The items to draw from.
    rng : Generator
        Draws.
    first : array of int, optional
        [B, L] items to try before a draw; PAD: draw at once.

    Returns
    -------
    array of int
        [B, L] a copy with the injected items.
    """
    out, catalogue = items.copy(), injectable.catalogue
    canonical = np.append(catalogue.canonical, PAD)  # row PAD = -1 stays PAD
    todo = chosen.copy()
    for _ in range(20):
        rows, cols = np.nonzero(todo)
        if not len(rows):
            return out
        drawn = injectable.draw(len(rows), rng)
        if first is not None:
            drawn, first = np.where(first[rows, cols] == PAD, drawn, first[rows, cols]), None
        out[rows, cols] = drawn
        clash = (canonical[items[rows]] == canonical[drawn][:, None]).any(axis=1)
        todo = np.zeros_like(chosen)
        todo[rows[clash], cols[clash]] = True
    for row, col in np.argwhere(todo):  # a small catalogue: draw among the items of other titles, if any
        other = np.flatnonzero(~np.isin(catalogue.canonical, canonical[items[row]]))
        out[row, col] = rng.choice(other) if len(other) else items[row, col]
    return out


def inject(
    windows: Windows, injectable: Injectable, rng: np.random.Generator, popular: bool = False
) -> tuple[Windows, BoolArray, IntArray, IntArray]:
    """Inject one item into each of as many windows as given.

    Positions are drawn uniformly over all interactions, as noise falls, so long windows are drawn more often.

    Parameters
    ----------
    windows : Windows
        W windows of up to L items.
    injectable : Injectable
        The items to draw from.
    rng : Generator
        Draws.
    popular : bool, default False
        Draw items in proportion to their interactions in these windows, not uniformly.

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
    first = windows.items[windows.present][rng.integers(0, len(rows), size=chosen.shape)] if popular else None
    injected = dataclasses.replace(some, items=replace(some.items, chosen, injectable, rng, first))
    return injected, chosen, rows[drawn], some.items[at]
