"""Ray workers correct a file of histories: the same bytes as without them, whatever happens in between."""

import json
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from llm4dsr.config import Config
from llm4dsr.core.manifest import read_manifest, read_sealed, write_sealed
from llm4dsr.core.parquet import footer_hash
from llm4dsr.errors import DataError, ModelError, OutputError
from llm4dsr.pipeline.histories_file import ApplyOptions, FilePart, apply_to_file
from llm4dsr.pipeline.ray_histories import RayHistories, _HistoriesWorker
from llm4dsr.pipeline.ray_workers import RayWorkers, _error, made_with
from llm4dsr.pipeline.served_model import open_model
from tests.faults.harness import contents
from tests.pipeline.ray_processes import kill_a_worker
from tests.tiny_run import CONFIG, make_run

UNTUNED = Config.from_dict({"train": {"epochs": 0}, "score": {"calibration": "off"}}, base=CONFIG)
OPTIONS = ApplyOptions(eta=0.0, cap=2, action="replace", rows=50)


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_demo) -> Path:
    """A run folder: each worker counts its newest windows, as this process does."""
    return make_run(tmp_path_factory.mktemp("ray") / "run", tiny_demo, "train", UNTUNED).folder


@pytest.fixture(scope="module")
def denoiser(model):
    return open_model(model)


@pytest.fixture(scope="module")
def data(tmp_path_factory, tiny_demo) -> Path:
    """Two files of 260 rows: five parts of 50 rows and one of 10, each."""
    folder = tmp_path_factory.mktemp("data")
    windows = tiny_demo.splits["train"].to_frame(tiny_demo.catalogue)
    histories = windows.select("user_id", "item_ids", note=pl.col("window_id") * 2).head(130)
    for name in ("a", "b"):
        pl.concat([histories] * 2).write_parquet(folder / f"{name}.parquet", row_group_size=70)
    return folder


@pytest.fixture(scope="module")
def local(tmp_path_factory, denoiser, data) -> Path:
    """What this process makes alone."""
    out = tmp_path_factory.mktemp("local") / "out"
    apply_to_file(denoiser, data, out, OPTIONS)
    return out


def parts(out: Path) -> dict[str, dict[str, str]]:
    """Hashes of all files of all parts; one that is not whole has a name of its own."""
    return {folder.name: contents(folder) for folder in out.iterdir() if "part" in folder.name}


def stop_after(out: Path, count: int):
    """A progress callback that interrupts the call when so many parts are there."""

    def stop(done: int, total: int, doing: str) -> None:
        if len(list(out.glob("part-*"))) >= count:
            raise KeyboardInterrupt

    return stop


def times(out: Path) -> dict[str, int]:
    return {folder.name: (folder / "manifest.json").stat().st_mtime_ns for folder in out.glob("part-*")}


def test_a_file_has_the_same_bytes_after_a_worker_was_killed(ray, model, denoiser, data, local, tmp_path):
    seen = []

    def kill_in_the_middle(done: int, total: int, doing: str) -> None:
        if 0 < done < total and not seen:
            kill_a_worker()
        seen.append((done, total))

    told = apply_to_file(
        denoiser, data, tmp_path / "out", OPTIONS, kill_in_the_middle, RayHistories(model, RayWorkers(count=2))
    )
    assert len(seen) == 1 + 12  # before the first part, and after each
    assert seen[-1] == (520, 520)
    assert told["histories"] == 520
    assert parts(tmp_path / "out") == parts(local)


def test_a_call_is_resumed_with_ray_and_without(ray, model, denoiser, data, local, tmp_path):
    makers = RayHistories(model, RayWorkers(count=1))
    first, second = tmp_path / "first", tmp_path / "second"

    with pytest.raises(KeyboardInterrupt):
        apply_to_file(denoiser, data, first, OPTIONS, stop_after(first, 2))
    kept = times(first)
    apply_to_file(denoiser, data, first, OPTIONS, None, makers)

    with pytest.raises(KeyboardInterrupt):
        apply_to_file(denoiser, data, second, OPTIONS, stop_after(second, 2), makers)
    ray.shutdown()
    kept_second = times(second)
    apply_to_file(denoiser, data, second, OPTIONS)

    for out, before in ((first, kept), (second, kept_second)):
        assert 2 <= len(before) < 12
        assert parts(out) == parts(local)
        assert before.items() <= times(out).items()  # not made again


@pytest.fixture
def given(model, denoiser, data, local):
    """What a worker is given for the first part, which is there already."""
    file, card = data / "a.parquet", read_sealed(local / "apply.json")
    return {
        "model": model, "ends": {file: footer_hash(file)}, "out": local,
        "made_from": {name: card[name] for name in ("model", "inputs", "options")}, "options": OPTIONS,
        "expected": made_with(denoiser.ensemble), "parts": [FilePart(0, file, 0, 50, 0)],
    }  # fmt: skip


def answer(given: dict) -> dict:
    """What a worker gives back for its part."""
    (row,) = _HistoriesWorker(1, *given.values())(pa.table({"name": ["first"], "part": [0]})).to_pylist()
    return row


def test_a_part_that_is_there_is_not_made_again(given, local):
    before = times(local)
    told = json.loads(answer(given)["answer"])["told"]
    assert (told["histories"], told) == (50, read_manifest(local / "part-00000")["told"])
    assert times(local) == before


def test_a_worker_that_sees_other_files_says_so(given, tmp_path):
    """Another machine may have no files, or other ones, under the same paths."""
    (file,) = given["ends"]
    for wrong, expected in (
        ({"ends": {tmp_path / "none.parquet": ""}}, f"cannot read {tmp_path / 'none.parquet'}. It must be on a disk"),
        ({"out": tmp_path}, f"cannot read {tmp_path / 'apply.json'}"),
        ({"ends": {file: "of another file"}}, f"finds another {file}"),
        ({"made_from": given["made_from"] | {"inputs": []}}, "apply.json than the process that started it"),
    ):
        error = _error(answer(given | wrong))
        assert isinstance(error, OutputError)
        assert expected in str(error)


def test_a_worker_with_another_model_or_other_versions_says_so(given, tmp_path):
    error = _error(answer(given | {"expected": given["expected"] | {"python": "2.7"}}))
    assert isinstance(error, ModelError)
    assert "not 2.7" in str(error)
    other = given["made_from"] | {"model": "another"}
    write_sealed(tmp_path / "apply.json", other)
    error = _error(answer(given | {"out": tmp_path, "made_from": other}))
    assert isinstance(error, ModelError)
    assert "it has another model" in str(error)


def test_rows_that_are_gone(given, tmp_path):
    (file,) = given["ends"]
    error = _error(answer(given | {"parts": [FilePart(99, file, 250, 50, 0)]}))
    assert isinstance(error, DataError)
    assert f"{file} has 260 rows; expected at least 300" in str(error)


def test_without_the_library_the_message_has_the_command(model, denoiser, data, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModelError, match=r"pip install 'llm4dsr\[ray\]'"):
        apply_to_file(denoiser, data, tmp_path / "out", OPTIONS, None, RayHistories(model))


def test_options_of_the_command_line(llm4dsr, model, data, tmp_path):
    for wrong in (("--engine", "spark"), ("--workers", 2), ("--address", "auto")):
        code, printed = llm4dsr("apply", model, "-d", data, "-o", tmp_path / "out", *wrong)
        assert code == 6
        assert "expected local or ray" in printed or "need --engine ray" in printed
    assert not (tmp_path / "out").exists()
