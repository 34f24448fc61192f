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
from llm4dsr.denoise.score import score_windows
from llm4dsr.denoise.states import Floats, kept_states, states_per_window, states_to_fill
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
        Keeps finished parts, and may hold states that scoring has kept (`states.py`).

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
        ensemble, ranking_weights, windows, parts, origin, decisions, has_target, width, earlier,
        as_scored=cache.folder is not None,
    ):  # fmt: skip
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
    as_scored: bool = True,
) -> Iterator[tuple[Ensemble, SuggestPart]]:
    """Yield what `suggest_prequentially` asks for with these arguments: (the ensemble of its time, the part).

    With `as_scored`, as where parts are kept, states are those of the pass that scored the windows.
    """
    as_scored = as_scored and origin is None and states_per_window(ensemble.config) > 0
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
                    Scored(scored, np.flatnonzero(any_flag[some[chunk]])) if as_scored else None,
                ),
            )  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """The pass that scored the windows of a part.

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
        The pass that scored the windows, whose states are taken. None: a pass over the windows with flags alone.
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
            self._states(ensemble, cache),
        )  # fmt: skip
        return suggestion_table(self.windows, found, ensemble.catalogue)

    def _states(self, ensemble: Ensemble, cache: PartCache | None) -> Floats | None:
        """The states of the flags, as they were scored.

        Where one was not kept, all are computed again by the same pass over the same windows. So the last digits do not
        depend on what was kept.
        """
        if self.scored is None:
            return None
        e, part = ensemble, self.scored.part
        at = part.windows.interactions(self.scored.rows)[self.flagged]
        kept = None if cache is None else kept_states(cache, part.key(e, cache), at)
        if kept is not None and not np.isnan(kept).any():
            return kept
        states = states_to_fill(e.config, part.windows)
        score_windows(e.models[self.member], e.builder, part.windows, e.catalogue, e.config, states=states)
        return np.asarray(states[at])
