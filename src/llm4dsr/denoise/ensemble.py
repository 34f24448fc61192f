"""The tuned models of all folds: which model scores which user, and log-odds for any number of windows.

An ensemble is never changed. What is known by then (counts, stackers) is passed on in a new one, which shares the
models. So several threads may score with one ensemble.

With several folds, a user in training is scored by the one model that was tuned without this user (out of fold). Any
other user is scored by the mean of all models.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from llm4dsr.config import EMBEDDED, Config
from llm4dsr.core.arrays import BoolArray, FloatArray, IntArray, sorted_unique
from llm4dsr.core.cache import PartCache
from llm4dsr.core.hashing import Hashes, derived_seed, digest, user_folds, user_hashes, versions
from llm4dsr.core.progress import Progress, subprogress
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.overlap import split_long
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.build_model import build_model
from llm4dsr.denoise.noise_injection import Injectable
from llm4dsr.denoise.score import score_windows
from llm4dsr.denoise.stacking import Evidence, Stacker
from llm4dsr.denoise.states import keep_states, states_per_window, states_to_fill
from llm4dsr.denoise.train import tune
from llm4dsr.denoise.training_labels import NO_LABELS, TrainingLabels
from llm4dsr.denoise.warm_start import check_start, continued_model
from llm4dsr.errors import DataError
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.features.title_vectors import TitleEncoder, fit_title_encoder
from llm4dsr.lm.checkpoint import Checkpoint
from llm4dsr.lm.load import weight_files
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prompt import PromptBuilder

CHUNK = 2048  # windows whose prompts are in memory at once; one finished part each


@dataclass(frozen=True)
class Ensemble:
    """Tuned models and what they need to score.

    Attributes
    ----------
    models : list of NoiseLM
        One per fold, each tuned without the users of that fold.
    builder : PromptBuilder
        Builds the prompts; holds the co-occurrence counts.
    catalogue : Catalogue
        The items.
    config : Config
        All options.
    seen : array of uint64
        Sorted hashes of all users in training.
    stacker_newer, stacker_training : Stacker or None
        For windows newer than training or of new users, and for windows of training. None: log-odds of the models.
    encoder : TitleEncoder or None
        Makes title vectors of new items, for soft tokens.
    """

    models: list[NoiseLM]
    builder: PromptBuilder
    catalogue: Catalogue
    config: Config
    seen: Hashes
    stacker_newer: Stacker | None = None
    stacker_training: Stacker | None = None
    encoder: TitleEncoder | None = None

    @property
    def counts(self) -> CooccurrenceCounts | None:
        """The co-occurrence counts, if the model reads any."""
        return self.builder.cooccurrence

    @property
    def stackers(self) -> tuple[Stacker | None, Stacker | None]:
        """(for newer windows, for windows of training)."""
        return self.stacker_newer, self.stacker_training

    @cached_property
    def titles(self) -> npt.NDArray[np.float32]:
        """[N, V] title vectors, for soft tokens; the same in all folds."""
        known = self.models[0].vectors
        assert known is not None
        return np.asarray(known.detach().float().cpu().numpy())

    @property
    def is_stacked(self) -> bool:
        """Whether there is evidence beside the models' log-odds, and stacking is on."""
        return self.counts is not None and self.config.score.stacking

    def with_counts(self, counts: CooccurrenceCounts | None) -> Ensemble:
        """Return an ensemble that knows other counts and shares the rest, its fingerprint too."""
        out = copy.copy(self)
        object.__setattr__(out, "builder", self.builder.with_counts(counts))
        return out

    def counting(self, windows: Windows, width: int) -> Ensemble:
        """Return an ensemble that has counted windows too: those of more than width + 1 items in overlapping parts."""
        counts = self.counts
        return self if counts is None else self.with_counts(counts.add(split_long(windows, width + 1)[0]))

    def configured(self, config: Config) -> Ensemble:
        """Return an ensemble with those options of a configuration that take effect without tuning."""
        out = copy.copy(self)
        now = {name: getattr(config, name) for name in ("decide", "suggest", "correct")}
        object.__setattr__(out, "config", replace(self.config, **now))
        return out

    def with_items(self, catalogue: Catalogue) -> Ensemble:
        """Return an ensemble that also knows the items at the end of an extended catalogue, and shares all weights."""
        titles, counts = catalogue.titles[len(self.catalogue) :], self.counts
        if counts is not None:
            counts = counts.with_items(len(catalogue))
        models, known = self.models, self.models[0].vectors
        if known is not None:
            vectors = torch.cat(
                [known, torch.from_numpy(self.title_vectors(titles)).to(known)]
            )  # the same in all folds
            models = [model.with_vectors(vectors) for model in models]
        return replace(self, models=models, builder=self.builder.with_items(titles, counts), catalogue=catalogue)

    @classmethod
    def fit(
        cls,
        windows: Windows,
        catalogue: Catalogue,
        config: Config,
        progress: Progress | None = None,
        work: Path | None = None,
        start: Ensemble | None = None,
        counts: CooccurrenceCounts | None = None,
        labels: TrainingLabels = NO_LABELS,
    ) -> tuple[Ensemble, list[float]]:
        """Tune one model per fold.

        Parameters
        ----------
        windows : Windows
            Training windows, target included.
        catalogue : Catalogue
            The items.
        config : Config
            All options.
        progress : Progress, optional
            Called with (steps done, all steps, what is being done).
        work : Path, optional
            Folder of checkpoints; the same call resumes from them.
        start : Ensemble, optional
            Each fold goes on from the weights of its model, and keeps them where it has no user to learn from. The
            users that it has seen stay users in training.
        counts : CooccurrenceCounts, optional
            Counts that hold the windows. Default: they are counted anew.
        labels : TrainingLabels, optional
            Reviewed items, which `tune` learns from; each fold from those of its users.

        Returns
        -------
        ensemble : Ensemble
        curve : list of float
            Mean tuning loss of each epoch, fold after fold.

        Raises
        ------
        ConfigError
            If the options do not fit `start`.
        DataError
            If a fold has no user to learn from, and no model to start from.
        ModelError
            If a model cannot be loaded or its loss is not a number.
        """
        if start is not None:
            check_start(start.config, config)
        encoder = vectors = None
        if config.model.item_input == "soft_token":
            if progress:
                progress(0, 1, "title vectors")
            if start is None:
                encoder, vectors = fit_title_encoder(
                    catalogue.titles, windows, config.model.title_vectors, config.model.vector_size, config.seed
                )
            else:
                encoder, vectors = start.encoder, start.title_vectors(catalogue.titles)
            if config.model.cooccurrence and counts is None:
                counts = CooccurrenceCounts.fit(windows, len(catalogue), config.seed)
            if progress:
                progress(1, 1, "title vectors")
        folds, users = user_folds(windows.user_ids, config.train.folds), user_hashes(windows.user_ids)
        key = digest(
            versions(), config.seed, config.model, config.task, config.train, catalogue.titles, windows.items,
            windows.lengths, users, *([] if start is None else [start.fingerprint, counts and counts.fingerprint]),
            *([labels.fingerprint] if len(labels.keys) else []),
        )  # fmt: skip
        models, curve = list[NoiseLM](), list[float]()
        for fold in range(config.train.folds):
            part = windows if config.train.folds == 1 else windows.take(np.flatnonzero(folds != fold))
            if not len(part) and start is None:
                raise DataError(
                    f"With train.folds = {config.train.folds}, fold {fold + 1} has no user to learn from. Use fewer "
                    "folds or more users."
                )
            of = f" {fold + 1} of {config.train.folds}" if config.train.folds > 1 else ""
            checkpoint = Checkpoint(work and work / f"fold_{fold}.safetensors", f"{key} {fold}")
            # Folds share neither initial weights nor noise and dropout: other users are scored by the mean of all
            # models, which is better the less their errors have in common.
            own = replace(config, seed=derived_seed(config.seed, fold))
            if start is not None:
                model, builder = continued_model(start.models[fold], own, catalogue, vectors, counts)
            else:
                model, builder = build_model(
                    own, catalogue, part, vectors, counts, own.seed, progress, checkpoint.exists
                )
                if config.model.source != EMBEDDED:  # the key has the name; the weights behind it may have changed
                    checkpoint.key += model.fingerprint() + digest(weight_files(config.model.source))
            if len(part):
                curve += tune(model, builder, part, catalogue, own, progress, f"tune{of}", checkpoint, labels)
            models.append(model)
        seen = sorted_unique(users) if start is None else sorted_unique(users, start.seen)
        return cls(models, builder, catalogue, config, seen, encoder=encoder), curve

    def title_vectors(self, titles: list[str]) -> npt.NDArray[np.float32]:
        """Return vectors [n, V] of titles: those of the catalogue as they are, and others in the same space."""
        assert self.encoder is not None
        row = {title: i for i, title in enumerate(self.catalogue.titles)}
        at = np.array([row.get(title, -1) for title in titles])
        out: npt.NDArray[np.float32] = self.titles[np.maximum(at, 0)]
        if (at < 0).any():
            out[at < 0] = self.encoder([titles[i] for i in np.flatnonzero(at < 0)])
        return out

    def log_odds(
        self, windows: Windows, is_newer: bool, progress: Progress | None, doing: str, cache: PartCache,
        keep: PartCache | None = None,
    ) -> FloatArray:  # fmt: skip
        """Score windows by models and stacker.

        Parameters
        ----------
        windows, progress, doing, cache
            As in `model_log_odds`.
        is_newer : bool
            The windows are newer than training. Those of new users always count as newer.
        keep : PartCache, optional
            Gets the states of what is scored, for suggesting (`states.py`).

        Returns
        -------
        array of float
            [n] log-odds of noise, higher = more likely noise; NaN as in `score_windows`.
        """
        return self._scored(windows, is_newer, progress, doing, cache, keep)

    def model_log_odds(self, windows: Windows, progress: Progress | None, doing: str, cache: PartCache) -> FloatArray:
        """Score windows, each by the models that `assignments` names.

        Parameters
        ----------
        windows : Windows
            Windows to score; every item of them.
        progress : Progress or None
            Called with (windows done, all windows, `doing`).
        doing : str
            What is being done, for progress.
        cache : PartCache
            Keeps the log-odds of some thousand windows each.

        Returns
        -------
        array of float
            [n] mean log-odds of noise, higher = more likely noise; NaN as in `score_windows`.
        """
        return self._scored(windows, None, progress, doing, cache)

    def parts(self, windows: Windows, is_newer: bool | None) -> Iterator[tuple[IntArray, ScorePart]]:
        """Yield (rows of the windows, the part that scores them); is_newer is None: without stacker."""
        newer = None if is_newer is None else is_newer | ~np.isin(user_hashes(windows.user_ids), self.seen)
        for rows, members in self.assignments(windows):
            for chunk in (rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)):
                yield chunk, ScorePart(windows.take(chunk), members, None if newer is None else newer[chunk])

    def _scored(
        self, windows: Windows, is_newer: bool | None, progress: Progress | None, doing: str, cache: PartCache,
        keep: PartCache | None = None,
    ) -> FloatArray:  # fmt: skip
        out = np.full(len(windows.items), np.nan)
        done, total = 0, sum(len(rows) * len(members) for rows, members in self.assignments(windows))
        for rows, part in self.parts(windows, is_newer):
            step = progress and subprogress(progress, done, part.size, total)
            table = cache.table(part.key(self, cache), partial(part.table, self, step, doing, keep))
            out[windows.interactions(rows)] = table["value"].to_numpy()
            done += part.size
            if progress:
                progress(done, total, doing)
        return out

    def injectable(self, windows: Windows) -> Injectable:
        """Return the items that may be injected into windows: those that somebody has by now."""
        return Injectable.of(self.catalogue, windows, None if self.counts is None else self.counts.popularity)

    def assignments(self, windows: Windows) -> list[tuple[IntArray, list[int]]]:
        """Return (rows of the windows, models that score them): never a model tuned on that user, if there is one."""
        count = len(self.models)
        if count == 1:
            return [(np.arange(len(windows)), [0])]
        seen, folds = np.isin(user_hashes(windows.user_ids), self.seen), user_folds(windows.user_ids, count)
        assignments = [(np.flatnonzero(seen & (folds == k)), [k]) for k in range(count)]
        assignments.append((np.flatnonzero(~seen), list(range(count))))
        return [(rows, members) for rows, members in assignments if len(rows)]

    def key(self, part: Windows, cache: PartCache) -> tuple[Any, ...]:
        """Return all that scores and suggestions of some windows depend on; empty if nothing is cached."""
        if cache.folder is None:
            return ()
        cooccurrence = self.counts.fingerprint if self.counts else ""
        config = (self.config.model, self.config.task.none, self.config.train.batch_tokens, self.config.score.mode)
        return (self.fingerprint, cooccurrence, config, part.items, part.lengths, user_hashes(part.user_ids))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of `content`, and of the versions that numbers depend on."""
        return digest(versions(), self.content)

    @cached_property
    def content(self) -> str:
        """A hash of the models, the prompt, the titles and the item ids."""
        return digest(
            [model.fingerprint() for model in self.models],
            self.builder.hash,
            self.builder.max_tokens,
            self.catalogue.titles,
            self.catalogue.ids.to_list(),
        )


@dataclass(frozen=True)
class ScorePart:
    """At most CHUNK windows, and how they are scored: work that any process with the models can do.

    Attributes
    ----------
    windows : Windows
        W windows with n interactions.
    members : list of int
        The models that score them, by their mean.
    is_newer : array of bool or None
        [W] True for the stacker of newer windows. None: without stacker.
    """

    windows: Windows
    members: list[int]
    is_newer: BoolArray | None

    @property
    def size(self) -> int:
        """Windows × models."""
        return len(self.windows) * len(self.members)

    def key(self, ensemble: Ensemble, cache: PartCache) -> tuple[Any, ...]:
        """Return all that the scores depend on; empty if nothing is cached."""
        if cache.folder is None:
            return ()
        stackers = () if self.is_newer is None else tuple(s and s.fingerprint for s in ensemble.stackers)
        return (*ensemble.key(self.windows, cache), self.members, stackers, self.is_newer)

    def table(
        self, ensemble: Ensemble, progress: Progress | None = None, doing: str = "score", keep: PartCache | None = None
    ) -> pl.DataFrame:
        """Score the windows: a column `value` with n log-odds. Arguments as in `Ensemble.log_odds`."""
        e, windows, scores, states = ensemble, self.windows, list[FloatArray](), None
        if keep is not None and states_per_window(e.config):
            states = states_to_fill(e.config, windows)
        for i, member in enumerate(self.members):
            step = progress and subprogress(progress, i, 1, len(self.members))
            given = e.models[member], e.builder, windows, e.catalogue, e.config, step, doing
            scores.append(score_windows(*given, None if i else states))  # the first model suggests
        out = np.mean(scores, axis=0)
        if self.is_newer is not None and e.counts is not None:
            for stacker, chosen in zip(e.stackers, (self.is_newer, ~self.is_newer), strict=True):
                rows = np.flatnonzero(chosen)
                if stacker is not None and len(rows):
                    at = windows.interactions(rows)
                    out[at] = stacker.log_odds(out[at], Evidence.of(windows.take(rows), out[at], e.counts, e.titles))
        if keep is not None and states is not None:
            keep_states(keep, self.key(e, keep), e.config, windows, out, states)
        return pl.DataFrame({"value": out})
