"""The stages, each from the run folder to the run folder, so that each can be run, inspected and repeated alone.

    prepare → train → score → decide → suggest → correct → evaluate

A stage writes into a hidden folder that is renamed when all of it is there: a stage is whole or absent. What a long
stage has finished so far is kept in `.work/` until then, so that the same command goes on wherever it was stopped. One
process at a time works on a run folder.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl
import torch
import yaml

from llm4dsr import columns as c
from llm4dsr import evaluate as evaluation
from llm4dsr.batch import Progress, log
from llm4dsr.catalogue import Windows
from llm4dsr.choose import shares_tried
from llm4dsr.company import user_hashes
from llm4dsr.config import Config
from llm4dsr.data import Data, limit_windows, read_data, write_parquet, write_text
from llm4dsr.decide import VALIDATION, asked
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import ConfigError, DataError, LLM4DSRError, OutputError
from llm4dsr.recommenders import NAMES
from llm4dsr.report import result_table
from llm4dsr.shards import digest, versions
from llm4dsr.validate import validate

STAGES = ("prepare", "train", "score", "decide", "suggest", "correct", "evaluate")
FOLDERS = {"prepare": "windows", "train": "model", "score": "scores", "decide": "decisions", "suggest": "suggestions",
           "correct": "corrected", "evaluate": "evaluation"}  # fmt: skip
# What a stage cannot do without. Suggestions are only for replacing; evaluation applies the decisions itself.
NEEDS = {name: [s for s in STAGES[: STAGES.index(name)] if s not in ("suggest", "correct")] for name in STAGES}
CARD, CONFIG = "run_card.json", "config.yaml"
TRIED = "tried.parquet"  # in decisions/: what each share gained on validation, where the policy is to choose one
WORK, LOCK = ".work", ".lock"
UNWRITABLE = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR,
    errno.ENAMETOOLONG,
}  # fmt: skip
FORMAT = 1  # of a run folder; another number is refused


def origin(data: str | Path | Data) -> str:
    """Where the data are from, for the run card."""
    if not isinstance(data, Data):
        return str(Path(data).resolve())
    windows = [part for w in data.splits.values() for part in (w.items, user_hashes(w.user_ids))]
    return f"in memory, {digest(data.catalogue.titles, data.catalogue.ids.to_list(), *windows)}"


def use_threads(config: Config) -> None:
    torch.set_num_threads(config.threads or os.cpu_count() or 1)


class Run:
    """A run folder: its configuration, its stages, its run card."""

    def __init__(self, folder: str | Path, config: Config | None = None) -> None:
        self.folder = Path(folder)
        stored = self.folder / CONFIG
        if config is None:
            if not stored.is_file():
                raise OutputError(
                    f"{self.folder} is not a run folder (no {CONFIG}). Start with:  llm4dsr prepare --data … --out …"
                )
            if (found := self.card().get("format", FORMAT)) != FORMAT:
                raise OutputError(f"{self.folder} has the format {found}; this version reads {FORMAT}. Run it anew.")
            config = Config.from_yaml(stored)
        self.config, self._held, self._origin = config, False, ""
        use_threads(config)

    @classmethod
    def create(cls, folder: str | Path, config: Config) -> Run:
        """A new run folder. Raises OutputError where it exists and is not empty."""
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} exists already. Choose another --out.")
        return cls(folder, config)

    @classmethod
    def begin(cls, folder: str | Path, config: Config, data: str | Path | Data) -> Run:
        """A new run folder, or the one that the same configuration and data have begun.

        Raises OutputError where the folder holds something else or a finished run,
        ConfigError where it was begun with other options."""
        folder = Path(folder)
        with _told(folder):
            there = {f.name for f in folder.iterdir()} if folder.is_dir() else None
        # Of a run that was stopped before its first stage was whole
        left = {f".{FOLDERS['prepare']}.part", WORK, LOCK, CONFIG, CARD}
        unwritten = re.compile(rf"\.({re.escape(CONFIG)}|{re.escape(CARD)})\.\d+\.part")
        if there is not None and all(name in left or unwritten.fullmatch(name) for name in there):
            return cls(folder, config)
        if there is None or CONFIG not in there:
            return cls.create(folder, config)
        going = cls(folder)
        begun, given = going.card().get("data"), origin(data)
        if going.config != config or begun != given:
            raise ConfigError(
                f"{folder} was begun with other options or data ({begun}). Give the same command to go on with it, or "
                "choose another --out."
            )
        if all(going.done(name) for name in STAGES):
            raise OutputError(f"{folder} exists already and is finished. Choose another --out.")
        return going

    def path(self, stage: str) -> Path:
        return self.folder / FOLDERS[stage]

    def done(self, stage: str) -> bool:
        return self.path(stage).is_dir()

    @contextlib.contextmanager
    def stage(self, name: str, overwrite: bool = False) -> Iterator[tuple[Path, dict[str, Any]]]:
        """(folder to write into, facts for the run card). The stage appears whole, or not at all; with overwrite the
        later stages, which were made from the old one, are removed."""
        for earlier in NEEDS[name]:
            if not self.done(earlier):
                raise OutputError(
                    f"{self.folder} has no {FOLDERS[earlier]}/ yet, which {name} needs. "
                    f"Run:  llm4dsr {earlier} --run {self.folder}"
                )
        if self.done(name) and not overwrite:
            raise OutputError(f"{self.path(name)} exists already. Add --overwrite to make it again.")
        part, work = self.folder / f".{FOLDERS[name]}.part", self.work(name)
        facts: dict[str, Any] = {}
        started = time.monotonic()
        with self.alone(), _told(self.folder):
            for leftover in (
                part,
                *self.folder.glob(".*.old"),
                *(self.work(other) for other in STAGES if other != name and self.done(other)),
            ):
                shutil.rmtree(leftover, ignore_errors=True)
            part.mkdir(parents=True)
            try:
                yield part, facts
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            for later in reversed(STAGES[STAGES.index(name) :]):
                if self.done(later):  # out of sight at once, and then removed: never half of it in its place
                    gone = self.folder / f".{FOLDERS[later]}.old"
                    shutil.rmtree(gone, ignore_errors=True)
                    os.replace(self.path(later), gone)
            if name == "prepare":
                write_text(self.folder / CONFIG, yaml.safe_dump(_plain(self.config.to_dict()), sort_keys=False))
            facts = {"seconds": round(time.monotonic() - started, 1), "peak_memory_mb": peak_memory_mb(), **facts}
            self._card(name, facts)
            os.replace(part, self.path(name))
            for old in (work, *self.folder.glob(".*.old")):
                shutil.rmtree(old, ignore_errors=True)

    def work(self, stage: str) -> Path:
        """What a stage has finished so far."""
        return self.folder / WORK / stage

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the run folder, so that no other process works on it. The system lets go of it when the process ends,
        however it ends. Raises OutputError that names the holder."""
        if self._held:
            yield
            return
        made = not self.folder.exists()
        with _told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / LOCK).open("a+", encoding="utf-8")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise OutputError(
                    f"{self.folder} is in use by {file.read() or 'another process'}. Wait for it, stop it, or choose "
                    "another folder."
                ) from None
            except OSError as error:
                raise OutputError(
                    f"{self.folder} cannot be locked: {error}. Choose a folder on another disk."
                ) from None
            with _told(self.folder):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()}")
                file.flush()
            self._held = True
            try:
                yield
            finally:
                self._held = False
                if made and [f.name for f in self.folder.iterdir()] == [LOCK]:
                    shutil.rmtree(self.folder, ignore_errors=True)

    def _card(self, name: str, facts: dict[str, Any]) -> None:
        card = self.card()
        card |= {
            "format": FORMAT,
            "data": self._origin or card.get("data"),
            "config": self.config.to_dict(),
            "seed": self.config.seed,
            "versions": versions(),
            "command": " ".join(sys.argv),
        }
        stages = card.setdefault("stages", {})
        for later in STAGES[STAGES.index(name) :]:
            stages.pop(later, None)
        stages[name] = facts
        write_text(self.folder / CARD, json.dumps(card, indent=1))

    def card(self) -> dict[str, Any]:
        path = self.folder / CARD
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    # -- stages ------------------------------------------------------------------------------------------------------

    def make(self, stage: str, data: str | Path | Data, progress: Progress | None = None) -> None:
        """One of STAGES, as the configuration has it. data: what `prepare` reads."""
        if stage == "prepare":
            self.prepare(data)
        elif stage == "correct":
            self.correct()
        else:
            getattr(self, stage)(progress)

    def prepare(self, data: str | Path | Data, overwrite: bool = False) -> None:
        self._origin = origin(data)
        with self.stage("prepare", overwrite) as (out, facts):
            loaded = data if isinstance(data, Data) else _checked(data, facts)
            if self.config.limit:
                limited = {k: limit_windows(w, self.config.limit, self.config.seed) for k, w in loaded.splits.items()}
                loaded = Data(loaded.catalogue, limited, loaded.report)
            loaded.write(out)
            facts |= {"items": len(loaded.catalogue), "dropped": loaded.report,
                      "windows": {k: len(w) for k, w in loaded.splits.items()}}  # fmt: skip

    def train(self, progress: Progress | None = None, overwrite: bool = False) -> None:
        with self.stage("train", overwrite) as (out, facts):
            data = self.data()
            denoiser = Denoiser(self.config).fit(
                data.splits[c.TRAIN], data.catalogue, data.splits[c.VALID].histories(), progress, self.work("train")
            )
            denoiser.save_pretrained(out)
            facts |= {
                "loss": denoiser.curve,
                "prompt_hash": denoiser.builder.hash,
                "noise_rate_estimate": denoiser.calibrator.noise_rate,
                "ece_before": denoiser.calibrator.ece_before,
                "ece_after": denoiser.calibrator.ece_after,
                "parameters": sum(p.numel() for p in denoiser.model.parameters()),
                "blend": asdict(denoiser.blend),
            }

    def score(self, progress: Progress | None = None, overwrite: bool = False) -> None:
        with self.stage("score", overwrite) as (out, facts):
            denoiser = Denoiser.from_pretrained(self.path("train"))
            for name, windows in self._in_time(denoiser):
                scores = denoiser.score(
                    windows, progress, target_fixed=name != c.TRAIN, recalibrate=True, work=self.work("score")
                )
                write_parquet(scores, out / f"{name}.parquet")
                facts[name] = len(scores)
            facts["train_scores"] = "out of fold" if self.config.train.folds > 1 else "in sample"

    def decide(self, progress: Progress | None = None, policy: str | None = None, eta: float | None = None,
               cap: int | None = None, overwrite: bool = False) -> None:  # fmt: skip
        with self.stage("decide", overwrite) as (out, facts):
            denoiser = Denoiser(self.config)  # deciding reads scores and configuration; no model is loaded
            policy = asked(policy, eta, self.config.decide.policy)
            if policy == VALIDATION:
                tried = shares_tried(self, cap, progress)
                write_parquet(tried, out / TRIED)
                facts["tried"] = tried.to_dicts()
                policy, eta = "rate", tried.filter("chosen")["share"][0]
            for name, scores in self.scores().items():
                rule = denoiser.rule(policy, eta, cap, is_train=name == c.TRAIN)
                flagged = denoiser.decide(scores, *rule)
                write_parquet(flagged, out / f"{name}.parquet")
                mean = flagged[c.NOISE_PROBABILITY].mean()
                facts[name] = {
                    "flagged": len(flagged),
                    "share": len(flagged) / max(1, len(scores)),
                    "expected_precision": mean,
                    "policy": rule[0],
                    "eta": rule[1],
                    "cap": rule[2],
                }

    def suggest(self, progress: Progress | None = None, overwrite: bool = False) -> None:
        with self.stage("suggest", overwrite) as (out, facts):
            for name, found in self.suggested(self.decisions(), progress, self.work("suggest")):
                write_parquet(found, out / f"{name}.parquet")
                facts[name] = dict(found[c.GROUNDING].value_counts().iter_rows())

    def correct(self, action: str | None = None, overwrite: bool = False) -> None:
        action = action or self.config.correct.action
        with self.stage("correct", overwrite) as (out, facts):
            if action == "replace" and not self.done("suggest"):
                raise OutputError(
                    f"{self.folder} has no {FOLDERS['suggest']}/ yet, which replacing needs. "
                    f"Run:  llm4dsr suggest --run {self.folder}   or correct with --action drop."
                )
            data, tables = self.data(), self.tables()
            for name, windows in data.splits.items():
                result = evaluation.corrected(
                    name, windows, tables, data.catalogue, action, self.config.correct.train_targets
                )
                write_parquet(result.windows.to_frame(data.catalogue), out / f"{name}.parquet")
                write_parquet(result.edits, out / f"{name}_edits.parquet")
                facts[name] = {
                    "windows": len(result.windows),
                    "edits": dict(result.edits[c.ACTION].value_counts().iter_rows()),
                }

    def evaluate(self, progress: Progress | None = None, overwrite: bool = False, seeds: int | None = None) -> str:
        """Returns the result table as text."""
        settings = replace(self.config.evaluate, seeds=seeds or self.config.evaluate.seeds)
        with self.stage("evaluate", overwrite) as (out, facts):
            data, tables, scores = self.data(), self.tables(), self.scores()
            actions: tuple[str, ...] = ("replace", "drop") if tables.suggestions else ("drop",)
            if self.config.correct.action == "downweight":
                actions += ("downweight",)
            found = {
                name: evaluation.detection(scores[name], tables.decisions[name], w)
                for name, w in data.splits.items()
                if _has_truth(w)
            }
            compared = evaluation.rows(data.splits, tables, data.catalogue, actions, self.config.correct.train_targets)
            results = evaluation.compare(compared, data.catalogue, settings, self.config.seed, progress,
                                         self.work("evaluate"))  # fmt: skip
            facts["seconds_of_each"] = results["seconds"].to_list()
            results = results.drop("seconds", "ranks", "valid_ranks")  # the files are the same whenever they are made
            lines = evaluation.summary(results)
            write_parquet(results, out / "results.parquet")
            write_parquet(lines, out / "summary.parquet")
            text = result_table(lines, found, NAMES[settings.backbone], settings.k, settings.seeds)
            write_text(out / "results.md", text)
            facts |= {"detection": found, "summary": lines.to_dicts(), "recommender": asdict(settings.recommender)}
        return text

    # -- what stages read --------------------------------------------------------------------------------------------

    def data(self) -> Data:
        return read_data(self.path("prepare"))

    def _in_time(self, denoiser: Denoiser) -> Iterator[tuple[str, Windows]]:
        """The splits, oldest first. Once a split is done it is known; what is later never is."""
        splits = self.data().splits
        for name in c.SPLITS:
            yield name, splits[name]
            if name == c.VALID:
                denoiser.observe(splits[name])

    def suggested(self, decisions: dict[str, pl.DataFrame], progress: Progress | None = None,
                  work: Path | None = None) -> Iterator[tuple[str, pl.DataFrame]]:  # fmt: skip
        """Split by split, what the tuned model suggests for these decisions, the run's own or others."""
        denoiser = Denoiser.from_pretrained(self.path("train"))
        denoiser.config = replace(denoiser.config, suggest=self.config.suggest)
        for name, windows in self._in_time(denoiser):
            yield name, denoiser.suggest(windows, decisions[name], progress, target_fixed=name != c.TRAIN, work=work)

    def scores(self) -> dict[str, pl.DataFrame]:
        return self._of_splits("score")

    def decided(self, policy: str, eta: float, cap: int | None = None,
                scores: dict[str, pl.DataFrame] | None = None) -> dict[str, pl.DataFrame]:  # fmt: skip
        """What other decisions than the run's would flag in each split, by its scores or those given."""
        denoiser = Denoiser(self.config)
        scores = self.scores() if scores is None else scores
        return {n: denoiser.decide(s, policy, eta, cap, is_train=n == c.TRAIN) for n, s in scores.items()}

    def decisions(self) -> dict[str, pl.DataFrame]:
        return self._of_splits("decide")

    def tables(self) -> evaluation.Tables:
        return evaluation.Tables(self.decisions(), self._of_splits("suggest") if self.done("suggest") else {})

    def _of_splits(self, stage: str) -> dict[str, pl.DataFrame]:
        return {name: pl.read_parquet(self.path(stage) / f"{name}.parquet", glob=False) for name in c.SPLITS}


