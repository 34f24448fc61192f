"""Ray workers: how much faster two score than one, and whether the scores have the same bytes as without Ray.

    python benchmarks/ray_workers.py --scratch DIR --out benchmarks/results/ray

Fits the denoiser of the README's demo into DIR, unless it is there. Then histories of new users, copies of the demo's,
are scored: by this program alone, by one Ray worker, and by two, each in a process of its own. Seconds are from before
Ray starts to the finished table, without imports and reading the model. The default takes about five minutes with one
worker on one core. Run it on idle cores: one more than the workers, or the workers wait for the process that asks.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import Config, Denoiser
from llm4dsr.core.device import available_cpus
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.core.progress_bar import shown
from llm4dsr.data.demo import make_demo
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.score_in_time import parts_to_score
from llm4dsr.pipeline.ray_workers import RayWorkers


def copies(windows: Windows, count: int) -> Windows:
    """So many windows, each of a user of its own."""
    out = windows.take(np.arange(count) % len(windows))
    users = pl.Series("user_id", [f"new {i}" for i in range(count)])
    return replace(out, user_ids=users, window_ids=np.arange(count))


def score(model: Path, count: int, workers: int, work: Path) -> dict[str, Any]:
    """Score in this process; 0 workers: without Ray, with one thread."""
    denoiser, first = Denoiser.from_pretrained(model), 0.0
    windows = copies(make_demo(seed=0).data.splits["train"], count)
    started = time.monotonic()

    def heard(done: int, total: int, doing: str) -> None:
        nonlocal first
        first = first or (done and time.monotonic() - started)
        report(done, total, doing)

    with shown(True) as report:
        assert report is not None
        if workers:
            given = *denoiser.in_parts(windows, False), False, False, denoiser.width
            parts = parts_to_score(denoiser.ensemble, *given)
            RayWorkers(count=workers).make(denoiser.ensemble, parts, model, work, "score by Ray", heard)
        made = time.monotonic() - started
        table = denoiser.score(windows, heard, work=work)
    seconds = time.monotonic() - started
    columns = [table[name].to_numpy().tobytes() for name in ("log_odds", "noise_probability", "rank")]
    return {
        "workers": workers, "seconds": round(seconds, 1), "until the first part": round(first, 1),
        "after the last part": round(seconds - made, 1) if workers else None,
        "sha256": hashlib.sha256(b"".join(columns)).hexdigest(),
    }  # fmt: skip


def page(found: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    one = next(line["seconds"] for line in found if line["workers"] == 1)
    rows = "\n".join(
        f"| {line['workers'] or 'without Ray'} | {line['seconds']:g} s | {line['until the first part']:g} s "
        f"| {one / line['seconds']:.2f} |"
        for line in found
    )
    same = "the same bytes" if len({line["sha256"] for line in found}) == 1 else "**different bytes**"
    return f"""# Ray workers

    {facts["command"]}

Scores of {facts["windows"]:,} histories with the denoiser of the demo. All tables have {same}.

| workers | time | until the first part | times as fast as one worker |
|---|---|---|---|
{rows}

- One thread in each worker, and in the process without Ray. Times include the start of Ray and of the workers.
- Machine: {facts["cpus"]} CPU cores that this process may use.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--windows", type=int, default=300_000)
    parser.add_argument("--child", type=int)
    given = parser.parse_args()
    model, work = given.scratch / "model", given.scratch / "work"
    if given.child is not None:
        print(json.dumps(score(model, given.windows, given.child, work)))
        return
    if not (model / "denoiser.json").is_file():
        config, demo = replace(Config.from_yaml("demo"), threads=1), make_demo(seed=0).data
        Denoiser(config).fit(demo.splits["train"], demo.catalogue).save_pretrained(model)
    found = []
    for workers in (0, 1, 2):
        shutil.rmtree(work, ignore_errors=True)
        again = [sys.executable, __file__, "--scratch", given.scratch, "--windows", given.windows, "--child", workers]
        run = subprocess.run([str(a) for a in again], stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(run.stdout.splitlines()[-1]))
        print(found[-1])
    shutil.rmtree(work, ignore_errors=True)
    facts = {
        "command": f"python benchmarks/ray_workers.py --scratch DIR --windows {given.windows}",
        "windows": given.windows, "cpus": available_cpus(), "versions": versions(), "machine": platform.machine(),
    }  # fmt: skip
    if given.out is not None:
        write_text(given.out / "results.json", json.dumps(facts | {"results": found}, indent=1))
        write_text(given.out / "README.md", page(found, facts))
    print(page(found, facts))


if __name__ == "__main__":
    main()
