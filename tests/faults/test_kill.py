"""A long stage that is killed at any moment goes on, and its files are those of a run that nobody disturbed."""

import random
import shutil
import signal
from pathlib import Path

import pytest

from llm4dsr.pipeline import FOLDERS, STAGES, WORK

from .harness import LONG, contents, in_child, make_run

KILLS = 20


@pytest.fixture(scope="module")
def calm(tmp_path_factory) -> Path:
    """A run that nobody disturbed, and how many moments each long stage has."""
    folder = tmp_path_factory.mktemp("calm") / "run"
    make_run(folder)
    for stage in STAGES[1:]:
        assert in_child(folder, stage, counted=folder.parent / stage) == 0
    return folder


def before(stage: str, calm: Path, folder: Path) -> Path:
    """A copy of the run as it was before the stage."""
    shutil.copytree(calm, folder)
    for later in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(folder / FOLDERS[later])
    return folder


@pytest.mark.parametrize("stage", LONG)
def test_killed_twenty_times_the_files_are_the_same(stage, calm, tmp_path):
    moments = int((calm.parent / stage).read_text())
    draw = random.Random(f"kill {stage}")
    folder, kills = before(stage, calm, tmp_path / "run"), 0
    while kills < KILLS:
        code = in_child(folder, stage, draw.randint(1, moments))
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        if (folder / FOLDERS[stage]).exists():  # whole, or not there: the moment never came, or came while tidying up
            assert contents(folder / FOLDERS[stage]) == contents(calm / FOLDERS[stage])
            shutil.rmtree(folder / FOLDERS[stage])
        else:
            assert code, "it says that it is done, and has left nothing"
    assert in_child(folder, stage) == 0
    assert contents(folder / FOLDERS[stage]) == contents(calm / FOLDERS[stage])
    assert not (folder / WORK / stage).exists()
