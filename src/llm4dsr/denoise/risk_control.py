"""Thresholds with a guarantee: conformal control of the rate of false flags, or of missed noise.

| policy            | rate that is at most α                                    | needs                     |
|-------------------|-----------------------------------------------------------|---------------------------|
| false-flag-rate   | fraction of clean interactions that is flagged            | labels of a random sample |
| missed-noise-rate | fraction of noise of the injected kind that is left       | calibrated scores         |

Both thresholds are order statistics of n scores whose truth is known. One more score of the same kind is equally likely
to have any rank among them. So the rate holds for any model and any n, on average over the draw of the n scores. This
is split conformal prediction [1]_, or conformal risk control with a loss of 0 or 1 [2]_.

The rate of false flags says nothing about precision: where noise is rare, a low rate may still mean that most flags are
wrong.

References
----------
.. [1] Vovk et al. (2005), Algorithmic Learning in a Random World.
.. [2] Angelopoulos et al. (2022), Conformal Risk Control, arXiv 2208.02814.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np
import numpy.typing as npt
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import BoolArray, FloatArray
from llm4dsr.core.progress import log
from llm4dsr.denoise.calibrate import Calibrator
from llm4dsr.denoise.labels import labeled_scores
from llm4dsr.errors import ConfigError, DataError

NOT_RANDOM = 4.0  # standard errors of the mean rank of labeled interactions, above which a warning is logged


@dataclass(frozen=True)
class Threshold:
    """A threshold on log-odds.

    Attributes
    ----------
    value : float
        Log-odds. inf: nothing is flagged.
    is_inclusive : bool
        Flag log-odds equal to the value too.
    count : int
        Scores with known truth that it was taken from.
    """

    value: float
    is_inclusive: bool
    count: int

    def flags(self, log_odds: FloatArray) -> BoolArray:
        """Return where log-odds pass the threshold, in their shape; NaN never does."""
        return np.asarray(log_odds >= self.value if self.is_inclusive else log_odds > self.value)


def false_flag_threshold(clean: npt.ArrayLike, alpha: float) -> Threshold:
    """Return a threshold that at most the fraction α of clean interactions passes.

    It is the k-th smallest score with k = ceil((n + 1) (1 - α)). Scores equal to it are not flagged.

    Parameters
    ----------
    clean : array of float
        [n] log-odds of a random sample of clean interactions.
    alpha : float
        The rate of false flags α, above 0 and below 1.

    Returns
    -------
    Threshold
        With the value inf if n < 1 / α - 1.

    Raises
    ------
    ConfigError
        If α is out of range.

    Examples
    --------
    >>> false_flag_threshold([0.5, -1.0, 2.0, 1.0], 0.4)  # k = 5 · 0.6 = 3
    Threshold(value=1.0, is_inclusive=False, count=4)
    """
    ordered = np.sort(np.asarray(clean, dtype=np.float64))
    allowed = allowed_errors(len(ordered), alpha)
    value = float(ordered[len(ordered) - allowed]) if allowed else np.inf
    return Threshold(value, is_inclusive=False, count=len(ordered))


def missed_noise_threshold(noise: npt.ArrayLike, alpha: float) -> Threshold:
    """Return a threshold that at most the fraction α of noise does not reach.

    It is the k-th smallest score with k = floor((n + 1) α). Scores equal to it are flagged.

    Parameters
    ----------
    noise : array of float
        [n] log-odds of a random sample of noise.
    alpha : float
        The rate of missed noise α, above 0 and below 1.

    Returns
    -------
    Threshold
        With the value -inf if n < 1 / α - 1.

    Raises
    ------
    ConfigError
        If α is out of range.

    Examples
    --------
    >>> missed_noise_threshold([0.5, -1.0, 2.0, 1.0], 0.4)  # k = 5 · 0.4 = 2
    Threshold(value=0.5, is_inclusive=True, count=4)
    """
    ordered = np.sort(np.asarray(noise, dtype=np.float64))
    allowed = allowed_errors(len(ordered), alpha)
    value = float(ordered[allowed - 1]) if allowed else -np.inf
    return Threshold(value, is_inclusive=True, count=len(ordered))


def allowed_errors(n: int, alpha: float) -> int:
    """Return how many of n + 1 scores may be on the wrong side of a threshold: floor((n + 1) α).

    Raises
    ------
    ConfigError
        If α is out of range.

    Examples
    --------
    >>> allowed_errors(99, 0.29)  # 28 with floats: 100 * 0.29 is 28.999999999999996
    29
    """
    return int((n + 1) * _exact(alpha))


def _exact(alpha: float) -> Fraction:
    """α as the decimal that was written."""
    if not 0 < alpha < 1:
        raise ConfigError(f"η = {alpha}; expected a rate above 0 and below 1.")
    return Fraction(str(float(alpha)))


def control_false_flags(scores: dict[str, pl.DataFrame], labels: pl.DataFrame, alpha: float) -> dict[str, Threshold]:
    """Return the threshold of each split for a rate of false flags.

    Parameters
    ----------
    scores : dict of str to DataFrame
        Table of scores of each split.
    labels : DataFrame
        As in `labels.labeled_scores`: a random sample of the interactions of each split that is to be flagged. Only the
        clean ones are used.
    alpha : float
        The rate of false flags α, above 0 and below 1.

    Returns
    -------
    dict of str to Threshold
        A split with too few clean labels has the threshold inf, and a warning is logged.

    Raises
    ------
    ConfigError
        If α is out of range.
    DataError
        If no split has enough clean labels, or the labels cannot be used.
    """
    needed = ceil(1 / _exact(alpha)) - 1
    labeled, found = labeled_scores(labels, scores), {}
    for name, table in scores.items():
        log_odds, is_noise = labeled.get(name, (np.empty(0), np.empty(0, dtype=bool)))
        _warn_if_chosen(log_odds, table[c.LOG_ODDS].to_numpy(), name)
        found[name] = false_flag_threshold(log_odds[~is_noise], alpha)
    few = {name: t.count for name, t in found.items() if t.count < needed}
    counts = ", ".join(f"{name} has {count}" for name, count in few.items())
    if len(few) == len(found):
        raise DataError(
            f"A rate of false flags of {alpha} needs {needed:,} clean labels in a split, but {counts}. Review more "
            "interactions, drawn at random, or allow a higher rate."
        )
    if few:
        log.warning("Nothing is flagged in %s: %s clean labels, and %d are needed.", ", ".join(few), counts, needed)
    return found


def _warn_if_chosen(labeled: FloatArray, everything: FloatArray, name: str) -> None:
    """Warn if the labeled interactions of a split score unlike a random sample: their mean rank tells."""
    ordered = np.sort(everything[np.isfinite(everything)])
    if not len(labeled):
        return
    rank = (np.searchsorted(ordered, labeled, "left") + np.searchsorted(ordered, labeled, "right")) / 2 / len(ordered)
    away = (rank.mean() - 0.5) * np.sqrt(12 * len(labeled))  # ranks are uniform, with the variance 1 / 12
    if abs(away) > NOT_RANDOM:
        log.warning(
            "The labeled interactions of %s score %s than a random sample would. The rate of false flags holds only "
            "for labels of a random sample.", name, "higher" if away > 0 else "lower",
        )  # fmt: skip


def control_missed_noise(maps: dict[str, Calibrator], alpha: float) -> dict[str, Threshold]:
    """Return the threshold of each split for a rate of missed noise, on condition that noise is of the injected kind.

    Parameters
    ----------
    maps : dict of str to Calibrator
        The map to probabilities of each split, with its scores of injected noise.
    alpha : float
        The rate of missed noise α, above 0 and below 1.

    Returns
    -------
    dict of str to Threshold

    Raises
    ------
    ConfigError
        If α is out of range, or lower than the scores of a split allow.
    DataError
        If a split has no scores of injected noise.
    """
    found = {}
    for name, calibrator in maps.items():
        if not calibrator.injected:
            why = calibrator.uncalibrated or "they were written by an earlier version; train and score again"
            raise DataError(f"The scores of {name} come without scores of injected noise: {why}.")
        found[name] = missed_noise_threshold(calibrator.injected, alpha)
        if np.isneginf(found[name].value):
            n, never = len(calibrator.injected), int(np.isneginf(calibrator.injected).sum())
            raise ConfigError(
                f"η = {alpha} is too low for {name}: of {n:,} scores of injected noise, {never:,} are the lowest of "
                f"their window, where one item always stays. The lowest possible η is {_round_up((never + 1), n + 1)}."
            )
    return found


def _round_up(errors: int, of: int) -> float:
    """The smallest rate of four decimals that allows these errors."""
    return ceil(10_000 * errors / of) / 10_000


def rows_past(scores: pl.DataFrame, threshold: Threshold, cap: int | None = None) -> pl.DataFrame:
    """Return the rows of a table of scores that pass a threshold.

    Parameters
    ----------
    scores : DataFrame
        As `Denoiser.score` returns them.
    threshold : Threshold
        On their log-odds.
    cap : int, optional
        Most flagged interactions in a window, the most suspicious first. Default: all but one, which always stays.

    Returns
    -------
    DataFrame
        The flagged rows.
    """
    others = pl.col(c.LOG_ODDS).is_finite().sum().over(c.WINDOW).cast(pl.Int64) - 1
    room = others if cap is None else pl.min_horizontal(others, pl.lit(cap))
    passed = pl.Series(threshold.flags(scores[c.LOG_ODDS].to_numpy()))
    return scores.filter(passed & (pl.col(c.RANK) <= room))
