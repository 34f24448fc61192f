"""Study 2: whether the probabilities of noise can be believed, for three ways to ask a model for them."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from scipy import stats

from llm4dsr import columns as c
from llm4dsr import metrics
from llm4dsr.catalogue import Windows
from llm4dsr.evaluate import found_noise
from llm4dsr.studies.study import Context, Found
from llm4dsr.studies.text import text_denoiser, text_sample, text_work
from llm4dsr.studies.truth import need_masks
from llm4dsr.tables import matrix

QUESTION = "Do the noise probabilities agree with the noise that is really there?"
OURS = "this configuration"
BINS = 10  # of equal width, in the reliability diagram
SHOWN = 20  # interactions without which a bin is not drawn

Pair = tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]


def study(context: Context) -> Found:
    """Probabilities and the known mask on validation and test histories: correlation, calibration, ties.

    Raises DataError where the suite has no masks."""
    need_masks(context.suite)
    ours, sample = context.run().scores(), text_sample(context).data.splits
    judges = {
        "text, verdict at each position": (text_denoiser(context, "position"), text_work(context, "position")),
        "text, whole title": (text_denoiser(context, "title"), text_work(context, "title")),
        "text, first token": (text_denoiser(context, "title", "first-token"), text_work(context, "title")),
    }
    lines, curves = [], {}
    for split in (c.VALID, c.TEST):
        windows, some = context.suite.data.splits[split], sample[split]
        here = pl.DataFrame({c.WINDOW: some.window_ids})
        lines.append(_line(f"{OURS}, all windows", split, ours[split], windows))
        lines.append(_line(OURS, split, ours[split].join(here, on=c.WINDOW, how="semi"), some))
        curves[OURS] = reliability(*_pair(ours[split], windows))
        for name, (denoiser, work) in judges.items():
            scores = denoiser.score(some, context.progress, target_fixed=True, work=work)
            lines.append(_line(name, split, scores, some))
            curves[name] = reliability(*_pair(scores, some))  # test comes last, and is what is drawn
    sizes = {name: len(windows) for name, windows in sample.items()}
    text = next(iter(judges.values()))[0].config
    notes = [
        "Correlation and ECE (15 bins) are those of the probability with the mask, AUROC and average precision of the "
        "log-odds, which need no calibration; ties are interactions whose log-odds equal another one's of their "
        "window. Probabilities come from self-made noise, never from a mask.",
        f"The text models ({text.model.source}, {text.train.epochs} epoch(s)) are tuned on a sample of "
        f"{sizes[c.TRAIN]:,} training windows and calibrated on {sizes[c.VALID]:,} of validation; lines without 'all "
        f"windows' are measured on {sizes[c.VALID]:,} windows of validation and {sizes[c.TEST]:,} of test.",
        "Whole title and first token are read from the same weights; each is calibrated by itself.",
    ]
    tables = {"Agreement": pl.DataFrame(lines), f"Reliability of {OURS} on test": curves[OURS]}
    return Found(tables, partial(_plot, curves), notes)


def reliability(probability: npt.NDArray[np.float64], noise: npt.NDArray[np.bool_]) -> pl.DataFrame:
    """from, to, interactions, mean probability, share of noise: one row for each bin that is not empty."""
    bins = np.minimum((probability * BINS).astype(int), BINS - 1)
    rows = []
    for b in np.unique(bins):
        here = bins == b
        rows.append({"from": b / BINS, "to": (b + 1) / BINS, "interactions": int(here.sum()),
                     "probability": float(probability[here].mean()), "noise": float(noise[here].mean())})  # fmt: skip
    return pl.DataFrame(rows)


def _pair(scores: pl.DataFrame, windows: Windows) -> Pair:
    """([n] probability, [n] whether it is noise)."""
    probability = matrix(scores, windows, c.NOISE_PROBABILITY)
    at = np.isfinite(probability)
    assert windows.noise_mask is not None
    return probability[at], windows.noise_mask[at]


def _line(name: str, split: str, scores: pl.DataFrame, windows: Windows) -> dict[str, Any]:
    probability, noise = _pair(scores, windows)
    log_odds = matrix(scores, windows, c.LOG_ODDS)
    found = found_noise(log_odds[np.isfinite(log_odds)], None, noise)
    constant = probability.min() == probability.max()  # nothing to correlate with
    return {
        "asked for": name,
        "split": split,
        "interactions": len(noise),
        "noise": float(noise.mean()),
        "mean probability": float(probability.mean()),
        "Spearman": float("nan") if constant else float(stats.spearmanr(probability, noise).statistic),
        "AUROC": found["auroc"],
        "average precision": found["average_precision"],
        "ECE": metrics.expected_calibration_error(probability, noise),
        "ties": metrics.tie_rate(log_odds, np.isfinite(log_odds)),
    }


def _plot(curves: dict[str, pl.DataFrame], figure: Any) -> None:
    ax = figure.subplots()
    ax.plot([0, 1], [0, 1], linestyle=":", color="grey", label="as it should be")
    for name, table in curves.items():
        shown = table.filter(pl.col("interactions") >= SHOWN)
        ax.plot(shown["probability"].to_list(), shown["noise"].to_list(), marker="o", label=name)
    ax.set_xlabel("noise probability, mean of a bin")
    ax.set_ylabel(f"share of noise (bins of {SHOWN} or more)")
    ax.legend()
