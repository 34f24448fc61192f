"""`llm4dsr apply`: correct a file of histories with a saved denoiser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from llm4dsr.cli.options import Address, Engine, Out, Workers, workers_of
from llm4dsr.cli.terminal import bar, console


def apply(
    model: Annotated[Path, typer.Argument(help="A folder that save_pretrained wrote, or a run folder.")],
    data: Annotated[
        Path,
        typer.Option(
            "--data", "-d", help="Parquet file, or a folder of them, with a list item_ids and optionally user_id."
        ),
    ],
    out: Out,
    eta: Annotated[
        float | None,
        typer.Option(help="Noise probability from which interactions are flagged; default: as configured."),
    ] = None,
    action: Annotated[
        str | None,
        typer.Option("--action", "-a", help="replace, drop or downweight; default: as configured."),
    ] = None,
    rows: Annotated[
        int, typer.Option(min=1, help="Histories that are in memory at once, and in each part of the output.")
    ] = 50_000,
    engine: Engine = "local",
    address: Address = None,
    workers: Workers = None,
) -> None:
    """Correct histories of any number, in bounded memory. Interrupted, the same command resumes it."""
    from llm4dsr.pipeline.histories_file import ApplyOptions, apply_to_file
    from llm4dsr.pipeline.served_model import open_model

    makers = None
    if (by_ray := workers_of(engine, address, workers)) is not None:
        from llm4dsr.pipeline.ray_histories import RayHistories

        makers = RayHistories(model, by_ray)
    denoiser = open_model(model)
    options = ApplyOptions.of(denoiser, eta, action, rows)
    with bar() as progress:
        found = apply_to_file(denoiser, data, out, options, progress, makers)
    done = ", ".join(f"{count:,} {what}" for what, count in sorted(found["edits"].items())) or "none"
    console.print(
        f"{found['histories']:,} histories, {found['interactions']:,} interactions, {found['flagged']:,} flagged "
        f"(edits: {done}). {found['seconds']:,.0f} s, {found['peak memory MiB']:,} MiB at most.",
        soft_wrap=True,
    )
    console.print(f"Corrected histories: {escape(str(out))}/part-*/histories.parquet", soft_wrap=True)
