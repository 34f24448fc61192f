"""Write the windows of a run as they are, corrected, and corrected by oracles, for recommenders of another library.

    python benchmarks/crosscheck/corrected.py --run RUN --out FOLDER

RUN is a denoiser's run folder in a finished `llm4dsr bench`; the row `default` is what that chose on validation. FOLDER
gets one folder per row: train, valid and test.parquet. Their column `items` lists catalogue rows for each window,
oldest first; the last is the target. `user` holds codes of users. Targets of valid and test are the same in all rows.
detection.json says how much was flagged and is noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.bench.ours import DEFAULT, SUGGESTIONS, OurRun
from llm4dsr.evaluate.detection import detection_metrics
from llm4dsr.evaluate.rows import DecisionTables, Splits, correct_splits, oracle_splits
from llm4dsr.pipeline import Run

# Row → action and correction rate
CORRECTIONS = {
    "drop-5": ("drop", 0.05), "drop-10": ("drop", 0.1), "replace-5": ("replace", 0.05),
    "replace-10": ("replace", 0.1), "replace-20": ("replace", 0.2), "random-20": ("replace", 0.2),
}  # fmt: skip
RANDOM = "random-20"  # a control for what suggestions gain: they replace interactions drawn at random
ORACLES = {"oracle-drop": "drop", "oracle-restore": "replace"}
CHOSEN = "default"  # what a run does by default
ROWS = ("original", CHOSEN, *CORRECTIONS, *ORACLES)
SHOWN = ("auroc", "average_precision", "precision", "recall", "flagged", "noise")


def show(done: int, total: int, what: str) -> None:
    if done == total:
        print(f"{what}: {done}", flush=True)


def drawn(scores: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """The table with log-odds drawn at random, where it has any."""
    random = pl.Series(rng.standard_normal(len(scores)))
    return scores.with_columns(pl.when(pl.col(c.LOG_ODDS).is_finite()).then(random).alias(c.LOG_ODDS).fill_null(np.nan))


def corrected(run: Run, rows: list[str]) -> Iterator[tuple[str, Splits, dict[str, Any]]]:
    """Yield (row, its splits, how well the noise was found in each split)."""
    data, how = run.data(), run.config.correct
    rng = np.random.default_rng(run.config.seed)
    if "original" in rows:
        yield "original", data.splits, {}
    if CHOSEN in rows:
        ours = OurRun(run, data, run.config, run.folder.parent / SUGGESTIONS, show)
        chosen = ours.correction(DEFAULT)
        print(f"{CHOSEN}: {chosen}", flush=True)
        yield CHOSEN, ours.splits(DEFAULT), {}
    for rate, is_random in sorted({(CORRECTIONS[row][1], row == RANDOM) for row in rows if row in CORRECTIONS}):
        scores = run.scores()
        if is_random:
            scores = {name: drawn(table, rng) for name, table in scores.items()}
        decisions = run.decided("rate", rate, scores=scores)
        tables, found = DecisionTables(decisions, dict(run.suggested(decisions, show))), {}
        for name, windows in data.splits.items():
            measured = detection_metrics(scores[name], decisions[name], windows)
            found[name] = {key: round(float(measured[key]), 4) for key in SHOWN}
        for row in rows:
            if row in CORRECTIONS and (CORRECTIONS[row][1], row == RANDOM) == (rate, is_random):
                action = CORRECTIONS[row][0]
                yield row, correct_splits(data.splits, tables, data.catalogue, replace(how, action=action)), found
    for row in rows:
        if row in ORACLES:
            yield row, oracle_splits(data.splits, data.catalogue, ORACLES[row], how.train_targets), {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run folder of llm4dsr bench")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    args = parser.parse_args()
    for row, splits, found in corrected(Run(args.run), args.rows):
        folder = args.out / row
        folder.mkdir(parents=True, exist_ok=True)
        for name in c.SPLITS:
            windows = splits[name]
            items = [of.tolist() for of in np.split(windows.items, windows.offsets[1:-1])]
            users = np.unique(windows.user_ids.cast(pl.String).to_numpy(), return_inverse=True)[1]
            frame = {"window": windows.window_ids, "user": users, "items": pl.Series(items, dtype=pl.List(pl.Int64))}
            pl.DataFrame(frame).write_parquet(folder / f"{name}.parquet")
        (folder / "detection.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{row}: {', '.join(f'{len(splits[n])} {n}' for n in c.SPLITS)}", flush=True)


if __name__ == "__main__":
    main()
