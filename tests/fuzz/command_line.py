"""Every command of the command line with missing, odd and mixed options.

By hand, all of them:  python -m tests.fuzz.command_line
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
import typer

from llm4dsr.cli import terminal
from llm4dsr.cli.main import app, main
from llm4dsr.config import Config
from llm4dsr.data.demo import make_demo
from llm4dsr.pipeline import Run

CODES = {0, 2, 3, 4, 5, 6}  # errors.py
ODD = (
    "", " ", "-1", "0", "1", "1.5", "nan", "inf", "1e400", str(10**30), "9" * 5000, "text", "../..", "/dev/null",
    "/proc/self/mem",
    "~", "[red]", "\x1b[31m", "--", "-", "x" * 5000, "ü", "\udcff", "a,b", "a=b", "=", "1:2:3", "0:0:0",
)  # fmt: skip
LONG = {("demo", "out"), ("run", "out")}  # any other place than the full one lets them run for minutes
RECIPE = {
    "threads": 1,
    "limit": 40,
    "model": {"hidden_size": 16, "layers": 1, "heads": 2, "vector_size": 16},
    "train": {"epochs": 1, "samples": 20, "folds": 1},
    "score": {"calibration_draws": 1},
    "decide": {"policy": "probability"},
    "evaluate": {"backbone": "itemknn"},
}


@dataclass
class Place:
    """Where the cases run: inputs that are used as they are, a run that is restored, and an empty place for outputs."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Place:
        """Write data, a file that is in the way, and a run up to its scores."""
        demo = make_demo(size="tiny").data
        demo.write(folder / "data")
        (folder / "full").mkdir()
        (folder / "full" / "mine.txt").write_text("keep this")
        run = Run.create(folder / "kept", Config.from_dict(RECIPE))
        run.prepare(demo)
        run.train()
        run.score()
        os.chdir(folder)
        place = cls(folder)
        place.restore()
        return place

    def restore(self) -> None:
        """Make the run and the place for outputs as they were."""
        for name in ("run", "out"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(self.folder / "kept", self.folder / "run")
        (self.folder / "out").mkdir()

    def content(self) -> dict[str, bytes]:
        """Every file, but locks and the original."""
        names = ("run", "out", "data", "full")
        files = [p for name in names for p in sorted((self.folder / name).rglob("*")) if p.name != ".lock"]
        return {str(p.relative_to(self.folder)): p.read_bytes() if p.is_file() else b"" for p in files}


def commands() -> list[tuple[tuple[str, ...], click.Command]]:
    """All commands with their names, found from the program itself."""

    def walk(command: Any, names: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        if not getattr(command, "commands", None):
            yield names, command
            return
        for name, inner in command.commands.items():
            yield from walk(inner, (*names, name))

    return list(walk(typer.main.get_command(app), ()))


def usual(names: tuple[str, ...], option: Any, folder: Path) -> str | None:
    """A value that is right, for options that are needed; nothing that makes a command work for long."""
    name = option.name
    if name in ("data", "path"):
        return str(folder / "data")
    if name == "run":
        return str(folder / "run")
    if name == "out":  # long ones end there, if not before
        return str(folder / ("full" if names[-1] in ("run", "demo", "fetch") else "out/new"))
    if name == "dataset":
        return str(folder / "nowhere")
    return {"labels": str(folder / "data" / "train.parquet"), "name": "nothing"}.get(name) if option.required else None


def cases(folder: Path) -> list[list[str]]:
    """Arguments of all cases, in a fixed order."""
    found: list[list[str]] = []
    rng = random.Random(0)
    for names, command in commands():
        options = [p for p in command.params if p.name != "help"]

        def given(
            values: dict[str, str | None], names: tuple[str, ...] = names, options: list[Any] = options
        ) -> list[str]:
            """The command with usual values, but for these; None: without the option."""
            arguments = list(names)
            for option in options:
                value = values.get(option.name, usual(names, option, folder))
                if value is None and not (option.name in values and getattr(option, "is_flag", False)):
                    continue
                flag = [] if isinstance(option, click.Argument) else [option.opts[0]]
                arguments += flag if getattr(option, "is_flag", False) else [*flag, str(value)]
            return arguments

        if names != ("demo",):
            found.append(list(names))
        found += [[*given({}), "--no-such-option"], [*given({}), "more"], [*given({}), "-"]]
        found += [given({option.name: None}) for option in options if (*names, option.name) not in LONG]
        found += [[*given({}), option.opts[0]] for option in options]  # without its value, or twice
        odd_ones = [o for o in options if not getattr(o, "is_flag", False) and (*names, o.name) not in LONG]
        found += [given({option.name: odd}) for option in odd_ones for odd in ODD]
        for _ in range(3 if len(options) > 1 else 0):
            found.append(given({o.name: rng.choice(ODD) for o in rng.sample(odd_ones, min(3, len(odd_ones)))}))
    return found


def fault(arguments: list[str], place: Place) -> str | None:
    """Run one case; what is wrong with how it ended, or None."""
    before, printed = place.content(), io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # strict, as a terminal is
    sys.argv = ["llm4dsr", *arguments]
    terminal.console.file = terminal.messages.file = printed
    code: Any = 0
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        return traceback.format_exc()
    finally:
        terminal.console.file = terminal.messages.file = None  # type: ignore[assignment]
        printed.flush()
    said = printed.buffer.getvalue().decode()
    if code not in CODES or "Traceback" in said:
        return f"exit code {code}: {said}"
    if code and not said.strip():
        return f"exit code {code} without a word"
    after = place.content()
    if after != before:
        place.restore()
        new = sorted(set(after) ^ set(before))
        if code:
            return f"exit code {code}, but files changed: {new[:5]}\n{said}"
        if any(name.endswith(".part") or "/." in name.replace("/.work", "") for name in new if "holder" not in name):
            return f"something half written was left: {new}"
    return None


def by_hand() -> None:
    """Run all cases and print those that fail."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Place.make(Path(folder))
        every, failed = cases(place.folder), 0
        for arguments in every:
            if (wrong := fault(arguments, place)) is not None:
                failed += 1
                shown = " ".join(a if len(a) < 60 else f"{a[:20]}…" for a in arguments)
                print(f"{shown!a}\n{wrong[-600:]!s}\n".encode("ascii", "backslashreplace").decode(), flush=True)
        print(f"{len(every)} cases, {failed} failed")


if __name__ == "__main__":
    by_hand()
