"""From an interaction log to windows: order, repeats, k-core, windows and split, on columns of numbers.

`make_windows` builds all windows in memory with it; `prepare` writes them part by part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import PAD, BoolArray, IntArray
from llm4dsr.data.interaction_log import InteractionLog, Ints
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError

Split = Literal["time", "leave-one-out", "user"]
Repeats = Literal["keep", "first", "consecutive"]

MIN_HISTORY: Final = 4  # fewer items show no interest that another could fail to fit


@dataclass
class WindowIndex:
    """Windows of a log as positions, which takes a few bytes each, however long they are.

    Attributes
    ----------
    rows : array of int
        [K] rows of the log after the k-core, user by user, oldest first.
    starts, lengths : array of int
        [W] a window is rows[start : start + length]; its last one is the target.
    splits : dict of str to array of int
        "train", "valid" and "test": numbers of their windows, in order of time of their targets.
    dropped : dict of str to int
        Interactions that were dropped, by reason; all others are in a window.
    """

    rows: IntArray
    starts: IntArray
    lengths: IntArray
    splits: dict[str, IntArray]
    dropped: dict[str, int]

    def held(self) -> BoolArray:
        """Return [K] True where a row is in a window of a split."""
        begins, ends = np.zeros(len(self.rows) + 1, dtype=np.int32), np.zeros(len(self.rows) + 1, dtype=np.int32)
        for numbers in self.splits.values():
            np.add.at(begins, self.starts[numbers], 1)
            np.add.at(ends, self.starts[numbers] + self.lengths[numbers], 1)
        held: BoolArray = np.cumsum(begins - ends, dtype=np.int32)[:-1] > 0
        return held


def build_windows(
    log: InteractionLog,
    history: int,
    k_core: int,
    split: Split = "time",
    ratios: Sequence[int] = (8, 1, 1),
    seed: int = 0,
    repeats: Repeats = "keep",
    max_history: int | None = None,
) -> WindowIndex:
    """Build the index of all windows of a log.

    Dropped, in this order: rows that repeat user, item and time; repeated items of a user (`repeats`); all but the
    newest `max_history` interactions of a user; users and items outside the k-core; users with too few items for a
    window.

    A history longer than history + 1 gives one window per step. A shorter one is a single window, and none if it has
    fewer than MIN_HISTORY items before the target (or fewer than `history`, if that is smaller).

    Parameters
    ----------
    log : InteractionLog
        The log.
    history : int
        Most items before the target.
    k_core : int
        Least interactions of a user and of an item; 0 keeps all.
    split : {"time", "leave-one-out", "user"}, default "time"
        By the time of the target, in `ratios`; the last target of each user in test and the one before it in valid; or
        whole users, drawn by `seed`. Test has no windows whose target was inserted.
    ratios : sequence of int, default (8, 1, 1)
        Train, valid and test.
    seed : int, default 0
        Draws the users of the split by user.
    repeats : {"keep", "first", "consecutive"}, default "keep"
        Keep repeated items of a user, keep the first only, or drop those that directly follow the same item.
    max_history : int, optional
        Most interactions of a user; the newest are kept.

    Returns
    -------
    WindowIndex

    Raises
    ------
    DataError
        If nothing is left, or a split would be empty.
    """
    rows = np.lexsort((log.order, log.users))  # stable: ties keep the order of the log
    dropped: dict[str, int] = {}

    def leave_out(reason: str, gone: BoolArray) -> None:
        nonlocal rows
        dropped[reason] = int(gone.sum())
        rows = rows[~gone]

    leave_out("repeated_row", _same_again(log, rows))
    if repeats == "first":
        leave_out("repeated_item", _seen_before(log.users[rows], log.items[rows]))
    elif repeats == "consecutive":
        leave_out("repeated_item", _as_before(log.users[rows]) & _as_before(log.items[rows]))
    if max_history is not None:
        first, counts = _runs(log.users[rows])
        leave_out("max_history", np.repeat(first + counts, counts) - np.arange(len(rows)) > max_history)
    before = len(rows)
    rows = rows[_k_core(log.users[rows], log.items[rows], k_core)]
    dropped["k_core"] = before - len(rows)
    if not len(rows):
        raise DataError(
            f"The {k_core}-core is empty: none of the {before} interactions has a user and an item with at least "
            f"{k_core} interactions each. Set a smaller k_core (0 = keep all), or give a longer log."
        )

    least = min(MIN_HISTORY, history)
    first, counts = _runs(log.users[rows])
    enough = counts > least
    dropped["short_history"] = int(counts[~enough].sum())
    first, counts = first[enough], counts[enough]
    if not len(first):
        raise DataError(
            f"No user has the {least + 1} interactions that a window needs at least. "
            "Give longer histories, or a smaller k_core if that took them away."
        )
    held = 2 if split == "leave-one-out" else 0  # targets for valid and test, which training is cut without
    earliest = np.maximum(least, np.minimum(history, counts - 1 - held))  # place of a user's first target
    windows = counts - earliest  # of each user
    targets = np.arange(windows.sum()) + np.repeat(earliest - np.cumsum(windows) + windows, windows)
    starts = np.repeat(first, windows) + np.maximum(targets - history, 0)
    lengths = np.minimum(targets, history) + 1

    in_time = np.argsort(log.order[rows[starts + lengths - 1]], kind="stable")
    part = np.empty(len(starts), dtype=np.int8)  # 0, 1, 2: the number of the split
    if split == "time":
        part[in_time] = _shares(len(part), ratios)
    elif split == "user":
        of_user = np.empty(len(first), dtype=np.int8)
        of_user[np.random.default_rng(seed).permutation(len(first))] = _shares(len(first), ratios)
        part[:] = np.repeat(of_user, windows)
    else:
        ratios = (1, 1, 1)
        part[:] = 2 - np.minimum(np.repeat(counts - 1, windows) - targets, 2)
    part = part[in_time]
    splits = {name: in_time[part == number] for number, name in enumerate(c.SPLITS)}
    if log.clean_items is not None:  # an inserted item is no target to measure on
        test = splits[c.TEST]
        splits[c.TEST] = test[log.clean_items[rows[starts[test] + lengths[test] - 1]] != PAD]
    empty = [name for name, share in zip(c.SPLITS, ratios, strict=True) if share and not len(splits[name])]
    if empty:
        what = f"{len(first)} user(s)" if split == "user" else f"{len(starts)} window(s)"
        how = split if split == "leave-one-out" else ":".join(map(str, ratios))
        raise DataError(
            f"{what} are too few to split {how}: {', '.join(empty)} would be "
            "empty. Give more histories, or a smaller k_core."
        )
    index = WindowIndex(rows, starts, lengths, splits, dropped)
    if log.clean_items is not None:
        dropped["inserted_target"] = len(rows) - dropped["short_history"] - int(index.held().sum())
    return index


def materialize_windows(
    log: InteractionLog, index: WindowIndex, split: str, users: pl.Series, begin: int = 0, end: int | None = None
) -> Windows:
    """Make the windows `begin` to `end` of a split, numbered from `begin`.

    Where the truth is known, targets of test windows are restored to it.

    Parameters
    ----------
    log : InteractionLog
        The log.
    index : WindowIndex
        Its windows.
    split : str
        "train", "valid" or "test".
    users : Series
        User ids by number.
    begin, end : int, optional
        Default: all.
    """
    numbers = index.splits[split][begin:end]
    starts, lengths = index.starts[numbers], index.lengths[numbers]
    steps = np.arange(int(index.lengths.max()))
    present = steps < lengths[:, None]
    at = index.rows[np.minimum(starts[:, None] + steps, len(index.rows) - 1)]  # [W, L] rows of the log
    last = np.arange(len(numbers)), lengths - 1
    windows = Windows(
        items=np.where(present, log.items[at], np.int64(PAD)),
        lengths=lengths,
        window_ids=begin + np.arange(len(numbers)),
        user_ids=users.gather(log.users[at[:, 0]]),
        timestamps=np.full(len(numbers), -1) if log.seconds is None else log.seconds[at[last]].astype(np.int64),
        noise_mask=None if log.noise_mask is None else present & log.noise_mask[at],
        clean_items=None if log.clean_items is None else np.where(present, log.clean_items[at], np.int64(PAD)),
    )
    if split == c.TEST and windows.clean_items is not None and windows.noise_mask is not None:
        windows.items[last], windows.noise_mask[last] = windows.clean_items[last], False
    return windows


def used_items(log: InteractionLog, index: WindowIndex, n_items: int) -> BoolArray:
    """Return [n_items] True where an item is left after the k-core, as an interaction or as its truth."""
    used = np.zeros(n_items, dtype=bool)
    used[log.items[index.rows]] = True
    if log.clean_items is not None:
        clean = log.clean_items[index.rows]
        used[clean[clean != PAD]] = True
    return used


def reindex_items(log: InteractionLog, used: BoolArray) -> None:
    """Renumber the items of the log to the rows of the catalogue of used items, in place; -1 if not used."""
    row = np.where(used, np.cumsum(used, dtype=np.int32) - 1, np.int32(PAD))
    row = np.append(row, np.int32(PAD))  # PAD stays PAD
    log.items = row[log.items]
    if log.clean_items is not None:
        log.clean_items = row[log.clean_items]


def _shares(n: int, ratios: Sequence[int]) -> npt.NDArray[np.int8]:
    """[n] the numbers 0, 1, 2 in consecutive parts, in these ratios, rounded down."""
    ends = [n * int(done) // sum(ratios) for done in np.cumsum([0, *ratios])]
    return np.repeat(np.arange(len(ratios), dtype=np.int8), np.diff(ends))


def _runs(users: Ints) -> tuple[IntArray, IntArray]:
    """(first row, number of rows) of each user, in rows that are sorted by user."""
    first = np.flatnonzero(np.diff(users, prepend=-1))
    return first, np.diff(first, append=len(users))


def _as_before(values: npt.NDArray[Any]) -> BoolArray:
    """[N] True where a value equals the one before."""
    same = np.zeros(len(values), dtype=bool)
    same[1:] = values[1:] == values[:-1]
    return same


def _seen_before(groups: Ints, items: Ints) -> BoolArray:
    """[N] True where an earlier row has the same group and item."""
    order = np.lexsort((items, groups))  # stable, so the earliest of equal rows is the first of its run
    seen = np.zeros(len(order), dtype=bool)
    seen[order[_as_before(groups[order]) & _as_before(items[order])]] = True
    return seen


def _same_again(log: InteractionLog, rows: IntArray) -> BoolArray:
    """[K] True where an earlier row has the same user, item and time; only rows with the same time are compared."""
    tied = _as_before(log.users[rows]) & _as_before(log.order[rows])
    some = np.flatnonzero(tied | np.append(tied[1:], False))
    same = np.zeros(len(rows), dtype=bool)
    same[some] = _seen_before(np.cumsum(~tied[some]), log.items[rows[some]])
    return same


def _k_core(users: Ints, items: Ints, k: int) -> IntArray:
    """Rows left when users and items with fewer than k rows are dropped, until nothing changes."""
    keep = np.arange(len(users))
    while len(keep):
        enough = (np.bincount(users) >= k)[users] & (np.bincount(items) >= k)[items]
        if enough.all():
            break
        keep, users, items = keep[enough], users[enough], items[enough]
    return keep
