"""Example histories of the report: items, probabilities, edits, and why an interaction looks like noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.progress import Progress
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.denoiser import Denoiser
from llm4dsr.pipeline import Run

SUSPICIOUS = 0.6  # fraction of the examples that are the most suspicious; the others spread over all probabilities
REASONS = 3  # other items shown for each explained interaction
SHOWN = 30  # most items shown of a long history, around the explained one

Example = dict[str, Any]


def examples(run: Run, count: int, progress: Progress | None = None) -> list[Example]:
    """Return example histories of all splits, most suspicious first.

    Parameters
    ----------
    run : Run
        A run with scores and decisions.
    count : int
        Examples; a third from each split.
    progress : Progress, optional
        Called with (windows done, all windows, what is being done).

    Returns
    -------
    list of dict
        `split, window, user`, and `items`: of each `id, title, p` (noise probability), `position`, and if there is one
        its `edit`. The explained item has `why`.
    """
    scores, decisions = run.scores(), run.decisions()
    chosen = {name: choose(scores[name], decisions[name], max(1, count // len(c.SPLITS))) for name in scores}
    out = [example for found in described(run, scores, chosen, progress).values() for example in found]
    return sorted(out, key=lambda e: (-e["p"], e["split"], int(e["window"])))


def described(
    run: Run, scores: dict[str, pl.DataFrame], chosen: dict[str, pl.DataFrame], progress: Progress | None
) -> dict[str, list[Example]]:
    """Return examples of chosen interactions with their reasons, by split, each in the order of `chosen`.

    Parameters
    ----------
    run : Run
        A run with scores.
    scores, chosen : dict of str to DataFrame
        All scores of each split, and those of the chosen interactions.
    progress : Progress or None
        Called with (windows done, all windows, what is being done).
    """
    denoiser, maps, out = Denoiser.from_pretrained(run.verified("train")), run.maps(), {}
    edits = run.edits() if run.done("correct") else {}
    for name, windows, earlier in run.in_time():
        if len(chosen[name]):
            reasons = denoiser.explain(windows, chosen[name], progress, name != c.TRAIN, maps[name], earlier)
            out[name] = as_examples(
                name, windows, denoiser.catalogue, scores[name], edits.get(name), chosen[name], reasons
            )
    return out


def choose(scores: pl.DataFrame, decisions: pl.DataFrame, count: int) -> pl.DataFrame:
    """Choose the most suspicious interaction of `count` windows: flagged ones first, some of all probabilities.

    Parameters
    ----------
    scores, decisions : DataFrame
        Of one split.
    count : int
        Most interactions.

    Returns
    -------
    DataFrame
        Rows of `scores`, at most one of a window.
    """
    flagged = decisions.select(c.WINDOW).unique().with_columns(flagged=True)
    first = (
        scores.filter((pl.col(c.RANK) == 1) & pl.col(c.LOG_ODDS).is_finite())
        .join(flagged, on=c.WINDOW, how="left", maintain_order="left")
        .sort(pl.col("flagged").fill_null(False), c.LOG_ODDS, descending=True, maintain_order=True)
        .drop("flagged")
    )
    top = first.head(round(SUSPICIOUS * count))
    rest = first.slice(len(top))
    spread = np.unique(np.linspace(0, max(0, len(rest) - 1), count - len(top)).astype(np.int64))
    return pl.concat([top, rest[spread[: len(rest)]]])


def as_examples(
    name: str,
    windows: Windows,
    catalogue: Catalogue,
    scores: pl.DataFrame,
    edits: pl.DataFrame | None,
    chosen: pl.DataFrame,
    reasons: pl.DataFrame,
) -> list[Example]:
    """Describe chosen interactions of one split for a page, in their order.

    Parameters
    ----------
    name : str
        The split.
    windows : Windows
        Its windows.
    catalogue : Catalogue
        The items.
    scores : DataFrame
        Scores of the split.
    edits : DataFrame or None
        Edits of the split, if there are any.
    chosen : DataFrame
        The interactions, rows of `scores`.
    reasons : DataFrame
        As `Denoiser.explain` returns them for these.

    Returns
    -------
    list of dict
        As `examples` returns them.
    """
    row_of = {int(w): i for i, w in enumerate(windows.window_ids)}
    wanted = chosen.select(c.WINDOW)
    p_of = {(w, p): v for w, p, v in _rows(scores, wanted, c.NOISE_PROBABILITY)}
    edit_of: dict[tuple[int, int], dict[str, Any]] = {}
    if edits is not None:
        for line in edits.join(wanted, on=c.WINDOW, how="semi").iter_rows(named=True):
            edit_of[line[c.WINDOW], line[c.POSITION]] = line
    why_of = reasons.partition_by(c.WINDOW, c.POSITION, as_dict=True)
    out = []
    for window, position, p in chosen.select(c.WINDOW, c.POSITION, c.NOISE_PROBABILITY).iter_rows():
        rows = windows.row(row_of[window])
        begin = max(0, min(position - SHOWN // 2, len(rows) - SHOWN))
        items = []
        for at in range(begin, min(begin + SHOWN, len(rows))):
            item: dict[str, Any] = {"title": catalogue.original_titles[rows[at]], "id": str(catalogue.ids[rows[at]])}
            if (window, at) in p_of:
                item["p"] = _rounded(p_of[window, at])
            if (window, at) in edit_of:
                item["edit"] = _edit(edit_of[window, at])
            if at == position and (window, position) in why_of:
                item["why"] = why(why_of[window, position])
            items.append(item)
        user = windows.user_ids[row_of[window]]
        out.append({
            "split": name, "window": str(window), "user": "" if user is None else str(user), "p": _rounded(p),
            "explained": position - begin, "of": len(rows), "items": items,
        })  # fmt: skip
    return out


def _rows(table: pl.DataFrame, wanted: pl.DataFrame, column: str) -> Any:
    return table.join(wanted, on=c.WINDOW, how="semi").select(c.WINDOW, c.POSITION, column).iter_rows()


def _edit(line: dict[str, Any]) -> dict[str, Any]:
    probability = line[c.SUGGESTION_PROBABILITY]
    return {
        "action": line[c.ACTION],
        "title": line[c.SUGGESTED_TITLE],
        "probability": None if probability is None or probability != probability else _rounded(probability),
    }


def why(reasons: pl.DataFrame) -> dict[str, Any]:
    """Summarize why one interaction looks like noise, or not.

    Parameters
    ----------
    reasons : DataFrame
        Rows of `Denoiser.explain` on one interaction; at least one.

    Returns
    -------
    dict
        `users`, other users of the item; `together`, how many of the `others` in the history occur with it; `alike`,
        the other item with the most similar title, and its `similarity`; `without`, the REASONS other items without
        which the score changes most, the most telling first. What is not known is None.
    """
    known = reasons[c.PAIR_USERS].null_count() < len(reasons)
    top = reasons.sort(pl.col(c.LOG_ODDS_CHANGE).fill_nan(0).abs(), descending=True).head(REASONS)
    most_alike = reasons.sort(c.TITLE_SIMILARITY, descending=True).row(0, named=True)
    return {
        "users": int(reasons[c.ITEM_USERS][0]) if known else None,
        "together": int((reasons[c.PAIR_USERS] > 0).sum()) if known else None,
        "others": len(reasons),
        "alike": most_alike[c.OTHER_TITLE],
        "similarity": _rounded(most_alike[c.TITLE_SIMILARITY]),
        "without": [
            {
                "title": line[c.OTHER_TITLE],
                "p": None if line[c.PROBABILITY_WITHOUT] is None else _rounded(line[c.PROBABILITY_WITHOUT]),
                "change": None if line[c.LOG_ODDS_CHANGE] != line[c.LOG_ODDS_CHANGE] else
                _rounded(line[c.LOG_ODDS_CHANGE]),
                "users": line[c.PAIR_USERS],
            }
            for line in top.iter_rows(named=True)
        ],
    }  # fmt: skip


def _rounded(value: float) -> float | None:
    return None if value != value else round(float(value), 3)
