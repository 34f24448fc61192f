"""Answers for several requests at once: scored together, decided and corrected each as if it were alone.

Nothing here depends on which requests are computed together, but for the last digits of sums of 32-bit numbers: windows
have the same width always, and what looks at many histories (η of most policies, the action `mixed`) looks at those of
one request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from pydantic_core import to_json

from llm4dsr import columns as c
from llm4dsr.core.arrays import BoolArray, IntArray
from llm4dsr.core.hashing import history_ids
from llm4dsr.data.windows import Windows
from llm4dsr.denoise import correct as correcting
from llm4dsr.denoise.decide import decide, rule
from llm4dsr.denoiser import Denoiser
from llm4dsr.report.examples import why
from llm4dsr.serve.items import Query, as_json
from llm4dsr.serve.schema import MAX_EXPLAINED, History, Request

DIGITS = 6  # after the point, of all numbers in answers

Edits = dict[int, list[dict[str, Any]]]  # by window


@dataclass(frozen=True)
class Reply:
    """The answer to a request.

    Attributes
    ----------
    body : bytes
        JSON, as `schema.Answer` describes it.
    answered, refused, flags : int
        Histories with and without an answer, and flagged interactions.
    """

    body: bytes
    answered: int
    refused: int
    flags: int


def answer(denoiser: Denoiser, queries: Sequence[Query]) -> list[Reply]:
    """Answer requests.

    Parameters
    ----------
    denoiser : Denoiser
        Fitted. It is not changed.
    queries : sequence of Query
        The requests. Those that bring items are computed one by one.

    Returns
    -------
    list of Reply
        One for each request.

    Raises
    ------
    ConfigError, DataError
        If a request cannot be answered.
    """
    out: dict[int, Reply] = {}
    together = [place for place, query in enumerate(queries) if query.new is None]
    out |= zip(together, _answer(denoiser, [queries[place] for place in together]), strict=True)
    for place, query in enumerate(queries):
        if query.new is not None:
            out[place] = _answer(denoiser.with_items(query.new), [query])[0]
    return [out[place] for place in range(len(queries))]


def _answer(denoiser: Denoiser, queries: Sequence[Query]) -> list[Reply]:
    """Answers of requests that share a denoiser."""
    batch = _Batch(denoiser, queries)
    flagged = batch.flagged()
    edits = batch.edits(flagged)
    return [batch.reply(number, query, edits) for number, query in enumerate(queries)]


class _Batch:
    """All known histories of some requests as windows, request after request, and their scores."""

    def __init__(self, denoiser: Denoiser, queries: Sequence[Query]) -> None:
        self.denoiser, self.queries = denoiser, queries
        known = [
            [(history, rows) for history, rows in zip(query.request.histories, query.rows, strict=True) if rows]
            for query in queries
        ]
        self.windows = _windows([pair for of_query in known for pair in of_query], denoiser.width)
        self.bounds = np.cumsum([0, *(len(of_query) for of_query in known)])  # windows of each request
        self.scores = denoiser.score(self.windows) if len(self.windows) else pl.DataFrame()
        self.columns = {name: self._list(name) for name in (c.ITEM, c.LOG_ODDS, *c.PROBABILITIES, c.RANK)}
        self.ends = self.windows.offsets.tolist()

    def _list(self, name: str) -> list[Any]:
        """A column of the scores as JSON values."""
        return _values(self.scores[name]) if len(self.windows) else []

    def rows(self, number: int) -> IntArray:
        """Windows of a request."""
        return np.arange(self.bounds[number], self.bounds[number + 1])

    def flagged(self) -> BoolArray:
        """[n] True where a request's own rule flags an interaction."""
        out = np.zeros(len(self.windows.items), dtype=bool)
        if not len(out):
            return out
        log_odds, probability = (self.scores[name].to_numpy() for name in (c.LOG_ODDS, c.NOISE_PROBABILITY))
        owners = self.windows.owners
        for number, query in enumerate(self.queries):
            here = slice(*self.windows.offsets[self.bounds[number : number + 2]])
            if here.start < here.stop:
                asked = query.request
                policy, eta, cap = rule(self.denoiser.config.decide, asked.policy, asked.eta, asked.cap, is_train=False)
                first = owners[here.start]
                out[here] = decide(owners[here] - first, log_odds[here], probability[here], policy, eta, cap)
        return out

    def edits(self, flagged: BoolArray) -> Edits:
        """The edits of each window that has any, with their explanations."""
        out: Edits = {}
        if not flagged.any():
            return out
        decisions = self.scores.filter(pl.Series(flagged))
        has_flag = np.bincount(self.windows.owners[flagged], minlength=len(self.windows)) > 0
        suggestions, explained = self._suggested(decisions, has_flag), self._explained(decisions, has_flag)
        for action, rows in self._by_action(has_flag):
            own = decisions.filter(pl.col(c.WINDOW).is_in(rows.tolist()))
            corrected = correcting.apply(
                self.windows.take(rows), own, suggestions, self.denoiser.catalogue, action, has_target=False
            )
            for window, position, edit in _edits(corrected.edits):
                edit["explanation"] = explained.get((window, position))
                out.setdefault(window, []).append(edit)
        return out

    def _by_action(self, has_flag: BoolArray) -> list[tuple[str, IntArray]]:
        """(action, windows with a flag). `mixed` looks at all flags, so each request that asks for it is a group."""
        groups: dict[tuple[str, int], list[IntArray]] = {}
        for number, query in enumerate(self.queries):
            action, rows = self._action(query.request), self.rows(number)
            if len(rows := rows[has_flag[rows]]):
                groups.setdefault((action, number if action == "mixed" else -1), []).append(rows)
        return [(action, np.concatenate(rows)) for (action, _), rows in groups.items()]

    def _action(self, request: Request) -> str:
        return request.action or self.denoiser.config.correct.action

    def _suggested(self, decisions: pl.DataFrame, has_flag: BoolArray) -> pl.DataFrame | None:
        """Suggestions for the flags of requests that need some."""
        asked = self._windows_of(lambda request: self._action(request) in c.WITH_SUGGESTIONS, has_flag)
        if not len(asked):
            return None
        return self.denoiser.suggest(self.windows.take(asked), decisions.filter(pl.col(c.WINDOW).is_in(asked.tolist())))

    def _explained(self, decisions: pl.DataFrame, has_flag: BoolArray) -> dict[tuple[int, int], dict[str, Any]]:
        """Explanations of the most suspicious flags of requests that ask for them, by window and position."""
        asked = self._windows_of(lambda request: request.explain, has_flag)
        if not len(asked):
            return {}
        request_of = np.searchsorted(self.bounds, decisions[c.WINDOW].to_numpy(), side="right")
        chosen = (
            decisions.with_columns(pl.Series("request", request_of))
            .filter(pl.col(c.WINDOW).is_in(asked.tolist()))
            .sort("request", pl.col(c.LOG_ODDS).neg(), c.WINDOW, c.POSITION)
            .filter(pl.int_range(pl.len()).over("request") < MAX_EXPLAINED)
            .sort(c.WINDOW, c.POSITION)
        )
        windows = self.windows.take(chosen[c.WINDOW].unique(maintain_order=True).to_numpy())
        reasons = self.denoiser.explain(windows, chosen)
        parts = reasons.partition_by(c.WINDOW, c.POSITION, as_dict=True)
        return {(int(window), int(position)): why(part) for (window, position), part in parts.items()}

    def _windows_of(self, is_asked: Any, has_flag: BoolArray) -> IntArray:
        """Windows with a flag, of the requests that ask for something."""
        rows = [self.rows(number) for number, query in enumerate(self.queries) if is_asked(query.request)]
        found: IntArray = np.concatenate([np.empty(0, np.int64), *rows])
        return found[has_flag[found]]

    def reply(self, number: int, query: Query, edits: Edits) -> Reply:
        """The answer to one request."""
        window, histories, flags = int(self.bounds[number]), list[dict[str, Any]](), 0
        weighted = self._action(query.request) == "downweight"
        for place, (history, rows) in enumerate(zip(query.request.histories, query.rows, strict=True)):
            if rows is None:
                error = query.errors[place].model_dump()
                histories.append(_history(history, None, None, None, error))
                continue
            done, scores = list[dict[str, Any]](), list[dict[str, Any]]()
            if rows:
                scores, done = self._scores(window), edits.get(window, [])
                window += 1
            flags += len(done)
            histories.append(_history(history, scores, done, _corrected(history, scores, done, weighted), None))
        body = to_json({"histories": histories}, inf_nan_mode="null")
        return Reply(body, len(query.rows) - len(query.errors), len(query.errors), flags)

    def _scores(self, window: int) -> list[dict[str, Any]]:
        here = slice(self.ends[window], self.ends[window + 1])
        names = list(self.columns)
        return [
            dict(zip(names, row, strict=True)) for row in zip(*(v[here] for v in self.columns.values()), strict=True)
        ]


