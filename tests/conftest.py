"""What several test files need."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from llm4dsr.cli.main import main
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.demo import make_demo

# The models are tiny: a second thread only waits for the first, and takes a core meanwhile. Each parallel worker has
# one core, with the commands that it starts, so that these too use one thread.
torch.set_num_threads(1)
if hasattr(os, "sched_setaffinity") and (worker := os.environ.get("PYTEST_XDIST_WORKER")):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

# Files with the longest tests. Each goes to one worker, so they start first: at the end, the other would wait.
LONGEST = (
    "test_readme.py", "test_study.py", "test_shared_tuning.py", "test_kill.py", "test_ray_workers.py",
    "test_ray_histories.py", "test_studies_data.py", "test_smollm2.py", "test_studies_detection.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(scope="session")
def tiny_demo() -> Dataset:
    """The windows of the tiny demo: 60 items, 150 users. Shared by all tests, so do not change it."""
    return make_demo(seed=0, size="tiny").data


@pytest.fixture(scope="session")
def toys_path() -> Path:
    """`…/toys` in the shared data folder, to be given to `read_data`; skips where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    given = os.environ.get("LLM4DSR_SHARED_DATA")
    for folder in (beside, Path(given) if given else beside):
        if (folder / "toys_items.parquet").is_file():
            return folder / "toys"
    pytest.skip(
        f"no Toys data: neither {beside} nor LLM4DSR_SHARED_DATA ({given or 'not set'}) holds toys_items.parquet"
    )


@pytest.fixture(scope="module")
def browser():
    """A real Chromium, driven by Playwright; skips where either is missing."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    flags = ["no-sandbox", "disable-gpu", "no-first-run", "disable-background-networking", "disable-sync",
             "disable-component-update"]  # fmt: skip
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=[f"--{flag}" for flag in flags])
        yield opened
        opened.close()


@pytest.fixture
def is_accessible():
    """A function that checks a page with axe-core: no serious fault, and nothing cut off at the side."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")

    def check(page, width: int) -> None:
        found = axe.Axe().run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in ("serious", "critical")] == []
        assert page.evaluate("document.documentElement.scrollWidth") == width

    return check


@pytest.fixture
def llm4dsr(monkeypatch, capsys):
    """llm4dsr("train", "--run", folder) → (exit code, everything printed), as the installed command gives it."""

    def call(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["llm4dsr", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err
        return int(end.value.code or 0), printed.out + printed.err

    return call
