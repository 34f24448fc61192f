"""NDCG by the popularity of the target: does a correction help frequent items alone?"""

from __future__ import annotations

import numpy as np
import polars as pl

from llm4dsr.core.arrays import FloatArray, IntArray
from llm4dsr.data.windows import Windows
from llm4dsr.evaluate.rows import ORIGINAL
from llm4dsr.evaluate.summary import percent_of
from llm4dsr.intervals import clustered_difference
from llm4dsr.metrics import ndcg_of_each
from llm4dsr.recommenders.neighborhood import user_matrix

GROUPS = 3  # of targets, about equal in windows


def target_users(train: Windows, test: Windows, n_items: int) -> IntArray:
    """Return [W] how many users have the target of each test window in training."""
    return np.asarray(user_matrix(train, n_items).getnnz(axis=0)[test.targets()], dtype=np.int64)


def popularity_groups(users: IntArray) -> IntArray:
    """Return [W] the group of each target, from 0, fewest users first; targets with equal users share a group."""
    if not len(users):
        return np.empty(0, dtype=np.int64)
    edges = np.unique(np.quantile(users, np.linspace(0, 1, GROUPS + 1)[1:-1], method="lower"))
    return np.unique(np.searchsorted(edges, users, side="left"), return_inverse=True)[1]


def ndcg_by_target(results: pl.DataFrame, users: IntArray, k: int) -> pl.DataFrame:
    """Compare rows for rare and for frequent targets.

    Parameters
    ----------
    results : DataFrame
        As `train_and_evaluate` returns it, with the row `original`.
    users : array of int
        [W] as `target_users` returns them.
    k : int
        Cutoff of NDCG.

    Returns
    -------
    DataFrame
        One line per row and group: `row`; `least_users` and `most_users` of its targets; `windows`; mean `ndcg` over
        seeds; `gain_percent` over the original, and `gain_half_width` of its 95 % interval over users, on the seeds
        that both have. Both are NaN if there are none, or if the original has 0.
    """
    group, lines = popularity_groups(users), []
    of_row = {
        name: results.filter(pl.col("row") == name) for name in results["row"].unique(maintain_order=True).to_list()
    }
    base = of_row[ORIGINAL]
    for name, of in of_row.items():
        codes, ndcg = np.asarray(of["users"].to_list()[0]), _of_window(of, k)
        shared = sorted(set(of["seed"]) & set(base["seed"]))
        with_it, without = (_of_window(rows.filter(pl.col("seed").is_in(shared)), k) for rows in (of, base))
        for at in (group == g for g in range(int(group.max(initial=-1)) + 1)):
            gain = half = percent = np.nan
            if shared:
                gain, half, _ = clustered_difference(with_it[at], without[at], codes[at])
                percent = percent_of(float(without[at].mean()))
            lines.append({
                "row": name, "least_users": int(users[at].min()), "most_users": int(users[at].max()),
                "windows": int(at.sum()), "ndcg": float(ndcg[at].mean()), "gain_percent": percent * gain,
                "gain_half_width": percent * half,
            })  # fmt: skip
    return pl.DataFrame(lines)


def _of_window(rows: pl.DataFrame, k: int) -> FloatArray:
    """[W] mean NDCG of each window over seeds; empty without seeds."""
    if not len(rows):
        return np.empty(0)
    return np.asarray(ndcg_of_each(np.stack(rows["ranks"].to_list()), k).mean(axis=0))
