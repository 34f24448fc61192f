"""How precise flags are: as probabilities state it, and as the known truth has it."""

from __future__ import annotations

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.data.windows import Windows, locate
from llm4dsr.denoise.tables import flaggable_rows
from llm4dsr.errors import DataError

NOISE = "noise"  # column with the known truth, 1 or 0


def with_truth(scores: pl.DataFrame, windows: Windows) -> pl.DataFrame:
    """Join scores with the known truth of their windows, as the column `noise`.

    Raises
    ------
    DataError
        If the noise of the windows is not known, or a score is of no such window.
    """
    if windows.noise_mask is None:
        raise DataError(
            "The noise of these histories is not known, so it cannot be compared with the scores. Inject known noise "
            "(llm4dsr noise), or plot 'precision', which needs no truth."
        )
    return scores.with_columns(pl.Series(NOISE, windows.noise_mask[locate(scores, windows)].astype(np.int64)))


def expected_precision(scores: pl.DataFrame, cap: int, points: int = 60) -> pl.DataFrame:
    """Return what the flags would promise at each rate: `flagged, stated, low, high`, fractions in [0, 1].

    With the column `noise` among the scores also `precision` and `recall`.
    """
    known = scores.filter(pl.col(c.LOG_ODDS).is_finite())
    may = flaggable_rows(scores, cap).drop_nans(c.NOISE_PROBABILITY).sort(c.LOG_ODDS, descending=True)
    if may.is_empty():
        return pl.DataFrame(schema=dict.fromkeys(("flagged", "stated", "low", "high"), pl.Float64))
    count = np.arange(1, len(may) + 1)
    at = np.unique(np.geomspace(1, len(may), points).astype(np.int64)) - 1
    at = at[count[at] >= min(20, len(may))]  # a handful of flags says nothing
    names = dict(zip(("stated", "low", "high"), c.PROBABILITIES, strict=True))
    table = {"flagged": count[at] / max(1, len(known))}
    table |= {name: (np.cumsum(may[column].to_numpy()) / count)[at] for name, column in names.items()}
    if NOISE in may.columns:
        found = np.cumsum(may[NOISE].to_numpy())
        table |= {"precision": (found / count)[at], "recall": found[at] / max(1, int(known[NOISE].sum()))}
    return pl.DataFrame(table)


def reliability(scores: pl.DataFrame, bins: int = 10) -> pl.DataFrame:
    """Compare probabilities with the known truth: `stated, precision, interactions` in bins of the probability."""
    return (
        scores.filter(pl.col(c.NOISE_PROBABILITY).is_finite())
        .with_columns(bin=(pl.col(c.NOISE_PROBABILITY) * bins).floor().clip(0, bins - 1))
        .group_by("bin")
        .agg(
            stated=pl.col(c.NOISE_PROBABILITY).mean(), precision=pl.col(NOISE).mean(), interactions=pl.len()
        )
        .sort("bin")
        .drop("bin")
    )  # fmt: skip
