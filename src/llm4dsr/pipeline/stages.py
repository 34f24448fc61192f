"""The stages of a run: prepare → train → score → decide → suggest → correct → evaluate.

Each stage reads Parquet from the run folder and writes Parquet into it. How a folder is locked, resumed and described
is in `run_folder.py`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import Any

import polars as pl

from llm4dsr import columns as c
from llm4dsr.config import CorrectConfig
from llm4dsr.core.distributed import process_count
from llm4dsr.core.io import write_parquet, write_text
from llm4dsr.core.progress import Progress
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import limit_windows
from llm4dsr.denoise.decide import VALIDATION, effective_policy
from llm4dsr.denoise.labels import rates_by_labels
from llm4dsr.denoise.tables import probabilities
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import OutputError
from llm4dsr.evaluate.detection import detection_metrics, has_truth
from llm4dsr.evaluate.popularity import ndcg_by_target, target_users
from llm4dsr.evaluate.rate_selection import candidates, flag_cap, try_candidates
from llm4dsr.evaluate.result_table import result_table
from llm4dsr.evaluate.rows import DecisionTables, compared_rows, correct_split
from llm4dsr.evaluate.summary import summarize
from llm4dsr.evaluate.train_and_evaluate import train_and_evaluate
from llm4dsr.pipeline.deciding import REVIEWED, check_policy, flag_splits, overruled, replaced_as_reviewed
from llm4dsr.pipeline.inputs import Check, inputs_of, load_start, origin, read_checked
from llm4dsr.pipeline.run_folder import FOLDERS
from llm4dsr.pipeline.run_tables import MAPS, RunTables
from llm4dsr.recommenders import NAMES, SEEDLESS

BY_TARGET = "by_target.parquet"  # in evaluation/: NDCG for rare and for frequent targets
TRIED = "tried.parquet"  # in decisions/: what each candidate gained on validation, for the policy `validation`


class Run(RunTables):
    """A run: a run folder with the stages that fill it.

    Examples
    --------
    A whole run on the embedded demo data; the same code resumes it after an interruption::

        data = make_demo().data
        run = Run.begin("runs/demo", Config.from_yaml("demo"), data)
        for stage in STAGES:
            if not run.done(stage):
                run.make(stage, data)
    """

    def make(self, stage: str, data: str | Path | Dataset, progress: Progress | None = None) -> None:
        """Run one of STAGES as configured.

        Parameters
        ----------
        stage : str
            One of STAGES.
        data : str, Path or Dataset
            What `prepare` reads; other stages ignore it.
        progress : Progress, optional
            Called with (steps done, all steps, what is being done).
        """
        if stage == "prepare":
            self.prepare(data)
        elif stage == "correct":
            self.correct()
        else:
            getattr(self, stage)(progress)

    def prepare(self, data: str | Path | Dataset, overwrite: bool = False, check: Check = lambda _: None) -> None:
        """Read the data, check them, and write windows/. What `check` raises of the windows stops the run before that.

        Raises
        ------
        DataError
            If the data cannot be used.
        """
        self._origin, self._inputs = origin(data), inputs_of(data)
        with self.stage("prepare", overwrite) as (out, facts):
            loaded = data if isinstance(data, Dataset) else read_checked(data, facts)
            if self.config.limit:
                limited = {k: limit_windows(w, self.config.limit, self.config.seed) for k, w in loaded.splits.items()}
                loaded = Dataset(loaded.catalogue, limited, loaded.report)
            check(loaded)
            loaded.write(out)
            facts |= {"items": len(loaded.catalogue), "dropped": loaded.report}
            facts["windows"] = {k: len(w) for k, w in loaded.splits.items()}

    def train(
        self,
        progress: Progress | None = None,
        overwrite: bool = False,
        start: Path | None = None,
        labels: pl.DataFrame | None = None,
    ) -> None:
        """Tune the language model, calibrate on validation, and write model/; `start` and `labels` as in `fit`."""
        with self.stage("train", overwrite) as (out, facts):
            processes = process_count()
            denoiser, told = self._fitted(progress, start, labels)
            denoiser.save_pretrained(out)
            facts |= told | {
                "labels": 0 if labels is None else len(labels),
                "processes": processes,
                "loss": denoiser.curve,
                "prompt_hash": denoiser.builder.hash,
                "calibration": denoiser.calibrator.uncalibrated or self.config.score.calibration,
                "noise_rate_estimate": denoiser.calibrator.noise_rate,
                "noise_rate_interval": [denoiser.calibrator.rate_low, denoiser.calibrator.rate_high],
                "ece_before": denoiser.calibrator.ece_before,
                "ece_after": denoiser.calibrator.ece_after,
                "parameters": sum(p.numel() for p in denoiser.model.parameters()),
                "ranking_weights": asdict(denoiser.ranking_weights),
            }

    def tune_along(self, start: Path | None = None, labels: pl.DataFrame | None = None) -> None:
        """Share the tuning of `train`, which the first of several processes runs; write nothing."""
        self.need("prepare", by="train")
        self._fitted(None, start, labels)

    def _fitted(
        self, progress: Progress | None, start: Path | None, labels: pl.DataFrame | None
    ) -> tuple[Denoiser, dict[str, Any]]:
        """The denoiser of the run, and what the card tells of its start."""
        data, (former, told) = self.data(), load_start(start, self.card())
        train, valid = data.splits[c.TRAIN], data.splits[c.VALID].histories()
        fitted = Denoiser(self.config).fit(train, data.catalogue, valid, progress, self.work("train"), former, labels)
        return fitted, told

    def score(self, progress: Progress | None = None, overwrite: bool = False) -> None:
        """Score every interaction of every split and write scores/."""
        with self.stage("score", overwrite) as (out, facts):
            denoiser, maps = Denoiser.from_pretrained(self.verified("train")), {}
            self.score_ahead(denoiser, progress)
            for name, windows, earlier in self.in_time():
                scores, used = denoiser.score_and_map(
                    windows, progress, name != c.TRAIN, True, self.work("score"), earlier, keep=self.work("suggest")
                )
                write_parquet(scores, out / f"{name}.parquet")
                maps[name] = asdict(used)
                facts[name] = len(scores)
            write_text(out / MAPS, json.dumps(maps))
            facts["train_scores"] = "out of fold" if self.config.train.folds > 1 else "in sample"

    def calibrate(self, labels: pl.DataFrame) -> tuple[float, float]:
        """Fit the noise rate to labeled interactions and write scores/ again; no model is asked.

        Parameters
        ----------
        labels : DataFrame
            `split`, `window_id`, `position`, and `is_noise` (0 or 1).

        Returns
        -------
        low, high : float
            The new interval of the noise rate, over all kinds of noise; the same for all splits.

        Raises
        ------
        DataError
            If the labels cannot be used.
        """
        scores, maps, facts_before = self.scores(), self.maps(), self.facts("score")
        rates = rates_by_labels(labels, scores, maps)
        with self.stage("score", overwrite=True) as (out, facts):
            maps = {name: fitted.with_rates(rates) for name, fitted in maps.items()}
            told = maps[c.TRAIN].rate_low, maps[c.TRAIN].rate_high
            facts |= facts_before | {"labels": len(labels), "noise_rate_interval": list(told)}
            for name, table in scores.items():
                found = probabilities(table[c.LOG_ODDS].to_numpy(), maps[name])
                write_parquet(table.with_columns(**found), out / f"{name}.parquet")
            write_text(out / MAPS, json.dumps({n: asdict(m) for n, m in maps.items()}))
        return told

    def decide(
        self,
        progress: Progress | None = None,
        policy: str | None = None,
        eta: float | None = None,
        cap: int | None = None,
        overwrite: bool = False,
        goal: str | None = None,
        labels: pl.DataFrame | None = None,
        reviewed: pl.DataFrame | None = None,
    ) -> None:
        """Flag interactions as noise and write decisions/.

        Parameters
        ----------
        progress : Progress, optional
            Called with (steps done, all steps, what is being done).
        policy, eta, cap : optional
            Given here, they override `config.decide`. With the policy `validation`, correction rates and actions are
            tried with two recommenders, and the best on validation is used (`rate_selection.py`). `false-flag-rate`,
            `missed-noise-rate` and `top` read η as `denoise/decide.py` tells.
        overwrite : bool, default False
            Decide again.
        goal : {"denoise", "impute"}, optional
            What `validation` tries. Default: `config.decide.goal`.
        labels : DataFrame, optional
            Labels of a random sample, as in `calibrate`, for `false-flag-rate`.
        reviewed : DataFrame, optional
            Reviewed interactions, as in `calibrate`, which overrule all else. `replacement_item_id`, if there is such a
            column, overrules the suggestion.
        """
        policy = effective_policy(policy, eta, self.config.decide.policy, goal)
        check_policy(policy, labels)
        with self.stage("decide", overwrite) as (out, facts):
            if policy == VALIDATION:
                goal = goal or self.config.decide.goal
                cap = flag_cap(goal, self.data().splits) if cap is None else cap
                tried = self.try_candidates(goal, cap, progress)
                write_parquet(tried, out / TRIED)
                best = tried.filter("chosen").row(0, named=True)
                facts |= {"goal": goal, "tried": tried.to_dicts()}
                chosen = {"action": best["action"], "histories": best["histories"]}
                facts |= {} if best["action"] == c.KEEP else chosen
                policy, eta = "rate", best["correction_rate"]
            scores = self.scores()
            found = flag_splits(self.config, scores, self.maps(), policy, eta, cap, labels)
            if reviewed is not None:
                found = overruled(found, scores, reviewed, self.data().catalogue)
                write_parquet(reviewed, out / REVIEWED)
            for name, flagged, told in found:
                write_parquet(flagged, out / f"{name}.parquet")
                facts[name] = told

    def try_candidates(self, goal: str, cap: int | None, progress: Progress | None) -> pl.DataFrame:
        """Compare corrections on validation; parts are left where suggest and evaluate look for them."""
        config, data, scores = self.config, self.data(), self.scores()
        work = {stage: self.work("decide" if self.done(stage) else stage) for stage in ("suggest", "evaluate")}

        def tables_at(rate: float) -> DecisionTables:
            decisions = self.decided("rate", rate, cap, scores)
            return DecisionTables(decisions, dict(self.suggested(decisions, progress, work["suggest"])))

        tried = candidates(goal, self.maps()[c.TRAIN].noise_rate, config.correct.histories)
        rates = dict.fromkeys(one.rate for one in tried if one.action != c.KEEP)
        self.suggest_ahead((self.decided("rate", rate, cap, scores) for rate in rates), progress, work["suggest"])
        settings = config.evaluate.neighborhood, config.correct, config.seed
        return try_candidates(data.splits, tried, tables_at, data.catalogue, *settings, progress, work["evaluate"])

    def suggest(self, progress: Progress | None = None, overwrite: bool = False) -> None:
        """Suggest a replacement for each flagged interaction and write suggestions/."""
        with self.stage("suggest", overwrite) as (out, facts):
            path, catalogue = self.verified("decide") / REVIEWED, self.data().catalogue
            decisions, work = self.decisions(), self.work("suggest")
            self.suggest_ahead([decisions], progress, work)
            for name, found in self.suggested(decisions, progress, work):
                if path.is_file():
                    found = replaced_as_reviewed(found, pl.read_parquet(path), name, catalogue)
                write_parquet(found, out / f"{name}.parquet")
                facts[name] = dict(found[c.GROUNDING].value_counts().iter_rows())

    def correct(self, action: str | None = None, overwrite: bool = False, histories: bool | None = None) -> None:
        """Write corrected/: corrected windows, and one edit per flagged interaction.

        Parameters
        ----------
        action : {"replace", "drop", "mixed", "downweight"}, optional
            Default: chosen on validation, else `config.correct.action`.
        overwrite : bool, default False
            Correct again.
        histories : bool, optional
            Correct histories of validation and test too. Default: chosen on validation, else as configured.
        """
        how = self.chosen_correction
        action, histories = action or how.action, how.histories if histories is None else histories
        how = replace(how, action=action, histories=histories)  # type: ignore[arg-type]
        with self.stage("correct", overwrite) as (out, facts):
            facts |= {"action": action, "histories": histories}
            if action in c.WITH_SUGGESTIONS and not self.done("suggest"):
                raise OutputError(
                    f"{self.folder} has no {FOLDERS['suggest']}/ yet, which replacing needs. "
                    f"Run:  llm4dsr suggest --run {quote(str(self.folder))}   or correct with --action drop."
                )
            data, tables = self.data(), self.tables()
            for name, windows in data.splits.items():
                result = correct_split(name, windows, tables, data.catalogue, how)
                write_parquet(result.windows.to_frame(data.catalogue), out / f"{name}.parquet")
                write_parquet(result.edits, out / f"{name}_edits.parquet")
                edits = dict(result.edits[c.ACTION].value_counts().iter_rows())
                facts[name] = {"windows": len(result.windows), "edits": edits}

    def evaluate(self, progress: Progress | None = None, overwrite: bool = False, seeds: int | None = None) -> str:
        """Train a recommender on original, corrected and oracle windows, and write evaluation/.

        Corrected windows are those of the configured action, and of dropping.

        Parameters
        ----------
        progress : Progress, optional
            Called with (steps done, all steps, what is being done).
        overwrite : bool, default False
            Evaluate again.
        seeds : int, optional
            Seeds of the recommender. Default: `config.evaluate.seeds`. A recommender without a seed is trained once.

        Returns
        -------
        str
            The result tables as Markdown.
        """
        settings = replace(self.config.evaluate, seeds=seeds or self.config.evaluate.seeds)
        with self.stage("evaluate", overwrite) as (out, facts):
            data, tables, scores, how = self.data(), self.tables(), self.scores(), self.correction
            actions = dict.fromkeys((how.action, "drop"))  # the action in force first
            actions = {a: None for a in actions if tables.suggestions or a not in c.WITH_SUGGESTIONS}
            found = {
                name: detection_metrics(scores[name], tables.decisions[name], w)
                for name, w in data.splits.items()
                if has_truth(w)
            }
            compared = compared_rows(data.splits, tables, data.catalogue, tuple(actions), how)
            results = train_and_evaluate(compared, data.catalogue, settings, self.config.seed, progress,
                                         self.work("evaluate"))  # fmt: skip
            facts["seconds_of_each"] = results["seconds"].to_list()
            lines = summarize(results, settings.k)
            users = target_users(data.splits[c.TRAIN], data.splits[c.TEST], len(data.catalogue))
            write_parquet(ndcg_by_target(results, users, settings.k), out / BY_TARGET)
            results = results.drop("seconds", "ranks", "valid_ranks", "users", "valid_users")  # no clock, no lists
            write_parquet(results, out / "results.parquet")
            write_parquet(lines, out / "summary.parquet")
            seedless = settings.backbone in SEEDLESS
            text = result_table(lines, found, NAMES[settings.backbone], settings.k, 0 if seedless else settings.seeds)
            write_text(out / "results.md", text)
            options = settings.neighborhood if seedless else settings.recommender
            facts |= {"detection": found, "summary": lines.to_dicts(), "recommender": asdict(options)}
        return text

    @property
    def chosen_correction(self) -> CorrectConfig:
        """Action and histories chosen on validation, else as configured."""
        return self._corrected_as("decide", self.config.correct)

    @property
    def correction(self) -> CorrectConfig:
        """Action and histories of the correction; before it, those which it would take."""
        return self._corrected_as("correct", self.chosen_correction)

    def _corrected_as(self, stage: str, otherwise: CorrectConfig) -> CorrectConfig:
        facts = self.facts(stage)
        return replace(otherwise, **{key: facts[key] for key in ("action", "histories") if key in facts})
