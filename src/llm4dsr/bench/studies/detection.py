"""Detection and gains, as several studies show them, and windows whose noise is known."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.bench.datasets import BenchDataset
from llm4dsr.config import TaskConfig
from llm4dsr.core.arrays import BoolArray, FloatArray
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.noise_injection import Injectable, draw_positions, replace
from llm4dsr.errors import DataError
from llm4dsr.evaluate.detection import flag_metrics
from llm4dsr.evaluate.summary import Difference

INJECTED_NOISE = TaskConfig(replaced=0, rate=0.1)


def need_masks(dataset: BenchDataset) -> None:
    """Raise DataError if the dataset does not know its noise."""
    lacking = [name for name, windows in dataset.data.splits.items() if windows.noise_mask is None]
    if lacking:
        raise DataError(
            f"This study compares probabilities with known noise, but {', '.join(lacking)} of {dataset.name} have no "
            f"column {c.NOISE_MASK!r}. Make noise whose truth is known:  llm4dsr noise --data DATA --out NOISY"
        )


def known_noise(windows: Windows, catalogue: Catalogue, seed: int) -> Windows:
    """Return evaluation windows with `noise_mask` and `clean_items`.

    As they are if they have both. Otherwise noise is injected into a tenth of their histories (uniform, never targets);
    what was noise before then counts as clean.
    """
    if windows.noise_mask is not None and windows.clean_items is not None:
        return windows
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(windows.items), dtype=bool)
    histories = dataclasses.replace(windows.histories(), width=windows.width)  # a draw for each column of the windows
    chosen[~windows.is_last] = draw_positions(histories, INJECTED_NOISE, rng)
    items = replace(windows, chosen, Injectable.of(catalogue, windows), rng)
    return dataclasses.replace(windows, items=items, noise_mask=items != windows.items, clean_items=windows.items)


def describe(judged: Windows, given: Windows) -> str:
    """Describe, for a page, whose noise it is. judged: what `known_noise` made of `given`."""
    if judged is given:
        return "Noise is the dataset's own, known by its mask."
    return (
        f"The dataset does not know its noise and what belongs there: {INJECTED_NOISE.rate:.0%} of the test histories "
        "was replaced by uniform items, and what was noise before counts as clean."
    )


def detection(log_odds: FloatArray, flagged: BoolArray | None, windows: Windows) -> dict[str, float]:
    """Measure detection as far as the truth is known; NaN elsewhere.

    Parameters
    ----------
    log_odds : array of float
        [n] finite where an interaction was scored.
    flagged : array of bool or None
        [n]. None: nothing was decided.
    windows : Windows
        The windows.

    Returns
    -------
    dict of str to float
        `noise`, `flagged`: fractions of the scored interactions. `auroc`, `average_precision`, `precision`, `recall` as
        in metrics.py. `false_flags`: fraction of the clean ones that is flagged, lower is better; also known without
        noise.
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
    out |= flag_metrics(log_odds[judged], None if flagged is None else flagged[judged], truth)
    if flagged is not None:
        out["false_flags"] = float(flagged[judged][~truth].mean()) if not truth.all() else math.nan
    return out


def gains(cells: pl.DataFrame, base: str, k: int) -> pl.DataFrame:
    """Compare each row of `train_and_evaluate` with the row `base`.

    Returns
    -------
    DataFrame
        One line per row: means of `valid_ndcg`, `ndcg` and `hit_rate` over seeds, and the fields of `Difference`.
    """
    compared, lines = cells.filter(pl.col("row") == base).sort("seed"), []
    for name in cells["row"].unique(maintain_order=True).to_list():
        row = cells.filter(pl.col("row") == name).sort("seed")
        line = {"row": name, **{column: _mean(row[column]) for column in ("valid_ndcg", "ndcg", "hit_rate")}}
        paired = dict.fromkeys([field.name for field in dataclasses.fields(Difference)], math.nan)
        if name != base:
            paired |= dataclasses.asdict(Difference.between(row, compared, k))
        lines.append(line | paired)
    return pl.DataFrame(lines)


def _mean(values: pl.Series) -> float:
    return float(np.mean(values.to_list()))
