"""Run folders: one process at a time, and starting again."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from llm4dsr.config import Config
from llm4dsr.data.demo import make_demo
from llm4dsr.errors import ConfigError, OutputError
from llm4dsr.pipeline import Run

CONFIG = Config.from_dict({
    "threads": 1,
    "model": {"hidden_size": 16, "layers": 1, "heads": 2, "vector_size": 16},
    "train": {"epochs": 1, "samples": 30},
    "decide": {"policy": "probability"},
    "correct": {"action": "drop"},
    "evaluate": {"recommender": {"epochs": 1}},
})  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_demo) -> Run:
    run = Run.create(tmp_path_factory.mktemp("finished") / "run", CONFIG)
    run.prepare(tiny_demo)
    run.train()
    run.score()
    run.decide()
    run.suggest()
    run.correct()
    run.evaluate()
    return run


def test_evaluation_compares_the_configured_action(finished):
    text = (finished.path("evaluate") / "results.md").read_text()
    assert "| corrected (drop) |" in text
    assert "| corrected (replace) |" not in text


def test_a_finished_run_is_not_resumed(finished, tiny_demo):
    with pytest.raises(OutputError, match="is finished"):
        Run.begin(finished.folder, CONFIG, tiny_demo)


@pytest.mark.parametrize("part", ["timestamps", "noise_mask", "window_ids", "weights"])
def test_data_in_memory_are_compared_as_a_whole(tiny_demo, tmp_path, part):
    run = Run.begin(tmp_path / "run", CONFIG, tiny_demo)
    run.prepare(tiny_demo)
    Run.begin(tmp_path / "run", CONFIG, make_demo(seed=0, size="tiny").data)  # the same
    test = tiny_demo.splits["test"]
    other = {
        "timestamps": test.timestamps[::-1], "noise_mask": ~test.noise_mask, "window_ids": test.window_ids + 1,
        "weights": np.full(len(test.items), 0.5),
    }  # fmt: skip
    changed = replace(tiny_demo, splits=tiny_demo.splits | {"test": replace(test, **{part: other[part]})})
    with pytest.raises(ConfigError, match="other options or data"):
        Run.begin(tmp_path / "run", CONFIG, changed)


def test_prepare_with_overwrite_starts_a_finished_run_again(finished, tiny_demo, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    other = make_demo(seed=1, size="tiny").data
    with pytest.raises(ConfigError, match="other options or data"):
        Run.begin(tmp_path / "run", CONFIG, other)
    run = Run.begin(tmp_path / "run", CONFIG, other, overwrite=True)
    run.prepare(other, overwrite=True)
    assert run.done("prepare")
    assert not any(run.done(stage) for stage in ("train", "score", "decide", "suggest", "correct", "evaluate"))
    assert run.data().splits["train"].items.tolist() == other.splits["train"].items.tolist()


def test_scoring_keeps_states_until_suggesting_is_complete(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    run.score(overwrite=True)
    run.decide()
    assert list(run.work("suggest").glob("*.part"))
    run.suggest()
    assert not run.work("suggest").exists()


def test_states_that_nothing_will_read_are_removed(finished, tmp_path):
    """Those of former scores as the windows are scored again; all where a run ends without suggestions."""
    shutil.copytree(finished.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    run.score(overwrite=True)
    names = {path.name for path in run.work("suggest").glob("*.part")}
    (run.work("suggest") / "former.part").touch()
    run.score(overwrite=True)
    assert {path.name for path in run.work("suggest").glob("*.part")} == names
    run.decide()
    run.correct("drop")
    run.evaluate()
    assert not run.work("suggest").exists()


def test_a_run_in_use_names_its_process(finished):
    """The lock holds across processes, and ends with the process."""
    code = f"from llm4dsr.pipeline import Run; Run({str(finished.folder)!r}).correct(overwrite=True)"
    with finished.locked():
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "OutputError" in done.stderr
    assert str(os.getpid()) in done.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
