"""Choose the correction rate on validation: the rate whose correction makes a recommender rank best.

η = 0.5 asks what is more likely noise than not. A recommender asks something else: a wrong flag costs little where the
replacement fits too, and how little depends on the catalogue (docs/studies/threshold.md). So rates are tried. Test
histories are never read.

When correction does not help, some rate still looks better by chance. So a rate is only chosen if its gain over no
correction is larger than the 95 % interval of the difference over validation windows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from llm4dsr import intervals, metrics
from llm4dsr.config import EvaluateConfig
from llm4dsr.core.progress import Progress
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.evaluate.rows import Splits
from llm4dsr.evaluate.train_and_evaluate import train_and_evaluate
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
    """Train one recommender for each of RATES and compare them on validation.

    Parameters
    ----------
    splits : dict of str to Windows
        The original windows, used for rate 0.
    correct_at : callable
        Correction rate in (0, 1] → corrected splits.
    catalogue : Catalogue
        The items that are ranked.
    config : EvaluateConfig
        The recommender; only its first seed is used.
    seed : int
        Seed of the recommenders.
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
    cells = train_and_evaluate(compared, catalogue, replace(config, seeds=1), seed, progress, work)
    return best_rate(cells)


def best_rate(cells: pl.DataFrame) -> pl.DataFrame:
    """Choose the correction rate from recommenders that were trained at each.

    Parameters
    ----------
    cells : DataFrame
        One row of `train_and_evaluate` per rate, named by the rate, rate 0 first.

    Returns
    -------
    DataFrame
        One row per rate: `correction_rate`; `valid_ndcg`, NDCG@20 on validation (higher is better); `gain`, the
        difference to rate 0; `half_width` of the 95 % interval of that difference over validation windows; `chosen`,
        True for the rate with the largest gain among those whose interval is above 0, else for rate 0.
    """
    each = metrics.ndcg_of_each(np.stack(cells["valid_ranks"].to_list()), VALIDATION_K)  # [rates, windows]
    gain, half_width = np.array([intervals.paired_difference(of, each[0])[:2] for of in each]).T
    best = np.argmax(np.where(gain > half_width, gain, 0.0))
    return cells.select(
        correction_rate=pl.col("row").cast(pl.Float64),
        valid_ndcg="valid_ndcg",
        gain=pl.Series(gain),
        half_width=pl.Series(half_width),
        chosen=pl.Series(np.arange(len(cells)) == best),
    )
