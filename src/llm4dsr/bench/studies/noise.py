"""Study 5: kinds and rates of noise other than the usual uniform 10 %."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from llm4dsr import columns as c
from llm4dsr.bench.datasets import before_noise, knows_before
from llm4dsr.bench.studies.detection import detection
from llm4dsr.bench.studies.samples import BATCH, budget, sample, scores_of
from llm4dsr.bench.studies.study import Context, Found
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.noise.folder import noise_folder
from llm4dsr.data.noise.kinds import KINDS
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import align
from llm4dsr.denoiser import Denoiser

QUESTION = "Which kinds of noise are found, and at which rate does detection fail?"
RATES = (0.05, 0.1, 0.2, 0.5)
QUICK_RATES = (0.1, 0.5)
# On Toys 28 denoisers of about a minute of one core
WINDOWS, QUICK = (3_000, 800, 2_000), (128, 32, 33)  # of train, valid and test
EPOCHS, FOLDS = 3, 2


def study(context: Context) -> Found:
    """Every kind at every rate has its own denoiser, tuned on the noise that it is to find."""
    config = budget(context.config, EPOCHS, 1 if context.quick else FOLDS)
    clean, origin = without_noise(context.dataset.data)
    clean = sample(clean, *(QUICK if context.quick else WINDOWS), config.seed)
    lines = []
    for kind in KINDS:
        for rate in QUICK_RATES if context.quick else RATES:
            data = with_noise(clean, kind, rate, config.seed)
            scores = scores_of(data, config, context.cache("noise"), context.progress, (c.TEST,))[c.TEST]
            decisions = Denoiser(config).decide(scores, is_train=False)
            test = data.splits[c.TEST]
            log_odds, flagged = align(scores, test, c.LOG_ODDS), align(decisions, test, None)
            lines.append({"kind": kind, "rate": rate, **detection(log_odds, flagged, test)})
    found = pl.DataFrame(lines)
    sizes = ", ".join(f"{len(w):,} {name}" for name, w in clean.splits.items())
    return Found(
        {"AUROC on test, by kind and rate": found.pivot("rate", index="kind", values="auroc"),
         "Detection on test": found},
        lambda figure: _draw(figure, found),
        [f"A sample of {sizes} windows, {origin}. Noise is injected once per user (`llm4dsr noise`), never into "
         "targets of validation and test. near-miss uses similar titles.",
         f"Each denoiser: {config.train.epochs} epochs in steps of {config.train.batch_windows} windows (at most "
         f"{BATCH}), {config.train.folds} folds, one seed; so all numbers are below those of the whole dataset.",
         "Removed interactions cannot be found: deletion has no AUROC; fewer flags (false_flags) are better. The rate "
         "is a fraction of interactions; data/noise/kinds.py defines it for each kind."],
    )  # fmt: skip


def without_noise(data: Dataset) -> tuple[Dataset, str]:
    """Return (the windows without known noise, a description). Without a complete truth they are taken as they are."""
    if all(knows_before(w) for w in data.splits.values()):
        splits, origin = (
            {n: before_noise(w) for n, w in data.splits.items()},
            "as they were before the dataset's own noise",
        )
    else:
        splits = {
            n: dataclasses.replace(w, noise_mask=None, clean_items=None, weights=None) for n, w in data.splits.items()
        }
        origin = "with whatever noise they hold already"
    return Dataset(data.catalogue, splits), origin


def with_noise(clean: Dataset, kind: str, rate: float, seed: int) -> Dataset:
    """Inject noise as `llm4dsr noise` does, per user, with its truth."""
    with TemporaryDirectory() as folder:
        clean.write(Path(folder) / "clean")
        noise_folder(Path(folder) / "clean", Path(folder) / "noisy", kind, rate, seed)
        return read_data(Path(folder) / "noisy")


def _draw(figure: Any, found: pl.DataFrame) -> None:
    axes = figure.subplots()
    for kind in KINDS:
        line = found.filter((pl.col("kind") == kind) & pl.col("auroc").is_not_nan())
        if len(line):
            axes.plot(100 * line["rate"], line["auroc"], marker="o", label=kind)
    axes.axhline(0.5, color="grey", linestyle=":", label="chance")
    axes.set_xlabel("noise rate, % of interactions")
    axes.set_ylabel("AUROC on test histories")
    axes.legend(fontsize="small")
