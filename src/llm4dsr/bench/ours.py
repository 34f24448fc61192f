"""Our denoiser in the benchmark: a run folder for each of its seeds, and the corrections that are compared.

`llm4dsr` is what a run does by default: correction rate and action are chosen on validation. The other rows have a
fixed rate and action each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from llm4dsr import columns as c
from llm4dsr.config import Config
from llm4dsr.core.cache import PartCache
from llm4dsr.core.hashing import digest, versions
from llm4dsr.core.manifest import file_hash
from llm4dsr.core.progress import Progress
from llm4dsr.data.dataset import Dataset
from llm4dsr.denoise.decide import STAND_IN, VALIDATION
from llm4dsr.errors import ConfigError
from llm4dsr.evaluate.rate_selection import Candidate, flag_cap
from llm4dsr.evaluate.rows import DecisionTables, Splits, correct_splits
from llm4dsr.pipeline import CONFIG, Run
from llm4dsr.pipeline.inputs import windows_origin
from llm4dsr.pipeline.run_folder import MADE

DEFAULT, IMPUTE = "llm4dsr", "llm4dsr (impute)"
GOALS = {DEFAULT: "denoise", IMPUTE: "impute"}  # rows whose correction is chosen on validation
HIGH_RATE = 0.2  # of the controls
FIXED = {
    f"llm4dsr ({action} {100 * rate:.0f} %{alone})": Candidate(rate, action, histories=not alone)
    for action, rate in (("drop", 0.05), ("drop", 0.1), ("replace", 0.05), ("replace", 0.1), ("replace", HIGH_RATE))
    for alone in ("", " in training")
}
# A frozen recommender: it learned from the windows as they were, and only what it is shown later is corrected
HISTORIES_ALONE = {
    f"llm4dsr ({action} {100 * rate:.0f} % in histories)": Candidate(rate, action)
    for action, rate in (("drop", 0.1), ("replace", 0.1))
}
FIXED |= HISTORIES_ALONE
OURS = (DEFAULT, IMPUTE, *FIXED)
SUGGESTIONS = "llm4dsr-suggestions"  # our suggestions for decisions other than the run's
Scores = dict[str, pl.DataFrame]  # of each split
OUR_STAGES = ("prepare", "train", "score", "decide", "suggest")


def run_name(seed: int) -> str:
    """Name of the run folder of one seed of the denoiser."""
    return f"llm4dsr-{seed}"


def our_run(data: Dataset, folder: Path, config: Config, progress: Progress | None) -> Run:
    """Run our stages up to the suggestions, in a run folder.

    The run flags what is more likely noise than not. What a run does by default is chosen by `OurRun.choice`.

    Raises
    ------
    ConfigError
        If the folder has a run with other options or windows.
    """
    if config.decide.policy == VALIDATION:
        config = replace(config, decide=replace(config.decide, policy=STAND_IN))
    if (folder / CONFIG).is_file():
        made = Run(folder).config
        # These stages depend neither on the recommender nor on the number of threads
        if made != replace(config, evaluate=made.evaluate, threads=made.threads):
            raise ConfigError(f"{folder} was made with another configuration of the denoiser. Choose another --out.")
    run = Run(folder, config)
    if run.done("prepare") and windows_origin(run.data()) != windows_origin(data):
        raise ConfigError(f"{folder} was made from other windows. Choose another --out.")
    for stage in OUR_STAGES:
        if not run.done(stage):
            run.make(stage, data, progress)
    return run


@dataclass(frozen=True)
class OurRun:
    """The corrections of one seed of our denoiser.

    Attributes
    ----------
    run : Run
        As `our_run` returns it.
    data : Dataset
        The windows.
    config : Config
        Options of the recommenders, and whether training targets are corrected.
    work : Path
        Where suggestions and choices are kept.
    progress : Progress or None
        Called with (steps done, all steps, what is being done).
    """

    run: Run
    data: Dataset
    config: Config
    work: Path
    progress: Progress | None

    @cached_property
    def scores(self) -> Scores:
        """Scores of each split."""
        return self.run.scores()

    def splits(self, name: str) -> Splits:
        """Return the splits as a row of OURS corrects them."""
        chosen = self.correction(name)
        if chosen.action == c.KEEP:
            return self.data.splits
        cap = flag_cap(GOALS[name], self.data.splits) if name in GOALS else None
        tables = self.tables(chosen.rate, self.scores, cap, with_suggestions=chosen.action != "drop")
        out = correct_splits(self.data.splits, tables, self.data.catalogue, chosen.how(self.config.correct))
        return out | {c.TRAIN: self.data.splits[c.TRAIN]} if name in HISTORIES_ALONE else out

    def correction(self, name: str) -> Candidate:
        """Return the correction of a row of OURS."""
        if name in FIXED:
            return FIXED[name]
        best = self.choice(GOALS[name]).filter("chosen").row(0, named=True)
        return Candidate(best["correction_rate"], best["action"], best["histories"])

    def choice(self, goal: str) -> pl.DataFrame:
        """Return the corrections tried for a goal, as `rate_selection.best_candidate` does; kept once made."""
        options: Any = (self.config.evaluate.neighborhood, self.config.correct, self.run.config.seed, versions())
        key = ("choice", goal, file_hash(self.run.verified("score") / MADE), digest(*options))
        return PartCache(self.work).table(
            key, lambda: self.run.try_candidates(goal, flag_cap(goal, self.data.splits), self.progress)
        )

    def tables(
        self, rate: float, scores: Scores, cap: int | None = None, with_suggestions: bool = True
    ) -> DecisionTables:
        """Return decisions at a correction rate, by any scores, and our suggestions for them."""
        decisions = self.run.decided("rate", rate, cap, scores)
        if not with_suggestions:
            return DecisionTables(decisions, {})
        return DecisionTables(decisions, dict(self.run.suggested(decisions, self.progress, self.work)))
