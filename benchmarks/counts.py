"""Memory and CPU time of co-occurrence counts on synthetic logs of growing size, at two commits.

    python benchmarks/counts.py --scratch DIR --rows 1000000 3000000 --out benchmarks/results/counts

Each log has histories of 8 to 30 items, as many of each length, and an item for fifty interactions. Items are drawn
with a long tail: the item of rank r in proportion to 1 / (r + 50). Windows are those of `build_windows`: 11 items, one
step apart. All of them are training windows.

A step runs in a process of its own. Its memory is what the largest resident set of the process is beyond the one before
the step, which holds libraries, windows and what an earlier step made (Linux):

- count: `CooccurrenceCounts.of`, without item vectors.
- neighbors: list those of NEIGHBORS windows with counts of that kind, for the first time.
- fit: `CooccurrenceCounts.fit`, with item vectors.
- features: describe FEATURES windows with counts that `fit` saved, for the first time.

A step that is in results.json already is not measured again. The other commit is measured with this very file:
`PYTHONPATH=CHECKOUT/src python benchmarks/counts.py … --name before`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4dsr.core.arrays import ranges
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.core.memory import return_memory
from llm4dsr.data.windows import Windows
from llm4dsr.features.cooccurrence import CooccurrenceCounts

BEFORE = "16fabea"  # the commit of the results "before"
STEPS = ("count", "neighbors", "fit", "features")
SHORTEST, LONGEST, WIDTH = 8, 30, 11
NEIGHBORS, FEATURES = 10, 20_000


def synthetic_windows(interactions: int, seed: int = 0) -> tuple[Windows, int]:
    """Windows of a log of so many interactions, and the number of its items."""
    rng, items = np.random.default_rng(seed), interactions // 50
    histories = rng.integers(SHORTEST, LONGEST + 1, 2 * interactions // (SHORTEST + LONGEST))
    liked = np.cumsum(1.0 / (np.arange(items) + 50.0))
    log = rng.permutation(items)[np.searchsorted(liked, rng.random(histories.sum()) * liked[-1])]
    steps = np.maximum(histories - WIDTH, 0) + 1
    users = np.repeat(np.arange(len(histories)), steps)
    starts = (np.cumsum(histories) - histories)[users] + ranges(np.zeros_like(steps), steps)
    lengths = np.minimum(histories, WIDTH)[users]
    ids, unknown = pl.Series("user_id", users).cast(pl.String), np.full(len(users), -1)
    return Windows(log[ranges(starts, lengths)], lengths, np.arange(len(users)), ids, unknown), items


def measured(step: str, interactions: int, folder: Path) -> dict[str, Any]:
    """Take one step in this process."""
    windows, items = synthetic_windows(interactions)
    few, some = (windows.take(np.arange(min(count, len(windows)))) for count in (NEIGHBORS, FEATURES))
    counts = None
    if step == "neighbors":
        counts = CooccurrenceCounts.of(windows, items)
    elif step == "features":
        counts = CooccurrenceCounts.load(folder)
    return_memory()
    Path("/proc/self/clear_refs").write_text("5")  # begins the largest resident set anew
    before, started = _memory("VmRSS"), time.process_time()
    if step == "count":
        counts = CooccurrenceCounts.of(windows, items)
    elif step == "fit":
        counts = CooccurrenceCounts.fit(windows, items, 0)
    elif step == "neighbors":
        counts.neighbors(few, np.ones(len(few.items), dtype=bool))
    else:
        counts.features(some)
    took, peak = time.process_time() - started, _memory("VmHWM")
    return_memory()
    found = {"cpu_seconds": round(took, 1), "peak": peak - before, "held": max(0, _memory("VmRSS") - before)}
    if step == "fit":
        counts.save(folder)
    sizes = {"windows": len(windows), "items": items, "pairs": len(counts.pairs), "hashes": len(counts.own)}
    return found | sizes | {"fingerprint": counts.fingerprint}


def _memory(name: str) -> int:
    """Bytes of memory of this process, as the kernel calls them."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


def page(found: dict[str, Any]) -> str:
    """The table of all sizes and steps, before and after."""
    before, after = found["before"], found["after"]
    lines = [
        "| interactions | pairs | hashes | step | peak memory | per interaction | stays | CPU time |",
        "|---" * 8 + "|",
    ]
    for rows in sorted(after, key=int):
        for step in (step for step in STEPS if step in after[rows]):
            one, old = after[rows][step], before.get(rows, {}).get(step)
            cells = [f"{int(rows):,}", f"{one['pairs']:,}", f"{one['hashes']:,}", step]
            for name, unit, form in (("peak", 2**20, "{:,.0f} MiB"), ("peak", int(rows), "{:,.0f} bytes"),
                                     ("held", 2**20, "{:,.0f} MiB"), ("cpu_seconds", 1, "{:,.1f} s")):  # fmt: skip
                cells.append(
                    " → ".join(form.format(of[name] / unit) if of and name in of else "?" for of in (old, one))
                )
            lines.append("| " + " | ".join(cells) + " |")
    shared = [(rows, step) for rows in after for step in after[rows] if step in before.get(rows, {})]
    same = all(before[rows][step]["fingerprint"] == after[rows][step]["fingerprint"] for rows, step in shared)
    table = "\n".join(lines)
    return f"""# Co-occurrence counts: memory and time

    python benchmarks/counts.py --scratch DIR --rows {" ".join(sorted(after, key=int))} --out benchmarks/results/counts

Before (commit {BEFORE}) → after; ? was not measured. Synthetic logs, each step in a process of its own; the benchmark's
docstring says what a step is. *Pairs* are pairs of items that some user has. *Hashes* are those of (user, pair) and
(user, item). Memory is what the step adds to libraries and windows; *stays* is what is left of it after the step.

{table}

Fingerprints of counts and vectors are {"the same before and after" if same else "NOT the same"}. CPU times are
of a machine that was busy with other work.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="folder for saved counts")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS, help="in this order; features need fit")
    parser.add_argument("--name", choices=("before", "after"), default="after")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "counts")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measured(given.steps[0], given.rows[0], given.scratch)))
        return
    results = given.out / "results.json"
    for rows in given.rows:
        for step in given.steps:
            found = json.loads(results.read_text()) if results.exists() else {"before": {}, "after": {}}
            known = found[given.name].setdefault(str(rows), {})
            if step in known:
                continue
            folder = given.scratch / f"{given.name}-{rows}"
            folder.mkdir(parents=True, exist_ok=True)
            asked = ["--scratch", folder, "--rows", rows, "--steps", step, "--child"]
            printed = subprocess.run([sys.executable, __file__, *map(str, asked)], check=True, stdout=subprocess.PIPE)
            known[step] = json.loads(printed.stdout.splitlines()[-1])
            print(rows, step, known[step], flush=True)
            write_text(results, json.dumps(found | {"versions": versions()}, indent=1))
    write_text(given.out / "README.md", page(json.loads(results.read_text())))


if __name__ == "__main__":
    main()
