"""Answers of a review: an append-only file in the run folder, and the labels that it holds.

An answer is on disk before the page shows the next question. Undoing appends a line, so nothing is ever lost. Answers
outlive the decisions that they were about: which of them are a random sample is told by `session.py`.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
from filelock import FileLock, Timeout

from llm4dsr import columns as c
from llm4dsr.core.io import as_output_error
from llm4dsr.core.progress import log
from llm4dsr.denoise.labels import ACCEPTED
from llm4dsr.errors import OutputError

FILE = "answers.jsonl"
FOLDER = "review"  # in the run folder
ANSWERS = ("noise", "fits", "atypical", "skip")
IS_NOISE = {"noise": 1, "fits": 0, "atypical": 0, ACCEPTED: 1}  # atypical: the user's own choice, but not their taste


@dataclass(frozen=True)
class Answer:
    """What a reviewer said of one interaction.

    Attributes
    ----------
    split : str
        "train", "valid" or "test".
    window_id, position : int
        The interaction.
    answer : str
        One of ANSWERS, or ACCEPTED.
    replacement : str or None
        Id of the item that belongs there instead, as text; None: the suggestion stands.
    """

    split: str
    window_id: int
    position: int
    answer: str
    replacement: str | None = None

    @property
    def key(self) -> tuple[str, int, int]:
        """The interaction."""
        return self.split, self.window_id, self.position


class Answers:
    """The answers to questions about one run. One process at a time holds them, until `close`.

    Parameters
    ----------
    folder : Path
        The run folder.
    windows : str
        A hash of the run's windows. Answers about other windows are refused.

    Raises
    ------
    OutputError
        If another process reviews this run, or the file holds answers about other windows or cannot be read.
    """

    def __init__(self, folder: Path, windows: str) -> None:
        self.path, self._windows = folder / FOLDER / FILE, windows
        self._given: list[list[Answer]] = []  # groups of answers; one group is undone at once
        with as_output_error(self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path.parent / ".lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise OutputError(f"{folder} is being reviewed by another process. Use its page, or stop it.") from None
        try:
            self._read(folder)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let other processes review the run."""
        self._lock.release()

    def _read(self, folder: Path) -> None:
        """Read the file, and cut off what a crash left of a last line."""
        with as_output_error(self.path):
            content = self.path.read_bytes() if self.path.is_file() else b""
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            log.warning("The last line of %s is incomplete; that answer is asked again.", self.path)
            with as_output_error(self.path), self.path.open("r+b") as file:
                file.truncate(whole)
        for number, text in enumerate(content[:whole].splitlines(), 1):
            try:
                line = json.loads(text)
                answers = [Answer(**a) for a in line.get("answers", [])]
            except (ValueError, TypeError, AttributeError):
                raise OutputError(
                    f"Line {number} of {self.path} is damaged. Remove it, or move the file away."
                ) from None
            if "windows" in line:
                if line["windows"] != self._windows:
                    raise OutputError(
                        f"{self.path} has answers about other windows than those of {folder}. Move it away to begin "
                        "anew."
                    )
            elif "undo" in line:
                del self._given[-1:]
            else:
                self._given.append(answers)

    def add(self, answers: list[Answer]) -> None:
        """Save answers, which are undone together. A later answer about an interaction replaces an earlier one."""
        self._append({"answers": [asdict(a) for a in answers]})
        self._given.append(answers)

    def undo(self) -> list[Answer]:
        """Take back the last answers, and return them; empty if there are none."""
        if not self._given:
            return []
        self._append({"undo": 1})
        return self._given.pop()

    def _append(self, line: dict[str, Any]) -> None:
        with as_output_error(self.path.parent):
            new = not self.path.is_file() or not self.path.stat().st_size
            lines = ([{"windows": self._windows}] if new else []) + [line]
            content = "".join(f"{json.dumps(entry)}\n" for entry in lines).encode()
            with self.path.open("ab", buffering=0) as file:
                before = file.tell()
                try:
                    if file.write(content) < len(content):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file.fileno())
                except BaseException:  # of a part of a line, the next answer would be a part
                    file.truncate(before)
                    raise

    @property
    def current(self) -> dict[tuple[str, int, int], Answer]:
        """The answer about each interaction."""
        return {a.key: a for group in self._given for a in group}

    def labels(self) -> pl.DataFrame:
        """Return the table that `calibrate --labels` and `decide --labels` read; skipped interactions are left out.

        Returns
        -------
        DataFrame
            `split, window_id, position, is_noise`; `answer`; `replacement_item_id`, as text.
        """
        rows = [a for a in self.current.values() if a.answer in IS_NOISE]
        return pl.DataFrame(
            {
                c.SPLIT: pl.Series([a.split for a in rows], dtype=pl.String),
                c.WINDOW: pl.Series([a.window_id for a in rows], dtype=pl.Int64),
                c.POSITION: pl.Series([a.position for a in rows], dtype=pl.Int64),
                c.IS_NOISE: pl.Series([IS_NOISE[a.answer] for a in rows], dtype=pl.Int64),
                "answer": pl.Series([a.answer for a in rows], dtype=pl.String),
                c.REPLACEMENT: pl.Series([a.replacement for a in rows], dtype=pl.String),
            }
        )
