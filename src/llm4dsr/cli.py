"""The command line: one verb per stage, `run` for all of them, `demo` for a first look. Exit codes: errors.py."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from llm4dsr.config import Config
from llm4dsr.errors import LLM4DSRError
from llm4dsr.pipeline import STAGES, Run

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
console = Console()

RunFolder = Annotated[Path, typer.Option("--run", help="The run folder.")]
Overwrite = Annotated[bool, typer.Option(help="Make the stage again; later stages are removed.")]
Recipe = Annotated[Path | None, typer.Option("--config", help="A YAML recipe: a path, or demo, laptop, paper.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")]


@contextlib.contextmanager
def bar() -> Iterator[Any]:
    """A progress callback with count, elapsed time and time left."""
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
            key = doing.split(":")[0] if doing.startswith("SASRec") else doing.split(",")[0]
            if key not in tasks:
                tasks[key] = progress.add_task(escape(doing), total=total)
            progress.update(tasks[key], completed=done, total=total, description=escape(doing))

        yield report


def _config(recipe: Path | None, model: str | None, limit: int | None, seed: int | None) -> Config:
    config = Config.from_yaml(recipe) if recipe else Config()
    if model is not None:
        config = replace(config, model=replace(config.model, source=model))
    config = replace(config, limit=config.limit if limit is None else limit)
    return replace(config, seed=config.seed if seed is None else seed)


def _stages(run: Run, data: Any) -> None:
    with run.alone():
        for name in STAGES:
            if run.done(name):
                console.print(f"[bold]{name}[/bold] is there already")
                continue
            console.print(f"[bold]{name}[/bold]")
            if name == "prepare":
                run.prepare(data)
            elif name in ("decide", "correct"):
                getattr(run, name)()
            else:
                with bar() as progress:
                    getattr(run, name)(progress)
    _show(run)


def _show(run: Run) -> None:
    console.print(Markdown((run.path("evaluate") / "results.md").read_text(encoding="utf-8")))
    console.print(
        f"Corrected histories: {escape(str(run.path('correct')))}   "
        f"run card: {escape(str(run.folder / 'run_card.json'))}"
    )


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Run folder to make.")] = Path("demo-run"), seed: Seed = None) -> None:
    """The whole job on embedded data with the embedded model: no network, no GPU."""
    from llm4dsr.demo import make_demo

    config = Config.from_yaml("demo")
    config = replace(config, seed=config.seed if seed is None else seed)
    data = make_demo(config.seed).data
    _stages(Run.begin(out, config, data), data)


@app.command()
def run(
    data: Annotated[Path, typer.Option(help="Folder with items and windows, or with items and interactions.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    model: Annotated[str | None, typer.Option(help="'embedded', a hub name, or a local path.")] = None,
    config: Recipe = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Use only so many windows of each split.")] = None,
    seed: Seed = None,
) -> None:
    """All stages, from the data to the result table. Stopped, it goes on when the same command is given again."""
    _stages(Run.begin(out, _config(config, model, limit, seed), data), data)


@app.command()
def prepare(
    data: Annotated[Path, typer.Option(help="Folder with the data.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    model: Annotated[str | None, typer.Option(help="'embedded', a hub name, or a local path.")] = None,
    config: Recipe = None,
    limit: Annotated[int | None, typer.Option(min=0)] = None,
    seed: Seed = None,
) -> None:
    """Read the data and write windows."""
    Run.create(out, _config(config, model, limit, seed)).prepare(data)


@app.command()
def train(run: RunFolder, overwrite: Overwrite = False) -> None:
    """Tune the language model and calibrate it."""
    with bar() as progress:
        Run(run).train(progress, overwrite)


@app.command()
def score(run: RunFolder, overwrite: Overwrite = False) -> None:
    """Noise probability of every interaction."""
    with bar() as progress:
        Run(run).score(progress, overwrite)


@app.command()
def decide(
    run: RunFolder,
    policy: Annotated[str | None, typer.Option()] = None,
    eta: Annotated[float | None, typer.Option()] = None,
    cap: Annotated[int | None, typer.Option(min=0)] = None,
    overwrite: Overwrite = False,
) -> None:
    """Which interactions count as noise, by η."""
    Run(run).decide(policy, eta, cap, overwrite)


@app.command()
def suggest(run: RunFolder, overwrite: Overwrite = False) -> None:
    """A better item for each flagged interaction."""
    with bar() as progress:
        Run(run).suggest(progress, overwrite)


@app.command()
def correct(run: RunFolder, action: Annotated[str | None, typer.Option()] = None, overwrite: Overwrite = False) -> None:
    """Corrected histories and the list of edits."""
    Run(run).correct(action, overwrite)


@app.command()
def evaluate(
    run: RunFolder, seeds: Annotated[int | None, typer.Option(min=1)] = None, overwrite: Overwrite = False
) -> None:
    """SASRec on original, corrected and oracle data."""
    with bar() as progress:
        Run(run).evaluate(progress, overwrite, seeds)
    _show(Run(run))


def main() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()  # our own bars say what takes time
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except LLM4DSRError as error:
        # soft_wrap: a path or a command in the message can be copied whole
        Console(stderr=True).print(f"[red]Error:[/red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on from here.")
        raise SystemExit(130) from None


def _terminated(*_: Any) -> None:
    raise SystemExit(143)
