"""How much to correct where a recommender is to learn from it: the share whose correction ranks validation best.

η = 0.5 asks what is more likely noise than not. A recommender asks something else: a wrong flag costs it little where
what is put in its place fits too, and how little is a matter of the catalogue (docs/studies/threshold.md). So it is
tried. Test has no say. Where correcting helps nothing, one of several shares is ahead of none by luck more often than
not, so a share is taken only where it is ahead of none by more than windows differ by chance.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from llm4dsr import metrics
from llm4dsr.batch import Progress
from llm4dsr.evaluate import Tables, compare, corrected_splits
from llm4dsr.recommenders.training import VALIDATION_K

if TYPE_CHECKING:
    from llm4dsr.pipeline import Run

SHARES = (0.0, 0.05, 0.1, 0.2)  # of the interactions of each split; 0: nothing is corrected


def shares_tried(run: Run, cap: int | None, progress: Progress | None) -> pl.DataFrame:
    """Each of SHARES corrected as configured, one recommender (`evaluate`, first seed) for each, as `best_share` tells.

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
    return best_share(cells)


def best_share(cells: pl.DataFrame) -> pl.DataFrame:
    """cells: a row of `evaluate.compare` for each share, 0 first. Returns share, valid_ndcg, gain (NDCG@20 less that of
    share 0), half_width (of its 95 % interval over validation windows), chosen: the best of the shares whose interval
    is above 0, the first where two are alike; share 0 where there is none."""
    each = metrics.ndcg_of_each(np.stack(cells["valid_ranks"].to_list()), VALIDATION_K)  # [shares, windows]
    gain, half_width = np.array([metrics.paired_difference(of, each[0])[:2] for of in each]).T
    best = np.argmax(np.where(gain > half_width, gain, 0.0))
    return cells.select(
        share=pl.col("row").cast(pl.Float64), valid_ndcg="valid_ndcg", gain=pl.Series(gain),
        half_width=pl.Series(half_width), chosen=pl.Series(np.arange(len(cells)) == best),
    )  # fmt: skip
