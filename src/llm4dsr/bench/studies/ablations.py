"""What each part of the method contributes: the whole, and the whole without one part at a time."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.bench.denoised import NONE
from llm4dsr.bench.studies.detection import detection, gains
from llm4dsr.bench.studies.samples import sample, scores_of
from llm4dsr.bench.studies.study import Context, Found
from llm4dsr.config import EMBEDDED, Config
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import align
from llm4dsr.denoise.calibrate import Calibrator
from llm4dsr.denoiser import Denoiser
from llm4dsr.evaluate.rows import DecisionTables, Splits, correct_splits
from llm4dsr.recommenders import seeds_of

QUESTION = "What does each part of the method contribute?"
WHOLE = "the whole"
UNTUNED, UNSURE, DROPPED = "without tuning", "without uncertainty", "without replacement (drop)"
UNSTACKED, UNCOUNTED = "without stacking", "without co-occurrence and stacking"
UNCALIBRATED = "without calibration"
WARM, COLD = "title model", "title model without pre-training"
SEEDS = 2  # of recommenders, at most
TEXT, TEXT_QUICK, WARM_EPOCHS = (3_000, 800, 1_000), (64, 32, 33), 2  # windows of train, valid and test; passes


def study(context: Context) -> Found:
    """Leave out parts after scoring in the decisions of the shared run; other parts need their own run."""
    data, config, text = context.dataset.data, context.config, TEXT_QUICK if context.quick else TEXT
    run = context.run()
    tables = {WHOLE: run.tables()}
    scores = {WHOLE: run.scores()}
    variants = {UNTUNED: dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=0))}
    if config.model.source == EMBEDDED and config.model.cooccurrence:
        unstacked = dataclasses.replace(config, score=dataclasses.replace(config.score, stacking=False))
        uncounted = dataclasses.replace(config.model, cooccurrence=False)
        variants |= {UNSTACKED: unstacked, UNCOUNTED: dataclasses.replace(unstacked, model=uncounted)}
    for name, variant in variants.items():
        other = context.variant(name.replace(" ", "-"), variant)
        tables[name], scores[name] = other.tables(), other.scores()
    for name, decide in ((UNSURE, answers), (UNCALIBRATED, uncalibrated)):
        decisions = {split: decide(s, config, split == c.TRAIN) for split, s in scores[WHOLE].items()}
        tables[name], scores[name] = context.suggested(run, decisions), scores[WHOLE]
    found = [{"row": name, **_found(scores[name], tables[name], data)} for name in tables]
    if config.model.source == EMBEDDED:  # any other model was pre-trained
        found += _of_text(context, text)
    few = dataclasses.replace(config.evaluate, seeds=min(SEEDS, config.evaluate.seeds))
    cells = context.compare(rows(data, tables, config), dataclasses.replace(config, evaluate=few))
    ranked = gains(cells, WHOLE, few.k)
    return Found(
        {"Detection": pl.DataFrame(found), "Ranking, against the whole": ranked},
        lambda figure: _draw(figure, ranked, few.k),
        [f"{few.backbone}, {seeds_of(few)} seed(s). gain: NDCG@{few.k} less that of {WHOLE!r}, which finds, decides "
         "and replaces as configured; below 0, the part that was left out contributes.",
         f"Unless configured otherwise, {WHOLE!r} flags what is more likely noise than not (η = 0.5 on the calibrated "
         "probability), not at the correction rate that a run chooses on validation.",
         f"{UNSURE}: the model's own answer is the decision ({_answer(config)}), with the cap on flags in a window. "
         f"{UNCALIBRATED}: its log-odds as they are, with the same η. With noise logits and η = 0.5 the two are the "
         "same.",
         f"{UNTUNED}: the same configuration with no epoch, calibrated and scored. {UNSTACKED}: noise logits of the "
         f"model alone, which reads co-occurrence features. {UNCOUNTED}: it reads title vectors alone.",
         f"The title models (item_input: title, readout: per_position; {WARM_EPOCHS} pre-training epochs) have "
         f"{', '.join(f'{n:,}' for n in text)} sampled windows of train, valid and test. Compare them only with each "
         "other."],
    )  # fmt: skip


def answers(scores: pl.DataFrame, config: Config, is_train: bool) -> pl.DataFrame:
    """Flag the model's answers, however sure it is: positive noise logits, or the most likely title."""
    if config.model.readout == "title":
        scores = scores.filter(pl.col(c.LOG_ODDS).is_not_nan())  # to Polars, NaN > 0
        return scores.filter((pl.col(c.RANK) == 1) & ((pl.col(c.LOG_ODDS) > 0) | (config.task.none == 0)))
    return Denoiser(config).decide(_raw(scores), "probability", 0.5, is_train=is_train)


