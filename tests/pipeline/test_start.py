"""`run --from` and `train --from`: a run that begins with last week's model."""

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from llm4dsr.config import Config
from llm4dsr.core.manifest import file_hash, write_manifest
from llm4dsr.errors import ConfigError, ModelError
from llm4dsr.pipeline import FOLDERS, Run

from ..faults.harness import contents, in_child
from ..tiny_run import CONFIG, make_run

MODEL_CODE, CONFIG_CODE = 4, 6
OTHER = Config.from_dict({**CONFIG.to_dict(), "model": {**CONFIG.to_dict()["model"], "hidden_size": 8}})


@pytest.fixture(scope="module")
def former(tmp_path_factory, tiny_demo) -> Path:
    """A run that has a model. Shared; do not change it."""
    return make_run(tmp_path_factory.mktemp("former") / "run", tiny_demo, "train").folder


@pytest.fixture
def data(tmp_path, tiny_demo) -> Path:
    tiny_demo.write(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def llm4dsr(llm4dsr):
    """As elsewhere, with what is printed on one line."""

    def call(*arguments: object) -> tuple[int, str]:
        code, printed = llm4dsr(*arguments)
        return code, " ".join(printed.split())

    return call


def begun(folder: Path, data, former: Path, config: Config = CONFIG) -> Run:
    run = Run.begin(folder, config, data, start=former)
    run.prepare(data)
    return run


def test_a_run_begins_with_the_former_model_and_its_options(llm4dsr, former, data, tmp_path):
    code, printed = llm4dsr("run", "--data", data, "--out", tmp_path / "new", "--from", former, "--skip-estimate")
    assert code == 0, printed
    run, before = Run(tmp_path / "new"), Run(former)
    assert run.config == before.config
    expected = {"folder": str((former / "model").resolve()), "sha256": file_hash(former / "model" / "manifest.json")}
    assert run.card()["start"] == run.facts("train")["start"] == expected
    assert run.facts("train")["loss"] != before.facts("train")["loss"]


def test_a_recipe_changes_the_options_that_it_names(llm4dsr, former, data, tmp_path):
    (tmp_path / "week.yaml").write_text(yaml.safe_dump({"train": {"epochs": 0}, "evaluate": {"backbone": "ease"}}))
    arguments = ["--config", tmp_path / "week.yaml", "--from", former / "model", "--skip-estimate"]
    code, printed = llm4dsr("run", "--data", data, "--out", tmp_path / "new", *arguments)
    assert code == 0, printed
    run = Run(tmp_path / "new")
    assert (run.config.train.epochs, run.config.train.folds) == (0, CONFIG.train.folds)
    assert run.config.model == CONFIG.model
    for fold in ("fold_0", "fold_1"):  # nothing was tuned
        weights = Path("model") / fold / "lm" / "model.safetensors"
        assert (run.folder / weights).read_bytes() == (former / weights).read_bytes()


def test_train_takes_a_former_model_too(llm4dsr, former, tiny_demo, tmp_path):
    run = make_run(tmp_path / "new", tiny_demo, "prepare")
    code, printed = llm4dsr("train", "--run", run.folder, "--from", former, "--skip-estimate")
    assert code == 0, printed
    assert run.facts("train")["start"]["folder"] == str((former / "model").resolve())


def test_options_that_do_not_fit_are_refused_before_any_work(llm4dsr, former, data, tmp_path):
    code, printed = llm4dsr("run", "-d", data, "-o", tmp_path / "new", "--from", former, "--model", "smollm2")
    assert code == CONFIG_CODE
    assert "model.source is 'embedded' there and 'smollm2' here" in printed
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="hidden_size is 16 there and 8 here"):
        Run.begin(tmp_path / "new", OTHER, data, start=former)


def test_train_refuses_options_that_do_not_fit(llm4dsr, former, tiny_demo, tmp_path):
    run = make_run(tmp_path / "new", tiny_demo, "prepare", OTHER)
    code, printed = llm4dsr("train", "--run", run.folder, "--from", former, "--skip-estimate")
    assert code == CONFIG_CODE
    assert "model.hidden_size" in printed
    assert not run.done("train")


def test_a_folder_without_a_model_is_refused(llm4dsr, data, tmp_path):
    code, printed = llm4dsr("run", "--data", data, "--out", tmp_path / "new", "--from", data)
    assert code == MODEL_CODE
    assert "not a saved denoiser" in printed
    assert not (tmp_path / "new").exists()


def test_a_former_model_that_has_changed_is_noticed(former, tiny_demo, tmp_path):
    model = shutil.copytree(former / "model", tmp_path / "model")
    run = begun(tmp_path / "new", tiny_demo, model)
    card = json.loads((model / "denoiser.json").read_text())
    (model / "denoiser.json").write_text(json.dumps(card | {"width": card["width"] + 1}))
    write_manifest(model)
    with pytest.raises(ModelError, match="has changed since this run began"):
        run.train()
    with pytest.raises(ConfigError, match="started from another model"):
        Run.begin(run.folder, CONFIG, tiny_demo, start=model)


def test_it_is_resumed_with_the_same_model_only(former, tiny_demo, tmp_path):
    begun(tmp_path / "new", tiny_demo, former)
    assert Run.begin(tmp_path / "new", CONFIG, tiny_demo, start=former).card()["start"]
    with pytest.raises(ConfigError, match="started from another model"):
        Run.begin(tmp_path / "new", CONFIG, tiny_demo)


def test_killed_it_goes_on_to_the_same_files(former, tiny_demo, tmp_path):
    run = begun(tmp_path / "calm", tiny_demo, former)
    killed = shutil.copytree(run.folder, tmp_path / "killed")
    assert in_child(run.folder, "train", counted=tmp_path / "moments") == 0
    moments = int((tmp_path / "moments").read_text())
    for share in (0.3, 0.6, 0.9):
        assert in_child(killed, "train", int(share * moments)) in (0, -signal.SIGKILL)
    assert (killed / FOLDERS["train"]).is_dir() or in_child(killed, "train") == 0
    assert contents(killed / FOLDERS["train"]) == contents(run.path("train"))
