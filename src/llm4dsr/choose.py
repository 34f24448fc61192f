"""How much to correct where a recommender is to learn from it: the share whose correction ranks validation best.

η = 0.5 asks what is more likely noise than not. A recommender asks something else: a wrong flag costs it little where
what is put in its place fits too, and how little is a matter of the catalogue (docs/studies/threshold.md). So it is
tried. Test has no say.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from llm4dsr.batch import Progress
from llm4dsr.evaluate import Tables, compare, corrected_splits

if TYPE_CHECKING:
    from llm4dsr.pipeline import Run

SHARES = (0.0, 0.05, 0.1, 0.2)  # of the interactions of each split; 0: nothing is corrected


def shares_tried(run: Run, cap: int | None, progress: Progress | None) -> pl.DataFrame:
    """share, valid_ndcg, chosen: each of SHARES corrected as configured, one recommender (`evaluate`, first seed) for
    each; the best is chosen, the smaller one where two are alike.

    What is made on the way is left where the stages suggest and evaluate look for it, unless they are done already."""
    config, data, scores = run.config, run.data(), run.scores()
    work = {stage: run.work("decide" if run.done(stage) else stage) for stage in ("suggest", "evaluate")}
    compared = {str(share): data.splits for share in SHARES}
    for share in filter(None, SHARES):
        decisions = run.decided("rate", share, cap, scores)
        suggestions = {}
        if config.correct.action == "replace":
            suggestions = dict(run.suggested(decisions, progress, work["suggest"]))
        compared[str(share)] = corrected_splits(
            data.splits, Tables(decisions, suggestions), data.catalogue, config.correct.action,
            config.correct.train_targets,
        )  # fmt: skip
    settings = replace(config.evaluate, seeds=1)
    cells = compare(compared, data.catalogue, settings, config.seed, progress, work["evaluate"])
    tried = cells.select(share=pl.col("row").cast(pl.Float64), valid_ndcg="valid_ndcg")
    best = np.argmax(tried["valid_ndcg"].to_numpy())  # the first of equals
    return tried.with_columns(pl.Series("chosen", np.arange(len(tried)) == best))
