"""Summaries of trained recommenders: means, gains, intervals and paired tests over seeds and over users."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import metrics
from llm4dsr.core.arrays import FloatArray, IntArray
from llm4dsr.evaluate.rows import ORACLE_DROP, ORACLE_RESTORE, ORIGINAL
from llm4dsr.intervals import clustered_difference, crossed_interval, mean_interval, paired_difference


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
        Half of the gain's 95 % interval over seeds, as in `crossed_interval`.
    p_seeds : float
        Two-sided p of a paired t test over seeds, of denoiser and recommender: would other runs show the same? NaN if
        all runs are equal, as where nothing was corrected.
    user_half_width : float
        Half of the gain's 95 % interval over test windows, each with its mean over seeds, clustered by user.
    user_half_width_percent : float
        The same in percent of the second row.
    p_users : float
        Two-sided p of this difference over windows: would other users show the same? NaN if the users are unknown.
    """

    gain: float
    gain_percent: float
    half_width: float
    p_seeds: float
    user_half_width: float
    user_half_width_percent: float
    p_users: float

    @classmethod
    def between(cls, a: pl.DataFrame, b: pl.DataFrame, k: int) -> Difference:
        """Compare two rows of `train_and_evaluate`, on the seeds that both have; all NaN if they share none.

        A column `denoiser_seed` tells runs of a denoiser apart. A row with a single one, such as no correction, is
        compared with each run of the other.
        """
        x, y = by_seeds(a), by_seeds(b)
        first, second = (sorted({run for run, _ in cells}) for cells in (x, y))
        runs = [(i, i) for i in first if i in second]
        if len(first) == 1 or len(second) == 1:
            runs = [(i, j) for i in first for j in second]
        common = sorted({s for _, s in x} & {s for _, s in y})
        seeds = [s for s in common if all((i, s) in x and (j, s) in y for i, j in runs)]  # that each run has
        pairs = [[((i, s), (j, s)) for s in seeds] for i, j in runs]
        if not seeds or not runs:
            return cls(*[math.nan] * 7)
        ndcg = [[[of[pair[i]]["ndcg"] for pair in line] for line in pairs] for i, of in enumerate((x, y))]
        gain, half, over_seeds = crossed_interval(ndcg[0], ndcg[1])
        if half == 0 and gain:  # seeds change nothing here, such as where nothing was corrected: they say nothing
            over_seeds = math.nan
        cells_a, cells_b = (dict.fromkeys(pair[side] for line in pairs for pair in line) for side in (0, 1))
        a, b = pl.DataFrame([x[p] for p in cells_a]), pl.DataFrame([y[q] for q in cells_b])
        percent = percent_of(_mean(b["ndcg"]))
        user_half, over_users = _over_users(a, b, "ndcg", k)
        return cls(gain, percent * gain, half, over_seeds, user_half, percent * user_half, over_users)


def by_seeds(rows: pl.DataFrame) -> dict[tuple[int, int], dict[str, Any]]:
    """Return the lines of a row by (seed of the denoiser, seed of the recommender); 0 where it has no denoiser seed."""
    if "denoiser_seed" not in rows.columns:
        rows = rows.with_columns(denoiser_seed=0)
    lines = rows.with_columns(pl.col("denoiser_seed").fill_null(0)).iter_rows(named=True)
    return {(line["denoiser_seed"], line["seed"]): line for line in lines}


def summarize(results: pl.DataFrame, k: int) -> pl.DataFrame:
    """Summarize each row of a comparison over its seeds.

    Parameters
    ----------
    results : DataFrame
        As `train_and_evaluate` returns it, with the row `original`.
    k : int
        Cutoff of the ranking metrics.

    Returns
    -------
    DataFrame
        One line per row. For `ndcg` and `hit_rate`: the mean, `_half_width` of its 95 % interval over seeds,
        `_gain_percent` over the original, `_gain_half_width` of its 95 % interval over test users (in percent of the
        original, for any number of seeds; both NaN if that is 0), and `_p` of a paired t test over seeds (NaN with one
        seed).
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
            mean, half = mean_interval(row[metric].to_list())
            several = len(row) > 1 and name != ORIGINAL
            p = paired_difference(row[metric].to_list(), base[metric].to_list())[2] if several else math.nan
            over_users = math.nan if name == ORIGINAL else _over_users(row, base, metric, k)[0]
            line[metric] = mean
            line[f"{metric}_half_width"] = half
            percent = percent_of(_mean(base[metric]))
            line[f"{metric}_gain_percent"] = percent * (mean - _mean(base[metric]))
            line[f"{metric}_gain_half_width"] = percent * over_users
            line[f"{metric}_p"] = p
        line["oracle_gain_fraction"] = (means[name] - means[ORIGINAL]) / oracle_gain if oracle_gain > 0 else math.nan
        lines.append(line)
    return pl.DataFrame(lines)


def percent_of(base: float) -> float:
    """Percent of a mean; NaN for 0: there is no gain over nothing."""
    return 100 / base if base else math.nan


def _over_users(a: pl.DataFrame, b: pl.DataFrame, metric: str, k: int) -> tuple[float, float]:
    """Half width and p of the difference over test windows, clustered by user; NaN if the users are unknown."""
    users = [codes for rows in (a, b) if "users" in rows.columns for codes in rows["users"].drop_nulls()]
    if not users:
        return math.nan, math.nan
    x, y = (_of_windows(np.stack(rows["ranks"].to_list()), metric, k).mean(axis=0) for rows in (a, b))
    return clustered_difference(x, y, users[0])[1:]


def _of_windows(ranks: IntArray, metric: str, k: int) -> FloatArray:
    return metrics.ndcg_of_each(ranks, k) if metric == "ndcg" else (ranks <= k).astype(np.float64)


def _mean(values: pl.Series) -> float:
    return float(values.mean())  # type: ignore[arg-type]
