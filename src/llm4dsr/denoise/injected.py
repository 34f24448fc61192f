"""Windows with injected noise, scored: what stacking and calibration learn from. No label is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llm4dsr.config import TaskConfig
from llm4dsr.core.arrays import BoolArray, FloatArray, IntArray
from llm4dsr.core.cache import PartCache
from llm4dsr.core.progress import Progress, subprogress
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.calibrate import Sample, join
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.denoise.noise_injection import draw_runs, inject
from llm4dsr.denoise.stacking import Evidence, Stacker
from llm4dsr.denoise.training_labels import TrainingLabels

MAX_INJECTED = 20_000  # most windows that noise is injected into


@dataclass
class ScoredPart:
    """Windows that were scored with the same counts, and their evidence.

    Attributes
    ----------
    windows : Windows
        W windows with n interactions.
    log_odds : array of float
        [n] of the models, before stacking.
    evidence : Evidence or None
        Of all interactions; None without co-occurrence counts.
    chosen : array of bool
        [n] True where noise was injected.
    source : array of int
        [W] the window of the sample that each is a copy of.
    """

    windows: Windows
    log_odds: FloatArray
    evidence: Evidence | None
    chosen: BoolArray
    source: IntArray

    def sample(self, stacker: Stacker | None) -> Sample:
        """Return all interactions, with the log-odds of a stacker, if there is one."""
        log_odds = self.log_odds
        if stacker is not None and self.evidence is not None:
            log_odds = stacker.log_odds(self.log_odds, self.evidence)
        return Sample.of(self.windows, log_odds)

    def injected(self, stacker: Stacker | None) -> tuple[Sample, IntArray]:
        """Return (the injected interactions, the source window of each)."""
        return self.sample(stacker).take(self.chosen), self.source[self.windows.owners[self.chosen]]


@dataclass
class ScoredWindows:
    """A sample of windows, scored as they are and with injected noise.

    Attributes
    ----------
    unlabeled : list of ScoredPart
        The windows as they are.
    uniform, popular : list of ScoredPart
        With one item each, drawn uniformly, and in proportion to interactions, as calibration needs it.
    runs : list of ScoredPart
        With a run of another user's items, where they can hold one, for stacking.
    """

    unlabeled: list[ScoredPart] = dataclasses.field(default_factory=list)
    uniform: list[ScoredPart] = dataclasses.field(default_factory=list)
    popular: list[ScoredPart] = dataclasses.field(default_factory=list)
    runs: list[ScoredPart] = dataclasses.field(default_factory=list)

    def add(
        self,
        ensemble: Ensemble,
        windows: Windows,
        rows: IntArray,
        draws: int,
        rng: np.random.Generator,
        progress: Progress | None,
        doing: str,
        cache: PartCache,
        donors: Windows | None = None,
    ) -> None:
        """Score windows with the counts of now, as they are and with injected noise.

        Parameters
        ----------
        ensemble : Ensemble
            The tuned models.
        windows : Windows
            W windows of at least two items.
        rows : array of int
            [W] their rows in the sample.
        draws : int
            Draws of noise of each kind, each with one item per window.
        rng : Generator
            Draws positions and items.
        progress, doing, cache
            As in `Ensemble.log_odds`.
        donors : Windows, optional
            What runs of foreign items are drawn from: windows that are not counted yet. Else their items would go
            together because of the donor alone. Default: `windows`.
        """
        size = len(windows)

        def scored(some: Windows, chosen: BoolArray, source: IntArray, step: int) -> ScoredPart:
            part = progress and subprogress(progress, step * size, len(some), (2 + 2 * draws) * size)
            log_odds = ensemble.model_log_odds(some, part, doing, cache)
            found = None
            if ensemble.is_stacked and ensemble.counts is not None:
                found = Evidence.of(some, log_odds, ensemble.counts, ensemble.titles)
            return ScoredPart(some, log_odds, found, chosen, source)

        injectable = ensemble.injectable(windows)
        self.unlabeled.append(scored(windows, np.zeros(len(windows.items), dtype=bool), rows, 0))
        for draw in range(draws):
            some, chosen, source, _ = inject(windows, injectable, rng)
            self.uniform.append(scored(some, chosen, rows[source], 1 + draw))
        (other,) = rng.spawn(1)
        for draw in range(draws):
            some, chosen, source, _ = inject(windows, injectable, other, popular=True)
            self.popular.append(scored(some, chosen, rows[source], 1 + draws + draw))
        if ensemble.is_stacked and ensemble.config.task.bursts:
            items, chosen, with_run = draw_runs(windows, ensemble.catalogue, 1.0, rng, donors)
            few = np.flatnonzero(with_run)
            some = dataclasses.replace(windows, items=items).take(few)
            chosen = chosen[windows.interactions(few)]
            self.runs.append(scored(some, chosen, rows[few], 1 + 2 * draws))

    def fit_stacker(self, task: TaskConfig, rate: float, seed: int, labels: TrainingLabels) -> Stacker | None:
        """Fit a stacker as `Stacker.fit` does; None where there is no evidence but the model's log-odds."""
        found = self._evidence()
        if found is None:
            return None
        single, unlabeled = found
        runs = [p.evidence.take(p.chosen) for p in self.runs if p.evidence]
        noise = [(single, 1 - task.bursts)] + ([(Evidence.join(runs), task.bursts)] if runs else [])
        reviewed = np.concatenate([labels.find(p.windows) for p in self.unlabeled if p.evidence])
        return Stacker.fit(noise, unlabeled, rate, seed, reviewed)

    def better(self, stacker: Stacker | None, own: Stacker | None) -> Stacker | None:
        """Return a stacker that was fitted elsewhere if it finds the noise of these windows better than their own, or
        without one better than the models; else their own."""
        if stacker is None or (found := self._evidence()) is None:
            return own
        return stacker if stacker.helps(*found, own) else own

    def _evidence(self) -> tuple[Evidence, Evidence] | None:
        """(Evidence on uniformly injected noise, and on unlabeled interactions); None without evidence."""
        single = [p.evidence.take(p.chosen) for p in self.uniform if p.evidence]
        unlabeled = [p.evidence for p in self.unlabeled if p.evidence]
        return (Evidence.join(single), Evidence.join(unlabeled)) if single else None

    def samples(self, stacker: Stacker | None) -> tuple[list[Sample], Sample, IntArray, IntArray]:
        """Return injected noise of each kind, unlabeled interactions, and the windows they come from.

        Returns
        -------
        noise : list of Sample
            In the order of `calibrate.KINDS`.
        unlabeled : Sample
        sources : array of int
            The source window of each uniformly injected interaction.
        owners : array of int
            The window of each unlabeled interaction.
        """
        uniform, popular = ([part.injected(stacker) for part in parts] for parts in (self.uniform, self.popular))
        unlabeled = join([part.sample(stacker) for part in self.unlabeled])
        owners = [part.source[part.windows.owners] for part in self.unlabeled]
        noise = [join([sample for sample, _ in kind]) for kind in (uniform, popular)]
        return noise, unlabeled, np.concatenate([source for _, source in uniform]), np.concatenate(owners)


def injected_copies(
    ensemble: Ensemble, windows: Windows, draws: int, rng: np.random.Generator
) -> Iterator[tuple[int, Windows, BoolArray]]:
    """Yield the windows with one injected item each.

    Parameters
    ----------
    ensemble : Ensemble
        Knows which items may be injected.
    windows : Windows
        W windows of at least two items.
    draws : int
        Copies of each kind.
    rng : Generator
        Draws positions and items.

    Yields
    ------
    kind : int
        Of `calibrate.KINDS`.
    copy : Windows
    chosen : array of bool
        True where noise was injected.
    """
    injectable = ensemble.injectable(windows)
    for kind, draw_from in enumerate((rng, rng.spawn(1)[0])):
        for _ in range(draws):
            some, chosen, _, _ = inject(windows, injectable, draw_from, popular=kind == 1)
            yield kind, some, chosen


def with_context(windows: Windows) -> Windows:
    """Return the windows of at least two items. In a single item, nothing tells noise from the rest."""
    return windows.take(np.flatnonzero(windows.lengths >= 2))
