"""Ray workers: how much faster two are than one, and whether their tables have the same bytes as without Ray.

    python benchmarks/ray_workers.py --scratch DIR --out benchmarks/results/ray
    python benchmarks/ray_workers.py --scratch DIR --what apply --out benchmarks/results/ray-apply

Fits the denoiser of the README's demo into DIR, unless it is there. Then histories of new users, copies of the demo's,
are scored, or with `--what apply` corrected in a file: by this program alone, by one Ray worker, and by two, each in a
process of its own. Seconds are from before Ray starts to the finished table or file, without imports and reading the
model by this program. The default takes about five minutes with one worker on one core. Run it on idle cores: one more
than the workers, or the workers wait for the process that asks.
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
from llm4dsr.core.manifest import file_hash
from llm4dsr.core.progress import Progress
from llm4dsr.core.progress_bar import shown
from llm4dsr.data.demo import make_demo
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.score_in_time import parts_to_score
from llm4dsr.pipeline.histories_file import ApplyOptions, apply_to_file
from llm4dsr.pipeline.ray_histories import RayHistories
from llm4dsr.pipeline.ray_workers import RayWorkers

WHAT = {"score": "Scores of", "apply": "A file of"}  # what is measured, for the page
OPTIONS = ApplyOptions(eta=0.5, cap=3, action="replace", rows=10_000)


def copies(windows: Windows, count: int) -> Windows:
    """So many windows, each of a user of its own."""
    out = windows.take(np.arange(count) % len(windows))
    users = pl.Series("user_id", [f"new {i}" for i in range(count)])
    return replace(out, user_ids=users, window_ids=np.arange(count))


def measure(what: str, model: Path, count: int, workers: int, work: Path) -> dict[str, Any]:
    """Score or apply, asked for by this process; 0 workers: without Ray, with one thread."""
    denoiser, first = Denoiser.from_pretrained(model), 0.0
    demo = make_demo(seed=0).data
    windows = copies(demo.splits["train"], count)
    file = work / "histories.parquet"
    if what == "apply":
        work.mkdir(parents=True)
        windows.to_frame(demo.catalogue).select("user_id", "item_ids").write_parquet(file)
    started = time.monotonic()

    def heard(done: int, total: int, doing: str) -> None:
        nonlocal first
        first = first or (done and time.monotonic() - started)
        report(done, total, doing)

    with shown(True) as report:
        assert report is not None
        how = (denoiser, model, RayWorkers(count=workers) if workers else None, work, heard)
        content = score(windows, *how) if what == "score" else apply(file, *how)
    return {
        "workers": workers, "seconds": round(time.monotonic() - started, 1), "until the first part": round(first, 1),
        "sha256": hashlib.sha256(content).hexdigest(),
    }  # fmt: skip


def score(
    windows: Windows, denoiser: Denoiser, model: Path, workers: RayWorkers | None, work: Path, heard: Progress
) -> bytes:
    """The columns of the scores."""
    if workers is not None:
        given = *denoiser.in_parts(windows, False), False, False, denoiser.width
        parts = parts_to_score(denoiser.ensemble, *given)
        workers.make(denoiser.ensemble, parts, model, work, "score by Ray", heard)
    table = denoiser.score(windows, heard, work=work)
    return b"".join(table[name].to_numpy().tobytes() for name in ("log_odds", "noise_probability", "rank"))


def apply(
    file: Path, denoiser: Denoiser, model: Path, workers: RayWorkers | None, work: Path, heard: Progress
) -> bytes:
    """The hashes of all corrected parts."""
    makers = None if workers is None else RayHistories(model, workers)
    apply_to_file(denoiser, file, work / "out", OPTIONS, heard, makers)
    return "".join(file_hash(path) for path in sorted(work.glob("out/part-*/*.parquet"))).encode()


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

{WHAT[facts["what"]]} {facts["windows"]:,} histories with the denoiser of the demo. All tables have {same}.

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
    parser.add_argument("--what", choices=WHAT, default="score")
    parser.add_argument("--windows", type=int, default=300_000)
    parser.add_argument("--child", type=int)
    given = parser.parse_args()
    model, work = given.scratch / "model", given.scratch / "work"
    if given.child is not None:
        print(json.dumps(measure(given.what, model, given.windows, given.child, work)))
        return
    if not (model / "denoiser.json").is_file():
        config, demo = replace(Config.from_yaml("demo"), threads=1), make_demo(seed=0).data
        Denoiser(config).fit(demo.splits["train"], demo.catalogue).save_pretrained(model)
    found = []
    for workers in (0, 1, 2):
        shutil.rmtree(work, ignore_errors=True)
        again = [sys.executable, __file__, "--scratch", given.scratch, "--what", given.what, "--windows", given.windows]
        run = subprocess.run([*map(str, again), "--child", str(workers)], stdout=subprocess.PIPE, text=True, check=True)
        found.append(json.loads(run.stdout.splitlines()[-1]))
        print(found[-1])
    shutil.rmtree(work, ignore_errors=True)
    facts = {
        "command": f"python benchmarks/ray_workers.py --scratch DIR --what {given.what} --windows {given.windows}",
        "what": given.what, "windows": given.windows, "cpus": available_cpus(), "versions": versions(),
        "machine": platform.machine(),
    }  # fmt: skip
    if given.out is not None:
        write_text(given.out / "results.json", json.dumps(facts | {"results": found}, indent=1))
        write_text(given.out / "README.md", page(found, facts))
    print(page(found, facts))


if __name__ == "__main__":
    main()
