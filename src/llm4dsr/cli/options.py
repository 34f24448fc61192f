"""Options that several commands share, each with its help text and short flag."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llm4dsr.config import EMBEDDED, Config, ModelConfig
from llm4dsr.core.progress import log
from llm4dsr.errors import ConfigError

if TYPE_CHECKING:
    from llm4dsr.pipeline.ray_workers import RayWorkers

Data = Annotated[
    Path, typer.Option("--data", "-d", help="Folder with items and windows, or with items and interactions.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to make.")]
DemoOut = Annotated[Path, typer.Option("--out", "-o", help="Run folder to make.")]
RunFolder = Annotated[Path, typer.Option("--run", "-r", help="The run folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", "-f", help="Make the stage again; later stages are removed.")]
Recipe = Annotated[Path | None, typer.Option("--config", "-c", help="A YAML recipe: a path, or demo, laptop, paper.")]
Model = Annotated[str | None, typer.Option("--model", "-m", help="'embedded', 'smollm2', a hub name, or a local path.")]
Start = Annotated[
    Path | None,
    typer.Option("--from", help="A saved denoiser, or a run, to start tuning from; its options are the defaults."),
]
Limit = Annotated[
    int | None, typer.Option("--limit", "-n", min=0, help="Windows used of each split, for a quick look; 0 = all.")
]
Seed = Annotated[int | None, typer.Option("--seed", "-s", min=0, help="Seed of everything random.")]
SkipEstimate = Annotated[
    bool, typer.Option("--skip-estimate", help="Start without telling what it needs, and even if that cannot fit.")
]
Policy = Annotated[
    str | None, typer.Option(help="How η is read: percentile, probability, precision, rate; or validation.")
]
DecidePolicy = Annotated[
    str | None,
    typer.Option(
        "--policy",
        help="How η is read: percentile, probability, precision, rate; validation; or false-flag-rate, "
        "missed-noise-rate (guarantees).",
    ),
]
Goal = Annotated[
    str | None,
    typer.Option(help="What validation tries: denoise (default) or impute, which replaces up to half of everything."),
]
Eta = Annotated[float | None, typer.Option(help="The threshold η, from 0 to 1; its meaning depends on the policy.")]

Engine = Annotated[
    str, typer.Option(help="Who scores and suggests: local (this process), or ray (workers, on many machines).")
]
Address = Annotated[
    str | None,
    typer.Option(help="Ray cluster to use, such as 10.0.0.1:6379 or auto; default: Ray is started on this machine."),
]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Ray workers; default: one for each GPU of the cluster, else for each core.")
]


def workers_of(engine: str, address: str | None, workers: int | None) -> RayWorkers | None:
    """Who makes parts ahead of the stages; None: the stages make them. Raises ConfigError for an unknown engine."""
    if engine not in ("local", "ray"):
        raise ConfigError(f"--engine {engine}: expected local or ray.")
    if engine == "local":
        if address is not None or workers is not None:
            raise ConfigError("--address and --workers need --engine ray.")
        return None
    from llm4dsr.pipeline.ray_workers import RayWorkers

    return RayWorkers(address, workers)


def _fitting(model: ModelConfig) -> ModelConfig:
    """The options of a recipe for another model than its own, which may not be quantized: without CUDA, none can."""
    if model.load_in == "full":
        return model
    from llm4dsr.core.device import pick_device
    from llm4dsr.lm.gguf import gguf_path

    if pick_device() != "cpu" and model.source != EMBEDDED and gguf_path(model.source) is None:
        return model
    log.warning(
        "model.load_in: %s of the recipe is for other models: %s is loaded in full.", model.load_in, model.source
    )
    return replace(model, load_in="full")


def read_config(
    recipe: Path | None, model: str | None, limit: int | None, seed: int | None, start: Path | None = None
) -> Config:
    """The recipe, or the defaults, with what the command line overrides. With a start, its options are the defaults."""
    base = None
    if start is not None:
        from llm4dsr.denoise.storage import saved_config
        from llm4dsr.pipeline.inputs import start_of

        base = saved_config(Path(start_of(start)["folder"]))
    config = Config.from_yaml(recipe, base) if recipe else base or Config()
    if model is not None:
        config = replace(config, model=_fitting(replace(config.model, source=model)))
    config = replace(config, limit=config.limit if limit is None else limit)
    return replace(config, seed=config.seed if seed is None else seed)
