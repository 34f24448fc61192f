"""Prequential order: score a part of the windows, then count it, in order of time.

So each part is scored with what was known before it, and never with the future or with its own histories. The counts of
each moment are passed along with the part; nothing that is shared changes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llm4dsr.core.arrays import BoolArray, IntArray
from llm4dsr.core.progress import Progress, subprogress
from llm4dsr.data.overlap import overlapping
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.features.cooccurrence import CooccurrenceCounts

PARTS = 10  # of a split, in order of time


def prequential(
    ensemble: Ensemble,
    windows: Windows,
    has_target: bool,
    progress: Progress | None,
    width: int | None = None,
    earlier: Windows | None = None,
) -> Iterator[tuple[IntArray, Ensemble, Progress | None]]:
    """Yield parts of the windows in order of time, with the ensemble that knows the counts from before each.

    Without counts, targets, or any timestamp, all windows are one part.

    Windows without a timestamp are the first part. They are not counted, because they may be newer than any other.
    Histories that are too long are a part beside those of their time. So neither changes the parts of other windows.

    Parameters
    ----------
    ensemble : Ensemble
        Knows what was counted before the windows.
    windows : Windows
        The windows, with their targets if there are any.
    has_target : bool
        The last item of each window is an evaluation target.
    progress : Progress or None
        Of all windows.
    width : int, optional
        Histories of more items are too long, and scored in overlapping windows. Default: none is.
    earlier : Windows, optional
        Windows of an earlier split, targets included. Each is counted once all windows of a part are newer; all at once
        where times are unknown. Splits may overlap in time, and nothing may know its future.

    Yields
    ------
    rows : array of int
        The windows of the part.
    ensemble : Ensemble
        Knows what was counted before the part.
    progress : Progress or None
        Of the part, reported as progress of all windows.
    """
    counts = ensemble.counts
    if counts is None:
        yield np.arange(len(windows)), ensemble, progress
        return

    def with_more(counts: CooccurrenceCounts, known: Windows) -> CooccurrenceCounts:
        if width is not None and (known.lengths > width + 1).any():
            known, _ = overlapping(known, width + 1, max(1, width // 2))
        return counts.add(known)

    if not has_target or (windows.timestamps < 0).all():
        if earlier is not None:
            counts = with_more(counts, earlier)
        yield np.arange(len(windows)), ensemble.with_counts(counts), progress
        return
    done = 0
    is_long = np.zeros(len(windows), dtype=bool) if width is None else windows.lengths - 1 > width
    for parts, is_counted in _in_time(windows.timestamps, is_long):
        if earlier is not None and is_counted:
            oldest = min(int(windows.timestamps[rows].min()) for rows in parts)
            is_older = earlier.timestamps < oldest
            counts = with_more(counts, earlier.take(np.flatnonzero(is_older)))
            earlier = earlier.take(np.flatnonzero(~is_older))
        for rows in parts:
            yield rows, ensemble.with_counts(counts), progress and subprogress(progress, done, len(rows), len(windows))
            done += len(rows)
        if is_counted:
            counts = with_more(counts, windows.take(np.concatenate(parts)))


def _in_time(timestamps: IntArray, is_long: BoolArray) -> Iterator[tuple[list[IntArray], bool]]:
    """Yield (rows that are scored with the same counts: the usual, then the long; whether they are counted then)."""
    if (timestamps < 0).any():
        yield [np.flatnonzero(timestamps < 0)], False
    order = np.argsort(timestamps, kind="stable")
    order = order[timestamps[order] >= 0]
    usual, long = order[~is_long[order]], order[is_long[order]]
    if not len(usual):
        usual, long = long, usual
    parts = np.array_split(usual, min(PARTS, len(usual)))
    newest = np.array([timestamps[part[-1]] for part in parts])
    # A long history belongs to the first part that ends no earlier: earlier parts hold nothing newer than it.
    home = np.minimum(np.searchsorted(newest, timestamps[long]), len(parts) - 1)
    for i, part in enumerate(parts):
        yield [rows for rows in (part, long[home == i]) if len(rows)], True
