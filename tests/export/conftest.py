"""A run on the shop's log, with overlapping windows, shared by all tests here."""

import shutil
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from llm4dsr.export.log_rows import find_rows, log_origin
from llm4dsr.pipeline import Run

from .shop import run_of, shop_log, windows_of, write_log


@pytest.fixture(scope="session")
def shop(tmp_path_factory, tiny_demo) -> tuple[Path, Run]:
    """The log, with twenty rows written twice, and a run that drops 10 %, up to `correct`."""
    base = tmp_path_factory.mktemp("shop")
    log = shop_log(tiny_demo)
    path = write_log(pl.concat([log, log.sample(20, seed=3)]), base / "logs", "interactions.csv")
    return path, run_of(windows_of(base / "logs", base / "windows", history=5), base / "run")


@pytest.fixture
def run(shop, tmp_path) -> Run:
    """A copy of the run, to change."""
    return Run(shutil.copytree(shop[1].folder, tmp_path / "run"))


@pytest.fixture(scope="session")
def votes(shop):
    """A function: for each record of the log, in how many corrected windows it was scored, and in how many flagged."""

    def count(run: Run) -> tuple[Counter, Counter]:
        data = run.data()
        rows = find_rows(log_origin(run), data.splits, data.catalogue)
        scored, flagged = Counter(), Counter()
        for name, windows in data.splits.items():
            if name != "train" and not run.correction.histories:
                continue
            at = {
                (window, position): row
                for window, position, row in zip(
                    windows.window_ids[windows.owners].tolist(), windows.positions.tolist(),
                    rows.of_windows[name].tolist(), strict=True,
                )
            }  # fmt: skip
            scored.update(at[key] for key in run.scores()[name].select("window_id", "position").iter_rows())
            flagged.update(at[key] for key in run.decisions()[name].select("window_id", "position").iter_rows())
        return scored, flagged

    return count