def _has_truth(windows: Windows) -> bool:
    """True where a noise mask with both kinds is known for what is judged."""
    if windows.noise_mask is None:
        return False
    inner = windows.histories()
    assert inner.noise_mask is not None
    known = inner.noise_mask[inner.present]
    return bool(known.any() and not known.all())


def _plain(value: Any) -> Any:
    """Tuples as lists: safe YAML knows no tuples."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _checked(path: str | Path, facts: dict[str, Any]) -> Data:
    """Data that hold no error; what their user should know is said, and counted for the run card. Raises DataError."""
    loaded, report = read_data(path), validate(path, read=False)
    if report.errors:
        said = " ".join(f"{finding.text} {finding.advice}" for finding in report.errors[:3])
        raise DataError(f"{said} For all that was found:  llm4dsr data validate {path}")
    facts["warnings"] = {finding.code: finding.count for finding in report.warnings}
    if report.warnings:
        log.warning("%d warning(s) about the data. To see them:  llm4dsr data validate %s", len(report.warnings), path)
    return loaded


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What the system says of a full or closed disk, as an error for people."""
    try:
        yield
    except LLM4DSRError:
        raise
    except Exception as error:  # tokenizers and safetensors have kinds of their own for what the system says
        written = error.errno in UNWRITABLE if isinstance(error, OSError) else "os error" in str(error)
        if not written:
            raise
        raise OutputError(
            f"{folder} cannot be written to: {error}. Free some space or choose another folder; the same command then "
            "goes on where it stopped."
        ) from error


def peak_memory_mb() -> int:
    """Largest resident size of this process so far, in MB. Linux counts a child's ru_maxrss from that of the process
    that started it, so it is read from elsewhere there; on macOS ru_maxrss is in bytes."""
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.M)):
        return int(found[1]) // 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform != "darwin" else 1024**2)
