"""One run that nobody disturbed, for all tests of faults."""

import shutil
from pathlib import Path

import pytest

from llm4dsr.pipeline import STAGES, WORK

from .harness import KEPT, in_child, make_run


@pytest.fixture(scope="session")
def calm(tmp_path_factory) -> Path:
    """Its folder. Beside it stand a file for each stage with the number of its moments, and what scoring has kept."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    make_run(folder)
    for stage in STAGES[1:]:
        if stage == "suggest":
            shutil.copytree(folder / WORK, folder.parent / KEPT)
        assert in_child(folder, stage, counted=folder.parent / stage) == 0
    return folder
