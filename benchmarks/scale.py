"""A whole run at growing sizes: time and peak memory of each stage.

    python benchmarks/scale.py --scratch DIR --rows 100000 1000000 --out benchmarks/results/scale

A synthetic log of each size is made as in prepare.py (a user for ten interactions, an item for fifty, long tails). Then
the commands of a run follow one another, each in a new process, with default options. CPU seconds are those of
the whole process; memory is its largest resident set, from the kernel (Linux). A size that is in the results already
is not measured again, and an interrupted one goes on with the stage that is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl

from llm4dsr import Config
from llm4dsr.columns import SPLITS
from llm4dsr.core.device import available_cpus
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.pipeline import FOLDERS
from prepare import make_log

STAGES = ("prepare", "train", "score", "decide", "suggest", "correct")


def measured(command: list[str]) -> dict[str, float]:
    """Run a command to its end; seconds, CPU seconds and peak memory of its largest process."""
    started = time.monotonic()
    child = subprocess.Popen(command)
    _, status, used = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}.")
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_mb": used.ru_maxrss // 1024,
    }


def run_stages(log: Path, folder: Path, config: Path, done: dict[str, Any]) -> dict[str, Any]:
    """Measure the stages that are not in `done`, and tell how many windows and flags there are."""
    llm4dsr = [sys.executable, "-m", "llm4dsr"]
    for stage in STAGES:
        if stage in done:
            continue
        given = ["--data", log, "--out", folder, "--config", config] if stage == "prepare" else ["--run", folder]
        skip = ["--skip-estimate"] if stage in ("train", "score") else []
        done[stage] = measured([*llm4dsr, stage, *map(str, given), *skip, "--overwrite"])
        print(stage, done[stage], flush=True)
        write_text(folder.with_suffix(".json"), json.dumps(done))
    for name, stage in (("windows", "prepare"), ("flags", "decide")):
        paths = [folder / FOLDERS[stage] / f"{split}.parquet" for split in SPLITS]
        done[name] = pl.scan_parquet(paths).select(pl.len()).collect().item()
    return done


def page(found: dict[str, Any], facts: dict[str, Any]) -> str:
    """The table of all sizes."""
    sizes = sorted(found, key=int)
    lines = [
        "| interactions of the log | " + " | ".join(f"{int(size):,}" for size in sizes) + " |",
        "|---|" + "---|" * len(sizes),
        "| windows | " + " | ".join(f"{found[size]['windows']:,}" for size in sizes) + " |",
        "| flags | " + " | ".join(f"{found[size]['flags']:,}" for size in sizes) + " |",
    ]
    for stage in STAGES:
        used = [found[size][stage] for size in sizes]
        lines.append(
            f"| {stage} | "
            + " | ".join(f"{one['cpu_seconds']:,.0f} s, {one['peak_memory_mb']:,} MiB" for one in used)
            + " |"
        )
    total = [sum(found[size][stage]["cpu_seconds"] for stage in STAGES) for size in sizes]
    lines.append("| all | " + " | ".join(f"{seconds / 60:,.1f} min" for seconds in total) + " |")
    table = "\n".join(lines)
    return f"""# A whole run at growing sizes

    {facts["command"]}

Synthetic logs, default options, one process after another. CPU seconds and peak memory of each.

{table}

- `train` tunes on at most {facts["samples"]:,} windows for each fold (`train.samples`). Beyond that, its time grows
  only by what is counted and calibrated. `decide` fits item-kNN and EASE on validation.
- Titles and histories are random, so no gain can be read from these runs. Time and memory do not depend on that.
- Machine: {facts["cpus"]} CPU core(s) that the processes may use. {facts["note"]}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for logs and runs")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scale")
    parser.add_argument("--config", type=Path, help="a recipe; default: an empty one")
    parser.add_argument("--note", default="", help="a sentence for the page, such as what else ran")
    given = parser.parse_args()
    results = given.out / "results.json"
    known = json.loads(results.read_text())["sizes"] if results.exists() else {}
    given.scratch.mkdir(parents=True, exist_ok=True)
    recipe = given.config or given.scratch / "defaults.yaml"
    if given.config is None:
        recipe.write_text("{}\n")
    for rows in given.rows:
        if str(rows) in known:
            continue
        log, folder = given.scratch / f"log-{rows}", given.scratch / f"run-{rows}"
        if not (log / "interactions.csv").exists():
            shutil.rmtree(log, ignore_errors=True)
            make_log(log, rows, rows // 10, rows // 50)
        state = folder.with_suffix(".json")
        known[str(rows)] = run_stages(log, folder, recipe, json.loads(state.read_text()) if state.exists() else {})
        facts = {
            "command": "python benchmarks/scale.py --scratch DIR --rows " + " ".join(map(str, given.rows)),
            "samples": Config.from_yaml(recipe).train.samples, "cpus": available_cpus(), "note": given.note,
            "versions": versions(),
        }  # fmt: skip
        write_text(results, json.dumps(facts | {"sizes": known}, indent=1))
        write_text(given.out / "README.md", page(known, facts))
        print(page(known, facts))


if __name__ == "__main__":
    main()
