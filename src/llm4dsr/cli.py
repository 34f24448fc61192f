"""The command line: one verb per stage, `run` for all of them, `demo` for a first look. Exit codes: errors.py."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape

from llm4dsr.config import Config
from llm4dsr.data_cli import app as data_app
from llm4dsr.decide import asked
from llm4dsr.errors import ConfigError, LLM4DSRError, ModelError
from llm4dsr.terminal import bar, console

if TYPE_CHECKING:  # what computes is imported where it is called: help must not wait for it
    from llm4dsr.pipeline import Run

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)
app.add_typer(data_app, name="data")

RunFolder = Annotated[Path, typer.Option("--run", help="The run folder.")]
Overwrite = Annotated[bool, typer.Option(help="Make the stage again; later stages are removed.")]
Recipe = Annotated[Path | None, typer.Option("--config", help="A YAML recipe: a path, or demo, laptop, paper.")]
Policy = Annotated[
    str | None, typer.Option(help="How η is read: percentile, probability, precision, rate; or validation.")
]
Eta = Annotated[float | None, typer.Option(help="η, from 0 to 1; what it means goes by the policy.")]
Seed = Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")]


def _config(recipe: Path | None, model: str | None, limit: int | None, seed: int | None) -> Config:
    config = Config.from_yaml(recipe) if recipe else Config()
    if model is not None:
        config = replace(config, model=replace(config.model, source=model))
    config = replace(config, limit=config.limit if limit is None else limit)
    return replace(config, seed=config.seed if seed is None else seed)


def _side_by_side(recipe: Path | None, seeds: int, limit: int) -> tuple[Config, int]:
    """(configuration, windows of each split) of bench and study."""
    config = _config(recipe, None, None, None)
    return replace(config, limit=0, evaluate=replace(config.evaluate, seeds=seeds)), limit or config.limit


def _begin(out: Path, config: Config, data: Any) -> Run:
    from llm4dsr.pipeline import Run

    return Run.begin(out, config, data)


def _open(folder: Path) -> Run:
    from llm4dsr.pipeline import Run

    return Run(folder)


def _stages(run: Run, data: Any) -> None:
    from llm4dsr.pipeline import STAGES

    with run.alone():
        for name in STAGES:
            if run.done(name):
                console.print(f"[bold]{name}[/bold] is there already")
                continue
            console.print(f"[bold]{name}[/bold]")
            with bar() as progress:
                run.make(name, data, progress)
            if name == "decide":
                _chosen(run)
    _show(run)


def _chosen(run: Run) -> None:
    """Which share validation chose, where it was asked."""
    from llm4dsr.recommenders.training import VALIDATION_K

    tried = run.card()["stages"]["decide"].get("tried", [])
    if tried:
        shown = ", ".join(f"{t['share']:.0%} {t['valid_ndcg']:.4f}{' (chosen)' * t['chosen']}" for t in tried)
        console.print(f"NDCG@{VALIDATION_K} on validation by share corrected: {shown}")
        if tried[0]["chosen"]:
            console.print(
                "No share ranks validation better than none, beyond chance, so nothing is corrected. To act on what is "
                "more likely noise than not:  "
                f"llm4dsr decide --run {escape(str(run.folder))} --policy probability --overwrite"
            )


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
    _stages(_begin(out, config, data), data)


@app.command()
def run(
    data: Annotated[Path, typer.Option(help="Folder with items and windows, or with items and interactions.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    model: Annotated[str | None, typer.Option(help="'embedded', a hub name, or a local path.")] = None,
    config: Recipe = None,
    policy: Policy = None,
    eta: Eta = None,
    limit: Annotated[int | None, typer.Option(min=0, help="Use only so many windows of each split.")] = None,
    seed: Seed = None,
) -> None:
    """All stages, from the data to the result table. Stopped, it goes on when the same command is given again."""
    chosen = _config(config, model, limit, seed).to_dict()
    chosen["decide"] |= {"policy": asked(policy, eta, chosen["decide"]["policy"])}
    chosen["decide"] |= {"eta": eta, "eta_test": None} if eta is not None else {}
    _stages(_begin(out, Config.from_dict(chosen, "run"), data), data)


@app.command()
def noise(
    data: Annotated[Path, typer.Option(help="Data folder: items with interactions, or with windows.")],
    out: Annotated[Path, typer.Option(help="Folder to make.")],
    kind: Annotated[
        str, typer.Option(help="uniform, popularity, near-miss, burst, insertion, deletion or shuffle.")
    ] = "uniform",
    rate: Annotated[float, typer.Option(min=0, max=1, help="Share of the interactions.")] = 0.1,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    per: Annotated[str, typer.Option(help="user (before windows are cut), or window.")] = "user",
) -> None:
    """Make noise whose truth is known, to measure with. The truth is kept beside the data."""
    from llm4dsr.noisy_data import noise_folder

    console.print_json(json.dumps(noise_folder(data, out, kind, rate, seed, per)["files"]))


@app.command()
def prepare(
    data: Annotated[Path, typer.Option(help="Folder with the data.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    model: Annotated[str | None, typer.Option(help="'embedded', a hub name, or a local path.")] = None,
    config: Recipe = None,
    limit: Annotated[int | None, typer.Option(min=0)] = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
) -> None:
    """Read the data and write windows."""
    _begin(out, _config(config, model, limit, seed), data).prepare(data, overwrite)


@app.command()
def train(run: RunFolder, overwrite: Overwrite = False) -> None:
    """Tune the language model and calibrate it."""
    with bar() as progress:
        _open(run).train(progress, overwrite)


@app.command()
def score(run: RunFolder, overwrite: Overwrite = False) -> None:
    """Noise probability of every interaction."""
    with bar() as progress:
        _open(run).score(progress, overwrite)


@app.command()
def decide(
    run: RunFolder,
    policy: Policy = None,
    eta: Eta = None,
    cap: Annotated[int | None, typer.Option(min=0)] = None,
    overwrite: Overwrite = False,
) -> None:
    """Which interactions count as noise, by η; or how many to correct, by what a recommender gains on validation."""
    with bar() as progress:
        _open(run).decide(progress, policy, eta, cap, overwrite)
    _chosen(_open(run))


@app.command()
def suggest(run: RunFolder, overwrite: Overwrite = False) -> None:
    """A better item for each flagged interaction."""
    with bar() as progress:
        _open(run).suggest(progress, overwrite)


@app.command()
def correct(run: RunFolder, action: Annotated[str | None, typer.Option()] = None, overwrite: Overwrite = False) -> None:
    """Corrected histories and the list of edits."""
    _open(run).correct(action, overwrite)


@app.command()
def evaluate(
    run: RunFolder, seeds: Annotated[int | None, typer.Option(min=1)] = None, overwrite: Overwrite = False
) -> None:
    """A recommender on original, corrected and oracle data."""
    with bar() as progress:
        _open(run).evaluate(progress, overwrite, seeds)
    _show(_open(run))


@app.command()
def bench(
    suite: Annotated[str, typer.Option(help="demo, or a folder of windows as for `run`.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; finished cells are kept and not made again.")],
    backbones: Annotated[str, typer.Option(help="Names with commas between them.")] = "sasrec",
    denoisers: Annotated[str, typer.Option(help="Names with commas between them, or all.")] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Of each recommender.")] = 3,
    natural: Annotated[bool, typer.Option(help="The windows as they were before noise was put in.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Use only so many windows of each split.")] = 0,
    config: Recipe = None,
    report: Annotated[Path | None, typer.Option(help="Where to write the tables; OUT/RESULTS.md if not given.")] = None,
) -> None:
    """Denoisers × recommenders × seeds on one suite, with intervals and paired tests."""
    from llm4dsr.bench import cells, denoised, load, tables
    from llm4dsr.data import write_text

    chosen, limit = _side_by_side(config, seeds, limit)
    data = load(suite, natural, limit, chosen.seed)
    asked = denoised.usual(data) if denoisers == "all" else [name.strip() for name in denoisers.split(",")]
    learners = [name.strip() for name in backbones.split(",")]
    console.print(
        f"{len(asked)} denoisers, {len(learners)} recommender(s), {seeds} seed(s): at most "
        f"{len(asked) * len(learners) * seeds} recommenders to train; those in {escape(str(out))} are not made again."
    )
    with bar() as progress:
        cells.bench(data, out, learners, asked, chosen, progress)
    text = tables.results_markdown(out, chosen.evaluate.k)
    write_text(report or out / "RESULTS.md", text)
    console.print(Markdown(text))


@app.command()
def study(
    name: Annotated[
        str,
        typer.Argument(
            help="task, uncertainty, grounding, threshold, noise, upper_bound, transfer, ablations, cost, or all."
        ),
    ],
    suite: Annotated[str, typer.Option(help="demo, or a folder of windows as for `run`.")] = "demo",
    out: Annotated[Path, typer.Option(help="Folder of what is computed; shared with `bench`.")] = Path("runs/bench"),
    docs: Annotated[Path, typer.Option(help="Folder of the pages.")] = Path("docs/studies"),
    seeds: Annotated[int, typer.Option(min=1, help="Of each recommender.")] = 3,
    limit: Annotated[int, typer.Option(min=0, help="Use only so many windows of each split.")] = 0,
    quick: Annotated[bool, typer.Option(help="Smallest sizes that still go all the way; numbers mean little.")] = False,
    config: Recipe = None,
    target: Annotated[
        list[Path] | None,
        typer.Option(help="For transfer: windows of another domain with known noise. Can be repeated."),
    ] = None,
) -> None:
    """One question about the method, answered with a table, a plot and a page."""
    from llm4dsr import studies
    from llm4dsr.bench import load
    from llm4dsr.pipeline import use_threads
    from llm4dsr.studies.study import Context, check_page, smaller, write_page

    if name not in (*studies.NAMES, "all"):
        raise ConfigError(f"Unknown study {name!r}. Known: {', '.join(studies.NAMES)}, all.")
    chosen, limit = _side_by_side(config, seeds, limit)
    chosen = smaller(chosen) if quick else chosen
    use_threads(chosen)  # also in a study without a run
    data = load(suite, limit=limit, seed=chosen.seed, tiny=quick)
    asked = studies.NAMES if name == "all" else (name,)
    for each in asked:
        check_page(each, data.name, docs)
    for each in asked:
        module = studies.module(each)
        with bar() as progress:
            context = Context(data, out / data.name, chosen, quick, progress, target or [])
            started = time.perf_counter()
            found = module.study(context)
            seconds = time.perf_counter() - started
        options = (("suite", Path(suite).name), ("config", config.name if config else ""), ("limit", limit))
        given = "".join(f" --{k} {v}" for k, v in options if v)
        given += "".join(f" --target {path.name}" for path in target or [] if each == "transfer")
        command = f"llm4dsr study {each}{given} --seeds {chosen.evaluate.seeds}" + (" --quick" if quick else "")
        page = write_page(each, module.QUESTION, found, context, docs, command, seconds)
        console.print(f"[bold]{each}[/bold]: {escape(str(page))}")


def main() -> None:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # our own bars say what takes time
    signal.signal(signal.SIGTERM, _terminated)
    try:
        app()
    except LLM4DSRError as error:
        # soft_wrap: a path or a command in the message can be copied whole
        Console(stderr=True).print(f"[red]Error:[/red] {escape(str(error))}", soft_wrap=True)
        raise SystemExit(error.exit_code) from None
    except MemoryError:
        Console(stderr=True).print("[red]Error:[/red] Out of memory. Use fewer windows (--limit) or a larger machine.")
        raise SystemExit(ModelError.exit_code) from None
    except KeyboardInterrupt:
        console.print("Stopped. The same command goes on from here.")
        raise SystemExit(130) from None


def _terminated(*_: Any) -> None:
    raise SystemExit(143)
