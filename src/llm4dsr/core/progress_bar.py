"""Show progress: bars in a notebook or on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from html import escape as html_escape

from rich.console import Console
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

LINE_SECONDS = 30.0  # between two lines where there is neither notebook nor terminal
CELL_SECONDS = 0.2  # between two updates of a notebook's cell


@contextlib.contextmanager
def shown(progress: Progress | bool | None) -> Iterator[Progress | None]:
    """Yield the callback that a user asked for.

    Parameters
    ----------
    progress : Progress, bool or None
        A callback is yielded as it is. True: bars in a notebook or on a terminal, elsewhere a line every 30 seconds.
        False or None: no progress.
    """
    if progress is True:
        with bar(Console(stderr=True, emoji=False)) as report:
            yield report
    else:
        yield progress or None


@contextlib.contextmanager
def bar(console: Console) -> Iterator[Progress]:
    """Yield a progress callback: bars in a notebook or on a terminal, elsewhere a line every 30 seconds.

    All show count, rate, elapsed time and time left.

    Parameters
    ----------
    console : Console
        Where bars and lines go, outside a notebook.
    """
    here = _in_cell() if _in_notebook() else _bars(console) if console.is_terminal else _lines(console)
    with here as report:
        yield report


def _in_notebook() -> bool:
    """Whether this process is the kernel of a notebook. IPython in a terminal has no kernel."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


@contextlib.contextmanager
def _in_cell() -> Iterator[Progress]:
    """Bars of plain HTML, which need no widgets and stay in the saved notebook."""
    from IPython.display import display

    steps: dict[str, _Step] = {}
    under_way, updated = _Step(), 0.0

    def content(all_ended: bool) -> dict[str, str]:
        ended = [all_ended or step is not under_way for step in steps.values()]
        lines = [step.ended_line() if end else step.line() for step, end in zip(steps.values(), ended, strict=True)]
        rows = [
            f'<div><progress value="{1 if end else step.fraction:.3f}" aria-label="{html_escape(step.doing)}">'
            f"</progress> {html_escape(line)}</div>"
            for step, end, line in zip(steps.values(), ended, lines, strict=True)
        ]
        return {"text/plain": "\n".join(lines), "text/html": "".join(rows)}

    cell = display(content(False), raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def report(done: int, total: int, doing: str) -> None:
        nonlocal under_way, updated
        under_way = steps.setdefault(_step(doing), _Step())
        under_way.update(done, total, doing)
        if time.monotonic() - updated > CELL_SECONDS:
            updated = time.monotonic()
            cell.update(content(False), raw=True)

    try:
        yield report
    except BaseException:
        cell.update(content(False), raw=True)
        raise
    cell.update(content(True), raw=True)


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console) as progress:
        tasks: dict[str, object] = {}

        def report(done: int, total: int, doing: str) -> None:
            key = _step(doing)
            if key not in tasks:
                tasks[key] = progress.add_task(escape(doing), total=total or None)
            progress.update(tasks[key], completed=done, total=total or None, description=escape(doing))  # type: ignore[arg-type]

        yield report


@contextlib.contextmanager
def _lines(console: Console) -> Iterator[Progress]:
    """Lines from a thread of their own, so that one slow step does not silence them."""
    ended, step = threading.Event(), _Step()

    def show() -> None:
        while not ended.wait(LINE_SECONDS):
            if step.doing:
                console.print(step.line(), markup=False, highlight=False, soft_wrap=True)

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
        self.updated = self.started

    def update(self, done: int, total: int, doing: str) -> None:
        if _step(doing) != _step(self.doing) or done < self.done:
            self.started, self.first = time.monotonic(), done
        self.doing, self.done, self.total, self.updated = doing, done, total, time.monotonic()

    @property
    def fraction(self) -> float:
        """What is done, from 0 to 1; 0 if the total is unknown."""
        return min(1.0, self.done / self.total) if self.total else 0.0

    def ended_line(self) -> str:
        """As in "score: 0:50"."""
        return f"{self.doing}: {_clock(self.updated - self.started)}"

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
