"""A long stage that is killed at any moment goes on, and its files are those of a run that nobody disturbed."""

import random
import shutil
import signal

import pytest

from llm4dsr.pipeline import FOLDERS, WORK, Run

from .harness import CONFIG, LONG, before, by_command, contents, demo, in_child

KILLS = 8


@pytest.mark.parametrize("stage", LONG)
def test_killed_again_and_again_the_files_are_the_same(stage, calm, tmp_path):
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


@pytest.mark.parametrize("moment", range(1, 30))
def test_a_run_that_was_killed_while_it_began_begins_again(moment, calm, tmp_path):
    code = in_child(tmp_path / "run", "prepare", moment)
    assert code in (0, -signal.SIGKILL)
    if not (tmp_path / "run" / FOLDERS["prepare"]).exists():
        assert code, "it says that it is done, and has left nothing"
        assert in_child(tmp_path / "run", "prepare") == 0
    assert contents(tmp_path / "run" / FOLDERS["prepare"]) == contents(calm / FOLDERS["prepare"])
    assert Run.begin(tmp_path / "run", CONFIG, demo()).done("prepare")


@pytest.mark.parametrize("moment", [2, 5, 8, 11, 14])
def test_a_stage_that_is_made_again_is_never_half_there(moment, calm, tmp_path):
    folder = shutil.copytree(calm, tmp_path / "run")
    in_child(folder, "decide", moment, again=True)
    for stage in ("decide", "suggest", "correct", "evaluate"):
        if (folder / FOLDERS[stage]).exists():
            assert contents(folder / FOLDERS[stage]) == contents(calm / FOLDERS[stage])
    assert in_child(folder, "decide", again=True) == 0
    assert contents(folder / FOLDERS["decide"]) == contents(calm / FOLDERS["decide"])
    assert not list(folder.glob(".*.old"))


@pytest.mark.parametrize("stage", LONG)
def test_what_was_finished_is_not_done_again(stage, calm, tmp_path):
    """Killed near its end, a stage needs little more; one that began anew would need as much as ever."""
    moments = int((calm.parent / stage).read_text())
    for tenths in (8, 7, 6, 5):
        folder = before(stage, calm, tmp_path / f"run{tenths}")
        assert in_child(folder, stage, moments * tenths // 10) == -signal.SIGKILL
        if not (folder / FOLDERS[stage]).exists():  # else it was complete, and tidying up
            break
    assert in_child(folder, stage, counted=tmp_path / "again") == 0
    assert int((tmp_path / "again").read_text()) < moments * (15 - tenths) // 10


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_hand_it_says_so_and_the_same_command_goes_on(how, code, calm, tmp_path, capfd):
    folder, whole = (before("train", calm, tmp_path / name) for name in ("run", "whole"))
    assert by_command(["train", "--run", str(whole)]) == 0  # shards of another size than those of `calm`
    assert by_command(["train", "--run", str(folder), "--skip-estimate"], moment=30, how=how) == code
    assert not (folder / FOLDERS["train"]).exists()
    assert (folder / WORK / "train").is_dir()
    assert "Traceback" not in capfd.readouterr().err
    assert by_command(["train", "--run", str(folder)]) == 0
    assert contents(folder / FOLDERS["train"]) == contents(whole / FOLDERS["train"])
