"""Which interactions a review asks about, and in which order."""

from __future__ import annotations

from typing import Literal

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.denoise.tables import flaggable_rows, most_suspicious

Order = Literal["sample", "worst", "informative"]
ORDERS: dict[Order, str] = {
    "sample": "a random sample of the flags, which measures their precision",
    "worst": "the most suspicious first",
    "informative": "the most uncertain first",
}
STRATA = 3  # of the flags, by noise probability, about equal in size
STRATUM = "stratum"


def strata(decisions: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Return all flags, with their split and stratum.

    Parameters
    ----------
    decisions : dict of str to DataFrame
        Flagged interactions, by split.
    """
    flags = pl.concat([table.with_columns(pl.lit(name).alias(c.SPLIT)) for name, table in decisions.items()])
    order = flags[c.LOG_ODDS].rank("ordinal").cast(pl.Int64)
    return flags.with_columns((((order - 1) * STRATA) // max(1, len(flags))).alias(STRATUM))


def sample(decisions: dict[str, pl.DataFrame], count: int, seed: int) -> pl.DataFrame:
    """Draw flags at random, in turn from each stratum, so that the first few already tell something of all.

    Any number of the first rows is a random sample of each stratum.

    Parameters
    ----------
    decisions : dict of str to DataFrame
        Flagged interactions, by split.
    count : int
        Most questions.
    seed : int
        Seed of the draw.
    """
    flags = strata(decisions)
    shuffled = flags[np.random.default_rng(seed).permutation(len(flags))]
    turn = pl.int_range(pl.len()).over(STRATUM)
    return shuffled.with_columns(turn=turn).sort("turn", STRATUM, maintain_order=True).head(count).drop("turn")


def ordered(scores: dict[str, pl.DataFrame], order: Order, caps: dict[str, int]) -> pl.DataFrame:
    """Return interactions that may be flagged: the most suspicious first, or those nearest to a probability of 0.5.

    Parameters
    ----------
    scores : dict of str to DataFrame
        Table of scores of each split.
    order : {"worst", "informative"}
        Which first.
    caps : dict of str to int
        Most flagged interactions in a window, of each split.
    """
    if order == "worst":
        return most_suspicious(scores, caps)
    tables = [
        flaggable_rows(table, caps[name]).drop_nans(c.NOISE_PROBABILITY).with_columns(pl.lit(name).alias(c.SPLIT))
        for name, table in scores.items()
    ]
    return pl.concat(tables).sort((pl.col(c.NOISE_PROBABILITY) - 0.5).abs(), maintain_order=True)
