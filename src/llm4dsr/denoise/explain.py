"""Explain a score: how it changes without each other item of the history, and what the two items have in common."""

from __future__ import annotations

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import IntArray
from llm4dsr.core.cache import PartCache
from llm4dsr.core.progress import Progress
from llm4dsr.data.overlap import Origin, into_windows
from llm4dsr.data.windows import Windows, locate
from llm4dsr.denoise.calibrate import Calibrator
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.denoise.prequential import prequential
from llm4dsr.denoise.tables import probabilities
from llm4dsr.features.title_vectors import title_similarities


def explain_prequentially(
    ensemble: Ensemble,
    calibrator: Calibrator,
    windows: Windows,
    parts: Windows,
    origin: Origin | None,
    chosen: pl.DataFrame,
    has_target: bool,
    progress: Progress | None,
    width: int,
    earlier: Windows | None = None,
) -> pl.DataFrame:
    """Explain the scores of chosen interactions, each with the counts of its time.

    Parameters
    ----------
    ensemble : Ensemble
        The tuned models.
    calibrator : Calibrator
        The map to probabilities.
    windows, parts, origin, has_target, width, earlier
        As in `score_prequentially`.
    chosen : DataFrame
        The interactions, by `window_id` and `position`. In a long history, each is explained by the part that has most
        of its neighbors.
    progress : Progress or None
        Called with (windows done, all windows, what is being done).

    Returns
    -------
    DataFrame
        As `Denoiser.explain` returns it.

    Raises
    ------
    DataError
        If `chosen` names a window or position that is not among the histories.
    """
    located = (into_windows(chosen, parts, origin) if origin else chosen).select(c.WINDOW, c.POSITION)
    found_at = locate(located, parts)
    at, position = parts.owners[found_at], parts.positions[found_at]
    history_of = origin.histories if origin else np.arange(len(windows))
    tables = []
    for rows, by_then, step in prequential(ensemble, windows, has_target, progress, width, earlier):
        here = np.flatnonzero(np.isin(history_of[at], rows))
        if len(here):
            found = _explain(by_then, calibrator, parts.take(at[here]), position[here], has_target, step)
            tables.append(found.with_columns(order=here[found["order"].to_numpy()]))
    if not tables:
        none = np.empty(0, dtype=np.int64)
        tables = [_explain(ensemble, calibrator, parts.take(none), none, has_target, None)]
    joined = pl.concat(tables).sort("order", c.OTHER_POSITION).drop("order")
    catalogue = ensemble.catalogue
    rows, others = (catalogue.index(joined[name]) for name in (c.ITEM, c.OTHER_ITEM))
    joined = joined.with_columns(pl.Series(c.TITLE_SIMILARITY, title_similarities(catalogue.titles, rows, others)))
    if origin is None:
        return joined
    part = joined[c.WINDOW].to_numpy()  # parts are numbered
    shift = pl.Series(origin.offsets[part])
    return joined.with_columns(
        pl.Series(c.WINDOW, origin.window_ids[part]), pl.col(c.POSITION) + shift, pl.col(c.OTHER_POSITION) + shift
    )


def _explain(
    ensemble: Ensemble,
    calibrator: Calibrator,
    windows: Windows,
    position: IntArray,
    is_newer: bool,
    progress: Progress | None,
) -> pl.DataFrame:
    """Explain one position of each window; `order` is the row of the window."""
    catalogue, cache = ensemble.catalogue, PartCache(None)
    row, other = _others(windows, position)
    without = [np.delete(windows.row(i), j) for i, j in zip(row, other, strict=True)]
    shorter = Windows.from_lists(without, user_ids=windows.user_ids.gather(row), timestamps=windows.timestamps[row])
    moved = position[row] - (other < position[row])  # where the item stands once the other is gone
    whole = ensemble.log_odds(windows, is_newer, None, "explain", cache)[windows.offsets[:-1] + position]
    less = ensemble.log_odds(shorter, is_newer, progress, "explain", cache)[shorter.offsets[:-1] + moved]
    items, others = windows.items[windows.offsets[:-1] + position], windows.items[windows.offsets[row] + other]
    return pl.DataFrame(
        {
            "order": row,
            c.WINDOW: windows.window_ids[row],
            c.POSITION: position[row],
            c.ITEM: catalogue.ids.gather(items[row]),
            c.NOISE_PROBABILITY: probabilities(whole, calibrator)[c.NOISE_PROBABILITY][row],
            c.OTHER_POSITION: other,
            c.OTHER_ITEM: catalogue.ids.gather(others),
            c.OTHER_TITLE: catalogue.titles_of(others),
            c.PROBABILITY_WITHOUT: probabilities(less, calibrator)[c.NOISE_PROBABILITY],
            c.LOG_ODDS_CHANGE: whole[row] - less,
            **_counts(ensemble, windows, position, row, other),
        }
    )


def _others(windows: Windows, position: IntArray) -> tuple[IntArray, IntArray]:
    """(row of a window, another position than the explained one), window after window."""
    row, other = windows.owners, windows.positions
    kept = other != position[row]
    return row[kept], other[kept]


def _counts(
    ensemble: Ensemble, windows: Windows, position: IntArray, row: IntArray, other: IntArray
) -> dict[str, IntArray | None]:
    """Other users who have both items, the explained item, and the other item; None without counts."""
    if ensemble.counts is None:
        return dict.fromkeys((c.PAIR_USERS, c.ITEM_USERS, c.OTHER_USERS))
    pairs, items = ensemble.counts.leave_one_out_counts(windows)
    return {
        c.PAIR_USERS: pairs[row, position[row], other].astype(np.int64),
        c.ITEM_USERS: items[row, position[row]].astype(np.int64),
        c.OTHER_USERS: items[row, other].astype(np.int64),
    }
