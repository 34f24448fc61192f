"""The precision of the flags, estimated from a stratified random sample of answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import BoolArray, IntArray
from llm4dsr.review.questions import STRATUM

Z = 1.96  # standard errors of a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """An estimate of the fraction of the flags that is noise.

    Attributes
    ----------
    answers : int
        Answers that it rests on.
    precision, low, high : float
        The estimate and its 95 % interval, in [0, 1]; NaN as long as a stratum has no answer.
    """

    answers: int
    precision: float
    low: float
    high: float


def stratified_precision(sizes: IntArray, stratum: IntArray, is_noise: BoolArray) -> Estimate:
    """Estimate the precision.

    Unbiased, if the answered flags of each stratum are a random sample of it. The variance of a stratum is that of
    (x + 1) / (n + 2), so that a few equal answers do not claim certainty.

    Parameters
    ----------
    sizes : array of int
        [H] flags of each stratum.
    stratum : array of int
        [n] stratum of each answer.
    is_noise : array of bool
        [n] the answers.

    Examples
    --------
    Of two strata of equal size, all of one and half of the other are noise.

    >>> found = stratified_precision(np.array([50, 50]), np.repeat([0, 1], 20), np.arange(40) < 30)
    >>> found.precision
    0.75
    """
    given = np.bincount(stratum, minlength=len(sizes))
    used = sizes > 0
    if not used.any() or (given[used] == 0).any():
        return Estimate(len(stratum), math.nan, math.nan, math.nan)
    noise = np.bincount(stratum, weights=is_noise, minlength=len(sizes))
    weight = sizes[used] / sizes.sum()
    n, x, size = given[used], noise[used], sizes[used]
    smoothed = (x + 1) / (n + 2)
    remaining = 1 - n / np.maximum(size, n)  # nothing is uncertain about a stratum that is answered completely
    half = Z * math.sqrt(float((weight**2 * smoothed * (1 - smoothed) / n * remaining).sum()))
    precision = float((weight * x / n).sum())
    return Estimate(len(stratum), precision, max(0.0, precision - half), min(1.0, precision + half))


def precision_of(flags: pl.DataFrame, labels: pl.DataFrame) -> Estimate:
    """Estimate the precision of `flags`, with their stratum, from labels of a random sample of them."""
    joined = flags.join(labels, on=[c.SPLIT, c.WINDOW, c.POSITION], how="inner")
    sizes = np.bincount(flags[STRATUM].to_numpy()) if len(flags) else np.zeros(0, dtype=np.int64)
    return stratified_precision(sizes, joined[STRATUM].to_numpy(), joined[c.IS_NOISE].to_numpy() > 0)
