"""Study 1: detection before tuning, after a few steps, and after all of them."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from typing import Any

import polars as pl

from llm4dsr import columns as c
from llm4dsr.bench.studies.detection import describe, detection, known_noise
from llm4dsr.bench.studies.study import Context, Found
from llm4dsr.config import EMBEDDED, Config
from llm4dsr.core.hashing import versions
from llm4dsr.data.windows import Windows, align
from llm4dsr.denoiser import Denoiser
from llm4dsr.pipeline import origin

QUESTION = "How well is noise found before tuning, after a few steps, and after all of them?"
FEW = (1_000, 8_000)  # windows that a model sees once
QUICK_FEW = (64,)
ZERO_SEEDS = 3  # of untuned models: what first weights say is chance, and differs
ZERO, FULL, STACKED = "zero-shot", "full", "full, stacked with co-occurrence evidence"


def study(context: Context) -> Found:
    """Detection on test histories by the same model: untuned, tuned on some windows once, and fully tuned."""
    run, data = context.run(), context.dataset.data
    judged = known_noise(data.splits[c.TEST], data.catalogue, context.config.seed)
    cache, given, lines = context.cache("task"), context.config, []
    for samples in (0, *(QUICK_FEW if context.quick else FEW)):
        if samples >= len(data.splits[c.TRAIN]):
            continue
        found = []
        for seed in range(given.seed, given.seed + (1 if samples else ZERO_SEEDS)):
            train = dataclasses.replace(given.train, epochs=1 if samples else 0, samples=samples)
            # The order of the log-odds is all that is measured here
            score = dataclasses.replace(given.score, calibration="off")
            config = dataclasses.replace(given, seed=seed, train=train, score=score)
            key = (versions(), origin(data), config, judged.items, judged.lengths, judged.noise_mask)
            found.append(cache.table(key, partial(_fitted, context, config, judged)))
        lines.append(_line(ZERO if not samples else f"{samples:,} windows once", config, context, pl.concat(found)))
    tuned = Denoiser.from_pretrained(run.verified("train"))
    lines.append(_line(FULL, given, context, _detection(_unstacked(tuned), context, judged)))
    if any(tuned.ensemble.stackers):
        lines.append(_line(STACKED, given, context, _detection(tuned, context, judged)))
    table = pl.DataFrame(lines)
    inner = judged.histories()
    rate = float(inner.truth().sum() / inner.lengths.sum())
    notes = [
        f"Test histories: {inner.lengths.sum():,} interactions, {rate:.1%} of them noise. Chance: AUROC 0.5, average "
        f"precision {rate:.3f}.",
        describe(judged, data.splits[c.TEST]),
        f"Each line has {given.train.folds} model(s), each tuned without the users of its fold; windows and steps are "
        "per model.",
    ]  # fmt: skip
    if given.model.source == EMBEDDED:
        notes.append(
            "The embedded model is not pre-trained, so before tuning it is at chance, above or below 0.5 by its "
            f"initial weights: mean, least and most of {ZERO_SEEDS} seeds. --config can name a pre-trained model."
        )
    return Found({"Detection": table}, partial(_plot, table, rate), notes)


def _unstacked(denoiser: Denoiser) -> Denoiser:
    """The same models without stackers, as the other lines have none: they are not calibrated."""
    out = copy.copy(denoiser)
    out._ensemble = dataclasses.replace(denoiser.ensemble, stacker_newer=None, stacker_training=None)
    return out


def _fitted(context: Context, config: Config, judged: Windows) -> pl.DataFrame:
    data = context.dataset.data
    denoiser = Denoiser(config).fit(
        data.splits[c.TRAIN], data.catalogue, data.splits[c.VALID].histories(), context.progress
    )
    return _detection(denoiser, context, judged)


def _detection(denoiser: Denoiser, context: Context, judged: Windows) -> pl.DataFrame:
    """One row: auroc, average_precision. Validation is counted before test, as in a run."""
    scores = denoiser.update_counts(context.dataset.data.splits[c.VALID]).score(
        judged, context.progress, has_target=True
    )
    found = detection(align(scores, judged, c.LOG_ODDS), None, judged)
    return pl.DataFrame({name: [found[name]] for name in ("auroc", "average_precision")})


def _line(name: str, config: Config, context: Context, found: pl.DataFrame) -> dict[str, Any]:
    train, windows = config.train, len(context.dataset.data.splits[c.TRAIN])
    if train.folds > 1:
        windows = round(windows * (train.folds - 1) / train.folds)
    windows = min(windows, train.samples or windows) if train.epochs else 0
    steps = -(-windows // train.batch_windows) * train.epochs
    auroc, precision = found["auroc"].to_numpy(), found["average_precision"].to_numpy()
    return {"tuning": name, "windows": windows, "epochs": train.epochs, "steps": steps, "seeds": len(found),
            "auroc": auroc.mean(), "average_precision": precision.mean(),
            "auroc, least": auroc.min(), "auroc, most": auroc.max()}  # fmt: skip


def _plot(table: pl.DataFrame, rate: float, figure: Any) -> None:
    axes, stacked = figure.subplots(1, 2), table.filter(pl.col("tuning") == STACKED)
    table = table.filter(pl.col("tuning") != STACKED)
    for ax, column, label, chance in zip(
        axes, ("auroc", "average_precision"), ("AUROC", "average precision"), (0.5, rate), strict=True
    ):
        ax.plot(range(len(table)), table[column].to_list(), marker="o")
        if len(stacked):
            ax.plot(len(table) - 1, stacked[column][0], "D", label="stacked")
        ax.axhline(chance, linestyle=":", color="grey", label="chance")
        ax.set_xticks(range(len(table)), [f"{steps:,}" for steps in table["steps"]])
        ax.set_xlabel("optimizer steps")
        ax.set_ylabel(label)
        ax.legend()
