"""Power cuts, by the order of the calls: nothing gets its name before it has reached the disk.

A file system that drops unsynced writes cannot be mounted everywhere. So the calls are recorded. A rename is safe if
all that is renamed was synced after it was last written, and the folder is synced after the rename.
"""

import os
from pathlib import Path

import polars as pl
import pytest

from llm4dsr.core.cache import PartCache
from llm4dsr.core.io import new_folder, write_parquet, write_text
from llm4dsr.pipeline import FOLDERS, Run

from .harness import before


class Recorder:
    """Syncs and renames in their order; a rename also notes what it moves, and when that was last written."""

    def __init__(self, monkeypatch) -> None:
        self.synced: dict[tuple[int, int], int] = {}  # (device, inode) → time of the last change that was synced
        self.renamed: list[Path] = []  # folders whose names are not synced yet
        self.unsafe: list[str] = []
        sync, replace = os.fsync, os.replace

        def fsync(at: int) -> None:
            sync(at)
            stat = os.fstat(at)
            self.synced[stat.st_dev, stat.st_ino] = stat.st_mtime_ns
            self.renamed = [f for f in self.renamed if not (f.exists() and f.stat().st_ino == stat.st_ino)]

        def rename(source: str | Path, target: str | Path) -> None:
            source = Path(source)
            for path in [source, *source.rglob("*")] if source.is_dir() else [source]:
                stat = path.stat()
                if self.synced.get((stat.st_dev, stat.st_ino)) != stat.st_mtime_ns:
                    self.unsafe.append(f"{path} -> {target}")
            replace(source, target)
            self.renamed.append(Path(target).parent)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", rename)

    def check(self) -> None:
        assert self.unsafe == []
        assert self.renamed == []


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    return Recorder(monkeypatch)


def test_files_reach_the_disk_before_their_names(recorder, tmp_path):
    write_parquet(pl.DataFrame({"x": [1]}), tmp_path / "table.parquet")
    write_text(tmp_path / "text.json", "{}")
    PartCache(tmp_path / "parts").table(("a",), lambda: pl.DataFrame({"x": [1]}))
    with new_folder(tmp_path / "folder") as part:
        (part / "inner").mkdir()
        (part / "inner" / "file").write_text("by a library that does not sync")
    recorder.check()


@pytest.mark.parametrize("stage", ["prepare", "train", "decide", "correct"])
def test_a_stage_reaches_the_disk_before_its_name(stage, calm, recorder, tmp_path):
    """Model files are written by libraries that do not sync; checkpoints and cards are renamed one by one."""
    run = Run(before(stage, calm, tmp_path / "run")) if stage != "prepare" else None
    if run is None:
        from .harness import make_run

        run = make_run(tmp_path / "run")
    else:
        getattr(run, stage)()
    assert run.done(stage)
    assert (run.path(stage) / "stage.json").is_file()
    recorder.check()
    assert FOLDERS[stage] in os.listdir(run.folder)


def test_syncing_can_be_turned_off_for_slow_disks(recorder, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM4DSR_FSYNC", "0")
    write_text(tmp_path / "text.json", "{}")
    assert recorder.synced == {}
    assert (tmp_path / "text.json").read_text() == "{}"
