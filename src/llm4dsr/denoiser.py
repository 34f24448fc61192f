"""The public class: fit, score, decide, suggest, correct. Each call answers one question and returns a table.

from llm4dsr import Denoiser
denoiser = Denoiser().fit(histories, items)       # histories: user_id, window_id, item_ids; items: item_id, title
scores = denoiser.score(histories)                # how likely is each interaction noise?
flagged = denoiser.decide(scores)                 # which ones count as noise? move η without scoring again
suggestions = denoiser.suggest(histories, flagged)
result = denoiser.correct(histories)              # all of it: corrected histories and the list of edits
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import calibrate
from llm4dsr import columns as c
from llm4dsr import correct as correcting
from llm4dsr import decide as deciding
from llm4dsr.batch import Progress, pick_device, seeded
from llm4dsr.calibrate import Sample
from llm4dsr.catalogue import BoolArray, Catalogue, FloatArray, IntArray, Windows
from llm4dsr.checkpoint import Checkpoint
from llm4dsr.company import Company, user_hashes
from llm4dsr.config import EMBEDDED, Config
from llm4dsr.data import limit_windows, write_parquet
from llm4dsr.ensemble import Ensemble, chunks, fold_of, within
from llm4dsr.errors import ConfigError, DataError, ModelError
from llm4dsr.model import NoiseLM, add_lora, embedded_lm, load_lm
from llm4dsr.overlap import Origin, into_windows, merge_scores, out_of_windows, overlapping
from llm4dsr.prompt import MARKERS, PromptBuilder, judged_in_place
from llm4dsr.shards import Shards, digest, versions
from llm4dsr.sources.source import as_frame
from llm4dsr.suggest import NOTHING, Blend, Suggestions, fit_blend, suggest
from llm4dsr.tables import as_windows, matrix
from llm4dsr.task import inject
from llm4dsr.tune import tune, warm_up
from llm4dsr.vectors import title_vectors

FORMAT = 3  # of a saved denoiser; another number is refused
CARD = "denoiser.json"
NEW_WINDOWS = 200  # validation windows of unseen users that are enough to calibrate on
DRAWN = 20_000  # windows that get self-made noise, at most
RECALIBRATED = 1_000  # windows without which probabilities are not made anew
REPLAY_PARTS = 10  # of a split, in order of time; each knows what was known before it
VALID_SHARE = 0.1  # of the windows, held out for calibration where no validation windows are given


class Denoiser:
    """Finds interactions that do not belong in a history and suggests better items.

    `histories` may be `Windows`, a Polars or pandas table with `user_id, window_id, item_ids`, or a list of lists of
    item ids, oldest first. Every item of a history is scored: leave a target out that must not be judged.
    """

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        self.calibrator = calibrate.Calibrator()
        self.curve: list[float] = []  # mean tuning loss of each epoch
        self.blend = Blend()  # how vector suggestions are ranked
        self.width = 0  # items of the longest window in training; longer histories are judged in parts
        self._ensemble: Ensemble | None = None

    # -- fit ---------------------------------------------------------------------------------------------------------

    def fit(self, histories: Any, items: Any, valid: Any = None, progress: Progress | None = None,
            work: Path | None = None) -> Denoiser:  # fmt: skip
        """Tunes the language model on self-made noise in `histories`, then calibrates on `valid`.

        histories: training windows, target included. items: table with `item_id, title`. valid: other users'
        histories without their targets; where None, a tenth of `histories` is held out. No noise mask is ever read.
        work: a folder for what is finished so far; the same call goes on from it. Raises DataError or ModelError.
        """
        config = self.config
        catalogue = items if isinstance(items, Catalogue) else Catalogue.from_frame(as_frame(items, "The items"))
        windows = as_windows(histories, catalogue)
        if len(windows) < 10:
            raise DataError(
                f"{len(windows)} window(s) to learn from; at least 10 are needed, some thousands are useful."
            )
        if len(catalogue) < 4:
            raise DataError(
                f"The catalogue has {len(catalogue)} item(s); at least 4 are needed to replace one by another."
            )
        if valid is None:
            who = np.unique(windows.user_ids.to_numpy(), return_inverse=True)[1]
            held = np.random.default_rng(config.seed).random(who.max() + 1)[who] < VALID_SHARE
            held[:1] = True
            held[-1:] = False
            windows, validation = windows.take(np.flatnonzero(~held)), windows.take(np.flatnonzero(held))
        else:
            validation = as_windows(valid, catalogue)
        windows, validation = self._short(windows)[0], self._short(validation)[0]
        self.width = int(windows.lengths.max())
        vectors = company = None
        if config.model.items == "vector":
            if progress:
                progress(0, 1, "title vectors")
            vectors = title_vectors(
                catalogue.titles, windows, config.model.title_vectors, config.model.vector_size, config.seed
            )
            company = Company.of(windows, len(catalogue)) if config.model.company else None
            if progress:
                progress(1, 1, "title vectors")
        folds = fold_of(windows, config.train.folds)
        users = user_hashes(windows.user_ids)
        key = digest(
            versions(), config.seed, config.model, config.task, config.train, catalogue.titles, windows.items, users
        )
        models, self.curve = [], []
        for fold in range(max(1, config.train.folds)):
            part = windows if config.train.folds <= 1 else windows.take(np.flatnonzero(folds != fold))
            if not len(part):
                raise DataError(f"With train.folds = {config.train.folds} a fold has no user left to learn from.")
            of = f" {fold + 1} of {config.train.folds}" if config.train.folds > 1 else ""
            checkpoint = Checkpoint(work and work / f"fold_{fold}.safetensors", f"{key} {fold}")
            model, builder = untuned(
                config, catalogue, part, vectors, company, config.seed + fold, progress, checkpoint.exists
            )
            if config.model.source != EMBEDDED:  # the name is in the key; the weights there may be others by now
                checkpoint.key += model.fingerprint()
            self.curve += tune(model, builder, part, catalogue, config, progress, f"tune{of}", checkpoint)
            models.append(model)
        self._ensemble = Ensemble(models, builder, catalogue, config, np.unique(users))
        self.observe(validation)
        self._calibrate(windows, validation, progress, Shards(work))
        return self

    def _calibrate(self, windows: Windows, validation: Windows, progress: Progress | None, shards: Shards) -> None:
        """Self-made noise in validation gives the map to probabilities; no label is read.

        windows: those that the models were tuned on. With several folds they are scored out of fold, and help to bound
        the share of noise; with one, validation keeps to users that the model has not seen, if there are enough.
        """
        config = self.config
        if config.score.calibration == "off" or len(validation) < 20:
            return
        out_of_fold = len(self.ensemble.models) > 1
        if not out_of_fold:
            new = np.flatnonzero(~np.isin(user_hashes(validation.user_ids), self.ensemble.seen))
            validation = validation.take(new) if len(new) >= NEW_WINDOWS else validation
        rng = np.random.default_rng(config.seed + 1)
        half = rng.random(len(validation)) < 0.5
        log_odds = self.ensemble.log_odds(validation, progress, "calibrate: untouched", shards)
        untouched, owner = Sample.of(validation, log_odds), np.nonzero(validation.present)[0]
        noise, source = self._self_made(
            validation, config.score.calibration_draws, rng, progress, "calibrate: noise", shards
        )
        pairs = [(noise, untouched)]
        if out_of_fold:
            some = limit_windows(windows, DRAWN, config.seed)
            plain = Sample.of(some, self.ensemble.log_odds(some, progress, "calibrate: untouched, training", shards))
            pairs.append((self._self_made(some, 1, rng, progress, "calibrate: noise, training", shards)[0], plain))
        share = calibrate.noise_share(pairs, config.score.odd_share)
        before, after = calibrate.self_made_ece(noise, untouched, config.score.calibration, (half[source], half[owner]))
        fitted = calibrate.fit(noise, untouched, config.score.calibration, share)
        self.calibrator = dataclasses.replace(fitted, ece_before=before, ece_after=after)
        if config.model.items == "vector":
            foreign, chosen, _, originals = inject(validation, self.catalogue, rng)
            rows = np.concatenate([rows for rows, members in self.ensemble.shares(foreign) if 0 in members])
            self.blend = fit_blend(self.model, self.builder, foreign.take(rows), chosen[rows], originals[rows], config)

    def _self_made(self, windows: Windows, draws: int, rng: np.random.Generator, progress: Progress | None,
                   doing: str, shards: Shards) -> tuple[Sample, IntArray]:  # fmt: skip
        """(sample of self-made noise, one in each window and draw; which of the windows each is from)."""
        made, sources = [], []
        for _ in range(draws):
            foreign, chosen, source, _ = inject(windows, self.catalogue, rng)
            sample = Sample.of(foreign, self.ensemble.log_odds(foreign, progress, doing, shards))
            made.append(sample.take(chosen[foreign.present]))
            sources.append(source)
        return calibrate.join(made), np.concatenate(sources)

    # -- score, decide, suggest, correct -----------------------------------------------------------------------------

    def observe(self, histories: Any) -> Denoiser:
        """Counts histories as known: what other users have together is evidence from now on. No weights change.

        For histories that are newer than those fitted on. `fit` has observed its own. Returns self.
        """
        if self.builder.company is not None:
            self.builder.company = self.builder.company.add(as_windows(histories, self.catalogue))
        return self

    def score(self, histories: Any, progress: Progress | None = None, target_fixed: bool = False,
              recalibrate: bool = False, work: Path | None = None) -> pl.DataFrame:  # fmt: skip
        """One row per interaction: window_id, position (0 = oldest), item_id, log_odds, noise_probability in [0, 1]
        (higher = more likely noise), rank in the window (1 = most suspicious).

        With `train.folds` > 1 a user that the models were tuned on is scored by the model that never saw this user
        (out of sample), any other user by the mean log-odds of all models. With one fold, scores of histories that the
        model was tuned on are in sample, and too low where noise was learnt by heart.

        target_fixed: the last item of each history is an evaluation target and is not scored. With timestamps such
        histories are judged in order of time, and the earlier ones are observed before the later ones are judged.
        recalibrate: the map to probabilities is made anew from self-made noise in these very histories, since tastes
        and catalogues change; takes a multiple of the time, and wants 1,000 histories or more (with fewer it is left
        out). Neither changes the denoiser.
        A history longer than the windows in training is judged in overlapping parts, whose scores are averaged.
        work: a folder for what is finished so far; the same call goes on from it.
        """
        config, shards, windows = self.config, Shards(work), as_windows(histories, self.catalogue)
        judged = windows.histories() if target_fixed else windows
        parts, origin = self._short(judged, self.width)
        if origin:
            return merge_scores(self.score(parts, progress, recalibrate=recalibrate, work=work), origin).drop(c.COVER)
        method = config.score.calibration
        recalibrate = recalibrate and method != "off" and len(windows) >= RECALIBRATED
        draws = max(1, min(config.score.calibration_draws, DRAWN // max(1, len(windows))))
        rng = np.random.default_rng(config.seed + 2)
        log_odds, made, calibrator = np.full(judged.items.shape, np.nan), [], self.calibrator
        for rows, part_progress in self._replay(windows, target_fixed, progress):
            part = judged.take(rows)
            log_odds[rows] = self.ensemble.log_odds(part, part_progress, "score", shards)
            if recalibrate:
                some = limit_windows(part, DRAWN, config.seed)
                made.append(self._self_made(some, draws, rng, part_progress, "score: self-made noise", shards)[0])
        if method != "off" and made:
            calibrator = calibrate.fit(calibrate.join(made), Sample.of(judged, log_odds), method, calibrator.noise_rate)
        return self._score_frame(judged, log_odds, calibrator)

    def _short(self, histories: Windows, width: int | None = None) -> tuple[Windows, Origin | None]:
        """Histories as they are if none is longer than `width` (None: than a prompt can be), else parts that overlap by
        half, and where these come from."""
        if width is None:
            marked = self.config.model.items == "vector" or self.config.model.answer == "position"
            width = len(MARKERS) if marked else int(histories.lengths.max())
        if histories.lengths.max(initial=0) <= width:
            return histories, None
        return overlapping(histories, width, max(1, width // 2))

    def _replay(self, windows: Windows, target_fixed: bool,
                progress: Progress | None) -> Iterator[tuple[IntArray, Progress | None]]:  # fmt: skip
        """(rows, progress) of windows, in order of time where they have targets and times. While one part is at work,
        company holds what was known before it; afterwards it is what it was."""
        before = self.builder.company
        if before is None or not target_fixed or (windows.timestamps < 0).any():
            yield np.arange(len(windows)), progress
            return
        done = 0
        try:
            for rows in np.array_split(np.argsort(windows.timestamps, kind="stable"), REPLAY_PARTS):
                if len(rows):
                    yield rows, progress and within(progress, done, len(rows), len(windows))
                    self.observe(windows.take(rows))
                    done += len(rows)
        finally:
            self.builder.company = before

    def _score_frame(self, windows: Windows, log_odds: FloatArray, calibrator: calibrate.Calibrator) -> pl.DataFrame:
        present = windows.present
        rows, positions = np.nonzero(present)
        return pl.DataFrame(
            {
                c.WINDOW: windows.window_ids[rows], c.POSITION: positions,
                c.ITEM: self.catalogue.ids.gather(windows.items[present]), c.LOG_ODDS: log_odds[present],
                c.NOISE_PROBABILITY: calibrator(log_odds[present]), c.RANK: deciding.ranks(log_odds)[present],
            }
        )  # fmt: skip

    def decide(self, scores: pl.DataFrame, policy: str | None = None, eta: float | None = None,
               cap: int | None = None, is_train: bool = True) -> pl.DataFrame:  # fmt: skip
        """The rows of `scores` that count as noise. Defaults come from config.decide; see `decide.decide` for the
        policies. is_train: False takes config's η and cap for evaluation histories. Raises ConfigError."""
        policy, eta, cap = self.rule(policy, eta, cap, is_train)
        ids, rows = np.unique(scores[c.WINDOW].to_numpy(), return_inverse=True)
        at = (rows, scores[c.POSITION].to_numpy())
        shape = (len(ids), int(scores[c.POSITION].max() or 0) + 1)  # type: ignore[arg-type]
        log_odds, probability = np.full(shape, np.nan), np.full(shape, np.nan)
        log_odds[at], probability[at] = scores[c.LOG_ODDS].to_numpy(), scores[c.NOISE_PROBABILITY].to_numpy()
        flagged = deciding.decide(log_odds, probability, policy, eta, cap)
        return scores.filter(pl.Series(flagged[at]))

    def rule(self, policy: str | None, eta: float | None, cap: int | None, is_train: bool) -> tuple[str, float, int]:
        """(policy, η, cap) in force: what is given here goes before config.decide."""
        if policy == deciding.VALIDATION:
            raise ConfigError(
                "The policy 'validation' asks a recommender, so it is only for runs:  llm4dsr decide --run … --policy "
                f"validation. Here choose one of {', '.join(deciding.POLICIES)}; for the share that a run has chosen "
                "(tried.parquet beside its decisions), the policy 'rate' and that share."
            )
        rules = self.config.decide
        if policy is not None:
            rules = dataclasses.replace(rules, policy=policy)  # type: ignore[arg-type]
        if eta is not None:
            rules = dataclasses.replace(rules, eta=eta, eta_test=None)
        if cap is not None:
            rules = dataclasses.replace(rules, cap=cap, cap_test=None)
        return deciding.settings(rules, is_train)

    def suggest(self, histories: Any, decisions: pl.DataFrame, progress: Progress | None = None,
                target_fixed: bool = False, work: Path | None = None) -> pl.DataFrame:  # fmt: skip
        """One row per flagged interaction: what the model suggests in its place and how that item was found.
        target_fixed, work: as in `score`."""
        windows = as_windows(histories, self.catalogue)
        judged = windows.histories() if target_fixed else windows
        parts, origin = self._short(judged, self.width)
        if origin:
            here = into_windows(decisions, parts, origin)
            return out_of_windows(self.suggest(parts, here, progress, work=work), origin)
        flagged = matrix(decisions, judged, None)
        tables, done, total, shards = [self._suggestion_frame(judged, NOTHING)], 0, int(flagged.sum()), Shards(work)
        for replayed, _ in self._replay(windows, target_fixed, None):
            for share, members in self.ensemble.shares(judged.take(replayed)):
                rows_of = replayed[share]
                for rows in chunks(rows_of[flagged[rows_of].any(axis=1)]):
                    count = int(flagged[rows].sum())
                    step = progress and within(progress, done, count, total)
                    tables.append(self._suggestions(judged.take(rows), flagged[rows], members[0], step, shards))
                    done += count
                    if progress:
                        progress(done, total, "suggest")
        order = pl.DataFrame({c.WINDOW: windows.window_ids}).with_row_index("order")
        return pl.concat(tables).join(order, on=c.WINDOW).sort("order", c.POSITION).drop("order")

    def _suggestions(self, part: Windows, flagged: BoolArray, member: int, progress: Progress | None,
                     shards: Shards) -> pl.DataFrame:  # fmt: skip
        def write() -> pl.DataFrame:
            model = self.ensemble.models[member]
            found = suggest(model, self.builder, part, flagged, self.catalogue, self.config, self.blend, progress)
            return self._suggestion_frame(part, found)

        key = (*self.ensemble.key(part, shards), member, flagged, part.window_ids, self.blend, self.config.suggest)
        return shards.table(key, write)

    def _suggestion_frame(self, windows: Windows, found: Suggestions) -> pl.DataFrame:
        return pl.DataFrame(
            {
                c.WINDOW: windows.window_ids[found.rows],
                c.POSITION: found.positions,
                c.SUGGESTED: self.catalogue.ids_of(found.items),
                c.SUGGESTED_TITLE: self.catalogue.titles_of(found.items),
                c.GENERATED: pl.Series(found.generated, dtype=pl.String),
                c.GROUNDING: pl.Series(found.grounding, dtype=pl.String),
                c.DISTANCE: found.distance,
            }
        )

    def correct(self, histories: Any, decisions: pl.DataFrame | None = None, suggestions: pl.DataFrame | None = None,
                action: str | None = None, target_fixed: bool = False) -> correcting.Corrected:  # fmt: skip
        """Corrected histories and the list of edits. Scores, decides and suggests where that was not done before.

        action: replace, drop or downweight (config.correct.action). target_fixed: the last item of each history is an
        evaluation target: it is neither scored nor changed.
        """
        windows = as_windows(histories, self.catalogue)
        action = action or self.config.correct.action
        if decisions is None:
            decisions = self.decide(self.score(windows, target_fixed=target_fixed), is_train=not target_fixed)
        if suggestions is None and action == "replace":
            suggestions = self.suggest(windows, decisions, target_fixed=target_fixed)
        return correcting.apply(windows, decisions, suggestions, self.catalogue, action, target_fixed)

    # -- save and load -----------------------------------------------------------------------------------------------

    def save_pretrained(self, folder: str | Path) -> None:
        """Weights (safetensors), tokenizer, catalogue, calibration, configuration and versions, in one folder."""
        folder = Path(folder)
        for model, place in zip(self.ensemble.models, self._places(folder), strict=True):
            model.save(place)
        write_parquet(self.catalogue.to_frame(), folder / "items.parquet")
        write_parquet(pl.DataFrame({"hash": self.ensemble.seen}), folder / "users.parquet")
        if self.builder.company is not None:
            self.builder.company.save(folder)
        card = {
            "format": FORMAT, "prompt_hash": self.builder.hash, "curve": self.curve,
            "width": self.width, "calibrator": dataclasses.asdict(self.calibrator),
            "blend": dataclasses.asdict(self.blend),
            "config": self.config.to_dict(), "versions": versions(),
        }  # fmt: skip
        (folder / CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Denoiser:
        """Raises ModelError where the folder holds no denoiser, or one of another format."""
        folder = Path(folder)
        if not (folder / CARD).is_file():
            raise ModelError(
                f"{folder} holds no {CARD}: not a saved denoiser. Give a folder written by save_pretrained."
            )
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        if card["format"] != FORMAT:
            raise ModelError(
                f"{folder} has the format {card['format']}; this version reads {FORMAT}. Tune the model again."
            )
        out = cls(Config.from_dict(card["config"], str(folder / CARD)))
        out.width = card["width"]
        out.calibrator, out.curve = calibrate.Calibrator(**card["calibrator"]), card["curve"]
        out.blend, seen = (
            Blend(**card["blend"]),
            pl.read_parquet(folder / "users.parquet", glob=False)["hash"].to_numpy(),
        )
        catalogue = Catalogue.from_frame(pl.read_parquet(folder / "items.parquet", glob=False))
        models = [NoiseLM.load(place, out.config.model).eval() for place in out._places(folder)]
        with_company = out.config.model.items == "vector" and out.config.model.company
        builder = PromptBuilder(
            models[0].tokenizer, catalogue.titles, out.config.model, out.config.train.max_tokens,
            Company.load(folder) if with_company else None,
        )  # fmt: skip
        out._ensemble = Ensemble(models, builder, catalogue, out.config, seen)
        if builder.hash != card["prompt_hash"]:
            raise ModelError(f"{folder} was tuned with another prompt ({card['prompt_hash']}). Tune the model again.")
        return out

    def _places(self, folder: Path) -> list[Path]:
        folds = self.config.train.folds
        return [folder] if folds <= 1 else [folder / f"fold_{k}" for k in range(folds)]

    # -- parts -------------------------------------------------------------------------------------------------------

    @property
    def ensemble(self) -> Ensemble:
        """The tuned models. Raises ModelError where there are none yet."""
        if self._ensemble is None:
            raise ModelError(
                "This denoiser has not been fitted. Call fit(histories, items), or load one with from_pretrained."
            )
        return self._ensemble

    @property
    def model(self) -> NoiseLM:
        return self.ensemble.models[0]

    @property
    def builder(self) -> PromptBuilder:
        return self.ensemble.builder

    @property
    def catalogue(self) -> Catalogue:
        return self.ensemble.catalogue


def untuned(config: Config, catalogue: Catalogue, windows: Windows, vectors: Any, company: Company | None, seed: int,
            progress: Progress | None = None, begun: bool = False) -> tuple[NoiseLM, PromptBuilder]:  # fmt: skip
    """A model that is ready to be tuned, and the builder of its prompts. begun: a checkpoint has its weights."""
    if config.model.source == EMBEDDED:
        lm, tokenizer = embedded_lm(catalogue.titles, config.model, config.train.max_tokens, seed)
    else:
        lm, tokenizer = load_lm(config.model.source, config.model)
    with seeded(seed):
        model = NoiseLM(lm, tokenizer, vectors, company is not None, judged_in_place(config.model))
        model = model.to(pick_device())
        builder = PromptBuilder(tokenizer, catalogue.titles, config.model, config.train.max_tokens, company)
        if config.model.source == EMBEDDED and config.model.items == "text" and not begun:
            warm_up(model, builder, windows, config, progress)
        if config.model.tuning == "lora" and not hasattr(model.lm, "peft_config"):
            model.lm = add_lora(model.lm, config.model)
    return model, builder
