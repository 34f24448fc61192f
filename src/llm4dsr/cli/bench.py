"""`llm4dsr bench` and `llm4dsr study`: compare denoisers, and answer questions about the method with a page each."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown
from rich.markup import escape

from llm4dsr.cli.options import Recipe, read_config
from llm4dsr.cli.terminal import bar, console
from llm4dsr.config import Config
from llm4dsr.errors import ConfigError

DatasetName = Annotated[str, typer.Option("--dataset", help="demo, or a folder of windows as for `run`.")]
Seeds = Annotated[int, typer.Option(min=1, help="Seeds of each recommender; itemknn and ease have none.")]
Limit = Annotated[int, typer.Option("--limit", "-n", min=0, help="Windows used of each split; 0 = all.")]


def bench(
    dataset: DatasetName,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of the results; finished cells are kept and not made again.")
    ],
    backbones: Annotated[str, typer.Option(help="Recommenders, separated by commas.")] = "sasrec",
    denoisers: Annotated[str, typer.Option(help="Denoisers, separated by commas, or all.")] = "all",
    seeds: Seeds = 3,
    denoiser_seeds: Annotated[int, typer.Option(min=1, help="Whole runs of our denoiser.")] = 3,
    natural: Annotated[bool, typer.Option(help="Use the windows as they were before noise was injected.")] = False,
    limit: Limit = 0,
    config: Recipe = None,
    report: Annotated[Path | None, typer.Option(help="Where to write the tables; default: OUT/RESULTS.md.")] = None,
) -> None:
    """Train every recommender on every denoiser's output, with intervals and paired tests."""
    from llm4dsr.bench import cells, denoised, tables
    from llm4dsr.bench.datasets import load_dataset
    from llm4dsr.bench.ours import OURS
    from llm4dsr.core.io import write_text
    from llm4dsr.recommenders import SEEDLESS

    chosen, limit = _bench_config(config, seeds, limit)
    data = load_dataset(dataset, natural, limit, chosen.seed)
    rows = denoised.usual(data) if denoisers == "all" else [name.strip() for name in denoisers.split(",")]
    recommenders = [name.strip() for name in backbones.split(",")]
    runs = sum(denoiser_seeds if name in (*OURS, *denoised.REPLACED) else 1 for name in rows)
    most = runs * sum(1 if name in SEEDLESS else seeds for name in recommenders)
    console.print(
        f"{len(rows)} denoisers, {len(recommenders)} recommender(s), {denoiser_seeds} x {seeds} seed(s): at most "
        f"{most} recommenders to train. Finished ones in {escape(str(out))} are kept."
    )
    with bar() as progress:
        cells.bench(data, out, recommenders, rows, chosen, progress, denoiser_seeds)
    text = tables.results_markdown(out, chosen.evaluate.k)
    write_text(report or out / "RESULTS.md", text)
    console.print(Markdown(text))


def study(
    name: Annotated[
        str,
        typer.Argument(
            help="task, uncertainty, grounding, threshold, noise, upper_bound, transfer, ablations, cost, or all."
        ),
    ],
    dataset: DatasetName = "demo",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of finished parts, shared with `bench`.")] = Path(
        "runs/bench"
    ),
    docs: Annotated[Path, typer.Option(help="Folder of the pages.")] = Path("docs/studies"),
    seeds: Seeds = 3,
    limit: Limit = 0,
    quick: Annotated[bool, typer.Option(help="Smallest sizes that still run everything; numbers mean little.")] = False,
    config: Recipe = None,
    target: Annotated[
        list[Path] | None,
        typer.Option(help="For transfer: windows of another domain with known noise. Can be repeated."),
    ] = None,
) -> None:
    """Answer one question about the method with a table, a plot and a page."""
    from llm4dsr.bench import studies
    from llm4dsr.bench.datasets import load_dataset
    from llm4dsr.bench.studies.study import Context, check_page, smaller, write_page
    from llm4dsr.core.device import use_threads

    if name not in (*studies.NAMES, "all"):
        raise ConfigError(f"Unknown study {name!r}. Known: {', '.join(studies.NAMES)}, all.")
    chosen, limit = _bench_config(config, seeds, limit)
    chosen = smaller(chosen) if quick else chosen
    use_threads(chosen.threads)  # also in a study without a run
    data = load_dataset(dataset, limit=limit, seed=chosen.seed, tiny=quick)
    names = studies.NAMES if name == "all" else (name,)
    for each in names:
        check_page(each, data.name, docs)
    for each in names:
        module = studies.module(each)
        with bar() as progress:
            context = Context(data, out / data.name, chosen, quick, progress, target or [])
            started = time.perf_counter()
            found = module.study(context)
            seconds = time.perf_counter() - started
        given = (("dataset", Path(dataset).name), ("config", config.name if config else ""), ("limit", limit))
        words = "".join(f" --{k} {v}" for k, v in given if v)
        words += "".join(f" --target {path.name}" for path in target or [] if each == "transfer")
        command = f"llm4dsr study {each}{words} --seeds {chosen.evaluate.seeds}" + (" --quick" if quick else "")
        page = write_page(each, module.QUESTION, found, context, docs, command, seconds)
        console.print(f"[bold]{each}[/bold]: {escape(str(page))}")


def _bench_config(recipe: Path | None, seeds: int, limit: int) -> tuple[Config, int]:
    """(configuration, windows used of each split)."""
    config = read_config(recipe, None, None, None)
    return replace(config, limit=0, evaluate=replace(config.evaluate, seeds=seeds)), limit or config.limit
