"""Models from elsewhere: files that lie about their size, names outside the folder, shapes that do not fit, and NaN."""

import json
import math
import shutil
import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file, save_file

from llm4dsr import Config, Denoiser
from llm4dsr.config import ModelConfig
from llm4dsr.core.manifest import write_manifest
from llm4dsr.data.windows import limit_windows
from llm4dsr.denoise import stacking
from llm4dsr.errors import DataError, ModelError
from llm4dsr.lm.load import load_lm

torch.set_num_threads(1)
SMALL = {"hidden_size": 16, "layers": 1, "heads": 2, "vocabulary": 400, "vector_size": 16}


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_demo) -> Path:
    """A denoiser with a stacking network. Shared; copy it before changing it."""
    train = {"folds": 1, "epochs": 1, "samples": 40, "batch_windows": 20}
    config = Config.from_dict({"threads": 1, "model": SMALL, "train": train, "score": {"calibration_draws": 1}})
    valid = limit_windows(tiny_demo.splits["valid"].histories(), 25, 0)
    denoiser = Denoiser(config).fit(tiny_demo.splits["train"], tiny_demo.catalogue, valid)
    folder: Path = tmp_path_factory.mktemp("saved") / "model"
    denoiser.save_pretrained(folder)
    n = stacking.HIDDEN
    shapes = {"center": (2, K), "scale": (2, K), "hidden_weight": (2, 3, K, n), "hidden_bias": (2, 3, 1, n),
              "out_weight": (2, 3, n, 1), "out_bias": (2, 3, 1, 1)}  # fmt: skip
    save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, folder / STACKER)
    write_manifest(folder)
    assert Denoiser.from_pretrained(folder).ensemble.stacker_newer is not None
    return folder


K = stacking.N_EVIDENCE
STACKER = stacking.FILE.format("newer")
LM, PROJECTOR, COLLABORATIVE = "lm/model.safetensors", "projector.safetensors", "collaborative.safetensors"


@pytest.fixture
def model(saved, tmp_path) -> Path:
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def refused(folder: Path, match: str = "", sealed: bool = True) -> None:
    """Quickly, in little memory, and with an error for people. Who made the folder made its checksums, too."""
    if sealed:
        write_manifest(folder)
    tracemalloc.start()
    started = time.monotonic()
    with pytest.raises((ModelError, DataError), match=match):
        Denoiser.from_pretrained(folder)
    assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    tracemalloc.stop()
    assert time.monotonic() - started < 20


def change_tensor(path: Path, name: str, change) -> None:
    tensors = load_file(path)
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, path, {"format": "pt"})


def first(path: Path) -> str:
    return next(name for name, t in load_file(path).items() if t.dtype == np.float32 and t.ndim > 1)


def poisoned(value: float):
    def change(tensor):
        tensor = tensor.copy()
        tensor.flat[0] = value
        return tensor

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("file", [LM, PROJECTOR, STACKER, COLLABORATIVE])
def test_weights_that_are_no_numbers(model, file, value):
    change_tensor(model / file, first(model / file), poisoned(value))
    refused(model, "not finite")


@pytest.mark.parametrize("file", [LM, PROJECTOR, STACKER, COLLABORATIVE])
def test_shapes_that_do_not_fit(model, file):
    name = first(model / file)
    shorter = (lambda t: t[..., :-1],) if file != COLLABORATIVE else ()  # there, fewer columns are as good
    for change in (*shorter, lambda t: t[:-1], lambda t: t[None], lambda t: t.ravel()):
        before = (model / file).read_bytes()
        change_tensor(model / file, name, change)
        refused(model)
        (model / file).write_bytes(before)


@pytest.mark.parametrize("file", [LM, PROJECTOR, STACKER, COLLABORATIVE])
@pytest.mark.parametrize("length", [2**40, 2**27, 2**63 + 1])
def test_a_header_that_says_it_has_gigabytes(model, file, length):
    with open(model / file, "r+b") as stream:
        stream.write(struct.pack("<Q", length))
        stream.truncate(2**28)  # sparse: takes no disk
    refused(model)


@pytest.mark.parametrize("file", ["denoiser.json", "lm/config.json", "lm/tokenizer.json", "lm/tokenizer_config.json"])
def test_json_of_gigabytes(model, file):
    with open(model / file, "r+b") as stream:
        stream.truncate(2**33)
    refused(model, "expected at most", sealed=False)  # it is not hashed


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"format": 6}', "\0", "[" * 100_000, "9" * 5000])
def test_a_card_that_is_none(model, text):
    (model / "denoiser.json").write_text(text)
    refused(model)


