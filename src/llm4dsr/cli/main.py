"""Find interactions that do not belong in user histories, and correct them. One verb per stage; `run` runs them all."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from llm4dsr import __version__
from llm4dsr.cli import apply as apply_command
from llm4dsr.cli import bench as bench_commands
from llm4dsr.cli import config as config_commands
from llm4dsr.cli import data as data_commands
from llm4dsr.cli import results as results_commands
from llm4dsr.cli import serve as serve_command
from llm4dsr.cli.options import (
    Address,
    Data,
    DecidePolicy,
    DemoOut,
    Engine,
    Eta,
    Goal,
    Limit,
    Model,
    Out,
    Overwrite,
    Policy,
    Recipe,
    RunFolder,
    Seed,
    SkipEstimate,
    Start,
    Workers,
    read_config,
    workers_of,
)
from llm4dsr.cli.results import open_run, show, show_tried, write_page
from llm4dsr.cli.terminal import bar, console, messages, set_up
from llm4dsr.config import Config
from llm4dsr.core.memory import is_out_of_memory
from llm4dsr.errors import ConfigError, LLM4DSRError, ModelError, plain

if TYPE_CHECKING:  # what computes is imported inside the commands, so that --help is quick
    from llm4dsr.data.dataset import Dataset
    from llm4dsr.pipeline import Run

UNUSABLE = {  # errors of the system about a path that was given
    errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        console.print(f"llm4dsr {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the verb."""
    if context.invoked_subcommand != "train" and os.environ.get("WORLD_SIZE"):  # --help needs no torch
        from llm4dsr.core.distributed import launched

        if launched() > 1:
            raise ConfigError(
                f"A launcher started {launched()} processes, but only `llm4dsr train` is shared by several. Run "
                f"`llm4dsr {context.invoked_subcommand}` without the launcher, or unset WORLD_SIZE."
            )


options.__doc__ = __doc__  # Typer shows the callback's text as the program's help


@app.command()
def demo(out: DemoOut = Path("demo-run"), seed: Seed = None, skip_estimate: SkipEstimate = False) -> None:
    """Run everything on embedded data with the embedded model: no network, no GPU."""
    from llm4dsr.data.demo import make_demo
    from llm4dsr.pipeline import Run

    config = Config.from_yaml("demo")
    config = replace(config, seed=config.seed if seed is None else seed)
    data = make_demo(config.seed).data
    _stages(Run.begin(out, config, data), data, skip_estimate)


@app.command()
def run(
    data: Data,
    out: Out,
    model: Model = None,
    config: Recipe = None,
    goal: Goal = None,
    policy: Policy = None,
    eta: Eta = None,
    limit: Limit = None,
    seed: Seed = None,
    start: Start = None,
    skip_estimate: SkipEstimate = False,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
) -> None:
    """Run all stages, from the data to the result table. Interrupted, the same command resumes it."""
    from llm4dsr.denoise.decide import effective_policy
    from llm4dsr.pipeline import Run

    chosen = read_config(config, model, limit, seed, start).to_dict()
    chosen["decide"] |= {"policy": effective_policy(policy, eta, chosen["decide"]["policy"], goal)}
    chosen["decide"] |= {"goal": goal} if goal is not None else {}
    chosen["decide"] |= {"eta": eta, "eta_test": None} if eta is not None else {}
    ahead = workers_of(engine, address, workers)
    begun = Run.begin(out, Config.from_dict(chosen, "run"), data, start=start)
    begun.workers = ahead
    _stages(begun, data, skip_estimate)


@app.command()
def prepare(
    data: Data,
    out: Out,
    model: Model = None,
    config: Recipe = None,
    limit: Limit = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
) -> None:
    """Read the data and write windows."""
    from llm4dsr.pipeline import Run

    Run.begin(out, read_config(config, model, limit, seed), data, overwrite).prepare(data, overwrite)


