"""Summaries of trained recommenders: means, gains, intervals and paired tests."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from llm4dsr import intervals, metrics
from llm4dsr.evaluate.rows import ORACLE_DROP, ORACLE_RESTORE, ORIGINAL


@dataclass(frozen=True)
class Difference:
    """The difference in NDCG@k between two rows, over the seeds that both have.

    Attributes
    ----------
    gain : float
        Mean NDCG@k of the first row minus that of the second.
    gain_percent : float
        The gain in percent of the second row.
    half_width : float
        Half of the gain's 95 % Student interval over seeds.
    p_seeds : float
        Two-sided p of a paired t test over seeds: would another training run show the same?
    p_windows : float
        The same over test windows, each with its mean over seeds: would other histories show the same?
    """

    gain: float
    gain_percent: float
    half_width: float
    p_seeds: float
    p_windows: float

    @classmethod
    def between(cls, a: pl.DataFrame, b: pl.DataFrame, k: int) -> Difference:
        """Compare two rows of `train_and_evaluate`; all NaN if they share no seed."""
        seeds = sorted(set(a["seed"].to_list()) & set(b["seed"].to_list()))
        if not seeds:
            return cls(*[math.nan] * 5)
        a, b = (rows.filter(pl.col("seed").is_in(seeds)).sort("seed") for rows in (a, b))
        gain, half, over_seeds = intervals.paired_difference(a["ndcg"].to_list(), b["ndcg"].to_list())
        of_windows = (metrics.ndcg_of_each(np.stack(rows["ranks"].to_list()), k).mean(axis=0) for rows in (a, b))
        percent = 100 * gain / max(float(np.mean(b["ndcg"].to_list())), 1e-12)
        return cls(gain, percent, half, over_seeds, intervals.paired_difference(*of_windows)[2])


def summarize(results: pl.DataFrame) -> pl.DataFrame:
    """Summarize each row of a comparison over its seeds.

    Parameters
    ----------
    results : DataFrame
        As `train_and_evaluate` returns it, with the row `original`.

    Returns
    -------
    DataFrame
        One line per row. For `ndcg` and `hit_rate`: the mean, `_half_width` of its 95 % interval over seeds,
        `_gain_percent` over the original, and `_p` of a paired t test over seeds (NaN with one seed).
        `oracle_gain_fraction`: the gain in NDCG@k as a fraction of the better oracle's gain; NaN without an oracle.
    """
    base = results.filter(pl.col("row") == ORIGINAL)
    names = results["row"].unique(maintain_order=True).to_list()
    means = {n: _mean(results.filter(pl.col("row") == n)["ndcg"]) for n in names}
    oracle_gain = max((means[n] for n in (ORACLE_DROP, ORACLE_RESTORE) if n in means), default=math.nan)
    oracle_gain -= means[ORIGINAL]
    lines = []
    for name in names:
        row = results.filter(pl.col("row") == name)
        line: dict[str, object] = {"row": name}
        for metric in ("ndcg", "hit_rate"):
            mean, half = intervals.mean_interval(row[metric].to_list())
            several = len(row) > 1 and name != ORIGINAL
            p = intervals.paired_difference(row[metric].to_list(), base[metric].to_list())[2] if several else math.nan
            line[metric] = mean
            line[f"{metric}_half_width"] = half
            line[f"{metric}_gain_percent"] = 100 * (mean / max(_mean(base[metric]), 1e-12) - 1)
            line[f"{metric}_p"] = p
        line["oracle_gain_fraction"] = (means[name] - means[ORIGINAL]) / oracle_gain if oracle_gain > 0 else math.nan
        lines.append(line)
    return pl.DataFrame(lines)


def _mean(values: pl.Series) -> float:
    return float(values.mean())  # type: ignore[arg-type]
