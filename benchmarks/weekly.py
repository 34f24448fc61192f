"""Next week: what keeps a denoiser up to date, and what it costs?

    taskset -c 1 python benchmarks/weekly.py --data DIR [DIR …] --out benchmarks/results/weekly

Each DIR is clean, or knows what stood there before its noise; it is named by its folder. Uniform noise is injected into
10 % of the interactions, once per user. A sample of the windows is put in order of time and cut into ten weeks of as
many windows each. A denoiser is fitted on the first five. Each later week is scored with what was learned from the
weeks before it, then learned from. New items get their titles by `with_items`, whatever else is done. Finished datasets
are kept in OUT.
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
from llm4dsr.core.io import write_text
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.read import as_windows, read_data
from llm4dsr.data.windows import align
from llm4dsr.denoiser import Denoiser
from llm4dsr.evaluate.detection import detection_metrics
from llm4dsr.metrics import auroc

WINDOWS, WEEKS, FIRST = 10_000, 10, 5  # windows in all; weeks; weeks of the first fit
RATE, RESAMPLES = 0.1, 200
CONFIG = Config.from_dict({
    "threads": 1,
    "model": {"hidden_size": 64, "layers": 2, "vector_size": 64},
    "train": {"epochs": 3, "folds": 2, "batch_windows": 64},
    "score": {"calibration_draws": 1},
})  # fmt: skip
SHORT = replace(CONFIG, train=replace(CONFIG.train, epochs=1))  # of a warm start
WAYS = {
    "frozen": "nothing",
    "counts": "`update_counts`",
    "partial": "`partial_fit`",
    "warm": "`fit(start=…)`, 1 epoch",
    "anew": "`fit`, 3 epochs",
}


def weekly(data: Dataset) -> tuple[list[pl.DataFrame], list[pl.DataFrame], dict[str, Any]]:
    """Return the windows of each week, the items that are new in it, and their numbers."""
    frames = [w.to_frame(data.catalogue) for w in data.splits.values()]
    table = pl.concat([f.drop(c.CLEAN_ITEMS) for f in frames]).filter(pl.col(c.TIME) >= 0)
    table = table.sample(min(WINDOWS, len(table)), seed=CONFIG.seed).sort(c.TIME, maintain_order=True)
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


def score(denoiser: Denoiser, week: pl.DataFrame) -> tuple[dict[str, float], dict[str, Any]]:
    """Measure histories of a week, none of which is counted for another."""
    windows = as_windows(week.with_columns(pl.lit(-1, pl.Int64).alias(c.TIME)), denoiser.catalogue)
    scores = denoiser.score(windows, has_target=True)
    found = detection_metrics(scores, denoiser.decide(scores, "probability", 0.5), windows)
    log_odds, users = align(scores, windows, c.LOG_ODDS), windows.user_ids.to_numpy()[windows.owners]
    known = np.isfinite(log_odds)
    kept = {"log_odds": log_odds[known], "noise": windows.truth()[known], "users": users[known]}
    return {name: float(found[name]) for name in ("auroc", "average_precision", "ece")}, kept


def measure(data: Dataset) -> dict[str, Any]:
    """Follow the ways through all weeks."""
    parts, new, facts = weekly(data)
    items = pl.concat(new[:FIRST])
    began = time.process_time()
    first = Denoiser(CONFIG).fit(pl.concat(parts[:FIRST]), items)
    facts["first_seconds"] = round(time.process_time() - began, 1)
    denoisers = dict.fromkeys(WAYS, first)
    for way in ("counts", "partial"):  # these change themselves
        denoisers[way] = first.with_items(items)
    cells, kept = [], {way: [] for way in WAYS}
    for week in range(FIRST, WEEKS):
        items = pl.concat([items, new[week]])
        so_far = pl.concat(parts[: week + 1])
        updates: dict[str, Callable[[Denoiser], object]] = {
            "frozen": lambda d: None,
            "counts": lambda d, week=week: d.update_counts(parts[week]),
            "partial": lambda d, week=week: d.partial_fit(parts[week]),
            "warm": lambda d, all=so_far, items=items: Denoiser(SHORT).fit(all, items, start=d),
            "anew": lambda d, all=so_far, items=items: Denoiser(CONFIG).fit(all, items),
        }
        for way, update in updates.items():
            denoiser = denoisers[way].with_items(new[week]) if len(new[week]) else denoisers[way]
            found, raw = score(denoiser, parts[week])
            kept[way].append(raw)
            began = time.process_time()
            if week + 1 < WEEKS:
                denoisers[way] = update(denoiser) or denoiser
            seconds = time.process_time() - began
            cells.append({"week": week + 1, "way": way, **found, "seconds": round(seconds, 2)})
            print(cells[-1], flush=True)
    return facts | {"cells": cells, "gains": gains(kept)}


def gains(kept: dict[str, list[dict[str, Any]]]) -> dict[str, list[float]]:
    """AUROC beyond `frozen` and its 95 % interval, mean over weeks after the first; users are drawn with repetition."""
    rng, draws = np.random.default_rng(0), {way: [] for way in WAYS}
    for draw in range(RESAMPLES + 1):
        by_way = {way: [] for way in WAYS}
        for week in range(1, len(kept["frozen"])):  # the first week is scored before any update
            users = kept["frozen"][week]["users"]
            names, at = np.unique(users, return_inverse=True)
            times = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))[at]
            rows = np.repeat(np.arange(len(at)), times) if draw else np.arange(len(at))
            for way in WAYS:
                raw = kept[way][week]
                by_way[way].append(auroc(raw["log_odds"][rows], raw["noise"][rows]))
        for way in WAYS:
            draws[way].append(np.mean(by_way[way]) - np.mean(by_way["frozen"]))
    return {way: [round(float(x), 4) for x in (d[0], *np.quantile(d[1:], (0.025, 0.975)))] for way, d in draws.items()}


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line for each dataset and way."""
    head = [
        "dataset",
        "each week",
        "AUROC",
        "AUROC, last week",
        "gain over nothing",
        "AP",
        "ECE",
        "core-seconds a week",
    ]
    lines = [head, ["---"] * len(head)]
    for name, result in results.items():
        cells = pl.DataFrame(result["cells"]).filter(pl.col("week") > FIRST + 1)
        costs = pl.DataFrame(result["cells"]).filter(pl.col("week") < WEEKS)
        for way, shown in WAYS.items():
            of_way, (gain, low, high) = cells.filter(pl.col("way") == way), result["gains"][way]
            seconds = costs.filter(pl.col("way") == way)["seconds"].mean()
            lines.append([
                name, shown, f"{of_way['auroc'].mean():.3f}", f"{of_way['auroc'][-1]:.3f}",
                "" if way == "frozen" else f"{gain:+.3f} ({low:+.3f} to {high:+.3f})",
                f"{of_way['average_precision'].mean():.3f}", f"{of_way['ece'].mean():.3f}", f"{seconds:.1f}",
            ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure the datasets that are missing; the page is written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    set_up()
    path = given.out / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for folder in given.data:
        if folder.name not in results:
            clean, origin = without_noise(read_data(folder))
            about = {"origin": origin, "config": CONFIG.to_dict(), "versions": versions()}
            results[folder.name] = about | measure(with_noise(clean, "uniform", RATE, CONFIG.seed))
            write_text(path, json.dumps(results, indent=1))
        page = (Path(__file__).parent / "weekly.md").read_text(encoding="utf-8")
        write_text(given.out / "README.md", page.replace("TABLE", table(results)))
    print(table(results))


if __name__ == "__main__":
    main()
