"""What the command line shows: results on standard output; progress, warnings and errors on standard error."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import warnings
from collections.abc import Iterator

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from llm4dsr.core.progress import Progress

console = Console()
messages = Console(stderr=True)
LINE_SECONDS = 30.0  # between two lines of progress where standard error is no terminal


def set_up() -> None:
    """Send our warnings to standard error, and hide those of libraries that a user cannot act on."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # our own progress shows what takes time
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    for category in (FutureWarning, DeprecationWarning, UserWarning):
        warnings.filterwarnings("ignore", category=category, module=r"(transformers|peft|torch|huggingface_hub)\b")
    log = logging.getLogger("llm4dsr")
    if not log.handlers:
        log.addHandler(RichHandler(console=messages, show_time=False, show_path=False))
        log.propagate = False


@contextlib.contextmanager
def bar() -> Iterator[Progress]:
    """Yield a progress callback: bars on a terminal, elsewhere a line every 30 seconds.

    Both show count, rate, elapsed time and time left.
    """
    if messages.is_terminal:
        with _bars() as report:
            yield report
    else:
        with _lines() as report:
            yield report


@contextlib.contextmanager
def _bars() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=messages) as progress:
        tasks: dict[str, object] = {}

        def report(done: int, total: int, doing: str) -> None:
            key = _step(doing)
            if key not in tasks:
                tasks[key] = progress.add_task(escape(doing), total=total or None)
            progress.update(tasks[key], completed=done, total=total or None, description=escape(doing))  # type: ignore[arg-type]

        yield report


@contextlib.contextmanager
def _lines() -> Iterator[Progress]:
    """Lines from a thread of their own, so that one slow step does not silence them."""
    ended, step = threading.Event(), _Step()

    def show() -> None:
        while not ended.wait(LINE_SECONDS):
            if step.doing:
                messages.print(step.line(), markup=False, highlight=False, soft_wrap=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield step.update
    finally:
        ended.set()
        thread.join()


class _Step:
    """The step that is under way: how far it is, and since when."""

    def __init__(self) -> None:
        self.doing, self.done, self.total = "", 0, 0
        self.started, self.first = time.monotonic(), 0

    def update(self, done: int, total: int, doing: str) -> None:
        if _step(doing) != _step(self.doing) or done < self.done:
            self.started, self.first = time.monotonic(), done
        self.doing, self.done, self.total = doing, done, total

    def line(self) -> str:
        """As in "score: 1,200/3,000 (40%), 60.0/s, elapsed 0:20, left 0:30"."""
        elapsed = time.monotonic() - self.started
        rate = (self.done - self.first) / max(elapsed, 1e-9)
        count = f"{self.done:,}/{self.total:,} ({self.done / self.total:.0%})" if self.total else f"{self.done:,}"
        left = _clock((self.total - self.done) / rate) if self.total and rate else "unknown"
        return f"{self.doing}: {count}, {_rate(rate)}, elapsed {_clock(elapsed)}, left {left}"


class _Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text(_rate(task.speed) if task.speed else "", style="progress.data.speed")


def _rate(steps_per_second: float) -> str:
    return f"{steps_per_second:.1f}/s" if steps_per_second >= 1 else f"{60 * steps_per_second:.1f}/min"


def _step(doing: str) -> str:
    """The part of a message that stays the same while a step is under way."""
    return doing.split(":")[0] if doing.startswith("recommenders") else doing.split(",")[0]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
