"""Tables that several studies show: how well noise was found, and what a row of recommenders gains over another."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import polars as pl

from llm4dsr import evaluate
from llm4dsr.catalogue import BoolArray, FloatArray, Windows


def detection(log_odds: FloatArray, flagged: BoolArray | None, windows: Windows) -> dict[str, float]:
    """How well the noise of some windows was found, as far as it can be said; NaN where it cannot.

    log_odds: [W, L], finite where an interaction was judged. flagged: [W, L], or None where nothing was decided.
    Shares of the judged interactions: noise, flagged. auroc, average_precision, precision, recall: as in metrics.py.
    false_flags: share of the clean ones that is flagged, in [0, 1], lower is better; it is there without noise, too.
    """
    judged = np.isfinite(log_odds)
    out = dict.fromkeys(
        ("noise", "auroc", "average_precision", "flagged", "precision", "recall", "false_flags"), math.nan
    )
    if flagged is not None:
        out["flagged"] = float(flagged[judged].mean())
    if windows.noise_mask is None:
        return out
    truth = windows.noise_mask[judged]
    out["noise"] = float(truth.mean())
    out |= evaluate.found_noise(log_odds[judged], None if flagged is None else flagged[judged], truth)
    if flagged is not None:
        out["false_flags"] = float(flagged[judged][~truth].mean()) if not truth.all() else math.nan
    return out


def gains(cells: pl.DataFrame, base: str, k: int) -> pl.DataFrame:
    """One line per row of `evaluate.compare`, in its order, against the row `base`.

    ndcg, hit_rate: means over seeds; valid_ndcg, too: what choices are made by. gain: mean difference in NDCG@k over
    seeds, half_width: of its 95 % Student interval. p_seeds, p_windows: of paired t tests over seeds, and over test
    windows with the mean of the seeds.
    """
    compared, lines = cells.filter(pl.col("row") == base).sort("seed"), []
    for name in cells["row"].unique(maintain_order=True).to_list():
        row = cells.filter(pl.col("row") == name).sort("seed")
        line = {"row": name, **{column: _mean(row[column]) for column in ("valid_ndcg", "ndcg", "hit_rate")}}
        paired = dict.fromkeys(("gain", "gain_percent", "half_width", "p_seeds", "p_windows"), math.nan)
        if name != base:
            paired |= dataclasses.asdict(evaluate.Difference.between(row, compared, k))
        lines.append(line | paired)
    return pl.DataFrame(lines)


def _mean(values: pl.Series) -> float:
    return float(np.mean(values.to_list()))
