"""The cells of the benchmark: a recommender, trained and tested on a denoiser's output, with one seed."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.bench.datasets import BenchDataset
from llm4dsr.bench.denoised import NONE, denoised, names
from llm4dsr.config import Config
from llm4dsr.core.hashing import digest, versions
from llm4dsr.core.io import write_parquet
from llm4dsr.core.manifest import (
    FILES,
    MANIFEST,
    DamageError,
    file_hash,
    read_manifest,
    read_sealed,
    write_manifest,
)
from llm4dsr.core.progress import Progress
from llm4dsr.errors import ConfigError, OutputError
from llm4dsr.evaluate.popularity import target_users
from llm4dsr.evaluate.train_and_evaluate import shared_options, train_and_evaluate
from llm4dsr.pipeline import Run
from llm4dsr.pipeline.inputs import windows_origin
from llm4dsr.recommenders import NAMES, ROBUST, SEEDLESS

RESULTS, DETECTION, TARGETS = "results.parquet", "detection.parquet", "targets.parquet"
TABLES = {RESULTS, DETECTION, TARGETS}
NEW = ".new"  # ends the name of a table until it takes the place of the old one
SEPARATOR = "|"  # between the seed of a denoiser and its name


def bench(
    dataset: BenchDataset,
    out: Path,
    backbones: list[str],
    denoisers: list[str],
    config: Config,
    progress: Progress | None = None,
    denoiser_seeds: int = 1,
) -> pl.DataFrame:
    """Fill the cells that are missing.

    Cells are also written to OUT/DATASET/results.parquet beside those of earlier calls, and detection to
    detection.parquet. A robust recommender (FMLP-Rec, CL4SRec) learns from the original windows only. One without a
    seed (item-kNN, EASE) has one cell per denoiser, under the first seed. One process at a time works on OUT/DATASET.

    Parameters
    ----------
    dataset : BenchDataset
        The windows.
    out : Path
        Folder of the benchmark.
    backbones, denoisers : list of str
        Recommenders, and denoisers of `denoised.names`.
    config : Config
        Options of our denoiser and of the recommenders.
    progress : Progress, optional
        Called with (steps done, all steps, what is being done).
    denoiser_seeds : int, default 1
        Whole runs of our denoiser.

    Returns
    -------
    DataFrame
        One line per cell: `backbone, denoiser, denoiser_seed, seed`, the second seed that of the recommender; `ndcg`,
        `hit_rate`, `valid_ndcg` (higher is better); `coverage` and `gini` of what is recommended; `epochs`, `seconds`,
        `ranks`; `users`, codes of the users of the test windows; `data`, a hash of the windows; `recipe`, a
        hash of the recommender's options, the same in all rows of a backbone; `listed`, the candidates that llara
        reorders (0 = all, null for other backbones); `device` of the recommender.

    Raises
    ------
    ConfigError
        For an unknown name, or if OUT/DATASET has other windows, or a backbone with other options.
    OutputError
        If the folder is in use or cannot be written.
    """
    for kind, asked, known in (("backbone", backbones, NAMES), ("denoiser", denoisers, names(dataset))):
        for name in asked:
            if name not in known:
                raise ConfigError(f"Unknown {kind} {name!r} for the dataset {dataset.name}. Known: {', '.join(known)}.")
    folder, found = out / dataset.name, []
    settings = {name: dataclasses.replace(config.evaluate, backbone=name) for name in backbones}  # type: ignore[arg-type]
    recipes = {name: digest(*shared_options(of)) for name, of in settings.items()}
    data, used = windows_origin(dataset.data), versions()
    devices = {name: "CPU" if name in SEEDLESS else used.get("gpu", "CPU") for name in backbones}
    made = {"k": config.evaluate.k, "versions": digest(used)}
    _check(folder / RESULTS, data, recipes, devices, made)
    with Run(folder, config).locked():
        rows, detection = denoised(dataset, folder, denoisers, config, progress, denoiser_seeds)
        windows, n_items = dataset.data.splits, len(dataset.data.catalogue)
        users = target_users(windows[c.TRAIN], windows[c.TEST], n_items)
        write_results(pl.DataFrame({"users": users.astype(np.int32)}), folder / TARGETS)
        if len(detection):
            _add(folder / DETECTION, detection, ["denoiser", "denoiser_seed", "split"])
        for backbone in backbones:
            compared = {
                f"{seed}{SEPARATOR}{name}": splits
                for (name, seed), splits in rows.items()
                if name == NONE or backbone not in ROBUST
            }
            cells = train_and_evaluate(
                compared, dataset.data.catalogue, settings[backbone], config.seed, progress, folder / "cells"
            )
            listed = min(config.evaluate.llara.candidates or n_items, n_items) if backbone == "llara" else None
            found.append(cells.select(
                pl.lit(backbone).alias("backbone"),
                pl.col("row").str.split_exact(SEPARATOR, 1).struct[1].alias("denoiser"),
                pl.col("row").str.split_exact(SEPARATOR, 1).struct[0].cast(pl.Int64, strict=False)
                .alias("denoiser_seed"),  # null: it has none
                pl.exclude("row", "valid_ranks", "valid_users"),
                pl.lit(data).alias("data"),
                pl.lit(recipes[backbone]).alias("recipe"),
                pl.lit(listed, dtype=pl.Int64).alias("listed"),
                pl.lit(devices[backbone]).alias("device"),
                pl.lit(made["k"], dtype=pl.Int64).alias("k"),
                pl.lit(made["versions"]).alias("versions"),
            ))  # fmt: skip
            _add(folder / RESULTS, found[-1], ["backbone", "denoiser", "denoiser_seed", "seed"])
    return pl.concat(found)


def _check(path: Path, data: str, recipes: dict[str, str], devices: dict[str, str], made: dict[str, Any]) -> None:
    """Rows of one table share windows and k; those of one backbone share options, device and versions."""
    if not path.is_file():
        return
    there = read_results(path)
    if not {"data", "recipe", "device", "denoiser_seed"} <= set(there.columns):
        raise ConfigError(f"{path} was made by another version. Choose another --out.")
    if set(there["data"]) - {data}:
        raise ConfigError(f"{path} is of other windows. Choose another --out.")
    check_k(there, path, made["k"])
    for backbone, recipe in recipes.items():
        rows = there.filter(pl.col("backbone") == backbone)
        for what, column, given in (
            ("other options of the recommender", "recipe", recipe),
            ("recommenders of another device", "device", devices[backbone]),
            ("results of other versions of this package or of its libraries", "versions", made["versions"]),
        ):
            if column in rows.columns and set(rows[column].drop_nulls()) - {given}:
                raise ConfigError(
                    f"{path} has {backbone} with {what}, and rows that are compared must share them. Choose another "
                    "--out."
                )


def check_k(results: pl.DataFrame, path: Path, k: int) -> None:
    """Check that results were computed at k, where they tell it. Raises ConfigError."""
    other = set(results["k"].drop_nulls()) - {k} if "k" in results.columns else set()
    if other:
        raise ConfigError(f"{path} has results at k = {other.pop()}, not {k}. Set evaluate.k, or choose another --out.")


def _add(path: Path, new: pl.DataFrame, key: list[str]) -> None:
    """Write new rows beside those that are there and not made again."""
    if path.is_file():
        old = read_results(path).join(new, on=key, how="anti", nulls_equal=True)
        new = pl.concat([old, new], how="diagonal_relaxed")
    write_results(new.sort(key), path)


def write_results(table: pl.DataFrame, path: Path) -> None:
    """Write one of TABLES, and its checksum beside it. An interruption leaves the old table or the new one."""
    new = path.with_name(path.name + NEW)
    write_parquet(table, new)
    write_manifest(path.parent, only=TABLES | {new.name})
    new.replace(path)
    write_manifest(path.parent, only=TABLES)


def read_results(path: Path) -> pl.DataFrame:
    """Read one of TABLES, after checking it. Raises OutputError if it is damaged."""
    try:
        read_manifest(path.parent, only={path.name})
    except DamageError as error:
        if not _is_new(path):
            raise OutputError(f"{error}. Restore it from a copy, or choose another --out.") from None
    return pl.read_parquet(path, glob=False)


def _is_new(path: Path) -> bool:
    """Whether a table was put in its place, but the manifest still lists it under the name that it had before."""
    with suppress(DamageError, OSError):
        return bool(read_sealed(path.parent / MANIFEST)[FILES].get(path.name + NEW) == file_hash(path))
    return False
