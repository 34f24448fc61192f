"""Commands for the results of a run: look at them, and review them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from llm4dsr.cli.options import RunFolder
from llm4dsr.cli.terminal import bar, console, messages

if TYPE_CHECKING:  # what computes is imported inside the commands, so that --help is quick
    from llm4dsr.pipeline import Run


def open_run(folder: Path) -> Run:
    """Return the run in a folder."""
    from llm4dsr.pipeline import Run

    return Run(folder)


def write_page(run: Run, out: Path | None = None, examples: int | None = None) -> None:
    """Write the report, and print where it is."""
    from llm4dsr.report import write_report

    with bar() as progress:
        path = write_report(run, out, progress=progress, **({} if examples is None else {"count": examples}))
    console.print(f"Report: {escape(str(path))}", soft_wrap=True)


def report(
    run: RunFolder,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="HTML file to write; default: report.html in the run folder.")
    ] = None,
    examples: Annotated[int, typer.Option(min=3, help="Example histories, a third from each split.")] = 240,
) -> None:
    """Write what was found, changed and gained, and why, as one HTML file. It holds user ids and titles."""
    write_page(open_run(run), out, examples)


def review(
    run: RunFolder,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8765,
    questions: Annotated[int, typer.Option(min=3, help="Most questions of each order.")] = 120,
) -> None:
    """Review flags one by one on a page of this machine. Answers are labels for calibrate and decide."""
    from llm4dsr.review import Review, serve_review

    with bar() as progress:
        asked = Review(open_run(run), questions, progress)
    messages.print(
        f"Open  http://127.0.0.1:{port}   Ctrl-C ends. Answers are kept in {run / 'review'}.", soft_wrap=True
    )
    serve_review(asked, port)
