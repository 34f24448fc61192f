"""`llm4dsr config …`: the options of a run, and a schema that editors complete recipes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from llm4dsr.cli.terminal import console

app = typer.Typer(help=__doc__, no_args_is_help=True)


@app.command()
def show(
    recipe: Annotated[
        str | None, typer.Option("--config", "-c", help="A YAML recipe: a path, or demo, laptop, paper.")
    ] = None,
) -> None:
    """Print every option with its value: the defaults, or those of a recipe."""
    from llm4dsr.config import Config

    config = Config.from_yaml(Path(recipe)) if recipe else Config()
    console.print(config.to_yaml(), markup=False, highlight=False, soft_wrap=True, end="")


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes."""
    from llm4dsr.config.config import config_schema

    console.print(json.dumps(config_schema(), indent=1), markup=False, highlight=False, soft_wrap=True)
