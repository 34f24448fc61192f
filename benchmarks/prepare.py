"""Prepare on a synthetic log of 10 million interactions: wall time, rows per second, peak memory.

    python benchmarks/prepare.py --scratch DIR

The log is made first (seed 0): 1,000,000 users and 200,000 items with long tails, text ids, one csv in order of time.
Then `prepare` runs on it in a process of its own, whose peak resident memory is read from the kernel (Linux). Writes
results.json and README.md into benchmarks/results/prepare.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

RESULTS = Path(__file__).parent / "results" / "prepare"
LIMIT_MB = 2048
PART = 1_000_000  # rows of the csv that are written at once
WORDS = ("Red", "Blue", "Small", "Large", "Wooden", "Magic", "Night", "River", "Garden", "Robot", "Puzzle", "Train",
         "Castle", "Farm", "Ocean", "Paint", "Music", "Story", "Card", "Ball")  # fmt: skip


def make_log(folder: Path, rows: int, users: int, items: int, seed: int = 0) -> None:
    """items.csv and interactions.csv. A few users are very busy, a few items are taken very often; the rest are not."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    words = np.array(WORDS)[rng.integers(0, len(WORDS), (items, 3))]
    titles = [f"{a} {b} {c}, No. {i}" for i, (a, b, c) in enumerate(words)]
    item_ids = pl.Series("item_id", [f"B{i:09d}" for i in rng.permutation(items)])
    pl.DataFrame({"item_id": item_ids, "title": titles}).write_csv(folder / "items.csv")
    user_ids = pl.Series("user_id", [f"A{i:012d}X" for i in rng.permutation(users) * 7919])

    busy = np.cumsum(rng.lognormal(0.0, 1.2, users))
    user = np.searchsorted(busy, rng.random(rows) * busy[-1]).astype(np.int32)
    liked = np.cumsum(1.0 / (np.arange(items) + 50.0))
    item = np.searchsorted(liked, rng.random(rows) * liked[-1]).astype(np.int32)
    came = rng.integers(0, 6 * 365 * 86_400, users)  # users come over six years, and stay for some months
    when = 1_300_000_000 + came[user] + rng.exponential(200 * 86_400, rows).astype(np.int64)
    in_time = np.argsort(when, kind="stable")
    with open(folder / "interactions.csv", "wb") as file:
        for begin in range(0, rows, PART):
            some = in_time[begin : begin + PART]
            pl.DataFrame(
                {"user_id": user_ids.gather(user[some]), "item_id": item_ids.gather(item[some]),
                 "timestamp": when[some]}
            ).write_csv(file, include_header=begin == 0)  # fmt: skip


def run_prepare(log: Path, out: Path) -> dict[str, Any]:
    """What the process of its own does. Seconds are those of reading, preparing and writing, without imports."""
    from llm4dsr.data.prepare import prepare
    from llm4dsr.data.sources.read import read_source

    imported, started = peak_mb(), time.monotonic()
    steps: dict[str, float] = {}  # when a step was last heard of

    def progress(done: int, total: int, doing: str) -> None:
        steps[doing] = time.monotonic() - started

    report = prepare(read_source(log), out, progress=progress)
    ends = [0.0, *steps.values()]
    return {
        "seconds": round(time.monotonic() - started, 1),
        "seconds_of_steps": {name: round(b - a, 1) for name, a, b in zip(steps, ends, ends[1:], strict=False)},
        "peak_memory_mb": peak_mb(),
        "memory_after_imports_mb": imported,
        "report": report,
    }


def peak_mb() -> int:
    """Largest resident size of this process so far, in MiB; unlike ru_maxrss it begins anew with each program."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


def write_result(found: dict[str, Any], command: str, note: str) -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "results.json").write_text(json.dumps({"command": command, "machine": "2 CPU cores", **found}, indent=1))
    report = found["report"]
    rows, dropped = report["interactions"]["in"], report["interactions"]["dropped"]
    left_out = ", ".join(f"{count:,} by {reason}" for reason, count in dropped.items() if count) or "none"
    steps = ", ".join(f"{name} {seconds:g} s" for name, seconds in found["seconds_of_steps"].items())
    windows = ", ".join(f"{count:,}" for count in report["windows"].values())
    verdict = "below" if found["peak_memory_mb"] < LIMIT_MB else "NOT below"
    (RESULTS / "README.md").write_text(f"""# Prepare, {rows:,} interactions

A synthetic log (seed 0, `make_log` in [benchmarks/prepare.py](../../prepare.py)): {report["users"]["in"]:,} users and
{report["items"]["in"]:,} items with long tails, text ids, one csv of {found["log_mb"]:,} MB, in order of time.
Default options.

    {command}

| | |
|---|---|
| wall time, from the csv to the written folder | {found["seconds"]:g} s ({steps}) |
| throughput | {rows / found["seconds"]:,.0f} interactions per second |
| peak resident memory of the process | {found["peak_memory_mb"]:,} MiB, {verdict} 2 GiB |
| of it there after the imports | {found["memory_after_imports_mb"]:,} MiB |
| windows written (train, valid, test) | {windows}; {found["written_mb"]:,} MB |
| interactions left out | {left_out} |

{f"Machine: 2 CPU cores. {note}".strip()}
""")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--scratch", type=Path, required=True, help="folder for the log; about 1 GB, removed at the end"
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--note", default="", help="a sentence for the README, such as what else ran")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    log, out = given.scratch / "prepare-log", given.scratch / "prepare-out"
    if given.child:
        print(json.dumps(run_prepare(log, out)))
        return
    try:
        make_log(log, given.rows, given.rows // 10, given.rows // 50)
        child = [sys.executable, __file__, "--scratch", str(given.scratch), "--child"]
        done = subprocess.run(child, check=True, capture_output=True, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        found["log_mb"] = os.path.getsize(log / "interactions.csv") // 10**6
        found["written_mb"] = sum(file.stat().st_size for file in out.iterdir()) // 10**6
        rows = "" if given.rows == 10_000_000 else f" --rows {given.rows}"
        write_result(found, f"python benchmarks/prepare.py --scratch DIR{rows}", given.note)
        print((RESULTS / "README.md").read_text())
        print(json.dumps(found["report"]))
    finally:
        for folder in (log, out):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
