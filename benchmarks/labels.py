"""How much do labels narrow the stated noise rate and precision, and do the intervals hold the truth?

    python benchmarks/labels.py --run RUN [RUN …] --out benchmarks/results/labels

RUN is a scored run on windows with known noise, such as `llm4dsr bench` leaves. Of each, labels are drawn many times
among the most suspicious interactions of training windows, as a reviewer sees them, and answered by the mask. Then
`llm4dsr calibrate --labels` is computed: no model is asked, nothing is written to RUN.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.data.windows import align
from llm4dsr.denoise.calibrate import Calibrator
from llm4dsr.denoise.labels import rates_by_labels
from llm4dsr.pipeline import Run

SIZES = (30, 100, 300)  # labels
DRAWS = 200
TOP = 0.1  # of the interactions, the most suspicious: labels are drawn among them, and their precision is stated


def measure(run: Run) -> list[dict[str, Any]]:
    """One line without labels, and one for each number of labels."""
    windows, scores, maps = run.data().splits[c.TRAIN], run.scores(), run.maps()
    log_odds = align(scores[c.TRAIN], windows, c.LOG_ODDS)
    known = np.isfinite(log_odds)
    top = np.flatnonzero(known)[np.argsort(-log_odds[known], kind="stable")[: round(TOP * known.sum())]]
    truth, rng = windows.truth(), np.random.default_rng(0)
    rate, precision = float(truth[known].mean()), float(truth[top].mean())
    all_labels = pl.DataFrame({
        c.SPLIT: c.TRAIN, c.WINDOW: windows.window_ids[windows.owners[top]], c.POSITION: windows.positions[top],
        c.IS_NOISE: truth[top].astype(int),
    })  # fmt: skip
    about = {"windows": len(windows), "noise": rate, "precision": precision}
    lines = [{"labels": 0, **about, **summary([intervals(maps[c.TRAIN], log_odds[top])], rate, precision)}]
    for size in SIZES:
        told = []
        for _ in range(DRAWS):
            some = all_labels[rng.choice(len(top), size, replace=False)]
            fitted = maps[c.TRAIN].with_rates(rates_by_labels(some, scores, maps))
            told.append(intervals(fitted, log_odds[top]))
        lines.append({"labels": size, **about, **summary(told, rate, precision)})
    return lines


def intervals(calibrator: Calibrator, log_odds: np.ndarray[Any, np.dtype[np.float64]]) -> list[tuple[float, float]]:
    """(interval of the noise rate, interval of the stated precision)."""
    low, high = calibrator.interval(log_odds)
    return [(calibrator.rate_low, calibrator.rate_high), (float(low.mean()), float(high.mean()))]


def summary(told: Sequence[list[tuple[float, float]]], rate: float, precision: float) -> dict[str, Any]:
    """Mean ends of the intervals, and the fraction of draws whose interval holds the truth."""
    out: dict[str, Any] = {}
    for i, (name, true) in enumerate((("rate", rate), ("stated", precision))):
        low, high = np.array([each[i] for each in told]).T
        out[name] = [round(float(low.mean()), 4), round(float(high.mean()), 4)]
        out[f"{name} holds"] = round(float(((low <= true) & (true <= high)).mean()), 3)
    return out


def page(found: dict[str, list[dict[str, Any]]]) -> str:
    """The table of all runs."""
    rows = []
    for name, lines in found.items():
        for line in lines:
            draws = f"{line['rate holds']:.0%}", f"{line['stated holds']:.0%}"
            once = ("yes" if line["rate holds"] else "no"), ("yes" if line["stated holds"] else "no")
            rate, stated = draws if line["labels"] else once
            rows.append(f"| {name} | {line['labels']} | {line['noise']:.1%} | {span(line['rate'])} | {rate} "
                        f"| {line['precision']:.1%} | {span(line['stated'])} | {stated} |")  # fmt: skip
    return f"""# What labels narrow

    python benchmarks/labels.py --run RUN [RUN …] --out benchmarks/results/labels

Labels are drawn among the {TOP:.0%} most suspicious interactions of training windows, {DRAWS} times for each number,
and answered by the noise mask. Mean ends of the 95 % intervals, and how often an interval holds the truth.
*Precision* is that of these {TOP:.0%}.

| run | labels | noise rate | stated rate | holds | precision | stated precision | holds |
|---|---|---|---|---|---|---|---|
""" + "\n".join(rows) + "\n"  # fmt: skip


def span(ends: list[float]) -> str:
    return f"{ends[0]:.1%} to {ends[1]:.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = {f"{folder.parent.name}, {folder.name}": measure(Run(folder)) for folder in given.run}
    write_text(given.out / "results.json", json.dumps({"runs": found, "versions": versions()}, indent=1))
    write_text(given.out / "README.md", page(found))
    print(page(found))


if __name__ == "__main__":
    main()
