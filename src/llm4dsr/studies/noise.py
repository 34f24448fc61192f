"""Noise of other kinds and other rates than the uniform tenth that a denoiser is usually measured on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from llm4dsr import columns as c
from llm4dsr.bench.suite import before_noise, knows_before
from llm4dsr.data import Data, read_data
from llm4dsr.denoiser import Denoiser
from llm4dsr.noise import KINDS
from llm4dsr.noisy_data import noise_folder
from llm4dsr.studies.budget import BATCH, budget, sample, scores_of
from llm4dsr.studies.measures import detection
from llm4dsr.studies.study import Context, Found
from llm4dsr.tables import matrix

QUESTION = "Which kinds of noise are found, and at which rate does it break?"
RATES = (0.05, 0.1, 0.2, 0.5)
QUICK_RATES = (0.1, 0.5)
# On Toys 28 denoisers of about a minute of one core
WINDOWS, QUICK = (3_000, 800, 2_000), (128, 32, 33)  # of train, valid and test
EPOCHS, FOLDS = 3, 2


def study(context: Context) -> Found:
    """Every kind at every rate has a denoiser of its own, tuned on the very noise that it is to find."""
    config = budget(context.config, EPOCHS, 1 if context.quick else FOLDS)
    clean, origin = without_noise(context.suite.data)
    clean = sample(clean, *(QUICK if context.quick else WINDOWS), config.seed)
    lines = []
    for kind in KINDS:
        for rate in QUICK_RATES if context.quick else RATES:
            data = with_noise(clean, kind, rate, config.seed)
            scores = scores_of(data, config, context.shards("noise"), context.progress, (c.TEST,))[c.TEST]
            decisions = Denoiser(config).decide(scores, is_train=False)
            test = data.splits[c.TEST]
            log_odds, flagged = matrix(scores, test, c.LOG_ODDS), matrix(decisions, test, None)
            lines.append({"kind": kind, "rate": rate, **detection(log_odds, flagged, test)})
    found = pl.DataFrame(lines)
    sizes = ", ".join(f"{len(w):,} {name}" for name, w in clean.splits.items())
    return Found(
        {"AUROC on test, by kind and rate": found.pivot("rate", index="kind", values="auroc"),
         "Detection on test": found},
        lambda figure: _draw(figure, found),
        [f"A sample of {sizes} windows, {origin}; noise is put in once per user (`llm4dsr noise`), never into the "
         "targets of validation and test. near-miss goes by similar titles.",
         f"Each denoiser: {config.train.epochs} epochs in steps of {config.train.batch_windows} windows (at most "
         f"{BATCH}), {config.train.folds} folds, one seed; so all numbers are below those of the whole suite.",
         "Nothing can be found where an interaction was removed: deletion has no AUROC, and what counts is how few are "
         "flagged (false_flags). The rate is a share of interactions; what it means for each kind says noise.py."],
    )  # fmt: skip


def without_noise(data: Data) -> tuple[Data, str]:
    """(the windows without any known noise, in words what they are). Where the truth is not known, or not whole, they
    are taken as they are."""
    if all(knows_before(w) for w in data.splits.values()):
        splits, origin = (
            {n: before_noise(w) for n, w in data.splits.items()},
            "as they were before the suite's own noise",
        )
    else:
        splits = {
            n: dataclasses.replace(w, noise_mask=None, clean_items=None, weights=None) for n, w in data.splits.items()
        }
        origin = "with whatever noise they hold already"
    return Data(data.catalogue, splits), origin


def with_noise(clean: Data, kind: str, rate: float, seed: int) -> Data:
    """Noise as `llm4dsr noise` makes it, per user, with its truth."""
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
