"""The readable result: Markdown tables for the terminal and the run folder."""

from __future__ import annotations

import math

import polars as pl

from llm4dsr.evaluate.rows import ORIGINAL


def result_table(
    summary: pl.DataFrame, detection: dict[str, dict[str, float]], recommender: str, k: int, seeds: int
) -> str:
    """Render the results of a run as Markdown.

    Parameters
    ----------
    summary : DataFrame
        As `summarize` returns it.
    detection : dict of str to dict of str to float
        `detection_metrics` by split; empty if no truth is known.
    recommender : str
        Name of the recommender, for the heading.
    k : int
        Cutoff of the ranking metrics.
    seeds : int
        Seeds of the recommender; 0 if it has none.

    Returns
    -------
    str
        A table of detection if any, then a table of ranking.
    """
    lines = []
    if detection:
        lines += [
            "### Noise found (against the known mask)",
            "",
            "| split | AUROC | AP | noise | flagged | precision | stated precision | recall | ECE |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name, d in detection.items():
            lines.append(
                f"| {name} | {d['auroc']:.3f} | {d['average_precision']:.3f} | {d['noise']:.1%} | {d['flagged']:.1%} | "
                f"{_percent(d['precision'])} | {_stated(d)} | {d['recall']:.1%} | {d['ece']:.3f} |"
            )
        lines.append("")
    lines += [
        f"### {recommender} on test, {seeds or 'no'} seed{'s' * (seeds > 1)}, whole catalogue ranked",
        "",
        f"| trained and tested on | NDCG@{k} | HR@{k} | NDCG gain | HR gain | share of the oracle's gain |",
        "|---|---|---|---|---|---|",
    ]
    for row in summary.iter_rows(named=True):
        gains = [] if row["row"] == ORIGINAL else [_gain(row, "ndcg"), _gain(row, "hit_rate"), _oracle_gain(row)]
        cells = [row["row"], _mean(row, "ndcg"), _mean(row, "hit_rate"), *(gains or [""] * 3)]
        lines.append(f"| {' | '.join(cells)} |")
    several = "± of a mean is half of a 95 % interval over seeds, p a paired t test over seeds. " if seeds > 1 else ""
    lines += ["", f"{several}± of a gain is half of a 95 % interval over test users."]
    return "\n".join(lines) + "\n"


def _stated(d: dict[str, float]) -> str:
    if math.isnan(d["stated_precision"]):
        return "–"
    return f"{d['stated_precision']:.1%} ({d['stated_low']:.0%} to {d['stated_high']:.0%})"


def _percent(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.1%}"  # nothing was flagged: no precision


def _mean(row: dict[str, float], metric: str) -> str:
    """Mean ± half width over seeds, to two digits of the half width."""
    mean, half = row[metric], row[f"{metric}_half_width"]
    if math.isnan(half):
        return f"{mean:.4f}"
    digits = 4 if half <= 0 else min(4, max(2, 1 - math.floor(math.log10(half))))
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def _gain(row: dict[str, float], metric: str) -> str:
    """Gain ± half of its interval over users, and p over seeds."""
    p = row[f"{metric}_p"]
    if math.isnan(row[f"{metric}_gain_percent"]):
        return "–"  # over a mean of 0
    gain = f"{row[f'{metric}_gain_percent']:+.1f} ± {row[f'{metric}_gain_half_width']:.1f} %"
    return gain + ("" if math.isnan(p) else f" (p = {p:.3f})")


def _oracle_gain(row: dict[str, float]) -> str:
    return "" if math.isnan(row["oracle_gain_fraction"]) else f"{row['oracle_gain_fraction']:.0%}"
