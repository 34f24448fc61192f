"""Study 4: where η is, what is flagged, and what a recommender gains from it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr import metrics
from llm4dsr.bench.studies.detection import gains
from llm4dsr.bench.studies.study import Context, Found
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import align
from llm4dsr.denoise.decide import configured_rule, decide
from llm4dsr.errors import ConfigError
from llm4dsr.evaluate.rate_selection import NO_CORRECTION, Candidate, best_candidate
from llm4dsr.evaluate.rows import ORIGINAL, DecisionTables, Splits, correct_splits
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.pipeline import Run
from llm4dsr.recommenders import seeds_of

ROUNDS = 100  # of drawing items again where the window holds their title
GROUPS = (5, 20)  # users that have a target in training: up to 5, up to 20, more


def by_chance(run: Run) -> dict[str, pl.DataFrame]:
    """Return the scores of each split with random log-odds."""
    rng = np.random.default_rng(run.config.seed)
    return {
        n: s.with_columns(pl.Series(c.LOG_ODDS, rng.standard_normal(len(s)))) for n, s in run.scores().items()
    }  # fmt: skip


def popular_instead(tables: DecisionTables, data: Dataset, seed: int) -> DecisionTables:
    """Keep the flags, and replace each suggestion by an item drawn by its users in training.

    Histories are ignored, except that no item has a title of the window.
    """
    rng = np.random.default_rng(seed)
    users = CooccurrenceCounts.of(data.splits[c.TRAIN], len(data.catalogue)).popularity
    out = {}
    for split, suggestions in tables.suggestions.items():
        windows = data.splits[split]
        row_of = {int(w): row for row, w in enumerate(windows.window_ids)}
        rows = np.array([row_of[w] for w in suggestions[c.WINDOW].to_list()], dtype=np.int64)
        items, todo = np.zeros(len(rows), dtype=np.int64), np.arange(len(rows))
        for _ in range(ROUNDS):
            items[todo] = rng.choice(len(users), len(todo), p=users / users.sum())
            todo = todo[windows.have_title(rows[todo], items[todo], data.catalogue)]
            if not len(todo):
                break
        items[todo] = -1
        drawn = {c.SUGGESTED: data.catalogue.ids_of(items), c.SUGGESTED_TITLE: data.catalogue.titles_of(items)}
        out[split] = suggestions.with_columns(**drawn)
    return DecisionTables(tables.decisions, out)


def by_popularity(cells: pl.DataFrame, data: Dataset, k: int) -> pl.DataFrame:
    """NDCG@k by the number of training users of the target, mean over seeds; the first line counts the windows."""
    users = CooccurrenceCounts.of(data.splits[c.TRAIN], len(data.catalogue)).popularity[data.splits[c.TEST].targets()]
    groups = np.searchsorted(GROUPS, users)
    names = [f"up to {GROUPS[0]} users", *(f"{a + 1} to {b}" for a, b in pairwise(GROUPS)),
             f"more than {GROUPS[-1]}"]  # fmt: skip
    lines = [{"row": "test windows", **{name: float((groups == i).sum()) for i, name in enumerate(names)}}]
    for (row,), of in cells.group_by("row", maintain_order=True):
        each = metrics.ndcg_of_each(np.stack(of["ranks"].to_list()), k).mean(axis=0)
        means = {name: float(each[groups == i].mean()) if (groups == i).any() else float("nan")
                 for i, name in enumerate(names)}  # fmt: skip
        lines.append({"row": row, **means})
    return pl.DataFrame(lines)


QUESTION = "Which threshold η is right, and is the automatic one good?"
POLICY, EVEN = "probability", 0.5  # more likely noise than not: chosen without a label or a recommender
SWEPT = np.round(np.linspace(0, 1, 41), 3).tolist()
SHOWN = SWEPT[::4]  # in the table
RANKED = (0.2, 0.35, EVEN, 0.7, 0.9)  # η at which recommenders are trained
QUICK_RANKED = (0.1, EVEN)  # so small a model is rarely sure
ACTIONS = ("replace", "drop")
RATES = (0.0, 0.05, 0.1, 0.2)
QUICK_RATES = (0.0, 0.2)  # of all interactions, replaced whatever their probability


def study(context: Context) -> Found:
    """η over noise probabilities: detection on each split, and ranking on test at some η, dropped and replaced.

    Raises ConfigError for llara, which ranks other validation windows with each seed.
    """
    if context.config.evaluate.backbone == "llara":
        raise ConfigError(
            "The study threshold compares validation windows, of which llara ranks a sample. Choose another "
            "evaluate.backbone."
        )
    run = context.run()
    sweep = pl.concat([_sweep(run, context, split, scores) for split, scores in run.scores().items()])
    compared = {ORIGINAL: context.dataset.data.splits}
    for eta in QUICK_RANKED if context.quick else RANKED:
        compared |= {_row(eta, action): splits for action, splits in corrected_at(run, context, POLICY, eta).items()}
    k, rates = context.config.evaluate.k, QUICK_RATES if context.quick else RATES
    shared = context.compare(_at_rates(run, context, rates))
    candidate = {rate: Candidate(rate, "replace") if rate else NO_CORRECTION for rate in rates}
    renamed = (
        shared.filter(pl.col("row") == _most(rate)).with_columns(row=pl.lit(tried.name))
        for rate, tried in candidate.items()
    )
    tried = best_candidate([pl.concat(renamed)], list(candidate.values()))
    chosen: float = tried.filter("chosen")["correction_rate"][0]
    ranking = gains(context.compare(compared), ORIGINAL, k)
    eta_of = {_row(eta, action): (eta, action) for eta in (*RANKED, *QUICK_RANKED) for action in ACTIONS}
    ranking = ranking.with_columns(
        pl.Series("η", [eta_of.get(row, (None, None))[0] for row in ranking["row"]], dtype=pl.Float64),
        pl.Series("action", [eta_of.get(row, (None, None))[1] for row in ranking["row"]], dtype=pl.String),
    )
    caps = {split: configured_rule(run.config.decide, split == c.TRAIN)[2] for split in c.SPLITS}
    notes = [
        "An interaction is flagged if its noise probability is at least η, the most suspicious first, and at most "
        f"{caps[c.TRAIN]} in a training window, {caps[c.TEST]} in another. Expected precision is the mean probability "
        "of the flagged: it needs no label.",
        f"η = {EVEN} flags what is more likely noise than not, the default of a Denoiser. Validation chooses the "
        "correction rate that ranks it best, if the lower bound of its gain is above 0. The bounds of all rates hold "
        "at once with 95 %. A run tries rates up to the estimated noise rate. Neither uses a mask or test.",
        "Suggestions are made for the flags of each η, as a run would make them.",
        "At random: as many interactions with the same cap, drawn at random, with our suggestions. Their gain comes "
        "from suggestions alone; what the most suspicious ones gain beyond comes from detection.",
        "Popular items instead: the same flags, with items drawn by their users in training. Their gain comes from "
        "frequent items alone.",
        f"Recommender: {context.config.evaluate.backbone}, {seeds_of(context.config.evaluate)} seed(s), clean "
        f"test targets; NDCG and hit rate @{k}. Half widths and p_seeds are over seeds, "
        "user_half_width and p_users over test windows, clustered by user.",
    ]
    tables = {
        f"Flags at η = {EVEN}": sweep.filter(pl.col("η") == EVEN),
        "Ranking at some η": ranking,
        "What validation chooses": tried,
        "Ranking by correction rate": gains(shared, ORIGINAL, k),
        "Ranking by the target's users in training": by_popularity(shared, context.dataset.data, k),
        "Sweep": sweep.filter(pl.col("η").is_in(SHOWN)),
    }
    return Found(tables, partial(_plot, sweep, ranking, chosen, k), notes)


def _sweep(run: Run, context: Context, split: str, scores: pl.DataFrame) -> pl.DataFrame:
    """One line per η: flagged fraction, expected precision; precision, recall and F1 if noise is known."""
    windows = context.dataset.data.splits[split]
    log_odds, probability = align(scores, windows, c.LOG_ODDS), align(scores, windows, c.NOISE_PROBABILITY)
    judged, cap = np.isfinite(log_odds), configured_rule(run.config.decide, split == c.TRAIN)[2]
    lines = []
    for eta in SWEPT:
        flagged = decide(windows.owners, log_odds, probability, POLICY, eta, cap)
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


def corrected_at(run: Run, context: Context, policy: str, eta: float) -> dict[str, Splits]:
    """Return action → the splits as a run would correct them with this η."""
    tables = context.suggested(run, run.decided(policy, eta))
    return {action: _corrected(run, context, tables, action) for action in ACTIONS}


def _corrected(run: Run, context: Context, tables: DecisionTables, action: str = "replace") -> Splits:
    data, how = context.dataset.data, replace(run.config.correct, action=action)  # type: ignore[arg-type]
    return correct_splits(data.splits, tables, data.catalogue, how)


def _at_rates(run: Run, context: Context, rates: tuple[float, ...]) -> dict[str, Splits]:
    """Rows with a fraction of all interactions replaced, and controls that show where the gain comes from."""
    data, out = context.dataset.data, {ORIGINAL: context.dataset.data.splits}
    for rate in rates[1:]:
        tables = context.suggested(run, run.decided("rate", rate))
        drawn = context.suggested(run, run.decided("rate", rate, scores=by_chance(run)))
        out[_most(rate)] = _corrected(run, context, tables)
        out[f"{rate:.0%}, at random"] = _corrected(run, context, drawn)
    popular = popular_instead(tables, data, run.config.seed)
    out[f"{_most(rate)}, popular items instead"] = _corrected(run, context, popular)
    return out


def _most(rate: float) -> str:
    return f"{rate:.0%}, the most suspicious" if rate else ORIGINAL


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
                same or 0.0, linestyle="-.", color="black", linewidth=1, label=f"best on validation ({chosen:.0%})"
            )
        ax.set_xlabel("η")
        ax.legend(fontsize="small")