def uncalibrated(scores: pl.DataFrame, config: Config, is_train: bool) -> pl.DataFrame:
    """Decide as configured on probabilities that are the log-odds as they are (score.calibration: off)."""
    return Denoiser(config).decide(_raw(scores), is_train=is_train)


def _raw(scores: pl.DataFrame) -> pl.DataFrame:
    return scores.with_columns(pl.Series(c.NOISE_PROBABILITY, Calibrator()(scores[c.LOG_ODDS].to_numpy())))


def _answer(config: Config) -> str:
    return "its most likely title" if config.model.readout == "title" else 'every answer "yes", log-odds above 0'


def _of_text(context: Context, text: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Detection by a small title model, with and without pre-training on the histories."""
    few = sample(context.dataset.data, *text, context.config.seed)
    model = dataclasses.replace(context.config.model, item_input="title", readout="per_position")
    size = {"hidden_size": min(128, model.hidden_size), "layers": min(2, model.layers)}
    train = dataclasses.replace(context.config.train, folds=1, batch_windows=32, max_tokens=1_024)
    lines = []
    for name, epochs in ((WARM, WARM_EPOCHS), (COLD, 0)):
        own = dataclasses.replace(model, **size, pretrain_epochs=epochs)  # type: ignore[arg-type]
        config = dataclasses.replace(context.config, model=own, train=train)
        scores = scores_of(few, config, context.cache("ablations"), context.progress)
        decisions = {n: Denoiser(config).decide(s, is_train=n == c.TRAIN) for n, s in scores.items()}
        lines.append({"row": name, **_found(scores, DecisionTables(decisions, {}), few)})
    return lines


def rows(data: Dataset, tables: dict[str, DecisionTables], config: Config) -> dict[str, Splits]:
    """Return what each row trains and is tested on: flagged interactions replaced, in one row dropped."""
    actions = {name: (name, "replace") for name in tables}
    out = {NONE: data.splits}
    for row, (name, action) in {**actions, DROPPED: (WHOLE, "drop")}.items():
        how = dataclasses.replace(config.correct, action=action)  # type: ignore[arg-type]
        out[row] = correct_splits(data.splits, tables[name], data.catalogue, how)
    return out


def _found(scores: dict[str, pl.DataFrame], tables: DecisionTables, data: Dataset) -> dict[str, float]:
    """Detection in test histories, and how training windows were flagged."""
    of = {}
    for name in (c.TEST, c.TRAIN):
        windows = data.splits[name]
        flagged = align(tables.decisions[name], windows, None)
        of[name] = detection(align(scores[name], windows, c.LOG_ODDS), flagged, windows)
    shown = ("auroc", "average_precision", "flagged", "precision", "recall")
    return {key: of[c.TEST][key] for key in shown} | {f"train_{key}": of[c.TRAIN][key] for key in shown[2:]}


def _draw(figure: Any, ranked: pl.DataFrame, k: int) -> None:
    axes = figure.subplots()
    shown = ranked.filter(pl.col("row") != WHOLE).sort("gain")
    half = np.nan_to_num(shown["half_width"].to_numpy())
    axes.barh(shown["row"].to_list(), shown["gain"].to_list(), xerr=half, color="tab:blue", ecolor="grey")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"NDCG@{k} on test, less that of the whole")
