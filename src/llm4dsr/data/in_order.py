"""Order of windows over all buckets, by time of the target and then by user, without all of them in memory.

Each bucket has its windows in this order. Some of their keys, evenly spaced, cut the whole into chunks of bounded size:
a chunk is a range of windows of each bucket, which is sorted when it is its turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from llm4dsr.core.arrays import IntArray
from llm4dsr.data.buckets import Bucket

CHUNK: Final = 1_000_000  # windows whose keys are sorted at once


def in_order(
    buckets: Sequence[Bucket], ranges: IntArray, size: int, multiple: int = 1
) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield the windows in order, about `size` at once; a single empty part if there are none.

    Parameters
    ----------
    buckets : sequence of Bucket
        With `time` and `user` of their windows, in order within each range.
    ranges : array of int
        [2, B] the first window of each bucket, and the end.
    size : int
        Windows of a part, about.
    multiple : int, default 1
        Parts have a multiple of this number of windows, except for the last.

    Yields
    ------
    bucket_of, numbers : array of int
        [n] bucket of each window, and its number there.
    """
    held, is_empty = np.empty((2, 0), dtype=np.int64), True
    for begins, ends in _chunks(buckets, ranges, size):
        held = np.concatenate([held, _sorted(buckets, begins, ends)], axis=1)
        full = held.shape[1] // multiple * multiple
        if full:
            is_empty = False
            yield held[0, :full], held[1, :full]
            held = held[:, full:]
    if held.shape[1] or is_empty:
        yield held[0], held[1]


def split_by_rank(buckets: Sequence[Bucket], ranks: Sequence[int]) -> IntArray:
    """Return [R, B] how many windows of each bucket are among the first `rank` of all, for each rank."""
    ranges = np.array([[0, len(bucket["time"])] for bucket in buckets]).T
    found = np.zeros((len(ranks), len(buckets)), dtype=np.int64)
    done = 0
    for begins, ends in _chunks(buckets, ranges, CHUNK):
        size = int((ends - begins).sum())
        for at, rank in enumerate(ranks):
            if rank >= done + size:
                found[at] = ends
            elif rank > done:
                first = _sorted(buckets, begins, ends)[0, : rank - done]
                found[at] = begins + np.bincount(first, minlength=len(buckets))
        done += size
    return found


def _chunks(buckets: Sequence[Bucket], ranges: IntArray, size: int) -> Iterator[tuple[IntArray, IntArray]]:
    """Yield (begin, end) of each bucket, so that all windows of a chunk come before those of the next.

    A chunk has up to about `size` windows: between two cuts lie B sampled keys, and up to 2 B steps.
    """
    step = max(1, size // (2 * len(buckets)))
    spaced = [slice(begin + step - 1, end, step) for begin, end in ranges.T]
    time = np.concatenate([bucket["time"][some] for bucket, some in zip(buckets, spaced, strict=True)])
    user = np.concatenate([bucket["user"][some] for bucket, some in zip(buckets, spaced, strict=True)])
    cuts = np.lexsort((user, time))[len(buckets) - 1 :: len(buckets)]
    begins = ranges[0]
    for cut in cuts:
        ends = np.array([
            _place(bucket, begin, end, time[cut], user[cut])
            for bucket, begin, end in zip(buckets, begins, ranges[1], strict=True)
        ])  # fmt: skip
        if (ends > begins).any():
            yield begins, ends
        begins = ends
    if (ranges[1] > begins).any():
        yield begins, ranges[1]


def _place(bucket: Bucket, begin: int, end: int, time: int, user: int) -> int:
    """The end of the windows begin to end whose key is at most (time, user)."""
    times = bucket["time"][begin:end]
    tied, later = (begin + int(np.searchsorted(times, time, side)) for side in ("left", "right"))
    return tied + int(np.searchsorted(bucket["user"][tied:later], user, side="right"))


def _sorted(buckets: Sequence[Bucket], begins: IntArray, ends: IntArray) -> IntArray:
    """[2, n] bucket and number of each window of a chunk, in order; windows of a user at one time keep theirs."""
    numbers = np.concatenate([np.arange(begin, end) for begin, end in zip(begins, ends, strict=True)])
    bucket_of = np.repeat(np.arange(len(buckets)), ends - begins)
    if len(buckets) > 1:
        spans = [slice(begin, end) for begin, end in zip(begins, ends, strict=True)]
        time = np.concatenate([bucket["time"][some] for bucket, some in zip(buckets, spans, strict=True)])
        user = np.concatenate([bucket["user"][some] for bucket, some in zip(buckets, spans, strict=True)])
        order = np.lexsort((user, time))
        numbers, bucket_of = numbers[order], bucket_of[order]
    return np.stack([bucket_of, numbers])
