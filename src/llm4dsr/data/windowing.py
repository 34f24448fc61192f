"""From an interaction log to windows: order, repeats, k-core, windows and split, on columns of numbers.

The log comes in buckets of whole users, one of which is worked on at a time. Only counts per item, numbers of users and
a part of the windows are held in memory. `make_windows` has one bucket; `prepare` has many for a large log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import PAD, BoolArray, IntArray, ranges, sorted_unique
from llm4dsr.data.buckets import Bucket
from llm4dsr.data.in_order import in_order, split_by_rank
from llm4dsr.data.interaction_log import InteractionLog, Ints
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError

Split = Literal["time", "leave-one-out", "user"]
Repeats = Literal["keep", "first", "consecutive"]

MIN_HISTORY: Final = 4  # fewer items show no interest that another could fail to fit
PART: Final = 5_000_000  # items in the windows that are held at once
_ROWS: Final = ("items", "noise_mask", "clean_items")  # columns of rows that windows are made of
_WINDOWS: Final = ("starts", "lengths", "time", "user", "seconds")


@dataclass
class WindowIndex:
    """Windows of a log as positions, which takes a few bytes each, however long they are.

    Attributes
    ----------
    buckets : sequence of Bucket
        Per row after the k-core, user by user, oldest first: `items`, `noise_mask`, `clean_items`. Per window, by split
        and then in order of time of the target: `starts`, `lengths` (rows[start : start + length], the target last),
        `time` (sort key of the target), `user`, `seconds`. Per user: `user_numbers`, `user_ids`.
    width : int
        Items of the longest window.
    splits : dict of str to array of int
        "train", "valid" and "test": [2, B] their first window in each bucket, and the end of them.
    dropped : dict of str to int
        Interactions that were dropped, by reason; all others are in a window.
    used : array of bool
        [n_items] True where an item is left after the k-core, as an interaction or as its truth.
    rows_held, users_held : int
        Interactions and users in a window of a split.
    """

    buckets: Sequence[Bucket]
    width: int
    splits: dict[str, IntArray]
    dropped: dict[str, int]
    used: BoolArray
    rows_held: int = 0
    users_held: int = 0

    def count(self, split: str) -> int:
        """Return the number of windows of a split."""
        begins, ends = self.splits[split]
        return int((ends - begins).sum())


def sort_log(
    log: InteractionLog, repeats: Repeats = "keep", max_history: int | None = None
) -> tuple[InteractionLog, dict[str, int]]:
    """Sort rows by user and time, and drop repeats.

    Parameters
    ----------
    log : InteractionLog
        All rows of some users. Rows of a user with the same time keep their order.
    repeats : {"keep", "first", "consecutive"}, default "keep"
        Keep repeated items of a user, keep the first only, or drop those that directly follow the same item.
    max_history : int, optional
        Most interactions of a user; the newest are kept.

    Returns
    -------
    log : InteractionLog
    dropped : dict of str to int
        Rows that were dropped, in this order: repeats of user, item and time; repeated items; older ones.
    """
    log = log.take(np.lexsort((log.order, log.users)))  # stable: ties keep the order of the log
    dropped: dict[str, int] = {}

    def leave_out(reason: str, gone: BoolArray) -> None:
        nonlocal log
        dropped[reason] = int(gone.sum())
        log = log.take(~gone)

    leave_out("repeated_row", _same_again(log))
    if repeats == "first":
        leave_out("repeated_item", _seen_before(log.users, log.items))
    elif repeats == "consecutive":
        leave_out("repeated_item", _as_before(log.users) & _as_before(log.items))
    if max_history is not None:
        first, counts = _runs(log.users)
        leave_out("max_history", np.repeat(first + counts, counts) - np.arange(len(log.users)) > max_history)
    return log, dropped


def build_windows(
    buckets: Sequence[Bucket],
    n_items: int,
    history: int,
    k_core: int,
    split: Split = "time",
    ratios: Sequence[int] = (8, 1, 1),
    seed: int = 0,
) -> WindowIndex:
    """Build the index of all windows of a log.

    Dropped, in this order: users and items outside the k-core; users with too few items for a window.

    A history longer than history + 1 gives one window per step. A shorter one is a single window, and none if it has
    fewer than MIN_HISTORY items before the target (or fewer than `history`, if that is smaller).

    Parameters
    ----------
    buckets : sequence of Bucket
        The log by users, each with the columns of `sort_log` and its users. They become those of `WindowIndex`.
    n_items : int
        Items of the catalogue.
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

    Returns
    -------
    WindowIndex

    Raises
    ------
    DataError
        If nothing is left, or a split would be empty.
    """
    before = sum(len(bucket["items"]) for bucket in buckets)
    counts = _k_core(buckets, n_items, k_core)
    left = int(counts.sum())
    if not left:
        raise DataError(
            f"The {k_core}-core is empty: none of the {before} interactions has a user and an item with at least "
            f"{k_core} interactions each. Set a smaller k_core (0 = keep all), or give a longer log."
        )
    index = WindowIndex(buckets, 0, {}, {"k_core": before - left, "short_history": 0}, counts > 0)
    for bucket in buckets:
        _add_windows(index, bucket, min(MIN_HISTORY, history), history, split)
    users = [sorted_unique(bucket["user"]) for bucket in buckets]
    n_users, n_windows = sum(map(len, users)), sum(len(bucket["starts"]) for bucket in buckets)
    if not n_users:
        raise DataError(
            f"No user has the {min(MIN_HISTORY, history) + 1} interactions that a window needs at least. "
            "Give longer histories, or a smaller k_core if that took them away."
        )
    if split == "time":
        for bucket, ends in zip(buckets, split_by_rank(buckets, _ends(n_windows, ratios)).T, strict=True):
            bucket["part"] = np.repeat(np.arange(3, dtype=np.int8), np.diff(ends))
    elif split == "user":
        everyone = np.sort(np.concatenate(users))
        part = np.empty(n_users, dtype=np.int8)
        part[np.random.default_rng(seed).permutation(n_users)] = np.repeat([0, 1, 2], np.diff(_ends(n_users, ratios)))
        for bucket in buckets:
            bucket["part"] = part[np.searchsorted(everyone, bucket["user"])]
    else:
        ratios = (1, 1, 1)
    parts = np.array([_order_by_part(index, bucket) for bucket in buckets]).T
    for name, begins, ends in zip(c.SPLITS, parts[:-1], parts[1:], strict=True):
        index.splits[name] = np.stack([begins, ends])
    empty = [name for name, share in zip(c.SPLITS, ratios, strict=True) if share and not index.count(name)]
    if empty:
        what = f"{n_users} user(s)" if split == "user" else f"{n_windows} window(s)"
        how = split if split == "leave-one-out" else ":".join(map(str, ratios))
        raise DataError(
            f"{what} are too few to split {how}: {', '.join(empty)} would be "
            "empty. Give more histories, or a smaller k_core."
        )
    if any("clean_items" in bucket for bucket in buckets):
        index.dropped["inserted_target"] = left - index.dropped["short_history"] - index.rows_held
    return index


def _add_windows(index: WindowIndex, bucket: Bucket, least: int, history: int, split: Split) -> None:
    """Write the windows of a bucket, in order of time of their targets. Drops the rows that are not in the k-core."""
    kept = bucket["kept"]
    columns = (field.name for field in fields(InteractionLog))
    found: dict[str, Any] = {name: bucket[name][kept] for name in columns if name in bucket}
    log = InteractionLog(**{"seconds": None, **found})
    for name in log.columns():
        if name in _ROWS:
            bucket[name] = getattr(log, name)
        else:
            del bucket[name]
    del kept, bucket["kept"]
    if log.clean_items is not None:
        index.used[log.clean_items[log.clean_items != PAD]] = True

    first, counts = _runs(log.users)
    enough = counts > least
    index.dropped["short_history"] += int(counts[~enough].sum())
    first, counts = first[enough], counts[enough]
    held = 2 if split == "leave-one-out" else 0  # targets for valid and test, which training is cut without
    earliest = np.maximum(least, np.minimum(history, counts - 1 - held))  # place of a user's first target
    windows = counts - earliest  # of each user
    targets = np.arange(windows.sum()) + np.repeat(earliest - np.cumsum(windows) + windows, windows)
    starts = np.repeat(first, windows) + np.maximum(targets - history, 0)
    lengths = np.minimum(targets, history) + 1
    last = starts + lengths - 1

    time = log.order[last]
    in_time = np.argsort(time, kind="stable")  # of one time: by user, then by place
    last = last[in_time]
    bucket["starts"], bucket["lengths"] = starts[in_time].astype(np.int32), lengths[in_time].astype(np.int32)
    bucket["time"], bucket["user"] = time[in_time], log.users[last]
    bucket["seconds"] = np.full(len(last), -1) if log.seconds is None else log.seconds[last].astype(np.int64)
    if log.clean_items is not None:
        bucket["inserted"] = log.clean_items[last] == PAD
    if split == "leave-one-out":
        bucket["part"] = (2 - np.minimum(np.repeat(counts - 1, windows) - targets, 2))[in_time].astype(np.int8)
    index.width = max(index.width, int(lengths.max(initial=0)))


def _order_by_part(index: WindowIndex, bucket: Bucket) -> list[int]:
    """Order the windows of a bucket by split and time; return where the splits begin, and the end of the last."""
    part = np.array(bucket["part"])
    if "inserted" in bucket:  # an inserted item is no target to measure on
        part[(part == c.SPLITS.index(c.TEST)) & bucket["inserted"]] = 3
    by_part = np.argsort(part, kind="stable")[: np.count_nonzero(part < 3)]
    if len(by_part) < len(part) or (np.diff(part) < 0).any():
        for name in _WINDOWS:
            bucket[name] = bucket[name][by_part]
    begins, size = np.array(bucket["starts"]), len(bucket["items"]) + 1
    ends = begins + bucket["lengths"]
    covers = np.cumsum(np.bincount(begins, minlength=size) - np.bincount(ends, minlength=size))  # windows of each row
    index.rows_held += int(np.count_nonzero(covers))
    index.users_held += len(sorted_unique(bucket["user"]))
    return [0, *np.cumsum(np.bincount(part, minlength=4)[:3]).tolist()]


def materialize_windows(
    index: WindowIndex, split: str, item_rows: Ints | None = None, multiple: int = 1
) -> Iterator[Windows]:
    """Yield the windows of a split in order of time of their targets, in parts of bounded size.

    Where the truth is known, targets of test windows are restored to it.

    Parameters
    ----------
    index : WindowIndex
        The windows.
    split : str
        "train", "valid" or "test".
    item_rows : array of int, optional
        [n_items + 1] catalogue row of each item; PAD for the last. Default: as in the index.
    multiple : int, default 1
        Parts have a multiple of this number of windows, except for the last.

    Yields
    ------
    Windows
        The next part; a single empty one if the split has no windows.
    """
    begin = 0
    size = max(multiple, PART // index.width // multiple * multiple)
    for bucket_of, numbers in in_order(index.buckets, index.splits[split], size, multiple):
        windows = _materialize(index, bucket_of, numbers, item_rows)
        windows.window_ids += begin
        begin += len(windows)
        if split == c.TEST and windows.clean_items is not None and windows.noise_mask is not None:
            last = windows.offsets[1:] - 1
            windows.items[last], windows.noise_mask[last] = windows.clean_items[last], False
        yield windows


def new_rows(used: BoolArray) -> npt.NDArray[np.int32]:
    """Return [n_items + 1] the row of each item in the catalogue of used items; PAD if not used, and at the end."""
    rows = np.where(used, np.cumsum(used, dtype=np.int32) - 1, np.int32(PAD))
    return np.append(rows, np.int32(PAD))  # PAD stays PAD


def _materialize(index: WindowIndex, bucket_of: Ints, numbers: Ints, item_rows: Ints | None) -> Windows:
    names = [name for name in _ROWS if any(name in bucket for bucket in index.buckets)]
    lengths, seconds = np.empty((2, len(numbers)), dtype=np.int64)
    for bucket, places in _by_bucket(index.buckets, bucket_of):
        lengths[places], seconds[places] = (bucket[name][numbers[places]] for name in ("lengths", "seconds"))
    begins, n = np.cumsum(lengths) - lengths, int(lengths.sum())
    rows = {name: np.empty(n, dtype=bool if name == "noise_mask" else np.int64) for name in names}
    user_ids, of_user = [], []
    for bucket, places in _by_bucket(index.buckets, bucket_of):
        some = numbers[places]
        at, here = ranges(bucket["starts"][some], lengths[places]), ranges(begins[places], lengths[places])
        for name, values in rows.items():
            found = bucket[name][at]
            values[here] = found if item_rows is None or name == "noise_mask" else item_rows[found]
        user_ids.append(bucket.user_ids(bucket["user"][some]))
        of_user.append(places)
    back = np.argsort(np.concatenate(of_user)) if of_user else np.arange(0)
    ids = pl.concat(user_ids).gather(back) if user_ids else index.buckets[0].user_ids(back)
    truth = rows.get("noise_mask"), rows.get("clean_items")
    return Windows(rows["items"], lengths, np.arange(len(numbers)), ids, seconds, *truth)


def _by_bucket(buckets: Sequence[Bucket], bucket_of: Ints) -> Iterator[tuple[Bucket, Ints]]:
    """Yield each bucket that has windows, and the places of these."""
    by_bucket = np.argsort(bucket_of, kind="stable")
    ends = np.cumsum(np.bincount(bucket_of, minlength=len(buckets)))
    for bucket, places in zip(buckets, np.split(by_bucket, ends[:-1]), strict=True):
        if len(places):
            yield bucket, places


def _ends(n: int, ratios: Sequence[int]) -> list[int]:
    """Where the parts of n things in these ratios begin, rounded down, and n."""
    return [n * int(done) // sum(ratios) for done in np.cumsum([0, *ratios])]


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


def _same_again(log: InteractionLog) -> BoolArray:
    """[N] True where an earlier row has the same user, item and time; only rows with the same time are compared."""
    tied = _as_before(log.users) & _as_before(log.order)
    some = np.flatnonzero(tied | np.append(tied[1:], False))
    same = np.zeros(len(tied), dtype=bool)
    same[some] = _seen_before(np.cumsum(~tied[some]), log.items[some])
    return same


def _k_core(buckets: Sequence[Bucket], n_items: int, k: int) -> IntArray:
    """Write `kept`: rows left when users and items with fewer than k rows are dropped, until nothing changes.

    Returns [n_items] the rows of each item that are left.
    """
    counts = np.zeros(n_items, dtype=np.int64)
    for bucket in buckets:
        counts += np.bincount(bucket["items"], minlength=n_items)
        bucket["kept"] = np.ones(len(bucket["items"]), dtype=bool)
    changed = True
    while changed:
        changed = False
        for bucket in buckets:
            kept = np.array(bucket["kept"])
            rows = np.flatnonzero(kept)
            users, items = bucket["users"][rows], bucket["items"][rows]
            while len(rows):
                _, of_user = _runs(users)
                enough = np.repeat(of_user >= k, of_user) & (counts >= k)[items]
                if enough.all():
                    break
                np.subtract.at(counts, items[~enough], 1)
                kept[rows[~enough]] = False
                rows, users, items = rows[enough], users[enough], items[enough]
                changed = True
            bucket["kept"] = kept
    return counts
