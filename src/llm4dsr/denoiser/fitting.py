"""What a denoiser has learned: fit, update, save and load."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, Self

import numpy as np

from llm4dsr import columns as c
from llm4dsr.config import Config
from llm4dsr.core.arrays import IntArray
from llm4dsr.core.cache import PartCache
from llm4dsr.core.device import use_threads
from llm4dsr.core.distributed import leave, rank
from llm4dsr.core.io import as_frame
from llm4dsr.core.progress import Progress, log
from llm4dsr.core.progress_bar import shown
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.histories import Histories
from llm4dsr.data.overlap import Origin, split_long
from llm4dsr.data.read import as_windows
from llm4dsr.data.windows import Windows, hold_out
from llm4dsr.denoise.calibrate import Calibrator
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.denoise.fit_calibration import fit_calibration
from llm4dsr.denoise.ranking import RankingWeights
from llm4dsr.denoise.storage import load_denoiser, save_denoiser
from llm4dsr.denoise.training_labels import NO_LABELS, UNLABELED, TrainingLabels
from llm4dsr.denoiser import display
from llm4dsr.denoiser.parameters import Parameters
from llm4dsr.errors import ConfigError, DataError, ModelError
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prompt import MARKERS, PromptBuilder

MIN_TO_LEARN = 10  # windows
MIN_TO_CALIBRATE = 200  # new validation histories; a map from fewer would be worse than the former one


class Fitting(Parameters):
    """The part of `Denoiser` that learns, and that is saved and loaded. Parameters and attributes are told there."""

    def __init__(self, config: Config | None = None, items: Any = None) -> None:
        super().__init__(config, items)
        self.calibrator = Calibrator()
        self.ranking_weights = RankingWeights()
        self.curve: list[float] = []
        self.width = 0
        self.learned_from: dict[str, int] = {}
        self._ensemble: Ensemble | None = None

    def fit(
        self,
        histories: Any,
        items: Any = None,
        valid: Any = None,
        progress: Progress | bool | None = None,
        work: Path | None = None,
        start: Fitting | None = None,
        labels: Any = None,
    ) -> Self:
        """Tune the language model on injected noise in `histories`, then calibrate on `valid`.

        No noise mask is ever read. What reviewers said may be given as `labels`.

        If `torch.distributed` is initialized, its processes tune together: each calls this with the same arguments, and
        the denoiser of the first one (rank 0) is fitted.

        Parameters
        ----------
        histories : Windows, table or list
            Training histories, target included. At least 10; some thousands are useful. Also a long table
            `user_id, item_id, timestamp`.
        items : Catalogue or table
            All items, with `item_id` and `title`. Default: those given to the constructor.
        valid : Windows, table or list, optional
            Validation histories without targets; they are not counted. Default: a tenth of the users is held out.
        progress : Progress or bool, optional
            True: show bars. A callback gets (steps done, all steps, what is being done).
        work : Path, optional
            Folder of checkpoints and finished parts; the same call resumes from it.
        start : Denoiser, optional
            A fitted denoiser, such as last week's, which stays as it is. Tuning goes on from its weights, for
            `train.epochs` more. Items are found by their titles, so the catalogue may have grown, shrunk, or changed
            its order. Counts and calibration are made anew. Users that it was tuned on stay out of fold.
        labels : table, optional
            Reviewed interactions, with `user_id`, `item_id` and `is_noise` (0 or 1), as the review page exports them.
            A label holds in all windows of its user. With several folds, no user is scored by a model that learned
            this user's labels.

        Returns
        -------
        Denoiser
            Itself.

        Raises
        ------
        ConfigError
            If `start` has other options of `model`, or another number of folds; or labels are given, but noise is
            not read per position (`model.readout`).
        DataError
            If the histories, items or labels cannot be used.
        ModelError
            If the model cannot be loaded or tuned.
        """
        config = self.config
        items = self.items if items is None else items
        if items is None:
            raise DataError(
                "There are no items to learn from. Give a table with item_id and title, or Denoiser(items=…)."
            )
        catalogue = _as_catalogue(items)
        windows = _to_learn_from(histories, catalogue)
        if len(windows) < MIN_TO_LEARN:
            raise DataError(
                f"{len(windows)} window(s) to learn from; at least {MIN_TO_LEARN} are needed, and some thousands are "
                "useful."
            )
        if len(catalogue) < 4:
            raise DataError(
                f"The catalogue has {len(catalogue)} item(s); at least 4 are needed to replace one by another."
            )
        validation = windows if valid is None else _to_learn_from(valid, catalogue)
        reviewed = self._labels(labels, catalogue, windows, validation)
        if valid is None:
            windows, validation = hold_out(windows, config.seed)
        windows, validation = self._short(windows)[0], self._short(validation)[0]
        width = int(windows.lengths.max())
        learned_from = {"histories": len(windows), "interactions": len(windows.items),
                        "validation_histories": len(validation)}  # fmt: skip
        learned_from |= {"labels": len(reviewed.keys)} if labels is not None else {}
        with shown(progress) as report:
            tuned, curve = Ensemble.fit(
                windows, catalogue, config, report, work, None if start is None else start.ensemble, labels=reviewed
            )
            is_first = rank() == 0
            if leave():
                use_threads(config.threads)  # of all cores: the others have nothing left to do
            if not is_first:
                return self
            tuned, calibrator, weights = fit_calibration(
                tuned, windows, validation, report, PartCache(work), labels=reviewed
            )
        if valid is None:  # held out of the histories given, so known from now on
            tuned = tuned.counting(validation, width)
        self._ensemble, self.calibrator, self.ranking_weights = tuned, calibrator, weights
        self.curve, self.width, self.learned_from = curve, width, learned_from
        return self

    def partial_fit(
        self,
        histories: Any,
        items: Any = None,
        valid: Any = None,
        epochs: int = 1,
        progress: Progress | bool | None = None,
        work: Path | None = None,
    ) -> Self:
        """Learn from new histories without those of before: count them, tune further, and calibrate again.

        Former histories are not stored, so they are not repeated: what is known of them are counts and weights. Users
        keep their fold, so none is scored by a model that was tuned on them. Title vectors stay; collaborative vectors
        too, so new items have none until the next `fit`.

        Parameters
        ----------
        histories : Windows, table or list
            New training histories, target included. At least 10.
        items : Catalogue or table, optional
            New items, as in `with_items`.
        valid : Windows, table or list, optional
            New validation histories without targets. Default: `histories`, scored out of fold, with what was known
            before each. With a single fold, a tenth of the users is held out. With fewer than 200, the calibration
            stays as it is. The interval of the noise rate stays that of `fit` in any case, which knew more histories.
        epochs : int, default 1
            Passes over the new histories. 0: counts and calibration alone.
        progress, work
            As in `fit`.

        Returns
        -------
        Denoiser
            Itself. Calls of `score` that are under way in other threads end with what was known before.

        Raises
        ------
        DataError
            If the histories or items cannot be used.
        ConfigError
            If `epochs` is below 0.
        ModelError
            If this denoiser is not fitted, or cannot be tuned.
        """
        known = self if items is None else self.with_items(items)
        before, windows = known.ensemble, as_windows(histories, known.catalogue)
        if len(windows) < MIN_TO_LEARN:
            raise DataError(f"{len(windows)} window(s) to learn from; at least {MIN_TO_LEARN} are needed.")
        held_out = valid is None and len(before.models) == 1  # it would be calibrated on what it was tuned on
        if held_out:
            windows, validation = hold_out(windows, self.config.seed)
        else:
            validation = windows if valid is None else as_windows(valid, known.catalogue)
        windows, validation = self._short(windows)[0], self._short(validation)[0]
        config = Config.from_dict({"train": {"epochs": epochs}}, "partial_fit", self.config)
        counts = None if before.counts is None else before.counts.add(windows)
        calibrator, weights = self.calibrator, self.ranking_weights
        with shown(progress) as report:
            tuned, curve = Ensemble.fit(windows, before.catalogue, config, report, work, before, counts)
            tuned = dataclasses.replace(
                tuned, config=self.config, stacker_newer=before.stacker_newer, stacker_training=before.stacker_training
            )
            if len(validation) >= MIN_TO_CALIBRATE:
                tuned, calibrator, weights = fit_calibration(
                    tuned, windows, validation, report, PartCache(work),
                    before.counts if valid is None and not held_out else None,
                    rates=self.calibrator.rates if self.calibrator.rate_high > 0 else None,  # of more windows than now
                )  # fmt: skip
            else:
                log.warning(
                    "The calibration stays as it is: %d validation histories; %d are needed for a new one. Give more "
                    "histories at once, or `valid`.", len(validation), MIN_TO_CALIBRATE,
                )  # fmt: skip
        width = max(self.width, int(windows.lengths.max()))
        if held_out:
            tuned = tuned.counting(validation, width)
        self._ensemble, self.calibrator, self.ranking_weights = tuned, calibrator, weights
        self.curve, self.width = self.curve + curve, width
        more = {"histories": len(windows), "interactions": len(windows.items)}  # not in place: `with_items` shares it
        self.learned_from = self.learned_from | {name: self.learned_from[name] + count for name, count in more.items()}
        return self

    def update_counts(self, histories: Any) -> Self:
        """Count histories newer than those of `fit`: their item pairs are known from now on. Returns itself.

        Long histories are counted in overlapping parts, as they are scored. Calls of `score` that are under way in
        other threads end with what was known before.
        """
        self._ensemble = self.ensemble.counting(as_windows(histories, self.catalogue), self.width)
        return self

    def with_items(self, items: Any) -> Self:
        """Return a denoiser that also knows these items; this one is unchanged.

        New items can be in histories, and be suggested, at once. Their titles are read; no user has them yet. Nothing
        is tuned, and histories without a new item keep their scores. Both denoisers share all weights.

        Parameters
        ----------
        items : Catalogue or table
            Items with `item_id`, of the type that the catalogue has, and `title`. Those that are known already, with
            the same title, are ignored.

        Returns
        -------
        Denoiser
            A new one.

        Raises
        ------
        DataError
            If the items cannot be used, or an id is known with another title. Training takes new titles.
        """
        catalogue = self.catalogue.extended(_as_catalogue(items))
        out = copy.copy(self)
        if len(catalogue) > len(self.catalogue):
            out._ensemble = self.ensemble.with_items(catalogue)
        return out

    def in_parts(self, histories: Any, has_target: bool) -> tuple[Windows, Windows, Origin | None]:
        """Return (the windows, what is scored: in parts of at most `width` items, where the parts come from)."""
        windows = as_windows(histories, self.catalogue)
        return windows, *self._short(windows.histories() if has_target else windows, self.width)

    def fitting_rows(self, histories: Any) -> IntArray:
        """Return the rows of histories whose prompts fit into `train.max_tokens`; all of them, with soft tokens."""
        if self.config.model.item_input == "soft_token":
            return np.arange(len(as_windows(histories, self.catalogue)))
        windows, parts, origin = self.in_parts(histories, False)
        long = np.array([i for i in range(len(parts)) if not self.builder.fits(parts.row(i))], dtype=np.int64)
        return np.setdiff1d(np.arange(len(windows)), long if origin is None else origin.histories[long])

    def _labels(self, table: Any, catalogue: Catalogue, *windows: Windows) -> TrainingLabels:
        """Labels of a table, if one is given, and if these windows hold what they are about."""
        if table is None:
            return NO_LABELS
        if self.config.model.readout != "per_position":
            raise ConfigError("Labels are learned at each position. Use readout: per_position, or leave them out.")
        labels = TrainingLabels.of(as_frame(table, "The labels"), catalogue)
        found = sum(int((labels.find(w) != UNLABELED).sum()) for w in windows)
        if not found:
            raise DataError("No history holds an item that its user's labels are about. Do they name the same users?")
        log.info("%d labels, about %d interactions of the windows.", len(labels.keys), found)
        return labels

    def _short(self, histories: Windows, width: int | None = None) -> tuple[Windows, Origin | None]:
        """Histories of at most `width` items (default: what fits a prompt); longer ones as overlapping parts."""
        if width is None:
            marked = self.config.model.item_input == "soft_token" or self.config.model.readout == "per_position"
            width = len(MARKERS) if marked else int(histories.lengths.max())
        return split_long(histories, width)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save weights (safetensors), tokenizer, catalogue, counts, calibration, configuration, versions, a model card.

        The folder can be pushed to a model hub as it is; add a license to its README.md first. A denoiser that it
        holds is replaced once the new one is complete; other files stay.
        """
        facts = {
            "curve": self.curve,
            "width": self.width,
            "learned_from": self.learned_from,
            "calibrator": dataclasses.asdict(self.calibrator),
            "ranking_weights": dataclasses.asdict(self.ranking_weights),
        }
        save_denoiser(Path(folder), self.ensemble.configured(self.config), facts)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load a denoiser that `save_pretrained` wrote.

        Raises
        ------
        ModelError
            If the folder holds no denoiser, or one that this version cannot use.
        """
        ensemble, card = load_denoiser(Path(folder))
        out = cls(ensemble.config)
        out._ensemble, out.curve, out.width = ensemble, card["curve"], card["width"]
        out.learned_from = card["learned_from"]
        out.calibrator = Calibrator(**card["calibrator"])
        out.ranking_weights = RankingWeights(**card["ranking_weights"])
        return out

    def __repr__(self) -> str:
        state = "not fitted" if self._ensemble is None else f"fitted, {len(self.catalogue):,} items"
        return f"<Denoiser: {self.config.model.source}, {state}>"

    def _repr_html_(self) -> str:
        """For notebooks: what was learned, or the configuration if nothing was yet."""
        if self._ensemble is None:
            return display.as_html(display.configured(self.config))
        users = f"{len(self._ensemble.seen):,} users"
        weights = sum(p.numel() for p in self.model.parameters())
        return display.as_html(
            [
                ("State", "fitted"),
                (
                    "Language model",
                    f"{self.config.model.source}, {weights:,} weights",
                ),
                ("Catalogue", f"{len(self.catalogue):,} items"),
                ("Learned from", f"{self.learned_from['histories']:,} histories of {users}"),
                *display.calibrated(self.calibrator),
            ]
        )

    @property
    def ensemble(self) -> Ensemble:
        """The tuned models. Raises ModelError if there are none yet."""
        if self._ensemble is None:
            raise ModelError(
                "This denoiser has not been fitted. Call fit(histories, items), or load one with from_pretrained."
            )
        return self._ensemble

    @property
    def model(self) -> NoiseLM:
        """The tuned model of the first fold."""
        return self.ensemble.models[0]

    @property
    def builder(self) -> PromptBuilder:
        """The prompt builder, which holds the co-occurrence counts."""
        return self.ensemble.builder

    @property
    def catalogue(self) -> Catalogue:
        """The items."""
        return self.ensemble.catalogue


def _as_catalogue(items: Any) -> Catalogue:
    return items if isinstance(items, Catalogue) else Catalogue.from_frame(as_frame(items, "The items"))


def _to_learn_from(histories: Any, catalogue: Catalogue) -> Windows:
    """Windows of histories in any form; a table that names its windows is checked as such."""
    names = getattr(histories, "columns", getattr(histories, "column_names", ()))
    if isinstance(histories, Windows | list) or {c.WINDOW, c.ITEMS} <= set(names):
        return as_windows(histories, catalogue)
    return Histories.of(histories, catalogue, strict=True).windows