KIND = {"knots": [1.0], "ratios": [1.0], "rate_low": 0.1, "rate_bound": 0.2, "rate_high": 0.2}


def test_a_kind_of_noise_that_labels_exclude_is_saved_and_loaded(model, tmp_path):
    """Its rates are NaN, and those of another kind are not."""
    denoiser = Denoiser.from_pretrained(model)
    denoiser.calibrator = denoiser.calibrator.with_rates([(math.nan,) * 3, (0.01, 0.1, 0.1)])
    denoiser.save_pretrained(tmp_path / "labeled")
    assert Denoiser.from_pretrained(tmp_path / "labeled").calibrator.noise_rate == pytest.approx(0.055)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("calibrator", {"kinds": [{"knots": [1.0]}]}), ("calibrator", {"kinds": "x"}), ("calibrator", {"kinds": 3}),
        ("calibrator", {"kinds": [KIND | {"ratios": []}]}), ("calibrator", {"kinds": [KIND | {"ratios": "x"}]}),
        ("calibrator", {"kinds": [KIND | {"knots": [float("nan")]}]}), ("calibrator", {"kinds": [KIND | {"more": 1}]}),
        ("calibrator", {"kinds": [KIND | {"rate_low": None}]}), ("calibrator", {"ceiling": None}),
        ("calibrator", {"kinds": [KIND | {"rate_low": math.nan}]}),
        ("calibrator", {"more": 1}),
        ("ranking_weights", {"cosine": float("inf")}), ("ranking_weights", {"cosine": "high"}),
        ("config", {"train": {"folds": 10**6}}), ("config", {"train": {"folds": 2}}), ("config", {"model": 3}),
    ],
)  # fmt: skip
def test_a_card_with_odd_values(model, part, value):
    card = json.loads((model / "denoiser.json").read_text())
    card[part] |= value
    (model / "denoiser.json").write_text(json.dumps(card))
    with pytest.raises(Exception) as error:
        Denoiser.from_pretrained(model)
    assert error.type.__module__ == "llm4dsr.errors"


@pytest.mark.parametrize(
    "key", ["width", "curve", "learned_from", "calibrator", "ranking_weights", "config", "prompt_hash"]
)
@pytest.mark.parametrize("value", [None, -1, "x", [], {}])
def test_a_card_with_an_entry_of_another_kind(model, key, value):
    card = json.loads((model / "denoiser.json").read_text())
    if (key == "curve" and value == []) or (key == "config" and value in ({}, None)):
        return  # nothing wrong with it, or all defaults
    card[key] = value
    (model / "denoiser.json").write_text(json.dumps(card))
    with pytest.raises(Exception) as error:
        Denoiser.from_pretrained(model)
    assert error.type.__module__ == "llm4dsr.errors"


@pytest.mark.parametrize("name", ["items", "users", "cooccurrence_pairs", "cooccurrence_items", "cooccurrence_own"])
def test_tables_that_are_missing_cut_off_or_of_other_columns(model, name):
    path = model / f"{name}.parquet"
    whole = path.read_bytes()
    for body in (b"", whole[:50], whole[:-20]):
        path.write_bytes(body)
        refused(model)
    pl.DataFrame({"other": [1]}).write_parquet(path)
    refused(model)
    path.unlink()
    refused(model)


def test_fewer_items_than_vectors(model):
    pl.read_parquet(model / "items.parquet").head(10).write_parquet(model / "items.parquet")
    refused(model, "title vectors for 10 items")


def test_a_table_that_unpacks_to_many_times_its_size(model):
    pl.DataFrame({"hash": pl.repeat(1, 2**25, dtype=pl.UInt64, eager=True)}).write_parquet(model / "users.parquet")
    refused(model, "Do not trust this folder")


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "a/b.safetensors", 3, None])
def test_shards_outside_the_folder_are_not_opened(model, name):
    (model / LM).rename(model / "lm" / "one.safetensors")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": name}}
    (model / "lm" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(model, "which is not in its folder. Do not trust it")


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 10**9), ("hidden_size", 2**30), ("vocab_size", 2**40), ("num_attention_heads", 0),
     ("transformers_weights", "../x.safetensors"), ("model_type", "none"), ("intermediate_size", -1)],
)  # fmt: skip
def test_a_configuration_that_does_not_fit_its_weights(model, key, value):
    path = model / "lm" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    started = time.monotonic()
    with pytest.raises(ModelError):
        load_lm(str(model / "lm"), ModelConfig())
    assert time.monotonic() - started < 20
