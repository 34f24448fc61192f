"""Commands for the results of a run: look at them, and review them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markdown import Markdown
from rich.markup import escape
from rich.table import Table

from llm4dsr.cli.options import Out, RunFolder
from llm4dsr.cli.terminal import bar, console, messages

if TYPE_CHECKING:  # what computes is imported inside the commands, so that --help is quick
    from llm4dsr.pipeline import Run
    from llm4dsr.pipeline.ray_workers import RayWorkers


def open_run(folder: Path, workers: RayWorkers | None = None) -> Run:
    """Return the run in a folder, and let workers make parts ahead of its stages."""
    from llm4dsr.pipeline import Run

    run = Run(folder)
    run.workers = workers
    return run


def write_page(run: Run, out: Path | None = None, examples: int | None = None) -> None:
    """Write the report, and print where it is."""
    from llm4dsr.report import write_report

    with bar() as progress:
        path = write_report(run, out, progress=progress, **({} if examples is None else {"count": examples}))
    console.print(f"Report: {escape(str(path))}", soft_wrap=True)


def show_tried(run: Run) -> None:
    """Show what was tried on validation, if anything."""
    from llm4dsr.columns import KEEP
    from llm4dsr.recommenders.training import VALIDATION_K

    tried = run.card()["stages"]["decide"].get("tried", [])
    if not tried:
        return
    table = Table("action", "corrected", "correction rate", f"NDCG@{VALIDATION_K}", "gain", "at least", "")
    for t in tried:
        numbers = (f"{t[name]:.4f}" for name in ("valid_ndcg", "gain", "lower_bound"))
        corrected = "" if t["action"] == KEEP else "training and histories" if t["histories"] else "training alone"
        table.add_row(t["action"], corrected, f"{t['correction_rate']:.1%}", *numbers, "chosen" * t["chosen"])
    console.print("Tried on validation, by item-kNN and EASE:", table)
    if tried[0]["chosen"]:
        console.print(
            "No correction ranks validation better than none by more than chance, so nothing is corrected. To act on "
            "what is more likely noise than not:  "
            f"llm4dsr decide --run {escape(str(run.folder))} --policy probability --overwrite"
        )


def show(run: Run) -> None:
    """Show the result tables."""
    console.print(Markdown((run.verified("evaluate") / "results.md").read_text(encoding="utf-8")))
    corrected = f"Corrected histories: {escape(str(run.path('correct')))}   " if run.done("correct") else ""
    console.print(f"{corrected}run card: {escape(str(run.folder / 'run_card.json'))}")


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
