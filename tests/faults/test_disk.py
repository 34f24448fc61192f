"""Disks that are full or closed, folders in use, files of another time: a message, and nothing half-written."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from llm4dsr.core.lock import LOCK
from llm4dsr.errors import ConfigError, OutputError
from llm4dsr.pipeline import CARD, FOLDERS, Run
from llm4dsr.pipeline.run_folder import FORMAT

from .harness import CONFIG, LONG, before, contents, demo, in_child, start


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """A small disk in memory at `folder`."""
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a small disk needs rights that this user has not; the limit on file sizes is tested")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path, spare: int) -> None:
    """Somebody else's file takes all the room, but for some bytes."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    os.truncate(path, path.stat().st_size - spare)


@pytest.mark.parametrize("stage", LONG)
def test_a_full_disk_is_said_and_once_there_is_room_it_goes_on(stage, calm, tmp_path):
    """Room for what is there and a little more; then room enough."""
    whole = before(stage, calm, tmp_path / "run")
    size = sum(f.stat().st_size for f in whole.rglob("*") if f.is_file())
    pages = 4096 * (len(list(whole.rglob("*"))) + 5)
    with mounted(tmp_path / "disk", f"size={size + pages + 65536}") as disk:
        folder = shutil.copytree(whole, disk / "run")
        fill(disk / "other", spare=0 if stage == "evaluate" else 3 * 4096)
        code = in_child(folder, stage)
        assert code == OutputError.exit_code
        assert not (folder / FOLDERS[stage]).exists()
        assert {k: v for k, v in contents(folder).items() if not k.startswith(".")} == {
            k: v for k, v in contents(whole).items() if not k.startswith(".")
        }
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
        assert in_child(folder, stage) == 0
        assert contents(folder / FOLDERS[stage]) == contents(calm / FOLDERS[stage])


@pytest.mark.parametrize("stage", LONG)
def test_a_limit_on_the_size_of_files_is_like_a_full_disk(stage, calm, tmp_path):
    folder = before(stage, calm, tmp_path / "run")
    draw = random.Random(stage)
    for _ in range(2):
        code = in_child(folder, stage, limits={resource.RLIMIT_FSIZE: draw.randint(10, 400)})
        assert code == OutputError.exit_code
        assert not (folder / FOLDERS[stage]).exists()
    assert in_child(folder, stage) == 0
    assert contents(folder / FOLDERS[stage]) == contents(calm / FOLDERS[stage])


def test_a_disk_that_is_read_only_is_named(calm, tmp_path):
    with mounted(tmp_path / "disk", "size=50m") as disk:
        folder = before("decide", calm, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(OutputError, match=r"(cannot be written to|Cannot write).*Read-only"):
            Run(folder).decide()
        with pytest.raises(OutputError, match=r"(cannot be written to|Cannot write).*Read-only"):
            Run.begin(disk / "other", CONFIG, demo()).prepare(demo())


def test_a_folder_without_rights_is_named(calm, tmp_path):
    if os.getuid() == 0:
        pytest.skip("the administrator may write everywhere; a read-only disk is tested instead")
    folder = before("decide", calm, tmp_path / "run")
    folder.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="cannot be written to"):
            Run(folder).decide()
    finally:
        folder.chmod(0o700)


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        Run.begin(tmp_path / "run", CONFIG, demo())
    assert (tmp_path / "run").read_text() == "mine"


def test_a_second_run_is_refused_with_the_process_that_holds_the_folder(calm, tmp_path):
    folder = before("train", calm, tmp_path / "run")
    holder = start(folder, "train", moment=5, how=signal.SIGSTOP)  # it stops in the middle, and holds on
    try:
        wait_until(lambda: state(holder.pid) == "T")
        with pytest.raises(OutputError, match=f"in use by process {holder.pid} "):
            Run(folder).train()
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
    assert in_child(folder, "train") == 0  # the dead hold nothing


def test_the_lock_comes_before_the_look_at_what_is_done(calm, tmp_path):
    """Another process may be making a complete stage again: only who holds the folder may look."""
    folder = before("suggest", calm, tmp_path / "run")
    with Run(folder).locked(), pytest.raises(OutputError, match="in use by process"):
        Run(folder).decide()
    with pytest.raises(OutputError, match="exists already"):
        Run(folder).decide()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def wait_until(true) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)
    raise AssertionError("waited a minute in vain")


def test_a_run_folder_of_another_format_is_refused(calm, tmp_path):
    folder = before("decide", calm, tmp_path / "run")
    card = json.loads((folder / CARD).read_text())
    (folder / CARD).write_text(json.dumps(card | {"format": 99}))
    with pytest.raises(OutputError, match=f"format 99; this version reads {FORMAT}"):
        Run(folder)


def test_other_options_do_not_go_on_with_a_run(calm, tmp_path):
    folder = before("score", calm, tmp_path / "run")
    assert Run.begin(folder, CONFIG, demo()).done("train")
    other = CONFIG.from_dict(CONFIG.to_dict() | {"seed": 7})
    with pytest.raises(ConfigError, match="other options or data"):
        Run.begin(folder, other, demo())
    with pytest.raises(ConfigError, match="other options or data"):
        Run.begin(folder, CONFIG, tmp_path / "data")
    with pytest.raises(OutputError, match="exists already and is finished"):
        Run.begin(calm, CONFIG, demo())


def test_what_is_left_of_a_run_that_never_began_is_no_hindrance(tmp_path):
    (tmp_path / "run" / ".windows.part").mkdir(parents=True)
    (tmp_path / "run" / LOCK).touch()
    Run.begin(tmp_path / "run", CONFIG, demo()).prepare(demo())
    assert Run(tmp_path / "run").done("prepare")
