"""What is shown on the terminal: progress with count, elapsed time and time left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()


@contextlib.contextmanager
def bar() -> Iterator[Any]:
    """A progress callback with count, elapsed time and time left. total 0: nobody knows how much there is."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, Any] = {}

        def report(done: int, total: int, doing: str) -> None:
            key = doing.split(":")[0] if doing.startswith("recommenders") else doing.split(",")[0]
            if key not in tasks:
                tasks[key] = progress.add_task(escape(doing), total=total or None)
            progress.update(tasks[key], completed=done, total=total or None, description=escape(doing))

        yield report
