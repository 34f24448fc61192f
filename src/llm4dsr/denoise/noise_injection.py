"""Noise injection, the self-supervised task: put foreign items into windows (arXiv 2408.08208, section 4.1).

Published is one item per window, drawn uniformly. A model that saw only this takes a run of foreign items for the
user's own, because they support each other. So some windows get a run of another user's items, and some items are
drawn by popularity, as real noise is.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import polars as pl

from llm4dsr.config import TaskConfig
from llm4dsr.core.arrays import PAD, BoolArray, IntArray, ranges
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows

LONGEST_RUN = 5  # items of a run
CELLS = 1_000_000  # positions that are drawn at once
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
            users[windows.items] = 2
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


def draw_positions(windows: Windows, task: TaskConfig, rng: np.random.Generator) -> BoolArray:
    """Draw the positions that get an injected item.

    Parameters
    ----------
    windows : Windows
        W windows with n interactions.
    task : TaskConfig
        How many, or with which probability.
    rng : Generator
        Draws.

    Returns
    -------
    array of bool
        [n] True where an item will be replaced. At least one item of a window always stays.
    """
    chosen = np.concatenate([_positions_of_batch(batch, task, rng) for _, batch in windows.batches(CELLS)])
    whole = rng.random(len(windows)) < task.none
    out: BoolArray = chosen & ~whole[windows.owners]
    return out


def _positions_of_batch(windows: Windows, task: TaskConfig, rng: np.random.Generator) -> BoolArray:
    """[n] positions that get an injected item, before any window is left whole."""
    present, lengths = windows.present, windows.lengths
    order = np.where(present, rng.random(present.shape), 2.0)  # a uniform random order of the present positions
    if task.replaced:
        ranks = order.argsort(axis=1).argsort(axis=1)
        chosen = ranks < np.minimum(task.replaced, lengths - 1)[:, None]
    else:
        chosen = order < task.rate
        full = chosen.sum(axis=1) >= lengths
        chosen[full, 0] = False
    return np.asarray(chosen[present])


def draw_noise(
    windows: Windows, injectable: Injectable, task: TaskConfig, rng: np.random.Generator
) -> tuple[IntArray, BoolArray]:
    """Draw the noise of one training step.

    Parameters
    ----------
    windows : Windows
        A batch of windows with n interactions. Runs are drawn from each other, and popular items from all of them.
    injectable : Injectable
        The items to draw from.
    task : TaskConfig
        How much of which noise.
    rng : Generator
        Draws.

    Returns
    -------
    items : array of int
        [n] catalogue rows with injected items.
    chosen : array of bool
        [n] True where an item was injected.
    """
    chosen, present = draw_positions(windows, task, rng), windows.present
    popular = windows.items
    if task.popular:
        popular = popular[rng.integers(0, len(popular), size=present.shape)[present]]
    popular = np.where(rng.random(present.shape)[present] < task.popular, popular, PAD)
    if task.replaced or not task.bursts:
        return replace(windows, chosen, injectable, rng, popular), chosen
    foreign, runs, with_run = draw_runs(windows, injectable.catalogue, task.bursts, rng)
    chosen &= ~with_run[windows.owners]
    items = replace(windows, chosen, injectable, rng, popular)
    return np.where(runs, foreign, items), chosen | runs


def draw_runs(
    windows: Windows, catalogue: Catalogue, rate: float, rng: np.random.Generator, donors: Windows | None = None
) -> tuple[IntArray, BoolArray, BoolArray]:
    """Draw runs of another user's items.

    Parameters
    ----------
    windows : Windows
        W windows with n interactions.
    catalogue : Catalogue
        The items.
    rate : float
        Probability that a window gets a run, where it can hold one and the other window is of another user.
    rng : Generator
        Draws.
    donors : Windows, optional
        What runs are drawn from. Default: `windows`.

    Returns
    -------
    items : array of int
        [n] catalogue rows; those of the other user in a run.
    runs : array of bool
        [n] True where such an item stands. An item that the window has anyway is no noise.
    with_run : array of bool
        [W] True where a run was drawn.
    """
    at, foreign = _runs_of_others(windows, windows if donors is None else donors, rate, rng)
    rows = windows.owners[at]
    with_run: BoolArray = np.bincount(rows, minlength=len(windows)) > 0
    new = ~windows.have_title(rows, foreign, catalogue)
    items, runs = windows.items.copy(), np.zeros(len(windows.items), dtype=bool)
    items[at[new]], runs[at[new]] = foreign[new], True
    return items, runs, with_run


def _runs_of_others(
    windows: Windows, donors: Windows, rate: float, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """(indices of interactions in a run, in a fraction `rate` of the windows; items of another user for them).

    A run has 2 to LONGEST_RUN items and less than half of the window, which else could not tell whose it is.
    """
    lengths, size = windows.lengths, len(windows)
    longest = np.minimum(LONGEST_RUN, (lengths - 1) // 2)
    donor = rng.integers(0, len(donors), size=size)
    available = donors.lengths[donor]
    ids, donor_ids = windows.user_ids.cast(pl.String), donors.user_ids.cast(pl.String)  # of two types, perhaps
    foreign_user = (donor_ids.gather(donor) != ids).fill_null(True).to_numpy()
    run = np.minimum(rng.integers(2, LONGEST_RUN + 1, size=size), longest)
    used = (rng.random(size) < rate) & (longest >= 2) & foreign_user & (available > 0)
    start = (rng.random(size) * (lengths - run + 1)).astype(np.int64)
    begin = (rng.random(size) * np.maximum(1, available - run + 1)).astype(np.int64)
    with_run = np.flatnonzero(used)
    sizes, donor = run[with_run], np.repeat(donor[with_run], run[with_run])
    taken = ranges(begin[with_run], sizes) % donors.lengths[donor]
    return ranges(windows.offsets[with_run] + start[with_run], sizes), donors.items[donors.offsets[donor] + taken]


def task_rate(task: TaskConfig, windows: Windows) -> float:
    """Return the fraction of the interactions that single injected items replace, in (0, 1)."""
    rate = task.replaced / max(1.0, windows.lengths.mean()) if task.replaced else task.rate
    return float(np.clip((1 - task.none) * rate, 0.01, 0.99))


def replace(
    windows: Windows,
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
    windows : Windows
        W windows with n interactions.
    chosen : array of bool
        [n] True for those to replace.
    injectable : Injectable
        The items to draw from.
    rng : Generator
        Draws.
    first : array of int, optional
        [n] items to try before a draw; PAD: draw at once.

    Returns
    -------
    array of int
        [n] a copy of the items, with the injected ones.
    """
    out, catalogue, owners = windows.items.copy(), injectable.catalogue, windows.owners
    todo = np.flatnonzero(chosen)
    for _ in range(20):
        if not len(todo):
            return out
        drawn = injectable.draw(len(todo), rng)
        if first is not None:
            drawn, first = np.where(first[todo] == PAD, drawn, first[todo]), None
        out[todo] = drawn
        todo = todo[windows.have_title(owners[todo], drawn, catalogue)]
    for at in todo:  # a small catalogue: draw among the items of other titles, if any
        held = catalogue.canonical[windows.row(owners[at])]
        other = np.flatnonzero(~np.isin(catalogue.canonical, held))
        out[at] = rng.choice(other) if len(other) else windows.items[at]
    return out


def inject(
    windows: Windows, injectable: Injectable, rng: np.random.Generator, popular: bool = False
) -> tuple[Windows, BoolArray, IntArray, IntArray]:
    """Inject one item into each of as many windows as given.

    Positions are drawn uniformly over all interactions, as noise falls, so long windows are drawn more often.

    Parameters
    ----------
    windows : Windows
        W windows.
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
        [n] where it is, among the n interactions of these windows.
    source : array of int
        [W] which window each was.
    originals : array of int
        [W] what stood there.
    """
    drawn = rng.integers(0, len(windows.items), size=len(windows))
    source = windows.owners[drawn]
    some = windows.take(source)
    at = some.offsets[:-1] + drawn - windows.offsets[source]
    chosen = np.zeros(len(some.items), dtype=bool)
    chosen[at] = True
    first, present = None, some.present
    if popular:
        first = windows.items[rng.integers(0, len(windows.items), size=present.shape)[present]]
    injected = dataclasses.replace(some, items=replace(some, chosen, injectable, rng, first))
    return injected, chosen, source, some.items[at]
