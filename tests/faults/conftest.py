"""One run that nobody disturbed, for all tests of faults."""

from pathlib import Path

import pytest

from llm4dsr.pipeline import STAGES

from .harness import in_child, make_run


@pytest.fixture(scope="session")
def calm(tmp_path_factory) -> Path:
    """Its folder. Beside it stands a file for each stage with the number of its moments."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    make_run(folder)
    for stage in STAGES[1:]:
        assert in_child(folder, stage, counted=folder.parent / stage) == 0
    return folder
