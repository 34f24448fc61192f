"""Answers of a review: an append-only file in the run folder, and the labels that it holds.

An answer is on disk before the page shows the next question. Undoing appends a line, so nothing is ever lost.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.io import as_output_error
from llm4dsr.core.progress import log
from llm4dsr.errors import OutputError

FILE = "answers.jsonl"
FOLDER = "review"  # in the run folder
Verdict = Literal["noise", "fits", "atypical", "skip"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
IS_NOISE = {"noise": 1, "fits": 0, "atypical": 0}  # atypical: the user's own choice, but not their taste


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
        One of VERDICTS.
    sampled : bool
        It was asked as part of the random sample, so it counts for the estimate of precision.
    replacement : str or None
        Id of the item that belongs there instead, as text; None: the suggestion stands.
    """

    split: str
    window_id: int
    position: int
    answer: str
    sampled: bool = False
    replacement: str | None = None

    @property
    def key(self) -> tuple[str, int, int]:
        """The interaction."""
        return self.split, self.window_id, self.position


class Answers:
    """The answers to questions about one run.

    Parameters
    ----------
    folder : Path
        The run folder.
    windows : str
        A hash of the run's windows. Answers about other windows are refused.

    Raises
    ------
    OutputError
        If the file holds answers about other windows, or cannot be read.
    """

    def __init__(self, folder: Path, windows: str) -> None:
        self.path, self._windows = folder / FOLDER / FILE, windows
        self._given: list[list[Answer]] = []  # groups of answers; one group is undone at once
        for line in self._lines():
            if "windows" in line:
                if line["windows"] != windows:
                    raise OutputError(
                        f"{self.path} has answers about other windows than those of {folder}. Move it away to begin "
                        "anew."
                    )
            elif "undo" in line:
                del self._given[-1:]
            else:
                self._given.append([Answer(**a) for a in line["answers"]])

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with as_output_error(self.path):
            texts = self.path.read_text(encoding="utf-8").splitlines()
        out: list[dict[str, Any]] = []
        for number, text in enumerate(texts, 1):
            try:
                line = json.loads(text)
                [Answer(**a) for a in line.get("answers", [])]
            except (ValueError, TypeError, AttributeError):
                if number < len(texts):
                    raise OutputError(
                        f"Line {number} of {self.path} is damaged. Remove it, or move the file away."
                    ) from None
                log.warning("The last line of %s is incomplete; that answer is asked again.", self.path)
                continue
            out.append(line)
        return out

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
            self.path.parent.mkdir(parents=True, exist_ok=True)
            there = self.path.read_bytes() if self.path.is_file() else b""
            whole = there.rfind(b"\n") + 1  # without a line that was cut off by a crash
            new = not whole
            with self.path.open("a", encoding="utf-8") as file:
                file.truncate(whole)
                for entry in ([{"windows": self._windows}] if new else []) + [line]:
                    file.write(json.dumps(entry) + "\n")
                file.flush()
                os.fsync(file.fileno())

    @property
    def current(self) -> dict[tuple[str, int, int], Answer]:
        """The answer about each interaction."""
        return {a.key: a for group in self._given for a in group}

    def labels(self) -> pl.DataFrame:
        """Return the table that `calibrate --labels` and `decide --labels` read; skipped interactions are left out.

        Returns
        -------
        DataFrame
            `split, window_id, position, is_noise`; `answer`; `sampled`; `replacement_item_id`, as text.
        """
        rows = [a for a in self.current.values() if a.answer in IS_NOISE]
        return pl.DataFrame(
            {
                c.SPLIT: pl.Series([a.split for a in rows], dtype=pl.String),
                c.WINDOW: pl.Series([a.window_id for a in rows], dtype=pl.Int64),
                c.POSITION: pl.Series([a.position for a in rows], dtype=pl.Int64),
                c.IS_NOISE: pl.Series([IS_NOISE[a.answer] for a in rows], dtype=pl.Int64),
                "answer": pl.Series([a.answer for a in rows], dtype=pl.String),
                "sampled": pl.Series([a.sampled for a in rows], dtype=pl.Boolean),
                "replacement_item_id": pl.Series([a.replacement for a in rows], dtype=pl.String),
            }
        )
