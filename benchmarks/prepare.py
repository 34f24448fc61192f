"""Prepare on a synthetic log of 10 or 100 million interactions: wall time, rows per second, memory and disk.

    python benchmarks/prepare.py --scratch DIR
    python benchmarks/prepare.py --scratch DIR --rows 100000000

The log is made first (seed 0), part by part: a user for ten interactions, an item for fifty, both with long tails, text
ids, one csv in order of time. Then `prepare` runs on it in a process of its own. Its peak resident memory is read from
the kernel (Linux, VmHWM), and its files are measured once a second. Adds the result to results.json and writes
README.md, in benchmarks/results/prepare.
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
PART = 1_000_000  # rows that are drawn at once, and about as many that are sorted and written at once
START, DAY, DAYS = 1_300_000_000, 86_400, 6 * 365  # users come over six years, and stay for some months
WORDS = ("Red", "Blue", "Small", "Large", "Wooden", "Magic", "Night", "River", "Garden", "Robot", "Puzzle", "Train",
         "Castle", "Farm", "Ocean", "Paint", "Music", "Story", "Card", "Ball")  # fmt: skip
DRAWN = np.dtype([("user", np.int32), ("item", np.int32), ("when", np.int64)])


def make_log(folder: Path, rows: int, users: int, items: int, seed: int = 0) -> None:
    """items.csv and interactions.csv. A few users are very busy, a few items are taken very often; the rest are not."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    words = np.array(WORDS)[rng.integers(0, len(WORDS), (items, 3))]
    titles = [f"{a} {b} {c}, No. {i}" for i, (a, b, c) in enumerate(words)]
    item_numbers, user_numbers = rng.permutation(items), rng.permutation(users) * 7919
    pl.DataFrame({"item_id": _ids("B", item_numbers, 9), "title": titles}).write_csv(folder / "items.csv")

    busy = np.cumsum(rng.lognormal(0.0, 1.2, users))
    liked = np.cumsum(1.0 / (np.arange(items) + 50.0))
    came = rng.integers(0, DAYS * DAY, users)
    slices = max(1, rows // PART)  # of time, a file each; the last one has all later rows
    for begin in range(0, rows, PART):
        drawn = np.empty(min(PART, rows - begin), DRAWN)
        drawn["user"] = np.searchsorted(busy, rng.random(len(drawn)) * busy[-1])
        drawn["item"] = np.searchsorted(liked, rng.random(len(drawn)) * liked[-1])
        drawn["when"] = START + came[drawn["user"]] + rng.exponential(200 * DAY, len(drawn)).astype(np.int64)
        place = np.minimum((drawn["when"] - START) * slices // (DAYS * DAY), slices - 1)
        for number in np.unique(place):
            with open(folder / f"{number}.part", "ab") as file:
                drawn[place == number].tofile(file)
    with open(folder / "interactions.csv", "wb") as file:
        for number in range(slices):
            path = folder / f"{number}.part"
            drawn = np.fromfile(path, DRAWN) if path.exists() else np.empty(0, DRAWN)
            drawn = drawn[np.argsort(drawn["when"], kind="stable")]
            user, item = _ids("A", user_numbers[drawn["user"]], 12, "X"), _ids("B", item_numbers[drawn["item"]], 9)
            frame = pl.DataFrame({"user_id": user, "item_id": item, "timestamp": drawn["when"]})
            frame.write_csv(file, include_header=number == 0)
            path.unlink(missing_ok=True)


def _ids(begin: str, numbers: Any, digits: int, end: str = "") -> pl.Series:
    text = pl.lit(begin) + pl.Series(numbers).cast(pl.String).str.zfill(digits) + pl.lit(end)
    return pl.select(text).to_series()


def run_prepare(log: Path, out: Path) -> dict[str, Any]:
    """What the process of its own does. Seconds are those of reading, preparing and writing, without imports."""
    from llm4dsr.data.prepare import prepare
    from llm4dsr.data.sources.read import read_source

    imported, started, cpu = peak_mb(), time.monotonic(), time.process_time()
    steps: dict[str, float] = {}  # when a step was last heard of

    def progress(done: int, total: int, doing: str) -> None:
        steps[doing] = time.monotonic() - started

    report = prepare(read_source(log), out, progress=progress)
    ends = [0.0, *steps.values()]
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "seconds_of_steps": {name: round(b - a, 1) for name, a, b in zip(steps, ends, ends[1:], strict=False)},
        "peak_memory_mb": peak_mb(),
        "memory_after_imports_mb": imported,
        "report": report,
    }


def peak_mb() -> int:
    """Largest resident size of this process so far, in MiB; unlike ru_maxrss it begins anew with each program."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024


def run_child(scratch: Path, out: Path) -> dict[str, Any]:
    """Run `prepare` in its own process; add the largest sizes of its files, in MB, while it runs."""
    scratch_mb = peak = 0
    with subprocess.Popen([sys.executable, __file__, "--scratch", str(scratch), "--child"], stdout=subprocess.PIPE,
                          text=True) as child:  # fmt: skip
        while child.poll() is None:
            inside, outside = sizes(out)
            scratch_mb, peak = max(scratch_mb, inside), max(peak, inside + outside)
            time.sleep(1)
        printed = child.stdout.read()
    if child.returncode:
        raise SystemExit(child.returncode)
    return {**json.loads(printed.splitlines()[-1]), "scratch_mb": scratch_mb, "peak_disk_mb": peak}


def sizes(out: Path) -> tuple[int, int]:
    """(scratch files, files that stay) of an unfinished folder, in MB."""
    inside = outside = 0
    for part in out.parent.glob(f".{out.name}.*.part"):
        for at, _, names in os.walk(part):
            for name in names:
                try:
                    size = os.path.getsize(os.path.join(at, name))
                except OSError:
                    continue  # removed since it was listed
                if "scratch-" in at:
                    inside += size
                else:
                    outside += size
    return inside // 10**6, outside // 10**6


def write_results(found: dict[str, Any], rows: int) -> None:
    """Add a result to results.json, and write the page about all of them."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "results.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known = {size: result for size, result in known.items() if size.isdecimal()} | {str(rows): found}
    known = dict(sorted(known.items(), key=lambda entry: int(entry[0])))
    path.write_text(json.dumps(known, indent=1))
    columns = [_cells(result) for result in known.values()]
    table = "\n".join("| " + " | ".join([name, *(cells[name] for cells in columns)]) + " |" for name in columns[0])
    commands = "\n".join(f"    {result['command']}" for result in known.values())
    notes = "\n".join(f"- {int(size):,}: {r['note']}" for size, r in known.items() if r["note"])
    title, rest = table.split("\n", 1)
    (RESULTS / "README.md").write_text(f"""# Prepare, 10 and 100 million interactions

A synthetic log (seed 0, `make_log` in [benchmarks/prepare.py](../../prepare.py)): users and items with long tails, text
ids, one csv in order of time. Default options.

{commands}

{title}
|---|{"---|" * len(columns)}
{rest}

- Peak memory is the largest resident set of the process (`VmHWM` of the kernel), with the imports. Pages of mapped
  files count while they are mapped and resident; the page cache of the system does not.
- CPU time is that of the process, user and system; wall time depends on what else runs.
- Sizes of files are read once a second. Scratch is removed at the end.
- Machine: 2 CPU cores.
{notes}
""")


def _cells(found: dict[str, Any]) -> dict[str, str]:
    """Rows of the table for one result."""
    report = found["report"]
    rows, dropped = report["interactions"]["in"], report["interactions"]["dropped"]
    return {
        "interactions": f"{rows:,}",
        "users, items": f"{report['users']['in']:,}, {report['items']['in']:,}",
        "size of the csv": f"{found['log_mb']:,} MB",
        "wall time, from the csv to the written folder": f"{found['seconds']:g} s",
        **{f"of that: {step}": f"{seconds:g} s" for step, seconds in found["seconds_of_steps"].items()},
        "CPU time": f"{found['cpu_seconds']:g} s",
        "interactions per second": f"{rows / found['seconds']:,.0f}",
        "peak memory": f"{found['peak_memory_mb']:,} MiB, "
        + ("below" if found["peak_memory_mb"] < LIMIT_MB else "NOT below") + " 2 GiB",
        "of that, after the imports": f"{found['memory_after_imports_mb']:,} MiB",
        "scratch files at most": f"{found['scratch_mb']:,} MB",
        "scratch and output at most": f"{found['peak_disk_mb']:,} MB",
        "output": f"{found['written_mb']:,} MB",
        "windows (train, valid, test)": ", ".join(f"{count:,}" for count in report["windows"].values()),
        "interactions dropped": ", ".join(f"{n:,} by {reason}" for reason, n in dropped.items() if n) or "none",
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--scratch", type=Path, required=True, help="folder for the log and the windows; removed at the end"
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
        rows = "" if given.rows == 10_000_000 else f" --rows {given.rows}"
        found = {
            "command": f"python benchmarks/prepare.py --scratch DIR{rows}",
            "machine": "2 CPU cores",
            "note": given.note,
            **run_child(given.scratch, out),
            "log_mb": os.path.getsize(log / "interactions.csv") // 10**6,
            "written_mb": sum(file.stat().st_size for file in out.iterdir()) // 10**6,
        }  # fmt: skip
        write_results(found, given.rows)
        print((RESULTS / "README.md").read_text())
        print(json.dumps(found["report"]))
    finally:
        for folder in (log, out):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
