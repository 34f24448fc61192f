"""What the stages of a run wrote, as tables, and what its model suggests for any decisions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.progress import Progress
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.calibrate import Calibrator
from llm4dsr.denoise.score_in_time import parts_to_score
from llm4dsr.denoise.suggest_in_time import parts_to_suggest
from llm4dsr.denoiser import Denoiser
from llm4dsr.evaluate.rows import DecisionTables
from llm4dsr.pipeline.ray_workers import Parts, RayWorkers
from llm4dsr.pipeline.run_folder import RunFolder

MAPS = "calibration.json"  # in scores/: the map to probabilities of each split


class RunTables(RunFolder):
    """The part of `Run` that reads.

    Attributes
    ----------
    workers : RayWorkers or None
        Who makes the parts of the stages `score`, `decide` and `suggest`. None: this process.
    """

    workers: RayWorkers | None = None

    def data(self) -> Dataset:
        """Read windows/."""
        return read_data(self.verified("prepare"))

    def scores(self) -> dict[str, pl.DataFrame]:
        """Read scores/, by split."""
        return self._by_split("score")

    def maps(self) -> dict[str, Calibrator]:
        """Read the map from log-odds to probabilities of each split."""
        found = json.loads((self.verified("score") / MAPS).read_text(encoding="utf-8"))
        return {name: Calibrator(**options) for name, options in found.items()}

    def decisions(self) -> dict[str, pl.DataFrame]:
        """Read decisions/, by split."""
        return self._by_split("decide")

    def tables(self) -> DecisionTables:
        """Read decisions/, and suggestions/ if there are any."""
        return DecisionTables(self.decisions(), self._by_split("suggest") if self.done("suggest") else {})

    def edits(self) -> dict[str, pl.DataFrame]:
        """Read the edits in corrected/, by split."""
        return self._by_split("correct", "_edits")

    def decided(
        self, policy: str, eta: float, cap: int | None = None, scores: dict[str, pl.DataFrame] | None = None
    ) -> dict[str, pl.DataFrame]:
        """Return what other decisions than the run's would flag, by split.

        Parameters
        ----------
        policy, eta, cap, scores
            As in `Denoiser.decide`. Default scores: the run's own.
        """
        denoiser = Denoiser(self.config)
        scores = self.scores() if scores is None else scores
        return {n: denoiser.decide(s, policy, eta, cap, is_train=n == c.TRAIN) for n, s in scores.items()}

    def suggested(
        self, decisions: dict[str, pl.DataFrame], progress: Progress | None = None, work: Path | None = None
    ) -> Iterator[tuple[str, pl.DataFrame]]:
        """Yield (split, suggestions of the run's model) for these decisions, the run's own or others.

        Parameters
        ----------
        decisions : dict of str to DataFrame
            Flagged interactions, by split.
        progress, work
            As in `Denoiser.suggest`.
        """
        denoiser = Denoiser.from_pretrained(self.verified("train"))
        denoiser.config = replace(denoiser.config, suggest=self.config.suggest)
        for name, windows, earlier in self.in_time():
            yield name, denoiser.suggest(windows, decisions[name], progress, name != c.TRAIN, work, earlier)

    def score_ahead(self, denoiser: Denoiser, progress: Progress | None) -> None:
        """Let the workers, if there are any, make the parts of the stage `score`."""
        if self.workers is None:
            return

        def parts() -> Parts:
            for name, windows, earlier in self.in_time():
                given = *denoiser.in_parts(windows, name != c.TRAIN), name != c.TRAIN
                yield from parts_to_score(denoiser.ensemble, *given, True, denoiser.width, earlier)

        work = self.work("score")
        self.workers.make(denoiser.ensemble, parts(), self.path("train"), work, "score by Ray", progress)

    def suggest_ahead(
        self, decisions: Iterable[dict[str, pl.DataFrame]], progress: Progress | None, work: Path
    ) -> None:
        """Let the workers, if there are any, make what `suggested` asks for, for each of these decisions."""
        if self.workers is None:
            return
        denoiser = Denoiser.from_pretrained(self.verified("train"))

        def parts() -> Parts:
            for flagged in decisions:
                for name, windows, earlier in self.in_time():
                    has_target = name != c.TRAIN
                    given = *denoiser.in_parts(windows, has_target), flagged[name], has_target
                    yield from parts_to_suggest(
                        denoiser.ensemble, denoiser.ranking_weights, *given, denoiser.width, earlier
                    )

        self.workers.make(denoiser.ensemble, parts(), self.path("train"), work, "suggest by Ray", progress)

    def in_time(self) -> Iterator[tuple[str, Windows, Windows | None]]:
        """Yield (name, windows, windows counted as time goes on) of each split; test knows what validation was."""
        splits = self.data().splits
        for name in c.SPLITS:
            yield name, splits[name], splits[c.VALID] if name == c.TEST else None

    def _by_split(self, stage: str, suffix: str = "") -> dict[str, pl.DataFrame]:
        folder = self.verified(stage)
        return {name: pl.read_parquet(folder / f"{name}{suffix}.parquet", glob=False) for name in c.SPLITS}
