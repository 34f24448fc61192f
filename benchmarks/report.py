"""The report of a run of 100,000 windows: seconds to write it, its size, and seconds until a browser shows it.

    python benchmarks/report.py --scratch DIR

The windows are those of the demo shop with more users, the model is tiny, flags are at a fixed rate and item-kNN
evaluates: none of this changes what the page holds. A run folder that is there already is used again. Chromium opens
the page from disk, five times, each in a new context. The page counts as opened when histories are listed and a moved
slider has changed the counts. Writes results.json and README.md in benchmarks/results/report.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from llm4dsr.config import Config
from llm4dsr.core.hashing import versions
from llm4dsr.data.demo import make_demo
from llm4dsr.pipeline import STAGES, Run
from llm4dsr.report import write_report

RESULTS = Path(__file__).parent / "results" / "report"
USERS, OPENED = 46_500, 5
LIMIT_MB, LIMIT_S = 10.0, 2.0
CONFIG = Config.from_dict({
    "threads": 1,
    "model": {"hidden_size": 16, "layers": 1, "heads": 2, "vector_size": 16},
    "train": {"epochs": 1, "folds": 2},
    "decide": {"policy": "rate", "eta": 0.02},
    "evaluate": {"backbone": "itemknn"},
})  # fmt: skip


def make_run(folder: Path, users: int) -> Run:
    """Return a finished run; stages that are there already are kept."""
    run = Run(folder) if (folder / "config.yaml").is_file() else Run.create(folder, CONFIG)
    data = make_demo(seed=0, users=users).data
    for stage in STAGES:
        if not run.done(stage):
            run.make(stage, data)
    return run


def open_page(browser: Browser, page_file: Path) -> float:
    """Seconds until the page lists histories and its slider answers."""
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    started = time.perf_counter()
    page.goto(page_file.resolve().as_uri(), wait_until="commit")
    page.wait_for_selector("#examples > li")
    before = page.locator("#flagged").inner_text()
    page.locator("#eta").evaluate("slider => { slider.value = 5; slider.dispatchEvent(new Event('input')); }")
    page.wait_for_function("before => document.querySelector('#flagged').innerText !== before", arg=before)
    seconds = time.perf_counter() - started
    context.close()
    return seconds


def measure(folder: Path, users: int) -> dict[str, Any]:
    """Make the run, write its report and open it."""
    run = make_run(folder, users)
    started = time.perf_counter()
    page_file = write_report(run)
    written = time.perf_counter() - started
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-background-networking"]
        )
        opened = [open_page(browser, page_file) for _ in range(OPENED)]
        chromium = browser.version
        browser.close()
    windows = {name: len(w) for name, w in run.data().splits.items()}
    return {
        "windows": windows, "interactions": sum(len(w.items) for w in run.data().splits.values()),
        "flags": {name: len(table) for name, table in run.decisions().items()},
        "report MB": page_file.stat().st_size / 1e6, "write s": written, "open s": opened, "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": versions() | {"chromium": chromium},
    }  # fmt: skip


def page(found: dict[str, Any]) -> str:
    """Render the README of the results."""
    total, median = sum(found["windows"].values()), statistics.median(found["open s"])
    lines = [
        "# The report of a run of 100,000 windows", "",
        "    python benchmarks/report.py --scratch DIR", "",
        "The demo shop with more users, a tiny model, flags at a fixed rate, item-kNN. "
        "[results.json](results.json) has every digit.", "",
        "| | measured | limit |", "|---|---|---|",
        f"| windows (train, valid, test) | {total:,} ({', '.join(f'{n:,}' for n in found['windows'].values())}) | |",
        f"| interactions, of which flagged | {found['interactions']:,}, {sum(found['flags'].values()):,} | |",
        f"| size of report.html | {found['report MB']:.2f} MB | {LIMIT_MB:.0f} MB |",
        f"| opened in Chromium, until histories are listed and the slider answers | {median:.2f} s (median of "
        f"{len(found['open s'])}; at most {max(found['open s']):.2f} s) | {LIMIT_S:.0f} s |",
        f"| to write it, on one core | {found['write s']:.1f} s | |", "",
        "The page holds counts, 240 histories and the 1,000 most suspicious edits, so its size hardly depends on the "
        "number of windows.", "",
        f"Machine: {found['cores']} CPU cores; a load of {found['load']:.0f} from this and other work.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the results."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--scratch", type=Path, required=True, help="a folder for the run, 1 GB")
    options.add_argument("--users", type=int, default=USERS, help="of the demo shop; 46,500 make 100,000 windows")
    options.add_argument("--out", type=Path, default=RESULTS)
    given = options.parse_args()
    found = measure(given.scratch / "run", given.users)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (given.out / "README.md").write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
