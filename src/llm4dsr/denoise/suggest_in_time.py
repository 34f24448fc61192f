"""Suggest in order of time, as scored: each flag by a model that did not see its user, with the counts of its time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import BoolArray, IntArray
from llm4dsr.core.cache import PartCache
from llm4dsr.core.progress import Progress, subprogress
from llm4dsr.data.overlap import Origin, into_windows, out_of_windows
from llm4dsr.data.windows import Windows, align
from llm4dsr.denoise.ensemble import Ensemble, ScorePart
from llm4dsr.denoise.prequential import prequential
from llm4dsr.denoise.ranking import RankingWeights
from llm4dsr.denoise.states import Floats, kept_states, states_per_window
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
        Keeps finished parts, and may hold states that scoring has kept.

    Returns
    -------
    DataFrame
        As `Denoiser.suggest` returns it.

    Raises
    ------
    DataError
        If `decisions` names a window or position that is not among the histories.
    """
    flagged = align(into_windows(decisions, parts, origin) if origin else decisions, parts, None)
    tables, done, total = [suggestion_table(parts, NOTHING, ensemble.catalogue)], 0, int(flagged.sum())
    for by_then, part in parts_to_suggest(
        ensemble, ranking_weights, windows, parts, origin, decisions, has_target, width, earlier
    ):
        step = progress and subprogress(progress, done, part.size, total)
        tables.append(cache.table(part.key(by_then, cache), partial(part.table, by_then, step, cache)))
        done += part.size
        if progress:
            progress(done, total, "suggest")
    order = pl.DataFrame({c.WINDOW: parts.window_ids}).with_row_index("order")
    joined = pl.concat(tables).join(order, on=c.WINDOW).sort("order", c.POSITION).drop("order")
    return out_of_windows(joined, origin) if origin else joined


def parts_to_suggest(
    ensemble: Ensemble,
    ranking_weights: RankingWeights,
    windows: Windows,
    parts: Windows,
    origin: Origin | None,
    decisions: pl.DataFrame,
    has_target: bool,
    width: int,
    earlier: Windows | None = None,
) -> Iterator[tuple[Ensemble, SuggestPart]]:
    """Yield what `suggest_prequentially` asks for with these arguments: (the ensemble of its time, the part)."""
    histories = windows.histories() if has_target else windows
    flagged = align(into_windows(decisions, parts, origin) if origin else decisions, parts, None)
    history_of = origin.histories if origin else np.arange(len(windows))
    has_flag = np.bincount(parts.owners[flagged], minlength=len(parts)) > 0
    any_flag = np.isin(np.arange(len(windows)), history_of[has_flag])
    for some, by_then, _ in prequential(ensemble, windows, has_target, None, width, earlier):
        for chunk, scored in by_then.parts(histories.take(some), has_target):  # as they were scored
            of = some[chunk][any_flag[some[chunk]]]
            if not len(of):
                continue
            rows = origin.windows_of(of) if origin else of
            rows = rows[has_flag[rows]]
            is_next = np.diff(history_of[rows], prepend=-1) != 0
            yield (
                by_then,
                SuggestPart(
                    parts.take(rows), scored.members[0], flagged[parts.interactions(rows)],
                    histories.take(history_of[rows[is_next]]), np.cumsum(is_next) - 1, ranking_weights,
                    None if origin else Scored(scored, np.flatnonzero(any_flag[some[chunk]])),
                ),
            )  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """Where the states of the windows of a part were kept, if they were.

    Attributes
    ----------
    part : ScorePart
        The part that scored them.
    rows : array of int
        [W] their rows in it.
    """

    part: ScorePart
    rows: IntArray


@dataclass(frozen=True)
class SuggestPart:
    """At most CHUNK histories with flags: work that any process with the models can do.

    Attributes
    ----------
    windows : Windows
        W windows with n interactions: the histories, or parts of long ones.
    member : int
        The model that suggests.
    flagged : array of bool
        [n] True where a replacement is wanted.
    histories : Windows
        The whole histories.
    history_rows : array of int
        [W] row in `histories` of each window, ascending.
    ranking_weights : RankingWeights
        How suggestions are ranked, for soft tokens.
    scored : Scored or None
        Who scored the windows. None: parts of long histories.
    """

    windows: Windows
    member: int
    flagged: BoolArray
    histories: Windows
    history_rows: IntArray
    ranking_weights: RankingWeights
    scored: Scored | None

    @property
    def size(self) -> int:
        """Flags."""
        return int(self.flagged.sum())

    def key(self, ensemble: Ensemble, cache: PartCache) -> tuple[Any, ...]:
        """Return all that the suggestions depend on, if something is cached."""
        whole, options = self.histories, ensemble.config.suggest
        key = (*ensemble.key(self.windows, cache), self.member, self.flagged, self.windows.window_ids, whole.items)
        return (*key, whole.lengths, self.history_rows, self.ranking_weights, options)

    def table(
        self, ensemble: Ensemble, progress: Progress | None = None, cache: PartCache | None = None
    ) -> pl.DataFrame:
        """Suggest: a table as `suggestion_table` makes it, with what scoring has kept in a cache."""
        found = suggest(
            ensemble.models[self.member], ensemble.builder, self.windows, self.flagged, ensemble.catalogue,
            ensemble.config, self.ranking_weights, progress, self.histories, self.history_rows,
            None if cache is None else self._states(ensemble, cache),
        )  # fmt: skip
        return suggestion_table(self.windows, found, ensemble.catalogue)

    def _states(self, ensemble: Ensemble, cache: PartCache) -> Floats | None:
        """The states of the flags that scoring has kept."""
        if self.scored is None or not states_per_window(ensemble.config):
            return None
        part, rows = self.scored.part, self.scored.rows
        return kept_states(cache, part.key(ensemble, cache), part.windows.interactions(rows)[self.flagged])
