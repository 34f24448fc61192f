"""The readable result: Markdown tables for the terminal and the run folder."""

from __future__ import annotations

import math

import polars as pl


def result_table(summary: pl.DataFrame, detection: dict[str, dict[str, float]], recommender: str, k: int,
                 seeds: int) -> str:  # fmt: skip
    """Markdown of `evaluate.summary` and of `evaluate.detection` per split (empty where no truth is known)."""
    lines = []
    if detection:
        lines += ["### Noise found (against the known mask)", "",
                  "| split | AUROC | AP | noise | flagged | precision | stated precision | recall | ECE |",
                  "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
        for name, d in detection.items():
            lines.append(
                f"| {name} | {d['auroc']:.3f} | {d['average_precision']:.3f} | {d['noise']:.1%} | {d['flagged']:.1%} | "
                f"{_percent(d['precision'])} | {_percent(d['stated_precision'])} | {d['recall']:.1%} | {d['ece']:.3f} |"
            )
        lines.append("")
    lines += [f"### {recommender} on test, {seeds} seed(s), whole catalogue ranked", "",
              f"| trained and tested on | NDCG@{k} | HR@{k} | NDCG gain | HR gain | share of the oracle's gain |",
              "|---|---|---|---|---|---|"]  # fmt: skip
    for row in summary.iter_rows(named=True):
        gains = [] if row["row"] == "original" else [_gain(row, "ndcg"), _gain(row, "hit_rate"), _share(row)]
        cells = [row["row"], _mean(row, "ndcg"), _mean(row, "hit_rate"), *(gains or [""] * 3)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"  # nothing was flagged: there is no precision


def _mean(row: dict[str, float], metric: str) -> str:
    half = row[f"{metric}_half_width"]
    return f"{row[metric]:.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}")


def _gain(row: dict[str, float], metric: str) -> str:
    p = row[f"{metric}_p"]
    return f"{row[f'{metric}_gain_percent']:+.1f} %" + ("" if math.isnan(p) else f" (p = {p:.3f})")


def _share(row: dict[str, float]) -> str:
    return "" if math.isnan(row["share_of_oracle_gain"]) else f"{row['share_of_oracle_gain']:.0%}"
