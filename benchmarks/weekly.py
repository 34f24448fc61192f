r"""Next week: what keeps a denoiser up to date, and what it costs?

    taskset -c 1 python benchmarks/weekly.py --data DIR [DIR …] --windows N [N …] --work WORK --out \
      benchmarks/results/weekly

Each DIR is clean, or knows what stood there before its noise; it is named by its folder. Uniform noise is injected into
10 % of the interactions, once per user. A sample of the windows is put in order of time and cut into ten weeks of as
many windows each. A denoiser is fitted on the first six. Each later week is scored with what was learned from the
weeks before it, then learned from. New items get their titles by `with_items`, whatever else is done. Finished ways are
kept in OUT.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.bench.studies.noise import with_noise, without_noise
from llm4dsr.cli.terminal import set_up
from llm4dsr.config import Config
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_parquet, write_text
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.read import as_windows, read_data
from llm4dsr.data.windows import align
from llm4dsr.denoiser import Denoiser
from llm4dsr.evaluate.detection import detection_metrics
from llm4dsr.metrics import auroc

WEEKS, FIRST = 10, 6  # weeks in all, and of the first fit
RATE, RESAMPLES = 0.1, 200
CONFIG = Config.from_dict({
    "threads": 1,
    "model": {"hidden_size": 64, "layers": 2, "vector_size": 64},
    "train": {"epochs": 4, "folds": 2, "batch_windows": 32},
    "score": {"calibration_draws": 1},
})  # fmt: skip
SHORT = replace(CONFIG, train=replace(CONFIG.train, epochs=1))  # of a warm start
WAYS = {
    "frozen": "nothing",
    "counts": "`update_counts`",
    "partial": "`partial_fit`",
    "warm": "`fit(start=…)`, 1 epoch",
    "anew": "`fit`, 4 epochs",
}


def weekly(data: Dataset, size: int) -> tuple[list[pl.DataFrame], list[pl.DataFrame], dict[str, Any]]:
    """Return the windows of each week, the items that are new in it, and their numbers."""
    frames = [w.to_frame(data.catalogue) for w in data.splits.values()]
    table = pl.concat([f.drop(c.CLEAN_ITEMS) for f in frames]).filter(pl.col(c.TIME) >= 0)
    table = table.sample(min(size, len(table)), seed=CONFIG.seed).sort(c.TIME, maintain_order=True)
    table = table.with_columns(pl.Series(c.WINDOW, np.arange(len(table))))
    parts = [table[rows[0] : rows[-1] + 1] for rows in np.array_split(np.arange(len(table)), WEEKS)]
    items, known, new = data.catalogue.to_frame().select(c.ITEM, c.TITLE), pl.Series(c.ITEM, [], pl.Int64), []
    for part in parts:
        found = part[c.ITEMS].explode().unique().cast(pl.Int64)
        is_new = pl.col(c.ITEM).cast(pl.Int64).is_in(found.implode()) & ~pl.col(c.ITEM).cast(pl.Int64).is_in(
            known.implode()
        )
        new.append(items.filter(is_new))
        known = pl.concat([known, new[-1][c.ITEM].cast(pl.Int64)])
    facts = {"windows": len(table), "users": table[c.USER].n_unique(), "new_items": [len(n) for n in new]}
    return parts, new, facts


def score(denoiser: Denoiser, week: pl.DataFrame) -> tuple[dict[str, float], pl.DataFrame]:
    """Measure histories of a week, none of which is counted for another; and the scores with their truth."""
    windows = as_windows(week.with_columns(pl.lit(-1, pl.Int64).alias(c.TIME)), denoiser.catalogue)
    scores = denoiser.score(windows, has_target=True)
    found = detection_metrics(scores, denoiser.decide(scores, "probability", 0.5), windows)
    log_odds, users = align(scores, windows, c.LOG_ODDS), windows.user_ids.to_numpy()[windows.owners]
    kept = pl.DataFrame({"log_odds": log_odds, "noise": windows.truth(), "user": users})
    return {name: float(found[name]) for name in ("auroc", "average_precision", "ece")}, kept.filter(
        pl.col("log_odds").is_not_nan()
    )


def updates(parts: list[pl.DataFrame], week: int, items: pl.DataFrame) -> dict[str, Callable[[Denoiser], Denoiser]]:
    """What each way does with a week, once it is over."""
    return {
        "frozen": lambda d: d,
        "counts": lambda d: d.update_counts(parts[week]),
        "partial": lambda d: d.partial_fit(parts[week]),
        "warm": lambda d: Denoiser(SHORT).fit(pl.concat(parts[: week + 1]), items, start=d),
        "anew": lambda d: Denoiser(CONFIG).fit(pl.concat(parts[: week + 1]), items),
    }


def follow(way: str, denoiser: Denoiser, parts: list[pl.DataFrame], new: list[pl.DataFrame], scores: Path) -> Any:
    """Take one way through all weeks after the first fit; scores are written into a folder."""
    cells = []
    for week in range(FIRST, len(parts)):
        if len(new[week]):
            denoiser = denoiser.with_items(new[week])
        found, kept = score(denoiser, parts[week])
        write_parquet(kept, scores / f"{way}-{week}.parquet")
        cells.append({"week": week + 1, "way": way, **{name: round(value, 4) for name, value in found.items()}})
        if week + 1 < len(parts):
            began = time.process_time()
            denoiser = updates(parts, week, pl.concat(new[: week + 1]))[way](denoiser)
            cells[-1]["seconds"] = round(time.process_time() - began, 2)
        print(cells[-1], flush=True)
    return cells


def gain(way: str, scores: Path) -> list[float]:
    """AUROC beyond `frozen`, mean over the weeks that updates can change, and its 95 % interval by drawing users."""
    rng, draws = np.random.default_rng(0), list[float]()
    weeks = [[pl.read_parquet(scores / f"{w}-{week}.parquet") for w in (way, "frozen")]
             for week in range(FIRST + 1, WEEKS)]  # fmt: skip
    for draw in range(RESAMPLES + 1):
        gains = []
        for mine, frozen in weeks:
            names, at = np.unique(frozen["user"].to_numpy(), return_inverse=True)
            times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[at]
            rows = np.repeat(np.arange(len(at)), times) if draw else np.arange(len(at))
            truth = frozen["noise"].to_numpy()[rows]
            gains.append(
                auroc(mine["log_odds"].to_numpy()[rows], truth) - auroc(frozen["log_odds"].to_numpy()[rows], truth)
            )
        draws.append(float(np.mean(gains)))
    return [round(float(x), 4) for x in (draws[0], *np.quantile(draws[1:], (0.025, 0.975)))]


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line for each dataset and way."""
    head = [
        "dataset",
        "each week",
        "AUROC",
        "AUROC beyond nothing",
        "AP",
        "ECE",
        "core-seconds a week",
    ]
    lines = [head, ["---"] * len(head)]
    for name, result in results.items():
        for way, shown in WAYS.items():
            if way not in result["cells"]:
                continue
            cells = pl.DataFrame(result["cells"][way])
            later, (mean, low, high) = cells.filter(pl.col("week") > FIRST + 1), result["gains"][way]
            lines.append([
                name, shown, f"{later['auroc'].mean():.3f}",
                "" if way == "frozen" else f"{mean:+.3f} ({low:+.3f} to {high:+.3f})",
                f"{later['average_precision'].mean():.3f}", f"{later['ece'].mean():.3f}",
                f"{cells['seconds'].drop_nulls().mean():.1f}",
            ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure what is missing; the page is written at the end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--windows", type=int, nargs="+", required=True, help="how many of each DIR, in all")
    parser.add_argument("--work", type=Path, required=True, help="folder of first fits and scores")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    set_up()
    path = given.out / "results.json"
    for way in WAYS:
        for folder, size in zip(given.data, given.windows, strict=True):
            results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
            if way in results.get(folder.name, {}).get("cells", {}):
                continue
            clean, origin = without_noise(read_data(folder))
            parts, new, facts = weekly(with_noise(clean, "uniform", RATE, CONFIG.seed), size)
            work = given.work / folder.name
            if folder.name not in results:
                began = time.process_time()
                Denoiser(CONFIG).fit(pl.concat(parts[:FIRST]), pl.concat(new[:FIRST])).save_pretrained(work / "first")
                facts |= {"origin": origin, "first_seconds": round(time.process_time() - began, 2)}
                facts |= {"config": CONFIG.to_dict(), "versions": versions(), "cells": {}, "gains": {}}
                results[folder.name] = facts
            result = results[folder.name]
            result["cells"][way] = follow(way, Denoiser.from_pretrained(work / "first"), parts, new, work)
            result["gains"][way] = gain(way, work)
            write_text(path, json.dumps(results, indent=1))
    results = json.loads(path.read_text(encoding="utf-8"))
    page = (Path(__file__).parent / "weekly.md").read_text(encoding="utf-8")
    write_text(given.out / "README.md", page.replace("TABLE", table(results)))
    print(table(results))


if __name__ == "__main__":
    main()
