"""The cells of the benchmark: a recommender, trained and tested on what a denoiser made of the suite, with one seed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl

from llm4dsr import evaluate
from llm4dsr.batch import Progress
from llm4dsr.bench.denoised import NONE, denoised, names
from llm4dsr.bench.suite import Suite
from llm4dsr.config import Config
from llm4dsr.data import write_parquet
from llm4dsr.errors import ConfigError
from llm4dsr.pipeline import Run, origin
from llm4dsr.recommenders import NAMES, ROBUST
from llm4dsr.shards import digest, versions

RESULTS, DETECTION = "results.parquet", "detection.parquet"


def bench(suite: Suite, out: Path, backbones: list[str], denoisers: list[str], config: Config,
          progress: Progress | None = None) -> pl.DataFrame:  # fmt: skip
    """Fills the cells that are not there yet: backbone, denoiser, seed, ndcg, hit_rate, valid_ndcg, epochs, seconds,
    ranks, data (which windows), recipe (a hash of the recommender's options, the same in all rows of a backbone),
    listed (how many candidates llara puts in order, 0 = all; null for other backbones), device (of the recommender: the
    GPU's name, or CPU). They are also written to OUT/SUITE/results.parquet, beside what earlier calls have put there,
    and detection to detection.parquet. A recommender that is robust by itself (FMLP-Rec, CL4SRec) learns from untouched
    windows.

    One process at a time works on OUT/SUITE. Raises ConfigError for an unknown name, or where OUT/SUITE has other
    windows or a backbone with other options; OutputError, and others.
    """
    for kind, asked, known in (("backbone", backbones, NAMES), ("denoiser", denoisers, names(suite))):
        for name in asked:
            if name not in known:
                raise ConfigError(f"Unknown {kind} {name!r} for the suite {suite.name}. Known: {', '.join(known)}.")
    folder, found = out / suite.name, []
    settings = {name: dataclasses.replace(config.evaluate, backbone=name) for name in backbones}  # type: ignore[arg-type]
    recipes = {name: digest(*evaluate.options(of)) for name, of in settings.items()}
    data, device = origin(suite.data), versions().get("gpu", "CPU")
    _check(folder / RESULTS, data, recipes, device)
    with Run(folder, config).alone():
        rows, detection = denoised(suite, folder, denoisers, config, progress)
        if len(detection):
            _add(folder / DETECTION, detection, ["denoiser", "split"])
        for backbone in backbones:
            compared = {NONE: rows[NONE]} if backbone in ROBUST else rows
            cells = evaluate.compare(
                compared, suite.data.catalogue, settings[backbone], config.seed, progress, folder / "cells"
            )
            listed = config.evaluate.llara.candidates if backbone == "llara" else None
            found.append(cells.select(
                pl.lit(backbone).alias("backbone"),
                pl.col("row").alias("denoiser"),
                pl.exclude("row", "valid_ranks"),
                pl.lit(data).alias("data"),
                pl.lit(recipes[backbone]).alias("recipe"),
                pl.lit(listed, dtype=pl.Int64).alias("listed"),
                pl.lit(device).alias("device"),
            ))  # fmt: skip
            _add(folder / RESULTS, found[-1], ["backbone", "denoiser", "seed"])
    return pl.concat(found)


def _check(path: Path, data: str, recipes: dict[str, str], device: str) -> None:
    """Rows of one table are of the same windows, and those that are compared of the same options and device."""
    if not path.is_file():
        return
    there = pl.read_parquet(path, glob=False)
    if not {"data", "recipe", "device"} <= set(there.columns):
        raise ConfigError(f"{path} was made by another version. Choose another --out.")
    if set(there["data"]) - {data}:
        raise ConfigError(f"{path} is of other windows. Choose another --out.")
    for backbone, recipe in recipes.items():
        rows = there.filter(pl.col("backbone") == backbone)
        for what, column, given in (("other options of the recommender", "recipe", recipe),
                                    ("recommenders of another device", "device", device)):  # fmt: skip
            if set(rows[column]) - {given}:
                raise ConfigError(
                    f"{path} has {backbone} with {what}, and rows that are compared must share them. Choose another "
                    "--out."
                )


def _add(path: Path, new: pl.DataFrame, key: list[str]) -> None:
    """Writes new rows beside those that are there and not made anew."""
    if path.is_file():
        old = pl.read_parquet(path, glob=False).join(new, on=key, how="anti")
        new = pl.concat([old, new], how="diagonal_relaxed")
    write_parquet(new.sort(key), path)
