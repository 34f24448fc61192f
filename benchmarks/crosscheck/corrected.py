"""Write the windows of a run as they are, corrected, and corrected by oracles, for recommenders of another library.

    python benchmarks/crosscheck/corrected.py --run RUN --out FOLDER

RUN is a run folder with windows/, model/ and scores/. FOLDER gets one folder per row: train, valid and test.parquet.
Their column `items` lists catalogue rows for each window, oldest first; the last is the target. `user` holds codes of
users. Targets of valid and test are the same in all rows. rows.json says what was flagged, and how much of it is noise.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.evaluate.detection import detection_metrics
from llm4dsr.evaluate.rows import DecisionTables, Splits, correct_splits, oracle_splits
from llm4dsr.pipeline import Run

CORRECTIONS = {
    "drop 5 %": ("drop", 0.05), "drop 10 %": ("drop", 0.1), "replace 5 %": ("replace", 0.05),
    "replace 10 %": ("replace", 0.1), "replace 20 %": ("replace", 0.2),
}  # fmt: skip
ORACLES = {"oracle drop": "drop", "oracle restore": "replace"}
SHOWN = ("auroc", "average_precision", "precision", "recall", "flagged", "noise")


def show(done: int, total: int, what: str) -> None:
    if done == total:
        print(f"{what}: {done}", flush=True)


def corrected(run: Run) -> tuple[dict[str, Splits], dict[str, Any]]:
    """Return the splits of each row, and for each rate and split how well the noise was found."""
    data, scores, targets = run.data(), run.scores(), run.config.correct.train_targets
    rows, found = {"original": data.splits}, {}
    tables = {}
    for rate in dict.fromkeys(rate for _, rate in CORRECTIONS.values()):
        decisions = run.decided("rate", rate, scores=scores)
        suggestions = dict(run.suggested(decisions, show))
        tables[rate] = DecisionTables(decisions, suggestions)
        for name, windows in data.splits.items():
            measured = detection_metrics(scores[name], decisions[name], windows)
            found[f"{100 * rate:.0f} %, {name}"] = {key: round(float(measured[key]), 4) for key in SHOWN}
    for name, (action, rate) in CORRECTIONS.items():
        rows[name] = correct_splits(data.splits, tables[rate], data.catalogue, action, targets)
    for name, action in ORACLES.items():
        rows[name] = oracle_splits(data.splits, data.catalogue, action, targets)
    return rows, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a run folder that has scores/")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows, found = corrected(Run(args.run))
    for row, splits in rows.items():
        folder = args.out / row.replace(" %", "").replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        for name in c.SPLITS:
            windows = splits[name]
            items = [of[:n].tolist() for of, n in zip(windows.items, windows.lengths, strict=True)]
            users = np.unique(windows.user_ids.cast(pl.String).to_numpy(), return_inverse=True)[1]
            frame = {"window": windows.window_ids, "user": users, "items": pl.Series(items, dtype=pl.List(pl.Int64))}
            pl.DataFrame(frame).write_parquet(folder / f"{name}.parquet")
        print(f"{folder.name}: {', '.join(f'{len(splits[n])} {n}' for n in c.SPLITS)}", flush=True)
    (args.out / "rows.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
