"""Study 4: where η stands, what is flagged then, and what a recommender gains from it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr import evaluate, metrics
from llm4dsr.choose import SHARES, best_share
from llm4dsr.decide import decide, settings
from llm4dsr.pipeline import Run
from llm4dsr.studies.controls import by_chance, by_popularity, popular_instead, training_alone
from llm4dsr.studies.measures import gains
from llm4dsr.studies.study import Context, Found
from llm4dsr.tables import matrix

QUESTION = "Which threshold η should there be, and does the automatic one stand well?"
POLICY, EVEN = "probability", 0.5  # more likely noise than not: chosen without a label or a recommender
SWEPT = np.round(np.linspace(0, 1, 41), 3).tolist()
SHOWN = SWEPT[::4]  # in the table
RANKED = (0.2, 0.35, EVEN, 0.7, 0.9)  # η at which recommenders are trained
QUICK_RANKED = (0.2, EVEN)
ACTIONS = ("replace", "drop")
QUICK_SHARES = (0.0, 0.2)  # of all interactions, replaced whatever their probability


def study(context: Context) -> Found:
    """η over noise probabilities: detection on each split, and ranking on test at some η, dropped and replaced."""
    run = context.run()
    sweep = pl.concat([_sweep(run, context, split, scores) for split, scores in run.scores().items()])
    compared = {evaluate.ORIGINAL: context.suite.data.splits}
    for eta in QUICK_RANKED if context.quick else RANKED:
        compared |= {_row(eta, action): splits for action, splits in corrected_at(run, context, POLICY, eta).items()}
    k, shares = context.config.evaluate.k, QUICK_SHARES if context.quick else SHARES
    shared = context.compare(_shares(run, context, shares))
    first = shared.filter(pl.col("seed") == context.config.seed, pl.col("row").is_in([_most(s) for s in shares]))
    tried = best_share(first.with_columns(row=pl.Series([str(s) for s in shares])))
    chosen: float = tried.filter("chosen")["share"][0]
    ranking = gains(context.compare(compared), evaluate.ORIGINAL, k)
    eta_of = {_row(eta, action): (eta, action) for eta in RANKED for action in ACTIONS}
    ranking = ranking.with_columns(
        pl.Series("η", [eta_of.get(row, (None, None))[0] for row in ranking["row"]], dtype=pl.Float64),
        pl.Series("action", [eta_of.get(row, (None, None))[1] for row in ranking["row"]], dtype=pl.String),
    )
    caps = {split: settings(run.config.decide, split == c.TRAIN)[2] for split in c.SPLITS}
    notes = [
        "An interaction is flagged where its probability of noise is η or more, the most suspicious first, and at most "
        f"{caps[c.TRAIN]} in a training window, {caps[c.TEST]} in another. Expected precision is the mean probability "
        "of what is flagged: it needs no label.",
        f"η = {EVEN} is what is more likely noise than not, the default of a Denoiser. The default of a run is the "
        "share that ranks validation best (with the first seed), if its 95 % interval over windows is above nothing "
        "replaced. No mask has a say in either, nor has test.",
        "Every flag of every η has a suggestion, made for the flags of that η as the pipeline would make it.",
        "By chance: as many interactions with the same cap, drawn at random, and our suggestions for them. What these "
        "gain is owed to the suggestions alone; what the most suspicious ones gain beyond is owed to detection.",
        "Popular items instead: the same flags, but items drawn by how many users have them in training. What these "
        "gain is owed to frequent items alone.",
        "Knowing training alone: flags and suggestions of training windows without the histories of validation, which "
        "a run has counted by then (who has what together) and recommenders never learn from.",
        f"Recommender: {context.config.evaluate.backbone}, {context.config.evaluate.seeds} seed(s), test targets "
        "untouched; ranking is NDCG and hit rate "
        f"@{k}. Half widths and p_seeds are over seeds, p_windows over test windows.",
    ]
    tables = {
        f"Flags at η = {EVEN}": sweep.filter(pl.col("η") == EVEN),
        "Ranking at some η": ranking,
        "What validation chooses": tried,
        "Ranking with a share of all interactions replaced": gains(shared, evaluate.ORIGINAL, k),
        "The same by the target's users in training": by_popularity(shared, context.suite.data, k),
        "Sweep": sweep.filter(pl.col("η").is_in(SHOWN)),
    }
    return Found(tables, partial(_plot, sweep, ranking, chosen, k), notes)


def _sweep(run: Run, context: Context, split: str, scores: pl.DataFrame) -> pl.DataFrame:
    """One line for each η: share flagged, expected precision; precision, recall and F1 where noise is known."""
    windows = context.suite.data.splits[split]
    log_odds, probability = matrix(scores, windows, c.LOG_ODDS), matrix(scores, windows, c.NOISE_PROBABILITY)
    judged, cap = np.isfinite(log_odds), settings(run.config.decide, split == c.TRAIN)[2]
    lines = []
    for eta in SWEPT:
        flagged = decide(log_odds, probability, POLICY, eta, cap)
        precision = recall = float("nan")
        if windows.noise_mask is not None:
            precision, recall = metrics.precision_recall(flagged[judged], windows.noise_mask[judged])
        lines.append({
            "split": split,
            "η": eta,
            "flagged": float(flagged[judged].mean()),
            "expected precision": float(probability[flagged].mean()) if flagged.any() else float("nan"),
            "precision": precision,
            "recall": recall,
            "F1": 2 * precision * recall / (precision + recall) if precision + recall > 0 else float("nan"),
        })  # fmt: skip
    return pl.DataFrame(lines)


def corrected_at(run: Run, context: Context, policy: str, eta: float) -> dict[str, evaluate.Splits]:
    """Action → the splits as the pipeline would correct them with this η."""
    tables = context.suggested(run, run.decided(policy, eta))
    return {action: _corrected(run, context, tables, action) for action in ACTIONS}


def _corrected(run: Run, context: Context, tables: evaluate.Tables, action: str = "replace") -> evaluate.Splits:
    data, targets = context.suite.data, run.config.correct.train_targets
    return evaluate.corrected_splits(data.splits, tables, data.catalogue, action, targets)


def _shares(run: Run, context: Context, shares: tuple[float, ...]) -> dict[str, evaluate.Splits]:
    """Rows with a share of all interactions replaced, and controls that tell what the gain is owed to."""
    data, out = context.suite.data, {evaluate.ORIGINAL: context.suite.data.splits}
    for share in shares[1:]:
        tables = context.suggested(run, run.decided("rate", share))
        drawn = context.suggested(run, run.decided("rate", share, scores=by_chance(run)))
        out[_most(share)] = _corrected(run, context, tables)
        out[f"{share:.0%}, by chance"] = _corrected(run, context, drawn)
    popular = popular_instead(tables, data, run.config.seed)
    out[f"{_most(share)}, popular items instead"] = _corrected(run, context, popular)
    if run.config.model.items == "vector" and run.config.model.company:
        alone = training_alone(run, tables, share, context)
        out[f"{_most(share)}, knowing training alone"] = _corrected(run, context, alone)
    return out


def _most(share: float) -> str:
    return f"{share:.0%}, the most suspicious" if share else evaluate.ORIGINAL


def _row(eta: float, action: str) -> str:
    return f"η = {eta} ({action})"


def _plot(sweep: pl.DataFrame, ranking: pl.DataFrame, chosen: float, k: int, figure: Any) -> None:
    flags, gain = figure.subplots(1, 2)
    test = sweep.filter(pl.col("split") == c.TEST)
    for column in ("precision", "recall", "expected precision", "flagged"):
        if not test[column].is_nan().all():
            flags.plot(test["η"].to_list(), test[column].to_list(), label=column)
    flags.set_ylabel("on test histories")
    for action in ACTIONS:
        line = ranking.filter(pl.col("action") == action).sort("η")
        gain.errorbar(line["η"].to_list(), line["ndcg"].to_list(), line["half_width"].fill_nan(0.0).to_list(),
                      marker="o", capsize=3, label=action)  # fmt: skip
    gain.axhline(ranking.filter(pl.col("action").is_null())["ndcg"][0], linestyle=":", color="grey", label="original")
    gain.set_ylabel(f"NDCG@{k} on test")
    for ax in (flags, gain):
        ax.axvline(EVEN, linestyle="--", color="black", linewidth=1, label="default of a Denoiser")
        if chosen:  # the η that flags as many
            same = test.filter(pl.col("flagged") >= chosen)["η"].max()
            ax.axvline(
                same or 0.0, linestyle="-.", color="black", linewidth=1, label=f"default of a run ({chosen:.0%})"
            )
        ax.set_xlabel("η")
        ax.legend()
