"""`llm4dsr data …`: from a publisher's files or your own tables to windows that `llm4dsr run --data` takes."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
from rich.markup import escape

from llm4dsr.cli.options import Out
from llm4dsr.cli.terminal import bar, console
from llm4dsr.errors import ConfigError, DataError

app = typer.Typer(help=__doc__, no_args_is_help=True)

Source = Annotated[Path, typer.Argument(help="The folder, or the file with the interactions.")]
Data = Annotated[Path, typer.Argument(help="Folder with items and windows, or with items and interactions.")]
Form = Annotated[str | None, typer.Option(help="The publisher's file format; default: recognized by the file names.")]


@app.command("list")
def list_() -> None:
    """List datasets that can be fetched, and file formats that can be read."""
    from llm4dsr.data.sources.known import known_sources
    from llm4dsr.data.sources.read import FORMS, RECBOLE, RECBOLE_FILES

    console.print("Datasets to fetch with  llm4dsr data fetch NAME --out DIR:")
    for (license, page), group in groupby(known_sources(), lambda known: (known.license, known.homepage)):
        names = [f"{k.name} ({k.size_text})" if k.size_text != "not known" else k.name for k in group]
        console.print(f"\n  {', '.join(names)}", markup=False, highlight=False)
        console.print(f"    {license}. {page}", style="dim", markup=False, highlight=False, soft_wrap=True)
    console.print("\nFormats to read with  llm4dsr data prepare DIR --out DIR:\n")
    for form in FORMS:
        console.print(f"  {form.name}: {form.files}", markup=False, highlight=False)
    console.print(f"  {RECBOLE}: {RECBOLE_FILES}", markup=False, highlight=False)
    console.print("  table: interactions and items as .csv, .tsv, .txt, .jsonl (also .gz) or .parquet, also in parts")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A name from `llm4dsr data list`.")],
    out: Out,
    accept_license: Annotated[bool, typer.Option(help="You have read the license and accept it.")] = False,
) -> None:
    """Download a dataset from its publisher. Interrupted, the same command resumes."""
    from llm4dsr.data.sources.fetch import fetch

    with bar() as progress:
        files = fetch(name, out, accept_license, progress)
    console.print(f"Written to {escape(str(out))}: {escape(', '.join(f.name for f in files))}")


@app.command()
def prepare(
    path: Source,
    out: Out,
    form: Form = None,
    column: Annotated[
        list[str] | None, typer.Option(help="For tables: our name=yours, as in user_id=visitor. Can be repeated.")
    ] = None,
    history: Annotated[int, typer.Option(min=1, help="Most items before the target of a window.")] = 10,
    k_core: Annotated[int, typer.Option(min=0, help="Users and items with fewer interactions are dropped.")] = 5,
    split: Annotated[str, typer.Option(help="time, leave-one-out or user.")] = "time",
    ratios: Annotated[str, typer.Option(help="Train, valid and test.")] = "8:1:1",
    min_rating: Annotated[float | None, typer.Option(help="Interactions with a lower rating are dropped.")] = None,
    repeats: Annotated[
        str, typer.Option(help="keep, or drop repeated user-item interactions: first or consecutive.")
    ] = "keep",
    merge_titles: Annotated[bool, typer.Option(help="Items with the same title count as one.")] = False,
    max_history: Annotated[
        int | None, typer.Option(min=1, help="Most interactions of a user; the newest are kept.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0, help="Draws the users of the split by user.")] = 0,
) -> None:
    """Turn a publisher's files or your own tables into windows, in bounded memory. Every dropped row is counted."""
    from llm4dsr.core.io import check_new_folder
    from llm4dsr.data.prepare import PrepareOptions, prepare
    from llm4dsr.data.sources import read_source

    options = PrepareOptions(
        history=history, k_core=k_core, split=split, ratios=_ratios(ratios), min_rating=min_rating,  # type: ignore[arg-type]
        repeats=repeats, merge_titles=merge_titles, max_history=max_history, seed=seed,  # type: ignore[arg-type]
    )  # fmt: skip
    check_new_folder(out)  # before the log is read
    source = read_source(path, form, _mapping(column))
    with bar() as progress:
        report = prepare(source, out, options, progress)
    console.print_json(json.dumps({name: report[name] for name in ("unreadable", "interactions", "items", "windows")}))
    console.print(
        f"Windows in {escape(str(out))}. Next:  llm4dsr run --data {escape(quote(str(out)))} --out …", soft_wrap=True
    )


@app.command()
def describe(path: Data) -> None:
    """Describe users, items, lengths, popularity, titles and noise of a data folder."""
    from llm4dsr.data.describe import describe, describe_text

    console.print(describe_text(describe(path)), markup=False, highlight=False, soft_wrap=True)


@app.command()
def validate(path: Data, strict: Annotated[bool, typer.Option(help="Warnings count as errors.")] = False) -> None:
    """Check a data folder before any work. Exit code 3 if there are errors."""
    from llm4dsr.data.validate.checks import validate

    report = validate(path, strict)
    console.print(report.text(), markup=False, highlight=False, soft_wrap=True)
    if not report.ok():
        raise SystemExit(DataError.exit_code)


def _ratios(text: str) -> Any:
    parts = text.split(":")
    if len(parts) != 3 or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--ratios {text}: expected three whole numbers, as in 8:1:1.")
    return tuple(int(part) for part in parts)


def _mapping(columns: list[str] | None) -> dict[str, str] | None:
    for column in columns or []:
        if not all(column.partition("=")):
            raise ConfigError(f"--column {column}: expected our name, =, and yours, as in user_id=visitor.")
    return {ours: yours for ours, _, yours in (column.partition("=") for column in columns or [])} or None
