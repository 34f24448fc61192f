"""What changes between two stages: input files, the base model, versions. A run never goes on in silence."""

import os
import shutil

import polars as pl
import pytest

from llm4dsr.errors import OutputError
from llm4dsr.pipeline import STAGES, Run

from .harness import CONFIG, demo


@pytest.fixture
def data(tmp_path):
    demo().write(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def run(data, tmp_path) -> Run:
    run = Run.begin(tmp_path / "run", CONFIG, data)
    run.prepare(data)
    return run


def test_inputs_are_on_the_run_card(run, data):
    inputs = run.card()["inputs"]
    assert set(inputs) == {str(data / f"{name}.parquet") for name in ("items", "train", "valid", "test")}
    assert inputs[str(data / "items.parquet")]["bytes"] == (data / "items.parquet").stat().st_size


def test_a_changed_input_stops_the_next_stage(run, data):
    frame = pl.read_parquet(data / "train.parquet")
    frame.head(len(frame) - 1).write_parquet(data / "train.parquet")
    with pytest.raises(OutputError, match=r"train.parquet has changed since .*prepare … --overwrite"):
        run.train()
    again = Run.begin(run.folder, CONFIG, data, overwrite=True)
    again.prepare(data, overwrite=True)
    assert again.card()["stages"]["prepare"]["windows"]["train"] == len(frame) - 1
    again.train()


def test_the_same_content_with_another_time_is_no_change(run, data):
    for path in data.iterdir():
        os.utime(path, (0, 0))
    run.train()
    assert run.done("train")


def test_a_lost_input_is_logged(run, data, caplog):
    shutil.rmtree(data)
    run.train()
    assert "train.parquet is no longer there" in caplog.text


def test_other_versions_are_logged_and_kept_on_the_card(run, monkeypatch, caplog):
    now = run.card()["versions"]
    monkeypatch.setattr("llm4dsr.pipeline.run_folder.versions", lambda: now | {"torch": "9.9.9"})
    run.train()
    changed = [f"torch {now['torch']}, now 9.9.9"]
    assert run.card()["stages"]["train"]["changed_versions"] == changed
    assert f"was made with other versions: {changed[0]}" in caplog.text
    run.score()
    assert "changed_versions" not in run.card()["stages"]["score"]
    assert all(run.done(stage) for stage in STAGES[:3])