@app.command()
def train(
    run: RunFolder,
    start: Start = None,
    labels: Annotated[
        Path | None, typer.Option(help="Table with user_id, item_id, is_noise (labels.csv of review) to learn from.")
    ] = None,
    overwrite: Overwrite = False,
    skip_estimate: SkipEstimate = False,
) -> None:
    """Tune the language model and calibrate it. Under `accelerate launch`, all processes tune together."""
    from llm4dsr.columns import ITEM, USER
    from llm4dsr.core.distributed import joined, rank
    from llm4dsr.core.io import read_table

    table = None if labels is None else read_table(labels, [USER, ITEM])
    with joined():
        opened = open_run(run)
        if rank():
            opened.tune_along(start, table)
        else:
            _alone(opened, "train", overwrite, skip_estimate, start=start, labels=table)


@app.command()
def score(
    run: RunFolder,
    overwrite: Overwrite = False,
    skip_estimate: SkipEstimate = False,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
) -> None:
    """Score the noise probability of every interaction."""
    _alone(open_run(run, workers_of(engine, address, workers)), "score", overwrite, skip_estimate)


@app.command()
def calibrate(
    run: RunFolder,
    labels: Annotated[Path, typer.Option(help="Table with split, window_id, position, is_noise (0 or 1).")],
) -> None:
    """Fit noise probabilities to reviewed interactions. No model is asked; later stages are removed."""
    from llm4dsr.core.io import read_table

    table = read_table(labels)
    low, high = open_run(run).calibrate(table)
    told = f"Fitted to {len(table):,} labels, the noise rate is {low:.1%} to {high:.1%}"
    console.print(f"{told}, if real noise scores like injected noise.")


@app.command()
def decide(
    run: RunFolder,
    goal: Goal = None,
    policy: DecidePolicy = None,
    eta: Eta = None,
    cap: Annotated[int | None, typer.Option(min=0, help="Most flagged interactions in a window.")] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Flag the so many most suspicious interactions of the whole run.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Labels of a random sample, as for calibrate; for false-flag-rate.")
    ] = None,
    reviewed: Annotated[
        Path | None, typer.Option(help="Reviewed interactions (labels.csv of review), which overrule η.")
    ] = None,
    overwrite: Overwrite = False,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
) -> None:
    """Flag interactions as noise, by η or by what recommenders gain on validation."""
    from llm4dsr.columns import REPLACEMENT
    from llm4dsr.core.io import read_table
    from llm4dsr.denoise.decide import TOP

    if top is not None:
        if policy is not None or eta is not None or goal is not None:
            raise ConfigError("--top says how many are flagged. Leave --policy, --eta and --goal out.")
        policy, eta = TOP, top
    table, answers = (None if path is None else read_table(path, [REPLACEMENT]) for path in (labels, reviewed))
    opened = open_run(run, workers_of(engine, address, workers))
    with bar() as progress:
        opened.decide(progress, policy, eta, cap, overwrite, goal, table, answers)
    show_tried(open_run(run))


@app.command()
def suggest(
    run: RunFolder,
    overwrite: Overwrite = False,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
) -> None:
    """Suggest a replacement for each flagged interaction."""
    opened = open_run(run, workers_of(engine, address, workers))
    with bar() as progress:
        opened.suggest(progress, overwrite)


