"""Study 2: whether noise probabilities are calibrated, for three ways to read them from a model."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from llm4dsr import columns as c
from llm4dsr import metrics
from llm4dsr.bench.studies.detection import need_masks
from llm4dsr.bench.studies.study import Context, Found
from llm4dsr.config import EMBEDDED, TaskConfig
from llm4dsr.data.windows import Windows, align, limit_windows
from llm4dsr.denoiser import Denoiser
from llm4dsr.evaluate.detection import flag_metrics

QUESTION = "Do noise probabilities agree with the actual noise?"
OURS = "this configuration"
BINS = 10  # of equal width, in the reliability diagram
SHOWN = 20  # interactions without which a bin is not drawn
MEASURED = 1_200  # windows of each split: enough to refit probabilities
# Of embedded models here: to name a title takes more steps to learn than to say yes or no, and titles differ so much in
# length that small passes, of windows that are alike, take half of the time
STEPS, BATCH, TOKENS = 900, 128, 1_024

Pair = tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]


def study(context: Context) -> Found:
    """Compare probabilities with the known mask on validation and test. Raises DataError without masks."""
    need_masks(context.dataset)
    ours, splits = context.run().scores(), context.dataset.data.splits
    judges = {
        "noise logit at each position": _judge(context, "per_position"),
        "whole title": _judge(context, "title"),
        "first token": _judge(context, "title", "first-token"),
    }
    lines, curves = [], {}
    for split in (c.VALID, c.TEST):
        windows, some = splits[split], limit_windows(splits[split], MEASURED, context.config.seed)
        here = pl.DataFrame({c.WINDOW: some.window_ids})
        lines.append(_line(f"{OURS}, all windows", split, ours[split], windows))
        lines.append(_line(OURS, split, ours[split].join(here, on=c.WINDOW, how="semi"), some))
        curves[OURS] = reliability(*_pair(ours[split], windows))
        for name, denoiser in judges.items():
            work = _work(context, denoiser.config.model.readout)
            scores = denoiser.score(some, context.progress, has_target=True, work=work, recalibrate=True)
            denoiser.update_counts(windows)  # as a run does: what came before test is known there
            lines.append(_line(name, split, scores, some))
            curves[name] = reliability(*_pair(scores, some))  # test comes last, and is what is drawn
    one = judges["whole title"].config
    notes = [
        "Correlation and ECE (15 bins) compare the probability with the mask; AUROC and average precision use log-odds "
        "and need no calibration. Ties are interactions with the log-odds of another one in their window. "
        "Probabilities come from injected noise, never from a mask.",
        f"The three readouts have single models of one kind ({one.model.source}, {one.model.item_input}, "
        f"{one.train.epochs} epoch(s) of {one.train.samples or 'all'} training windows, one injected item in each): "
        "one gives a noise logit at each position, the other names the injected item's title. With bidirectional "
        "attention a noise logit may also see later items; a title is scored token by token. They "
        "are not stacked: with co-occurrence evidence added, all find about as much.",
        f"Lines without 'all windows' use at most {MEASURED:,} windows of each split.",
        "Whole title and first token share their weights; each is calibrated separately.",
    ]
    tables = {"Agreement": pl.DataFrame(lines), f"Reliability of {OURS} on test": curves[OURS]}
    return Found(tables, partial(_plot, curves), notes)


def _judge(context: Context, answer: str, mode: str = "whole-title") -> Denoiser:
    """The configured model as a single one with this readout. mode: of scoring titles."""
    given, data = context.config, context.dataset.data
    train = dataclasses.replace(given.train, folds=1)
    if given.model.source == EMBEDDED and not context.quick:
        passes = max(1, round(STEPS * BATCH / len(data.splits[c.TRAIN])))
        train = dataclasses.replace(train, epochs=passes, batch_windows=BATCH, batch_tokens=TOKENS)
    config = dataclasses.replace(
        given,
        model=dataclasses.replace(given.model, readout=answer),  # type: ignore[arg-type]
        task=TaskConfig(replaced=1),  # published
        train=train,
        score=dataclasses.replace(given.score, mode=mode, calibration_draws=1, stacking=False),  # type: ignore[arg-type]
    )
    valid = data.splits[c.VALID].histories()
    return Denoiser(config).fit(data.splits[c.TRAIN], data.catalogue, valid, context.progress, _work(context, answer))


def _work(context: Context, answer: str) -> Path | None:
    """Where weights and scores are kept; both modes share the weights."""
    return context.cache(f"asked-{answer}").folder


def reliability(probability: npt.NDArray[np.float64], noise: npt.NDArray[np.bool_]) -> pl.DataFrame:
    """Return one row per non-empty bin: from, to, interactions, mean probability, fraction of noise."""
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    rows = []
    for b in np.unique(bins):
        here = bins == b
        rows.append({"from": b / BINS, "to": (b + 1) / BINS, "interactions": int(here.sum()),
                     "probability": float(probability[here].mean()), "noise": float(noise[here].mean())})  # fmt: skip
    return pl.DataFrame(rows)


def _pair(scores: pl.DataFrame, windows: Windows) -> Pair:
    """([n] probability, [n] whether it is noise)."""
    probability = align(scores, windows, c.NOISE_PROBABILITY)
    at = np.isfinite(align(scores, windows, c.LOG_ODDS))
    return probability[at], windows.truth()[at]


def _line(name: str, split: str, scores: pl.DataFrame, windows: Windows) -> dict[str, Any]:
    probability, noise = _pair(scores, windows)
    log_odds = align(scores, windows, c.LOG_ODDS)
    scored = np.isfinite(log_odds)
    found = flag_metrics(log_odds[scored], None, noise)
    constant = probability.min() == probability.max()  # nothing to correlate with
    return {
        "readout": name,
        "split": split,
        "interactions": len(noise),
        "noise": float(noise.mean()),
        "mean probability": float(probability.mean()),
        "Spearman": float("nan") if constant else float(stats.spearmanr(probability, noise).statistic),
        "AUROC": found["auroc"],
        "average precision": found["average_precision"],
        "ECE": metrics.expected_calibration_error(probability, noise),
        "ties": metrics.tie_rate(log_odds[scored], windows.owners[scored]),
    }


def _plot(curves: dict[str, pl.DataFrame], figure: Any) -> None:
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], linestyle=":", color="grey", label="as it should be")
    for name, table in curves.items():
        shown = table.filter(pl.col("interactions") >= SHOWN)
        ax.plot(shown["probability"].to_list(), shown["noise"].to_list(), marker="o", label=name)
    ax.set_xlabel("noise probability, mean of a bin")
    ax.set_ylabel(f"fraction of noise (bins of {SHOWN} or more)")
    ax.legend()
