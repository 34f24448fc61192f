"""Study 1: detection before and after tuning, and after a few steps of it."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import polars as pl

from llm4dsr import columns as c
from llm4dsr.catalogue import Windows
from llm4dsr.config import EMBEDDED, Config
from llm4dsr.denoiser import Denoiser
from llm4dsr.pipeline import origin
from llm4dsr.shards import versions
from llm4dsr.studies.measures import detection
from llm4dsr.studies.study import Context, Found
from llm4dsr.studies.truth import describe, known_noise
from llm4dsr.tables import matrix

QUESTION = "How well is noise found before the model is tuned, after a few steps, and after all of them?"
FEW = (1_000, 8_000)  # windows that a model sees once
QUICK_FEW = (64,)
ZERO_SEEDS = 3  # of untuned models: what first weights say is chance, and differs
ZERO, FULL = "zero-shot", "full"


def study(context: Context) -> Found:
    """Detection on the histories of test: AUROC and average precision of the log-odds (range and direction: metrics.py)
    of the same model, untuned, tuned on some windows once, and tuned in full."""
    run, data = context.run(), context.suite.data
    judged = known_noise(data.splits[c.TEST], data.catalogue, context.config.seed)
    shards, given, lines = context.shards("task"), context.config, []
    for samples in (0, *(QUICK_FEW if context.quick else FEW)):
        if samples >= len(data.splits[c.TRAIN]):
            continue
        found = []
        for seed in range(given.seed, given.seed + (1 if samples else ZERO_SEEDS)):
            train = dataclasses.replace(given.train, epochs=1 if samples else 0, samples=samples)
            # The order of the log-odds is all that is measured here
            score = dataclasses.replace(given.score, calibration="off")
            config = dataclasses.replace(given, seed=seed, train=train, score=score)
            key = (versions(), origin(data), config, judged.items, judged.noise_mask)
            found.append(shards.table(key, partial(_fitted, context, config, judged)))
        lines.append(_line(ZERO if not samples else f"{samples:,} windows once", config, context, pl.concat(found)))
    tuned = _detection(Denoiser.from_pretrained(run.path("train")), context, judged)
    lines.append(_line(FULL, given, context, tuned))
    table = pl.DataFrame(lines)
    inner = judged.histories()
    assert inner.noise_mask is not None
    rate = float(inner.noise_mask.sum() / inner.lengths.sum())
    notes = [
        f"Test histories: {inner.lengths.sum():,} interactions, {rate:.1%} of them noise. An order by chance has AUROC "
        f"0.5 and an average precision of {rate:.3f}.",
        describe(judged, data.splits[c.TEST]),
        f"Every line has {given.train.folds} model(s), each tuned without the users of its fold; windows and steps are "
        "those of one model.",
    ]  # fmt: skip
    if given.model.source == EMBEDDED:
        notes.append(
            "The embedded model is not pre-trained: what it says before tuning is chance by its nature, above or below "
            f"0.5 as its first weights happen to fall; shown are mean, least and most of {ZERO_SEEDS} seeds. "
            "A pre-trained language model can be given by --config."
        )
    return Found({"Detection": table}, partial(_plot, table, rate), notes)


def _fitted(context: Context, config: Config, judged: Windows) -> pl.DataFrame:
    data = context.suite.data
    denoiser = Denoiser(config).fit(
        data.splits[c.TRAIN], data.catalogue, data.splits[c.VALID].histories(), context.progress
    )
    return _detection(denoiser, context, judged)


def _detection(denoiser: Denoiser, context: Context, judged: Windows) -> pl.DataFrame:
    """One row: auroc, average_precision. Validation is known before test, as in a run."""
    scores = denoiser.observe(context.suite.data.splits[c.VALID]).score(judged, context.progress, target_fixed=True)
    found = detection(matrix(scores, judged, c.LOG_ODDS), None, judged)
    return pl.DataFrame({name: [found[name]] for name in ("auroc", "average_precision")})


def _line(name: str, config: Config, context: Context, found: pl.DataFrame) -> dict[str, Any]:
    train, windows = config.train, len(context.suite.data.splits[c.TRAIN])
    if train.folds > 1:
        windows = round(windows * (train.folds - 1) / train.folds)
    windows = min(windows, train.samples or windows) if train.epochs else 0
    steps = -(-windows // train.batch_windows) * train.epochs
    auroc, precision = found["auroc"].to_numpy(), found["average_precision"].to_numpy()
    return {"tuning": name, "windows": windows, "epochs": train.epochs, "steps": steps, "seeds": len(found),
            "auroc": auroc.mean(), "average_precision": precision.mean(),
            "auroc, least": auroc.min(), "auroc, most": auroc.max()}  # fmt: skip


def _plot(table: pl.DataFrame, rate: float, figure: Any) -> None:
    axes = figure.subplots(1, 2)
    for ax, column, label, chance in zip(axes, ("auroc", "average_precision"), ("AUROC", "average precision"),
                                         (0.5, rate), strict=True):  # fmt: skip
        ax.plot(range(len(table)), table[column].to_list(), marker="o")
        ax.axhline(chance, linestyle=":", color="grey", label="chance")
        ax.set_xticks(range(len(table)), [f"{steps:,}" for steps in table["steps"]])
        ax.set_xlabel("optimizer steps")
        ax.set_ylabel(label)
        ax.legend()
