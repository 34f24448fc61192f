"""The run folder: its configuration, run card, lock, and the folders that its stages write.

A stage writes into a hidden folder that is renamed when it is complete, so a stage is whole or absent. Until then,
finished parts stay in `.work/`, and the same command resumes from them. One process at a time works on a run folder.
What the stages do is in `stages.py`.

Each stage ends with `stage.json`: checksums of its files, and of the stages that it was made from. They are checked
before anything is read, so a damaged file is an error, and never a wrong number.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from typing import Any, Self

from llm4dsr import columns as c
from llm4dsr.config import Config
from llm4dsr.core.device import use_threads
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import as_output_error, check_new_folder, sync_folder, write_text
from llm4dsr.core.lock import HOLDER, LOCK, locked_folder
from llm4dsr.core.manifest import DamageError, file_hash, read_manifest, read_sealed, write_manifest, write_sealed
from llm4dsr.core.memory import peak_memory_mb
from llm4dsr.data.dataset import Dataset
from llm4dsr.denoise.decide import NO_CAP, configured_rule
from llm4dsr.denoise.storage import saved_config
from llm4dsr.denoise.warm_start import check_start
from llm4dsr.errors import ConfigError, ModelError, OutputError
from llm4dsr.pipeline.inputs import MODEL, Inputs, check_inputs, origin, start_of, warn_of_versions

STAGES = ("prepare", "train", "score", "decide", "suggest", "correct", "evaluate")
FOLDERS = {
    "prepare": "windows",
    "train": MODEL,
    "score": "scores",
    "decide": "decisions",
    "suggest": "suggestions",
    "correct": "corrected",
    "evaluate": "evaluation",
}
# Stages that a stage reads from. Only replacing needs suggestions; evaluation applies the decisions itself.
NEEDS = {name: [s for s in STAGES[: STAGES.index(name)] if s not in ("suggest", "correct")] for name in STAGES}
CARD, CONFIG, MADE, REPORT = "run_card.json", "config.yaml", "stage.json", "report.html"
WORK = ".work"  # finished parts
FORMAT = 3  # of a run folder; other formats are refused


class RunFolder:
    """A run folder and its configuration.

    Parameters
    ----------
    folder : str or Path
        The folder. It need not exist if `config` is given.
    config : Config, optional
        The configuration. Default: the one stored in the folder.

    Raises
    ------
    OutputError
        If `config` is None and the folder holds no run, a damaged one, or one of another format.
    """

    def __init__(self, folder: str | Path, config: Config | None = None) -> None:
        self.folder = Path(folder)
        stored = self.folder / CONFIG
        if config is None:
            if not stored.is_file():
                raise OutputError(
                    f"{self.folder} is not a run folder (no {CONFIG}). Start with:  llm4dsr prepare --data … --out …"
                )
            self.card()
            self._check_config()
            config = Config.from_yaml(stored)
        self.config, self._held = config, False
        self._origin, self._inputs = "", Inputs()
        self._start: dict[str, str] | None = None
        use_threads(config.threads)

    @classmethod
    def create(cls, folder: str | Path, config: Config) -> Self:
        """Start a run in a new folder. Raises OutputError if it exists and is not empty."""
        folder = Path(folder)
        check_new_folder(folder)
        return cls(folder, config)

    @classmethod
    def begin(
        cls,
        folder: str | Path,
        config: Config,
        data: str | Path | Dataset,
        overwrite: bool = False,
        start: str | Path | None = None,
    ) -> Self:
        """Start a run in a new folder, or resume the one that the same configuration and data started there.

        Parameters
        ----------
        folder : str or Path
            The run folder.
        config : Config
            Options of the run.
        data : str, Path or Dataset
            What `prepare` reads.
        overwrite : bool, default False
            Take a run folder with other options or data, or a finished one, to make it again from `prepare` on.
        start : str or Path, optional
            A saved denoiser, or a run folder that holds one, that tuning starts from.

        Raises
        ------
        OutputError
            If the folder holds something else, or a finished run.
        ConfigError
            If the folder holds a run with other options or data, or the options do not fit `start`.
        ModelError
            If `start` is no saved denoiser.
        """
        folder, former = Path(folder), None if start is None else start_of(start)
        if former is not None:
            check_start(saved_config(Path(former["folder"])), config)
        with as_output_error(folder):
            there = {f.name for f in folder.iterdir()} if folder.is_dir() else None
        # Files of a run that was stopped before its first stage was complete
        left = {f".{FOLDERS['prepare']}.part", WORK, LOCK, HOLDER, CONFIG, CARD}
        unwritten = re.compile(rf"\.({re.escape(CONFIG)}|{re.escape(CARD)})\.\d+\.part")
        if there is not None and all(name in left or unwritten.fullmatch(name) for name in there):
            run = cls(folder, config)
        elif there is None or CONFIG not in there:
            run = cls.create(folder, config)
        else:
            run = cls(folder, config) if overwrite else cls._begun(folder, config, data, former)
        run._start = former
        return run

    @classmethod
    def _begun(cls, folder: Path, config: Config, data: str | Path | Dataset, former: dict[str, str] | None) -> Self:
        """The unfinished run that a folder holds, if it is of this configuration; errors as in `begin`."""
        run = cls(folder)
        begun, given = run.card().get("data"), origin(data)
        if run.config != config or begun != given or run.card().get("start") != former:
            raise ConfigError(
                f"{folder} holds a run with other options or data ({begun}), or that started from another "
                "model. Repeat its command to resume it, choose "
                "another --out, or replace it with:  llm4dsr prepare … --overwrite"
            )
        if all(run.done(name) for name in STAGES):
            raise OutputError(f"{folder} exists already and is finished. Choose another --out.")
        return run

    def path(self, stage: str) -> Path:
        """Return the folder of a stage."""
        return self.folder / FOLDERS[stage]

    def done(self, stage: str) -> bool:
        """Return whether a stage is complete."""
        return self.path(stage).is_dir()

    def need(self, *stages: str, by: str = "") -> None:
        """Raise OutputError if one of these stages, which the stage `by` needs, is not complete."""
        for name in stages:
            if not self.done(name):
                why = f", which {by} needs" if by else ""
                raise OutputError(
                    f"{self.folder} has no {FOLDERS[name]}/ yet{why}. Run:  llm4dsr {name} --run "
                    f"{quote(str(self.folder))}"
                )

    def work(self, stage: str) -> Path:
        """Return the folder of the finished parts of a stage."""
        return self.folder / WORK / stage

    def card(self) -> dict[str, Any]:
        """Read the run card: configuration, seed, versions, command, and facts of each stage.

        Raises
        ------
        OutputError
            If it is damaged, or of another format.
        """
        path = self.folder / CARD
        if not path.is_file():
            return {}
        with contextlib.suppress(ValueError, AttributeError):
            if (found := json.loads(path.read_bytes()).get("format", FORMAT)) != FORMAT:
                raise OutputError(f"{self.folder} has format {found}; this version reads {FORMAT}. Run it again.")
        try:
            return read_sealed(path)
        except DamageError as error:
            raise OutputError(f"{error}. {self._again('prepare')}") from None

    def facts(self, stage: str) -> dict[str, Any]:
        """Return the facts of a stage on the run card; empty if it was not made."""
        return dict(self.card().get("stages", {}).get(stage, {}))

    def cap(self, split: str) -> int:
        """Most flagged interactions in a window that the decision allowed."""
        facts = self.facts("decide").get(split, {})
        cap = facts.get("cap", configured_rule(self.config.decide, split == c.TRAIN)[2])
        return NO_CAP if cap is None else int(cap)

    def verified(self, stage: str) -> Path:
        """Return the folder of a complete stage, after checking each of its files.

        Raises
        ------
        ModelError
            If a file of `train` is missing or damaged.
        OutputError
            If a file of another stage is, or the stage was not made from the earlier stages that are here.
        """
        kind = ModelError if stage == "train" else OutputError
        try:
            made_from = read_manifest(self.path(stage), MADE)["made_from"]
            for earlier, expected in made_from.items():
                if file_hash(self.path(earlier) / MADE) != expected:
                    raise kind(f"{self.path(stage)} was made from another {FOLDERS[earlier]}/. {self._again(stage)}")
        except DamageError as error:
            raise kind(f"{error}. {self._again(stage)}") from None
        except OSError as error:
            raise kind(f"{error.filename} cannot be read: {error.strerror}. {self._again(stage)}") from None
        return self.path(stage)

    def _again(self, stage: str) -> str:
        where = "… --out" if stage == "prepare" else "--run"
        return f"Make it again:  llm4dsr {stage} {where} {quote(str(self.folder))} --overwrite"

    def _check_config(self) -> None:
        """Refuse a configuration that was changed after `prepare`, which no longer is that of the stages."""
        if not self.done("prepare"):
            return
        try:
            expected = read_sealed(self.path("prepare") / MADE)["config"]
        except DamageError as error:
            raise OutputError(f"{error}. {self._again('prepare')}") from None
        if file_hash(self.folder / CONFIG) != expected:
            raise OutputError(
                f"{self.folder / CONFIG} has changed since the run began. Restore it, or start another run with these "
                f"options:  llm4dsr run --config {quote(str(self.folder / CONFIG))} --data … --out …"
            )

    @contextlib.contextmanager
    def stage(self, name: str, overwrite: bool = False) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Open a stage for writing; it appears complete, or not at all.

        Parameters
        ----------
        name : str
            One of STAGES.
        overwrite : bool, default False
            Make a complete stage again. Later stages, which were made from it, are removed.

        Yields
        ------
        folder : Path
            Where to write.
        facts : dict
            Entries for the run card, filled by the caller.

        Raises
        ------
        OutputError
            If an earlier stage is missing or damaged, an input of the run has changed, the stage is complete already,
            or the disk cannot be written to.
        ModelError
            If the tuned model is damaged.
        """
        part, work = self.folder / f".{FOLDERS[name]}.part", self.work(name)
        facts: dict[str, Any] = {}
        started = time.monotonic()
        with self.locked(), as_output_error(self.folder):
            self._check_earlier(name, overwrite)
            facts |= self._changed_versions(name)
            finished = (self.work(other) for other in STAGES if other != name and self.done(other))
            is_scored_anew = self.done(name) and STAGES.index(name) <= STAGES.index("score")
            states = self.work("suggest").glob("*.part") if is_scored_anew else ()  # of former scores
            former = {path: path.stat().st_mtime_ns for path in states}
            for leftover in (part, *self.folder.glob(".*.old"), *finished):
                shutil.rmtree(leftover, ignore_errors=True)
            part.mkdir(parents=True)
            try:
                yield part, facts
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
            for later in reversed(STAGES[STAGES.index(name) :]):
                if self.done(later):  # renamed first, so that a stage is never half removed
                    gone = self.folder / f".{FOLDERS[later]}.old"
                    shutil.rmtree(gone, ignore_errors=True)
                    os.replace(self.path(later), gone)
            if name == "prepare":
                write_text(self.folder / CONFIG, self.config.to_yaml())
            self._write_manifest(name, part)
            facts = {"seconds": round(time.monotonic() - started, 1), "peak_memory_mb": peak_memory_mb(), **facts}
            self._write_card(name, facts)
            os.replace(part, self.path(name))
            (self.folder / REPORT).unlink(missing_ok=True)  # it shows what was there before
            sync_folder(self.folder)
            for path, written in former.items():
                if path.exists() and path.stat().st_mtime_ns == written:
                    path.unlink()
            unread = [self.work("suggest")] if name == STAGES[-1] else []  # if no suggestion was wanted
            for old in (work, *self.folder.glob(".*.old"), *unread):
                shutil.rmtree(old, ignore_errors=True)

    def _check_earlier(self, name: str, overwrite: bool) -> None:
        """Raise OutputError or ModelError if a stage cannot start, as `stage` describes."""
        self.need(*NEEDS[name], by=name)
        if self.done(name) and not overwrite:
            raise OutputError(f"{self.path(name)} exists already. Add --overwrite to make it again.")
        if name != "prepare":
            check_inputs(self.card().get("inputs", {}), self.folder)
        for earlier in STAGES[: STAGES.index(name)]:
            if self.done(earlier):
                self.verified(earlier)

    def _changed_versions(self, name: str) -> dict[str, Any]:
        """Warn if the stages before were made with other versions; the facts say so."""
        if name == "prepare":
            return {}
        card = self.card()
        changed = warn_of_versions(card.get("versions", {}), versions(), f"An earlier stage of {self.folder}")
        return {"changed_versions": changed} if changed else {}

    def _write_manifest(self, name: str, part: Path) -> None:
        earlier = [stage for stage in STAGES[: STAGES.index(name)] if self.done(stage)]
        made_from = {stage: file_hash(self.path(stage) / MADE) for stage in earlier}
        more: dict[str, Any] = {"config": file_hash(self.folder / CONFIG)} if name == "prepare" else {}
        write_manifest(part, MADE, made_from=made_from, **more)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run folder, so that no other process works on it, as `locked_folder`."""
        if self._held:
            yield
            return
        with locked_folder(self.folder):
            self._held = True
            try:
                yield
            finally:
                self._held = False

    def _write_card(self, name: str, facts: dict[str, Any]) -> None:
        """Write the run card with the facts of a stage; facts of later stages are removed."""
        card = {} if name == "prepare" else self.card()
        if name == "prepare" and self._start is not None:
            card["start"] = self._start
        card |= {
            "format": FORMAT,
            "data": self._origin or card.get("data"),
            "inputs": self._inputs or card.get("inputs", {}),
            "config": self.config.to_dict(),
            "seed": self.config.seed,
            "versions": versions(),
            "command": " ".join(sys.argv),
        }
        stages = card.setdefault("stages", {})
        for later in STAGES[STAGES.index(name) :]:
            stages.pop(later, None)
        stages[name] = facts
        write_sealed(self.folder / CARD, card)
