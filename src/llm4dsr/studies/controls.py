"""Corrections that tell what a gain is owed to: other flags, other replacements, less that is known."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr import metrics
from llm4dsr.company import Company
from llm4dsr.data import Data
from llm4dsr.denoiser import Denoiser
from llm4dsr.evaluate import Tables
from llm4dsr.pipeline import Run
from llm4dsr.studies.study import Context

ROUNDS = 100  # of drawing items anew where the window holds their title
GROUPS = (5, 20)  # users that have a target in training: up to 5, up to 20, more


def by_chance(run: Run) -> dict[str, pl.DataFrame]:
    """Scores of each split with log-odds that are random."""
    rng = np.random.default_rng(run.config.seed)
    return {
        n: s.with_columns(pl.Series(c.LOG_ODDS, rng.standard_normal(len(s)))) for n, s in run.scores().items()
    }  # fmt: skip


def popular_instead(tables: Tables, data: Data, seed: int) -> Tables:
    """The same flags; in place of each suggestion an item drawn by how many users have it in training, whatever the
    history, none with a title of the window."""
    rng, canonical = np.random.default_rng(seed), data.catalogue.canonical
    users = Company.of(data.splits[c.TRAIN], len(data.catalogue)).popularity
    out = {}
    for split, suggestions in tables.suggestions.items():
        windows = data.splits[split]
        row_of = {int(w): row for row, w in enumerate(windows.window_ids)}
        rows = np.array([row_of[w] for w in suggestions[c.WINDOW].to_list()], dtype=np.int64)
        inside = np.where(windows.present, canonical[windows.items], -1)[rows]  # [F, L]
        items, todo = np.zeros(len(rows), dtype=np.int64), np.arange(len(rows))
        for _ in range(ROUNDS):
            items[todo] = rng.choice(len(users), len(todo), p=users / users.sum())
            todo = todo[(inside[todo] == canonical[items[todo], None]).any(axis=1)]
            if not len(todo):
                break
        items[todo] = -1
        drawn = {c.SUGGESTED: data.catalogue.ids_of(items), c.SUGGESTED_TITLE: data.catalogue.titles_of(items)}
        out[split] = suggestions.with_columns(**drawn)
    return Tables(tables.decisions, out)


def training_alone(run: Run, tables: Tables, share: float, context: Context) -> Tables:
    """Flags and suggestions of training windows by what training knows; those of the other splits as they are.

    A run has the histories of validation counted before it judges training windows (which items have which company);
    recommenders learn from training windows alone."""
    data, work = context.suite.data, context.folder / "studies" / ".training-alone"
    train, denoiser = data.splits[c.TRAIN], Denoiser.from_pretrained(run.path("train"))
    denoiser.builder.company = Company.of(train, len(data.catalogue))
    scores = denoiser.score(train, context.progress, work=work)
    decisions = denoiser.decide(scores, "rate", share)
    suggestions = denoiser.suggest(train, decisions, context.progress, work=work)
    return Tables(tables.decisions | {c.TRAIN: decisions}, tables.suggestions | {c.TRAIN: suggestions})


def by_popularity(cells: pl.DataFrame, data: Data, k: int) -> pl.DataFrame:
    """row, and NDCG@k of the test windows whose target so many users have in training; mean over seeds. The first line
    tells how many windows that are."""
    users = Company.of(data.splits[c.TRAIN], len(data.catalogue)).popularity[data.splits[c.TEST].targets()]
    groups = np.searchsorted(GROUPS, users)
    names = [f"up to {GROUPS[0]} users", *(f"{a + 1} to {b}" for a, b in pairwise(GROUPS)),
             f"more than {GROUPS[-1]}"]  # fmt: skip
    lines = [{"row": "test windows", **{name: float((groups == i).sum()) for i, name in enumerate(names)}}]
    for (row,), of in cells.group_by("row", maintain_order=True):
        each = metrics.ndcg_of_each(np.stack(of["ranks"].to_list()), k).mean(axis=0)
        means = {name: float(each[groups == i].mean()) if (groups == i).any() else float("nan")
                 for i, name in enumerate(names)}  # fmt: skip
        lines.append({"row": row, **means})
    return pl.DataFrame(lines)
