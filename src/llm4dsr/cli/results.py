"""Commands for the results of a run: look at them, and review them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from llm4dsr.cli.options import Out, RunFolder
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


def export(
    run: RunFolder,
    form: Annotated[
        str,
        typer.Option("--format", help="log (as it came), recbole, recbole-splits, rectools, replay or datasets."),
    ],
    out: Out,
    soft: Annotated[
        bool, typer.Option("--soft", help="Change nothing; the weight of an interaction is 1 - its noise probability.")
    ] = False,
    leave_out_atypical: Annotated[
        bool,
        typer.Option("--leave-out-atypical", help="Leave out what a reviewer called theirs, but not their taste."),
    ] = False,
    log: Annotated[Path | None, typer.Option(help="Where the log is now, if it was moved.")] = None,
) -> None:
    """Write the corrected data for the next program: the log as it came, or the format of another library."""
    from llm4dsr.export import ExportOptions, export_run

    told = export_run(open_run(run), form, out, ExportOptions(soft, leave_out_atypical, log))
    console.print(f"Written to {escape(str(out))}: {', '.join(f'{n:,} {what}' for what, n in told.items())}")


def review(
    run: RunFolder,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8765,
    questions: Annotated[int, typer.Option(min=3, help="Most questions of each order.")] = 120,
) -> None:
    """Review flags one by one on a page of this machine. Answers are labels for calibrate, decide and train."""
    from llm4dsr.review import Review, serve_review

    with bar() as progress:
        asked = Review(open_run(run), questions, progress)
    messages.print(
        f"Open  http://127.0.0.1:{port}   Ctrl-C ends. Answers are kept in {run / 'review'}.", soft_wrap=True
    )
    serve_review(asked, port)