def _windows(histories: list[tuple[History, list[int]]], width: int) -> Windows:
    """Windows of the histories of all requests. Those without a user are users of their own, by their content."""
    rows = [rows for _, rows in histories]
    own = history_ids(rows)
    users = [own[i] if h.user_id is None else str(h.user_id) for i, (h, _) in enumerate(histories)]
    return Windows.from_lists(rows, user_ids=pl.Series(c.USER, users, dtype=pl.String), width=width)


def _values(column: pl.Series) -> list[Any]:
    """JSON values of a column."""
    if column.dtype.is_float():
        return [None if value is None or value != value else value for value in column.round(DIGITS).to_list()]
    return [None if value is None else as_json(value) for value in column.to_list()]


def _edits(table: pl.DataFrame) -> Any:
    """Yield (window, position, edit) of each row."""
    names = (
        c.POSITION, c.ITEM, c.TITLE, c.NOISE_PROBABILITY, c.ACTION, c.SUGGESTED, c.SUGGESTED_TITLE,
        c.SUGGESTION_PROBABILITY, c.KEPT,
    )  # fmt: skip
    columns = [_values(table[name]) for name in names]
    for window, *values in zip(table[c.WINDOW].to_list(), *columns, strict=True):
        yield window, values[0], dict(zip(names, values, strict=True))


def _corrected(
    history: History, scores: list[dict[str, Any]], edits: list[dict[str, Any]], weighted: bool
) -> dict[str, Any]:
    """The history after its edits."""
    items: list[Any] = [score[c.ITEM] for score in scores]
    for edit in edits:
        items[edit[c.POSITION]] = edit[c.KEPT]
    stay = [place for place, item in enumerate(items) if item is not None]
    weights = None
    if weighted:
        weights = [1.0] * len(items)
        for edit in edits:
            weights[edit[c.POSITION]] = round(1 - (edit[c.NOISE_PROBABILITY] or 0.0), DIGITS)
    times = history.timestamps
    return {
        "item_ids": [items[place] for place in stay],
        "timestamps": None if times is None else [times[place] for place in stay],
        "weights": weights,
    }


def _history(history: History, scores: Any, edits: Any, corrected: Any, error: Any) -> dict[str, Any]:
    return {"user_id": history.user_id, "scores": scores, "edits": edits, "corrected": corrected, "error": error}
