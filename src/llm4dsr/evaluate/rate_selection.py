"""Choose the correction rate on validation: the rate whose correction makes a recommender rank best.

η = 0.5 asks what is more likely noise than not. A recommender asks something else: a wrong flag costs little where the
replacement fits too, and how little depends on the catalogue (docs/studies/threshold.md). So rates are tried. Test
histories are never read.

When correction does not help, some rate still looks better by chance. So a rate is only chosen if the lower bound of
its gain over no correction is above 0. The bounds of all rates hold at once with 95 %. They allow for windows that
share a user, and for the recommender's seeds (`intervals.select_candidate`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from llm4dsr import metrics
from llm4dsr.config import EvaluateConfig
from llm4dsr.core.progress import Progress
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.evaluate.rows import Splits
from llm4dsr.evaluate.train_and_evaluate import train_and_evaluate
from llm4dsr.intervals import select_candidate
from llm4dsr.recommenders.training import VALIDATION_K

RATES = (0.0, 0.05, 0.1, 0.2)  # fractions of each split's interactions; 0: no correction


def try_rates(
    splits: Splits,
    correct_at: Callable[[float], Splits],
    catalogue: Catalogue,
    config: EvaluateConfig,
    seed: int,
    progress: Progress | None = None,
    work: Path | None = None,
) -> pl.DataFrame:
    """Train a recommender for each of RATES and each seed, and compare them on validation.

    Parameters
    ----------
    splits : dict of str to Windows
        The original windows, used for rate 0.
    correct_at : callable
        Correction rate in (0, 1] → corrected splits.
    catalogue : Catalogue
        The items that are ranked.
    config : EvaluateConfig
        The recommender and its seeds.
    seed : int
        The first seed.
    progress : Progress, optional
        Called with (steps done, all steps, what is being done).
    work : Path, optional
        Folder of finished recommenders; the same call resumes from it.

    Returns
    -------
    DataFrame
        As `best_rate` returns it.
    """
    compared = {str(rate): correct_at(rate) if rate else splits for rate in RATES}
    cells = train_and_evaluate(compared, catalogue, config, seed, progress, work)
    return best_rate(cells)


def best_rate(cells: pl.DataFrame) -> pl.DataFrame:
    """Choose the correction rate from recommenders that were trained at each.

    Parameters
    ----------
    cells : DataFrame
        Rows of `train_and_evaluate`, named by their rate, rate 0 first; the same seeds for each.

    Returns
    -------
    DataFrame
        One row per rate: `correction_rate`; `valid_ndcg`, mean NDCG@20 on validation over seeds (higher is better);
        `gain`, the difference to rate 0; `lower_bound` of the gain, those of all rates together with 95 %; `chosen`,
        True for the rate with the largest gain among those whose bound is above 0, else for rate 0.
    """
    rates = cells["row"].unique(maintain_order=True).to_list()
    of = [cells.filter(pl.col("row") == rate).sort("seed") for rate in rates]
    each = np.stack([metrics.ndcg_of_each(np.stack(c["valid_ranks"].to_list()), VALIDATION_K) for c in of])  # [R, S, W]
    found = select_candidate(each[1:] - each[0], cells["valid_users"][0])
    return pl.DataFrame({
        "correction_rate": [float(rate) for rate in rates],
        "valid_ndcg": [float(np.mean(c["valid_ndcg"].to_list())) for c in of],
        "gain": [0.0, *found.gain],
        "lower_bound": [0.0, *found.low],
        "chosen": np.arange(len(rates)) == (0 if found.chosen is None else 1 + found.chosen),
    })  # fmt: skip
