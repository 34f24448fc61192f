"""Choose correction rate and action on validation, by what two recommenders without a seed gain.

η = 0.5 asks what is more likely noise than not. A recommender asks something else: what a wrong flag or a missing item
costs, which depends on the catalogue. So candidates are tried: a correction rate with an action each. Which, depends on
the goal:

| goal    | correction rates                            | actions              | result                             |
|---------|---------------------------------------------|----------------------|------------------------------------|
| denoise | a half of the estimated noise rate, and all | drop, mixed, replace | no more is changed than is noise   |
| impute  | 5 to 50 % of the interactions               | replace              | likely interactions in many places |

Each is tried with histories (validation and test) corrected as training windows are, and with training windows
corrected alone. A recommender learns from all training windows, so one wrong correction hardly matters there. In a
history it stands for a tenth of what is known of the user.

Imputation puts in what co-occurrence makes likely, mostly for clean interactions. It may rank better, but its result is
no clean log.

Item-kNN and EASE are the judges (`judges.py`). When no candidate helps, some still look better by chance. So one is
only chosen if the lower bound of its gain over no correction is above 0. The bounds of all candidates hold at once with
95 %, and allow for windows that share a user (`intervals.select_candidate`). Test histories are never read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from llm4dsr import metrics
from llm4dsr.columns import KEEP
from llm4dsr.config import CorrectConfig, NeighborhoodConfig
from llm4dsr.core.arrays import FloatArray
from llm4dsr.core.progress import Progress
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.denoise.noise_injection import USUAL_NOISE_RATE
from llm4dsr.errors import ConfigError
from llm4dsr.evaluate.judges import judge
from llm4dsr.evaluate.rows import ORIGINAL, DecisionTables, Splits, correct_splits
from llm4dsr.intervals import select_candidate
from llm4dsr.recommenders.training import VALIDATION_K

GOALS = ("denoise", "impute")
IMPUTED = (0.05, 0.1, 0.2, 0.3, 0.5)  # correction rates of the goal impute
PARTS_OF_NOISE = (0.5, 1.0)  # of the estimated noise rate, for the goal denoise


@dataclass(frozen=True)
class Candidate:
    """A correction that is tried.

    Attributes
    ----------
    rate : float
        Fraction of each split's interactions, most suspicious first.
    action : str
        What is done with them; KEEP for no correction.
    histories : bool, default True
        Histories of validation and test are corrected too, not training windows alone.
    """

    rate: float
    action: str
    histories: bool = True

    @property
    def name(self) -> str:
        """Name of its row in a comparison."""
        if self.action == KEEP:
            return ORIGINAL
        return f"{self.action} {self.rate:g}" + ("" if self.histories else ", training alone")

    def how(self, given: CorrectConfig) -> CorrectConfig:
        """Return options of the correction: those given, with this action and these histories."""
        return replace(given, action=self.action, histories=self.histories)  # type: ignore[arg-type]


NO_CORRECTION = Candidate(0.0, KEEP)


def candidates(goal: str, noise_rate: float, histories: bool = True) -> list[Candidate]:
    """Return what is tried for a goal, no correction first.

    Parameters
    ----------
    goal : {"denoise", "impute"}
        See the table above.
    noise_rate : float
        Estimated fraction of interactions that is noise; NaN if unknown.
    histories : bool, default True
        Histories may be corrected. If not, each candidate is for training windows alone.

    Raises
    ------
    ConfigError
        If the goal is unknown.

    Examples
    --------
    >>> [candidate.name for candidate in candidates("denoise", 0.1)][:3]
    ['original', 'drop 0.05', 'drop 0.05, training alone']
    """
    if goal not in GOALS:
        raise ConfigError(f"decide.goal = {goal!r}; expected one of {', '.join(GOALS)}.")
    if goal == "impute":
        tried = [(rate, "replace") for rate in IMPUTED]
    else:
        noise = USUAL_NOISE_RATE if np.isnan(noise_rate) else noise_rate
        rates = dict.fromkeys(round(part * noise, 3) for part in PARTS_OF_NOISE)
        tried = [(rate, action) for rate in rates if rate for action in ("drop", "mixed", "replace")]
    both = (True, False) if histories else (False,)
    return [NO_CORRECTION, *(Candidate(rate, action, also) for rate, action in tried for also in both)]


def flag_cap(goal: str, splits: Splits) -> int | None:
    """Return the most flags in a window that a goal allows; None: as configured. Imputation may change any of them."""
    return int(max(w.lengths.max() for w in splits.values())) if goal == "impute" else None


def try_candidates(
    splits: Splits,
    tried: Sequence[Candidate],
    tables_at: Callable[[float], DecisionTables],
    catalogue: Catalogue,
    config: NeighborhoodConfig,
    how: CorrectConfig,
    seed: int,
    progress: Progress | None = None,
    work: Path | None = None,
) -> pl.DataFrame:
    """Fit the judges to each candidate's windows and compare them on validation.

    Parameters
    ----------
    splits : dict of str to Windows
        The original windows.
    tried : sequence of Candidate
        No correction first.
    tables_at : callable
        Correction rate → decisions and suggestions; called once for each rate.
    catalogue : Catalogue
        The items that are ranked.
    config : NeighborhoodConfig
        Options of the judges.
    how : CorrectConfig
        Options of the correction; a candidate overrides action and histories.
    seed : int
        Seed of the bootstrap over users.
    progress : Progress, optional
        Called with (steps done, all steps, what is being done).
    work : Path, optional
        Folder of finished parts; the same call resumes from it.

    Returns
    -------
    DataFrame
        As `best_candidate` returns it.
    """
    compared, tables = {NO_CORRECTION.name: splits}, dict[float, DecisionTables]()
    for t in tried:
        if t == NO_CORRECTION:
            continue
        if t.rate not in tables:
            tables[t.rate] = tables_at(t.rate)
        compared[t.name] = correct_splits(splits, tables[t.rate], catalogue, t.how(how))
    return best_candidate(judge(compared, len(catalogue), config, progress, work), tried, seed)


def best_candidate(cells: Sequence[pl.DataFrame], tried: Sequence[Candidate], seed: int = 0) -> pl.DataFrame:
    """Choose a candidate by the mean NDCG@20 of several recommenders.

    Parameters
    ----------
    cells : sequence of DataFrame
        For each recommender, rows of `judge` or `train_and_evaluate`, named by their candidate; the same seeds for
        each candidate.
    tried : sequence of Candidate
        No correction first.
    seed : int, default 0
        Seed of the bootstrap.

    Returns
    -------
    DataFrame
        One row per candidate: `correction_rate`, `action`, `histories`; `valid_ndcg`, mean NDCG@20 on validation
        (higher is better); `gain`, the difference to no correction; `lower_bound` of the gain, those of all candidates
        together with 95 %; `chosen`, True for the candidate with the largest gain among those whose bound is above 0,
        else for no correction.
    """

    def ndcg_of_each(rows: pl.DataFrame, name: str) -> FloatArray:
        lines = rows.filter(pl.col("row") == name).sort("seed")
        return metrics.ndcg_of_each(np.stack(lines["valid_ranks"].to_list()), VALIDATION_K)  # [S, W]

    each = np.mean([[ndcg_of_each(rows, t.name) for t in tried] for rows in cells], axis=0)  # [C, S, W]
    found = select_candidate(each[1:] - each[0], cells[0]["valid_users"][0], seed=seed)
    return pl.DataFrame({
        "correction_rate": [t.rate for t in tried],
        "action": [t.action for t in tried],
        "histories": [t.histories for t in tried],
        "valid_ndcg": each.mean(axis=(1, 2)),
        "gain": [0.0, *found.gain],
        "lower_bound": [0.0, *found.low],
        "chosen": np.arange(len(tried)) == (0 if found.chosen is None else 1 + found.chosen),
    })  # fmt: skip