@app.command()
def correct(
    run: RunFolder,
    action: Annotated[
        str | None,
        typer.Option("--action", "-a", help="replace, drop, mixed or downweight; default: as decided."),
    ] = None,
    histories: Annotated[
        bool | None,
        typer.Option(
            "--histories/--training-alone",
            help="Correct all histories, or training windows alone; default: as decided.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write corrected histories and the list of edits."""
    open_run(run).correct(action, overwrite, histories)


@app.command()
def evaluate(
    run: RunFolder,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of the recommender; default: as configured.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a recommender on original, corrected and oracle data, and compare them."""
    with bar() as progress:
        open_run(run).evaluate(progress, overwrite, seeds)
    show(open_run(run))


@app.command()
def noise(
    data: Data,
    out: Out,
    kind: Annotated[
        str,
        typer.Option("--kind", "-k", help="uniform, popularity, near-miss, burst, insertion, deletion or shuffle."),
    ] = "uniform",
    rate: Annotated[float, typer.Option(min=0, max=1, help="Fraction of the interactions.")] = 0.1,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0, help="Seed of the noise.")] = 0,
    per: Annotated[str, typer.Option(help="user (before windows are built), or window.")] = "user",
) -> None:
    """Inject noise whose truth is known, to measure detection with. The truth is kept beside the data."""
    from llm4dsr.data.noise import noise_folder

    console.print_json(json.dumps(noise_folder(data, out, kind, rate, seed, per)["files"]))


app.add_typer(data_commands.app, name="data")
app.add_typer(config_commands.app, name="config")
for _command in (results_commands.report, results_commands.review, results_commands.export):
    app.command()(_command)
app.command("apply")(apply_command.apply)
app.command("serve")(serve_command.serve)
app.command("bench")(bench_commands.bench)
app.command("study")(bench_commands.study)


def _estimate(run: Run, data: Dataset, todo: list[str]) -> None:
    """Tell what stages will need. Raises ModelError or OutputError if it cannot fit."""
    from llm4dsr.pipeline.preflight import preflight

    estimate = preflight(data, run.config, todo, run.folder)
    if estimate is not None:
        messages.print(estimate.line(), markup=False, highlight=False, soft_wrap=True)


def _alone(run: Run, name: str, overwrite: bool, skip_estimate: bool, **options: Any) -> None:
    """Run one stage, after telling what it will need."""
    with run.locked():
        if run.done("prepare") and (overwrite or not run.done(name)) and not skip_estimate:
            _estimate(run, run.data(), [name])
        with bar() as progress:
            getattr(run, name)(progress, overwrite, **options)


def _stages(run: Run, data: Any, skip_estimate: bool = False) -> None:
    """Run the stages that are not complete yet, and show the result."""
    from llm4dsr.pipeline import STAGES

    todo = [name for name in STAGES if not run.done(name)]

    def check(loaded: Dataset) -> None:
        if not skip_estimate:
            _estimate(run, loaded, todo)

    with run.locked():
        if run.done("prepare"):
            check(run.data())
        for name in STAGES:
            if run.done(name):
                messages.print(f"[bold]{name}[/bold] is complete already")
                continue
            messages.print(f"[bold]{name}[/bold]")
            with bar() as progress:
                if name == "prepare":
                    run.prepare(data, check=check)
                else:
                    run.make(name, data, progress)
            if name == "decide":
                show_tried(run)
        messages.print("[bold]report[/bold]")
        write_page(run)
    show(run)


def main() -> None:
    """Run the command line. Errors print one message on standard error and set the exit code (errors.py)."""
    set_up()
    signal.signal(signal.SIGTERM, _terminated)
    odd = [argument for argument in sys.argv[1:] if any("\ud800" <= sign <= "\udfff" for sign in argument)]
    if odd:  # libraries that write files take UTF-8 alone
        messages.print(f"[red]Error:[/red] {escape(plain(odd[0]))} is not UTF-8. Give another name.", soft_wrap=True)
        raise SystemExit(2)
    try:
        app()
    except LLM4DSRError as error:
        # soft_wrap: a path or a command in the message can be copied whole
        messages.print(f"[red]Error:[/red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(error.exit_code) from None
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        messages.print(
            "[red]Error:[/red] Out of memory. Use fewer windows (--limit), smaller sizes in the recipe, or a larger "
            "machine.", soft_wrap=True,
        )  # fmt: skip
        raise SystemExit(ModelError.exit_code) from None
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        path = escape(plain(str(error.filename))[:80])
        messages.print(f"[red]Error:[/red] {path}: {error.strerror}. Give another path.", soft_wrap=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        messages.print("Interrupted. Repeat the command to resume.")
        raise SystemExit(130) from None


def _terminated(*_: Any) -> None:
    raise SystemExit(143)
