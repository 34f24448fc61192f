"""The run folder: its configuration, run card, lock, and the folders that its stages write.

A stage writes into a hidden folder that is renamed when it is complete, so a stage is whole or absent. Until then,
finished parts stay in `.work/`, and the same command resumes from them. One process at a time works on a run folder.
What the stages do is in `stages.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from llm4dsr.config import Config
from llm4dsr.core.device import use_threads
from llm4dsr.core.hashing import digest, user_hashes, versions
from llm4dsr.core.io import as_output_error, write_text
from llm4dsr.core.memory import peak_memory_mb
from llm4dsr.data.dataset import Dataset
from llm4dsr.errors import ConfigError, OutputError

STAGES = ("prepare", "train", "score", "decide", "suggest", "correct", "evaluate")
FOLDERS = {
    "prepare": "windows",
    "train": "model",
    "score": "scores",
    "decide": "decisions",
    "suggest": "suggestions",
    "correct": "corrected",
    "evaluate": "evaluation",
}
# Stages that a stage reads from. Only replacing needs suggestions; evaluation applies the decisions itself.
NEEDS = {name: [s for s in STAGES[: STAGES.index(name)] if s not in ("suggest", "correct")] for name in STAGES}
CARD, CONFIG = "run_card.json", "config.yaml"
WORK, LOCK, HOLDER = ".work", ".lock", ".holder"  # finished parts; the lock; who holds it, for messages
FORMAT = 1  # of a run folder; other formats are refused


def origin(data: str | Path | Dataset) -> str:
    """Return where data come from, for the run card: the folder, or a hash of a dataset in memory."""
    if not isinstance(data, Dataset):
        return str(Path(data).resolve())
    windows = [part for w in data.splits.values() for part in (w.items, user_hashes(w.user_ids))]
    return f"in memory, {digest(data.catalogue.titles, data.catalogue.ids.to_list(), *windows)}"


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
        If `config` is None and the folder holds no run, or one of another format.
    """

    def __init__(self, folder: str | Path, config: Config | None = None) -> None:
        self.folder = Path(folder)
        stored = self.folder / CONFIG
        if config is None:
            if not stored.is_file():
                raise OutputError(
                    f"{self.folder} is not a run folder (no {CONFIG}). Start with:  llm4dsr prepare --data … --out …"
                )
            if (found := self.card().get("format", FORMAT)) != FORMAT:
                raise OutputError(f"{self.folder} has format {found}; this version reads {FORMAT}. Run it again.")
            config = Config.from_yaml(stored)
        self.config, self._held, self._origin = config, False, ""
        use_threads(config.threads)

    @classmethod
    def create(cls, folder: str | Path, config: Config) -> Self:
        """Start a run in a new folder. Raises OutputError if it exists and is not empty."""
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder} exists already. Choose another --out.")
        return cls(folder, config)

    @classmethod
    def begin(cls, folder: str | Path, config: Config, data: str | Path | Dataset, overwrite: bool = False) -> Self:
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

        Raises
        ------
        OutputError
            If the folder holds something else, or a finished run.
        ConfigError
            If the folder holds a run with other options or data.
        """
        folder = Path(folder)
        with as_output_error(folder):
            there = {f.name for f in folder.iterdir()} if folder.is_dir() else None
        # Files of a run that was stopped before its first stage was complete
        left = {f".{FOLDERS['prepare']}.part", WORK, LOCK, HOLDER, CONFIG, CARD}
        unwritten = re.compile(rf"\.({re.escape(CONFIG)}|{re.escape(CARD)})\.\d+\.part")
        if there is not None and all(name in left or unwritten.fullmatch(name) for name in there):
            return cls(folder, config)
        if there is None or CONFIG not in there:
            return cls.create(folder, config)
        if overwrite:
            return cls(folder, config)
        run = cls(folder)
        begun, given = run.card().get("data"), origin(data)
        if run.config != config or begun != given:
            raise ConfigError(
                f"{folder} holds a run with other options or data ({begun}). Repeat its command to resume it, choose "
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

    def work(self, stage: str) -> Path:
        """Return the folder of the finished parts of a stage."""
        return self.folder / WORK / stage

    def card(self) -> dict[str, Any]:
        """Read the run card: configuration, seed, versions, command, and facts of each stage."""
        path = self.folder / CARD
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

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
            If an earlier stage is missing, the stage is complete already, or the disk cannot be written to.
        """
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
        with self.locked(), as_output_error(self.folder):
            finished = (self.work(other) for other in STAGES if other != name and self.done(other))
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
            facts = {"seconds": round(time.monotonic() - started, 1), "peak_memory_mb": peak_memory_mb(), **facts}
            self._write_card(name, facts)
            os.replace(part, self.path(name))
            for old in (work, *self.folder.glob(".*.old")):
                shutil.rmtree(old, ignore_errors=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run folder, so that no other process works on it.

        The operating system releases the lock when the process ends, however it ends.

        Raises
        ------
        OutputError
            Names the process that holds the folder.
        """
        if self._held:
            yield
            return
        made = not self.folder.exists()
        lock, holder = FileLock(self.folder / LOCK), self.folder / HOLDER
        with as_output_error(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / LOCK).touch()  # a disk that cannot be written to is reported as such
            try:
                lock.acquire(timeout=0)
            except Timeout:
                who = holder.read_text(encoding="utf-8") if holder.is_file() else "another process"
                raise OutputError(
                    f"{self.folder} is in use by {who}. Wait for it, stop it, or choose another folder."
                ) from None
            except (OSError, NotImplementedError) as error:
                raise OutputError(
                    f"{self.folder} cannot be locked: {error}. Choose a folder on another disk."
                ) from None
        try:
            with as_output_error(self.folder):
                holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
            self._held = True
            yield
        finally:
            self._held = False
            holder.unlink(missing_ok=True)
            lock.release()
            if made and {f.name for f in self.folder.iterdir()} <= {LOCK}:
                shutil.rmtree(self.folder, ignore_errors=True)

    def _write_card(self, name: str, facts: dict[str, Any]) -> None:
        """Write the run card with the facts of a stage; facts of later stages are removed."""
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
