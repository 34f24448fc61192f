"""The tables of scores, flags and suggestions: one row per interaction, as they are returned and stored."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import FloatArray
from llm4dsr.core.io import as_data_error, as_frame
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.ids import WHOLE_TEXT, without_decimals
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.calibrate import CELLS, Calibrator
from llm4dsr.denoise.decide import decide, ranks
from llm4dsr.denoise.suggest import Suggestions
from llm4dsr.errors import DataError

SCORED: Final = (c.ITEM, c.LOG_ODDS, *c.PROBABILITIES, c.RANK)  # columns of scores, beside the keys
SUGGESTED: Final = (c.SUGGESTED, c.GENERATED, c.GROUNDING, c.DISTANCE, c.SUGGESTION_PROBABILITY)  # of suggestions
_NUMBERS: Final = (c.LOG_ODDS, *c.PROBABILITIES, c.DISTANCE, c.SUGGESTION_PROBABILITY)


def score_table(windows: Windows, log_odds: FloatArray, calibrator: Calibrator, catalogue: Catalogue) -> pl.DataFrame:
    """Make the table of scores from `log_odds`, [n], as `score_windows` returns them.

    Where nothing is known (NaN), the noise probability is the estimated noise rate, or NaN without one.
    """
    stated = {name: np.empty(len(log_odds)) for name in c.PROBABILITIES}
    rank = np.empty(len(log_odds), dtype=np.int64)
    for here, batch in windows.batches(CELLS):  # intermediate arrays are several times as large as the table
        for name, values in probabilities(log_odds[here], calibrator).items():
            stated[name][here] = values
        rank[here] = ranks(batch.owners, log_odds[here])
    return pl.DataFrame(
        {
            c.WINDOW: np.repeat(windows.window_ids, windows.lengths),
            c.POSITION: windows.positions,
            c.ITEM: catalogue.ids.gather(windows.items),
            c.LOG_ODDS: log_odds,
            **stated,
            c.RANK: rank,
        }
    )


def probabilities(log_odds: FloatArray, calibrator: Calibrator) -> dict[str, FloatArray]:
    """Return the columns PROBABILITIES for log-odds [n]."""
    found = (calibrator(log_odds), *calibrator.interval(log_odds))
    unknown = (calibrator.noise_rate, calibrator.rate_low, calibrator.rate_high)
    return {
        name: np.where(np.isnan(log_odds), rate, values)
        for name, values, rate in zip(c.PROBABILITIES, found, unknown, strict=True)
    }


def flagged_rows(scores: pl.DataFrame, policy: str, eta: float, cap: int) -> pl.DataFrame:
    """Return the rows of a table of scores that count as noise; see `decide.decide`."""
    owners = np.unique(scores[c.WINDOW].to_numpy(), return_inverse=True)[1]
    order = np.lexsort((scores[c.POSITION].to_numpy(), owners))
    log_odds, probability = (scores[name].to_numpy()[order] for name in (c.LOG_ODDS, c.NOISE_PROBABILITY))
    flagged = np.empty(len(order), dtype=bool)
    flagged[order] = decide(owners[order], log_odds, probability, policy, eta, cap)
    return scores.filter(pl.Series(flagged))


def flaggable_rows(scores: pl.DataFrame, cap: int) -> pl.DataFrame:
    """Return the rows of a table of scores that some η would flag: at most `cap` of a window, and never all of it."""
    known = scores.filter(pl.col(c.LOG_ODDS).is_finite())
    return known.filter(pl.col(c.RANK) <= pl.min_horizontal(cap, pl.len().over(c.WINDOW).cast(pl.Int64) - 1))


def most_suspicious(scores: dict[str, pl.DataFrame], caps: dict[str, int]) -> pl.DataFrame:
    """Return all rows that some η would flag, of all splits together, highest log-odds first, with their split.

    Parameters
    ----------
    scores : dict of str to DataFrame
        Table of scores of each split.
    caps : dict of str to int
        Most of a window, of each split.
    """
    tables = [flaggable_rows(t, caps[name]).with_columns(pl.lit(name).alias(c.SPLIT)) for name, t in scores.items()]
    return pl.concat(tables).sort(c.LOG_ODDS, descending=True, maintain_order=True)


def suggestion_table(windows: Windows, found: Suggestions, catalogue: Catalogue) -> pl.DataFrame:
    """Make the table of suggestions, one row per flagged interaction."""
    return pl.DataFrame(
        {
            c.WINDOW: windows.window_ids[found.rows],
            c.POSITION: found.positions,
            c.SUGGESTED: catalogue.ids_of(found.items),
            c.SUGGESTED_TITLE: catalogue.titles_of(found.items),
            c.GENERATED: pl.Series(found.generated, dtype=pl.String),
            c.GROUNDING: pl.Series(found.grounding, dtype=pl.String),
            c.DISTANCE: found.distance,
            c.SUGGESTION_PROBABILITY: found.probability,
        }
    )


def given_table(table: Any, what: str, *columns: str) -> pl.DataFrame:
    """Take a table of scores, flags, suggestions or labels back from a user, who may have kept it in another library.

    Parameters
    ----------
    table : table
        Of Polars, pandas or Arrow, with `window_id` and `position`.
    what : str
        What it is, for messages, such as "The scores".
    *columns : str
        What it needs besides.

    Returns
    -------
    DataFrame
        Window ids and positions are Int64; in columns of numbers, what is unknown is NaN, as where it was made.

    Raises
    ------
    DataError
        If it is no table, a column is missing, or a window id or position is no whole number.
    """
    frame = as_frame(table, what)
    missing = [name for name in (c.WINDOW, c.POSITION, *columns) if name not in frame.columns]
    if missing:
        raise DataError(
            f"{what} have the columns {', '.join(frame.columns)}, but {missing[0]!r} is missing. Give the whole table."
        )
    for name in (c.WINDOW, c.POSITION):
        whole = _whole(frame[name])
        if whole.null_count():
            odd = frame[name].filter(whole.is_null())[0]
            raise DataError(f"{what} have the {name} {odd!r}; expected whole numbers, those of the scores.")
        frame = frame.with_columns(whole)
    with as_data_error(f"{what} cannot be used", "Give numbers."):
        return frame.with_columns(
            pl.col(name).cast(pl.Float64).fill_null(np.nan) for name in _NUMBERS if name in frame.columns
        )


def _whole(keys: pl.Series) -> pl.Series:
    """As Int64 what is a whole number, also in text and floats; else null."""
    if not keys.dtype.is_integer():
        text = keys.cast(pl.String, strict=False)
        keys = without_decimals(text.set(~text.str.contains(WHOLE_TEXT), None))
    return keys.cast(pl.Int64, strict=False)
