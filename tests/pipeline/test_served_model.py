"""What is opened: a saved denoiser, or that of a run with all that the run knows."""

import dataclasses
import json
import shutil

import pytest

from llm4dsr.errors import ModelError, OutputError
from llm4dsr.pipeline import Run
from llm4dsr.pipeline.served_model import open_model

from ..tiny_run import make_run


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_demo) -> Run:
    """A scored run."""
    return make_run(tmp_path_factory.mktemp("served") / "run", tiny_demo, "score")


def test_a_run_brings_its_model_its_windows_and_its_newest_map(run, tiny_demo):
    denoiser = open_model(run.folder)
    assert denoiser.calibrator == run.maps()["test"]
    counts = denoiser.ensemble.counts
    for windows in tiny_demo.splits.values():  # what all are counted for is not counted again
        assert counts.add(windows).fingerprint == counts.fingerprint
    saved = open_model(run.path("train"))
    assert saved.ensemble.fingerprint == denoiser.ensemble.fingerprint
    assert saved.ensemble.counts.popularity.sum() < counts.popularity.sum()


def test_reviewed_labels_narrow_what_is_served(run, tmp_path):
    """`llm4dsr calibrate` writes the maps of scores/ again. They are what is served."""
    shutil.copytree(run.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    maps = run.maps()
    fewer = maps["test"].with_rates([(0.01, 0.02, 0.03)] * len(maps["test"].kinds))
    with run.stage("score", overwrite=True) as (out, _):
        (out / "calibration.json").write_text(json.dumps({n: dataclasses.asdict(fewer) for n in maps}))
    assert open_model(run.folder).calibrator.rate_high == fewer.rate_high


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(ModelError, match="holds neither"):
        open_model(tmp_path / "nothing")


def test_a_run_without_a_model_is_refused(tmp_path, tiny_demo):
    unfinished = make_run(tmp_path / "run", tiny_demo, "prepare")
    with pytest.raises(OutputError, match="has no model/ yet"):
        open_model(unfinished.folder)
