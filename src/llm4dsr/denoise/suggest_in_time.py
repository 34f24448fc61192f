"""Suggest in order of time, as scored: each flag by a model that did not see its user, with the counts of its time."""

from __future__ import annotations

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import BoolArray, IntArray
from llm4dsr.core.cache import PartCache
from llm4dsr.core.progress import Progress, subprogress
from llm4dsr.data.overlap import Origin, into_windows, out_of_windows
from llm4dsr.data.windows import Windows, align
from llm4dsr.denoise.ensemble import Ensemble, chunks
from llm4dsr.denoise.prequential import prequential
from llm4dsr.denoise.ranking import RankingWeights
from llm4dsr.denoise.suggest import NOTHING, suggest
from llm4dsr.denoise.tables import suggestion_table


def suggest_prequentially(
    ensemble: Ensemble,
    ranking_weights: RankingWeights,
    windows: Windows,
    parts: Windows,
    origin: Origin | None,
    decisions: pl.DataFrame,
    has_target: bool,
    progress: Progress | None,
    cache: PartCache,
    width: int,
    earlier: Windows | None = None,
) -> pl.DataFrame:
    """Suggest a replacement for each flagged interaction, in order of time.

    The parts of one history are never suggested an item of the whole history, nor one item twice.

    Parameters
    ----------
    ensemble : Ensemble
        The tuned models.
    ranking_weights : RankingWeights
        How suggestions are ranked, for soft tokens.
    windows, parts, origin, has_target, width, earlier
        As in `score_prequentially`.
    decisions : DataFrame
        The flagged interactions, by `window_id` and `position` in a history.
    progress : Progress or None
        Called with (flags done, all flags, what is being done).
    cache : PartCache
        Keeps finished parts.

    Returns
    -------
    DataFrame
        As `Denoiser.suggest` returns it.

    Raises
    ------
    DataError
        If `decisions` names a window or position that is not among the histories.
    """
    histories, catalogue = windows.histories() if has_target else windows, ensemble.catalogue
    flagged = align(into_windows(decisions, parts, origin) if origin else decisions, parts, None)
    history_of = origin.histories if origin else np.arange(len(windows))
    has_flag = np.bincount(parts.owners[flagged], minlength=len(parts)) > 0
    any_flag = np.isin(np.arange(len(windows)), history_of[has_flag])
    tables, done, total = [suggestion_table(parts, NOTHING, catalogue)], 0, int(flagged.sum())

    def table(by_then: Ensemble, rows: IntArray, flags: BoolArray, member: int, step: Progress | None) -> pl.DataFrame:
        part, is_next = parts.take(rows), np.diff(history_of[rows], prepend=-1) != 0
        whole, history_rows = histories.take(history_of[rows[is_next]]), np.cumsum(is_next) - 1

        def make() -> pl.DataFrame:
            found = suggest(
                by_then.models[member], by_then.builder, part, flags, catalogue, ensemble.config, ranking_weights,
                step, whole, history_rows,
            )  # fmt: skip
            return suggestion_table(part, found, catalogue)

        key = (*by_then.key(part, cache), member, flags, part.window_ids, whole.items, whole.lengths, history_rows)
        return cache.table((*key, ranking_weights, ensemble.config.suggest), make)

    for some, by_then, _ in prequential(ensemble, windows, has_target, None, width, earlier):
        for assigned, members in ensemble.assignments(histories.take(some)):
            for of in chunks(some[assigned][any_flag[some[assigned]]]):
                rows = origin.windows_of(of) if origin else of
                rows = rows[has_flag[rows]]
                flags = flagged[parts.interactions(rows)]
                count = int(flags.sum())
                step = progress and subprogress(progress, done, count, total)
                tables.append(table(by_then, rows, flags, members[0], step))
                done += count
                if progress:
                    progress(done, total, "suggest")
    order = pl.DataFrame({c.WINDOW: parts.window_ids}).with_row_index("order")
    joined = pl.concat(tables).join(order, on=c.WINDOW).sort("order", c.POSITION).drop("order")
    return out_of_windows(joined, origin) if origin else joined
