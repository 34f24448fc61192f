"""What a run will need, against values computed by hand; what cannot fit is refused before any work."""

import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llm4dsr import Config
from llm4dsr.cli.main import main
from llm4dsr.core.memory import free_in_container
from llm4dsr.data.dataset import Dataset
from llm4dsr.errors import ModelError, OutputError
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.lm.passes import CPU_BYTES, CPU_TOKENS, LOGITS, pass_tokens, token_bytes
from llm4dsr.lm.shape import LMShape, lm_shape
from llm4dsr.pipeline import STAGES, preflight
from llm4dsr.pipeline import sizes as sizes_module
from llm4dsr.pipeline.estimate import (
    Need,
    checkpoint_bytes,
    counting_bytes,
    counts_bytes,
    disk_of_model,
    logit_bytes,
    model_bytes,
    needs,
    optimizer_bytes,
    peak_disk,
    ranking_fit_bytes,
    recommender_bytes,
    scoring_bytes,
    states_bytes,
    tuning_bytes,
)
from llm4dsr.pipeline.preflight import Estimate
from llm4dsr.pipeline.preflight import preflight as check
from llm4dsr.pipeline.probe import Speeds, seconds
from llm4dsr.pipeline.sizes import Sizes

from ..lm.test_model_sources import configured, make_checkpoint

SPLITS = {"train": 100, "valid": 20, "test": 20}
SIZES = Sizes(
    items=1000, characters=30_000, windows=SPLITS, interactions={name: 10 * n for name, n in SPLITS.items()},
    models={"train": 1.0, "valid": 2.0, "test": 2.0}, width=11, pairs=4400, owned=5500,
    tokens=14.0, title_tokens=0.0, rows=3,
)  # fmt: skip
LM = LMShape(parameters=1000, trainable=1000, hidden=8, intermediate=32, layers=2, heads=2, vocabulary=300)
WORKERS = {"itemknn": 1, "ease": 1, "evaluate": 2}
TITLES = Config.from_dict({"model": {"item_input": "title", "readout": "title", "pretrain_epochs": 0}})


def configuration(**sections: dict) -> Config:
    return Config.from_dict({**sections, "model": {"vector_size": 4, **sections.get("model", {})}})


# --- memory ----------------------------------------------------------------------------------------------------------


def test_weights_and_optimizer():
    """Title vectors have 4 + 4 + 2 columns; two projectors of 10 × 8."""
    config = configuration()
    assert model_bytes(LM, config) == 4 * (1000 + 2 * 80)
    assert optimizer_bytes(LM, config) == 12 * (1000 + 2 * 80)  # a gradient and two moments
    half = replace(config, model=replace(config.model, dtype="bf16"))
    assert optimizer_bytes(LM, half) == 14 * (1000 + 2 * 80)  # and fp32 weights beside those of half precision
    assert checkpoint_bytes(LM, config) == 12 * (1000 + 2 * 80)


def test_activations_grow_with_layers_in_tuning_alone():
    layer = 14 * 8 + 4 * 32 + 3 * 2 * 14
    assert token_bytes(LM, configuration(), 14.0, tuned=True) == 4 * (2 * layer + 4 * 8)
    assert token_bytes(LM, configuration(), 14.0, tuned=False) == 4 * (6 * 8 + 3 * 32)
    fused = configuration(model={"dropout": 0.0})  # attention is not kept
    assert token_bytes(LM, fused, 14.0, tuned=True) == 4 * (2 * (14 * 8 + 4 * 32) + 4 * 8)


def test_logits_are_read_where_titles_are_written():
    assert logit_bytes(LM, configuration(), SIZES, 10) == 0
    whole = replace(TITLES, task=replace(TITLES.task, whole_prompt_loss=True))
    assert logit_bytes(LM, whole, SIZES, 10) == 10 * 3 * 4 * 300
    half = logit_bytes(LM, TITLES, replace(SIZES, title_tokens=3.5), 10)  # two titles of 14 tokens
    assert half == 10 * 3 * 4 * 300 // 2
    assert logit_bytes(LM, whole, SIZES, 10**9) == LOGITS // 300 * 3 * 4 * 300  # the rest follows


def test_a_pass_holds_no_more_than_the_step_and_the_budget():
    config = configuration()
    fixed = 3 * model_bytes(LM, config) + optimizer_bytes(LM, config)
    each = token_bytes(LM, config, 14.0, tuned=True)
    assert tuning_bytes(LM, config, SIZES) == fixed + 100 * 14 * each  # 100 windows in one step of up to 256
    assert tuning_bytes(LM, config, SIZES, batch_tokens=70) == fixed + 70 * each
    assert tuning_bytes(LM, config, SIZES, batch_tokens=1) == fixed + 14 * each  # a window at least


def test_passes_of_a_language_model_leave_gaps_between_them_on_a_cpu():
    lora = Config.from_dict({"model": {"source": "smollm2", "item_input": "title", "tuning": "lora"}})
    fixed = lora.train.folds * model_bytes(LM, lora) + optimizer_bytes(LM, lora)
    at_once = 70 * token_bytes(LM, lora, 14.0, tuned=True) + logit_bytes(LM, lora, SIZES, 70)
    assert tuning_bytes(LM, lora, SIZES, batch_tokens=70) == fixed + int(1.5 * at_once)


def test_lora_with_dropout_keeps_masks_and_scores_with_merged_weights():
    """Adapters with 20 inputs for a token, on layers of 600 weights in all."""
    lm, gpu = replace(LM, adapter_inputs=20, adapted=600), True
    lora = Config.from_dict({"model": {"source": "smollm2", "item_input": "title", "tuning": "lora"}})
    activations = 4 * (2 * (14 * 8 + 4 * 32) + 4 * 8)
    assert token_bytes(lm, lora, 14.0, tuned=True) == activations + 20  # a byte each
    assert token_bytes(lm, lora, 14.0, tuned=True, gpu=gpu) == activations + 5 * 20  # and the dropped input
    none = replace(lora, model=replace(lora.model, lora_dropout=0.0))
    assert token_bytes(lm, none, 14.0, tuned=True) == activations
    assert scoring_bytes(lm, lora, SIZES) == 100 * 14 * 4 * (6 * 8 + 3 * 32) + 4 * 600


@pytest.mark.parametrize(("readout", "masks"), [("likelihood", 0), ("title", 16 * 14)])
def test_scoring_of_titles_holds_the_logits_of_a_part_of_its_tokens(readout, masks):
    """1,400 tokens, each with 300 logits, once more as the model gives them."""
    config = replace(TITLES, model=replace(TITLES.model, readout=readout))
    activations = 1400 * (4 * (6 * 8 + 3 * 32) + masks)
    assert scoring_bytes(LM, config, SIZES, gpu=True) == activations + 1400 * 8 * 300
    wide = replace(LM, vocabulary=300_000)  # on a CPU passes have 1,024 tokens, and logits of 55 are held at a time
    assert scoring_bytes(wide, config, SIZES) == activations // 1400 * 1024 + LOGITS // 300_000 * 8 * 300_000


def test_a_pass_on_a_cpu_has_a_bounded_memory():
    """Layers as wide as those of an 8-billion model: 1.5 GiB are 131 tokens, and a window may still have more."""
    wide = LMShape(8 * 10**9, 10**7, hidden=4096, intermediate=14_336, layers=32, heads=32, vocabulary=128_256)
    lora = Config.from_dict({"model": {"source": "smollm2", "item_input": "title", "tuning": "lora"}})
    assert pass_tokens(wide, lora, gpu=False) == CPU_BYTES // (4 * (32 * (14 * 4096 + 4 * 14_336) + 4 * 4096)) == 109
    assert pass_tokens(wide, lora, gpu=True) == lora.train.batch_tokens
    assert pass_tokens(LM, lora, gpu=False) == lora.train.batch_tokens  # never more
    assert pass_tokens(wide, configuration(), gpu=False) == CPU_TOKENS  # the embedded model, of any width


def test_lora_tunes_two_matrices_for_each_module(tiny_demo, tmp_path):
    """Rank 8: four modules of 16 × 16 and three of 16 × 32, or two of the first alone. Weights are not read."""
    config = configured(make_checkpoint(tmp_path, tiny_demo.catalogue.titles)).model
    (tmp_path / "model.safetensors").unlink()
    shape, tokenizer = lm_shape(config, tiny_demo.catalogue.titles, 512)
    assert (shape.hidden, shape.layers, shape.heads, shape.intermediate) == (16, 1, 2, 32)
    assert shape.vocabulary == len(tokenizer)
    assert shape.parameters == 2 * 16 * shape.vocabulary + 4 * 16**2 + 3 * 16 * 32 + 3 * 16
    assert shape.trainable == 8 * (4 * (16 + 16) + 3 * (16 + 32))
    assert (shape.adapter_inputs, shape.adapted) == (4 * 16 + 2 * 16 + 32, 4 * 16**2 + 3 * 16 * 32)
    two = replace(config, lora_targets=("q_proj", "v_proj"))
    assert lm_shape(two, tiny_demo.catalogue.titles, 512)[0].trainable == 2 * 8 * (16 + 16)


def test_item_item_matrices_and_workers():
    ease = configuration(evaluate={"backbone": "ease"})
    assert recommender_bytes(SIZES, ease) == int(2.2 * 4 * 1000**2)
    one, two = (needs(SIZES, LM, ease, {**WORKERS, "evaluate": n}, 10**9, gpu=False)["evaluate"].memory for n in (1, 2))
    assert two - one == recommender_bytes(SIZES, ease) + 2 * 10**9  # the processes, beside this one
    assert needs(SIZES, LM, ease, WORKERS, 10**9, gpu=True)["evaluate"].gpu == 0  # it is fitted on the CPU
    assert needs(SIZES, LM, configuration(), WORKERS, 10**9, gpu=True)["evaluate"].gpu > 0


def test_ranking_is_fitted_on_a_bounded_number_of_cells():
    neighbors = 2 * 4400 / 1000  # of an item
    assert ranking_fit_bytes(SIZES, configuration()) == int(46 * 20 * 1000 + 140 * 20 * 10 * neighbors)
    many = replace(SIZES, windows={**SPLITS, "valid": 10**6}, interactions={**SIZES.interactions, "valid": 10**7})
    assert ranking_fit_bytes(many, configuration()) == 46 * 30_000_000 + 140 * 2_000_000
    assert ranking_fit_bytes(many, TITLES) == 0


def test_counts_need_memory_by_the_different_pairs_of_items():
    """4,400 pairs of items in 8 + 4 bytes and their order in 4; 5,500 hashes of pairs and items of users in 8."""
    vectors = 5 * 1000 * 4 * (128 + 128 + 32)  # float32 of five groups, and their unit vectors
    assert counts_bytes(SIZES, configuration()) == (8 + 4 + 4) * 4400 + 8 * 5500 + vectors
    svd, part = 6 * 8 * 1000 * (128 + 10) + 5 * 1000 * 4 * 128, 60 * (5 * 1000 + 100)  # 1,000 interactions, 100 windows
    assert counting_bytes(SIZES, configuration()) == (8 + 4 + 4 + 2 * 12) * 4400 + 8 * 5500 + svd + part
    many = replace(SIZES, owned=10**8)  # of users: the matrix does not grow with them
    assert counting_bytes(many, configuration()) - counting_bytes(SIZES, configuration()) == 8 * (10**8 - 5500)
    assert counts_bytes(SIZES, TITLES) == counting_bytes(SIZES, TITLES) == 0


def test_pairs_are_told_from_a_part_of_the_users(tiny_demo, monkeypatch):
    """A third of the windows tells what counting all of them finds. Items that go together make fewer pairs."""
    whole = Sizes.of(tiny_demo, Config(), 14.0, 0.0)
    counted = CooccurrenceCounts.of(tiny_demo.splits["train"], len(tiny_demo.catalogue))
    assert (whole.pairs, whole.owned) == (len(counted.pairs), len(counted.own))
    monkeypatch.setattr(sizes_module, "SAMPLED", len(tiny_demo.splits["train"]) // 3)
    part = Sizes.of(tiny_demo, Config(), 14.0, 0.0)
    assert part.owned == pytest.approx(whole.owned, rel=0.1)
    assert whole.pairs < part.pairs < 1.6 * whole.pairs


# --- disk and time ---------------------------------------------------------------------------------------------------


def test_disk_of_a_model_grows_with_its_folds():
    config = configuration()
    one = replace(config, train=replace(config.train, folds=1))
    weights, vectors = 4 * 1000 + 8 * 10 * 8, 4 * 1000 * 10
    assert disk_of_model(SIZES, LM, config) - disk_of_model(SIZES, LM, one) == 2 * (weights + vectors + 2**18)


def test_scoring_leaves_the_states_of_what_may_be_flagged():
    """Three positions of each window at most, each with 8 numbers; none where titles are read."""
    config = configuration()
    most = min(SIZES.all_interactions, 3 * SIZES.all_windows)
    assert states_bytes(SIZES, config) == 4 * config.model.hidden_size * most
    assert states_bytes(SIZES, TITLES) == 0


def test_parts_of_a_stage_count_only_while_it_works():
    found = {"train": Need(0, 0, 10, 30), "score": Need(0, 0, 20, 5), "evaluate": Need(0, 0, 7, 0)}
    assert peak_disk(found, ["train", "score", "evaluate"]) == 40
    assert peak_disk(found, ["score", "evaluate"]) == 27


def test_time_is_measured_seconds_times_steps():
    """100 windows in 3 folds, 5 epochs; 20 + 20 windows of two models each; noise is injected above 1,000 windows."""
    speeds = Speeds(tuned=1.0, scored=0.01, suggested=0.1, suggesting=0.0, features=7.0, recommender=11.0, judged=2.0)
    config = configuration(decide={"policy": "probability"}, evaluate={"seeds": 2})
    found = seconds(speeds, SIZES, config, workers=4)
    calibrated = 20 * 2 * (1 + 2 * 3) + (1 + 2) * 100  # two kinds of noise; in training once each
    assert found["train"] == pytest.approx(7 + 3 * 5 * 100 * 2 / 3 + 0.01 * calibrated)
    assert found["score"] == pytest.approx(0.01 * (100 + 2 * 20 * 2))
    assert (found["decide"], found["suggest"]) == (0, pytest.approx(0.1 * 0.1 * 1400))
    assert found["evaluate"] == 2 * 11  # 3 rows of 2 seeds, four at a time
    tried = seconds(replace(speeds, suggesting=1.0), SIZES, configuration(), workers=4)
    assert tried["decide"] == pytest.approx(0.1 * (0.05 + 0.1) * 1400 + 2 * (3 + 20) + 7 * 2)  # 2 rates of 3 actions
    assert tried["suggest"] == 0  # made by then


def test_an_estimate_in_words():
    needed = {"train": Need(2**30, 0, 2**20, 0), "score": Need(0, 0, 0, 0)}
    found = Estimate(needed, {"train": 200.0, "score": 20.0}, 2**29)
    assert found.line() == "Needs about 1.5 GiB of memory, 1 MiB of disk and 4 min (train 3 min, score 20 s)."


# --- before a run starts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", [("soft_token", "per_position"), ("title", "title"), ("title", "likelihood")], ids="-".join
)
def test_every_stage_still_to_do_is_told(form, tiny_demo, tmp_path):
    state = torch.get_rng_state()
    settings = {"item_input": form[0], "readout": form[1], "hidden_size": 16, "layers": 1, "vector_size": 16}
    config = Config.from_dict({"threads": 1, "model": settings, "evaluate": {"recommender": {"epochs": 1}}})
    found = check(tiny_demo, config, STAGES, tmp_path / "run")
    assert found is not None
    assert list(found.needs) == list(STAGES)
    assert all(found.seconds[name] > 0 for name in ("train", "score", "decide", "evaluate"))
    assert torch.equal(torch.get_rng_state(), state)
    assert not (tmp_path / "run").exists()
    rest = check(tiny_demo, config, STAGES[4:], tmp_path / "run")
    assert rest is not None
    assert list(rest.needs) == list(STAGES[4:])


def test_too_little_data_is_left_to_the_stage_that_says_so(tiny_demo, tmp_path):
    few = Dataset(tiny_demo.catalogue, {name: w.take(np.arange(5)) for name, w in tiny_demo.splits.items()})
    assert check(few, Config(), STAGES, tmp_path) is None


@pytest.fixture
def large() -> Sizes:
    """A million items: EASE would take 8 TB."""
    return replace(SIZES, items=10**6, windows={**SPLITS, "train": 10**6})


@pytest.fixture
def free(monkeypatch):
    """free(memory=bytes, disk=bytes)"""

    def be(memory: int = 2**40, disk: int = 2**50) -> None:
        monkeypatch.setattr(preflight, "available_memory", lambda: memory)
        usage = namedtuple("usage", "free")(disk)
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)

    return be


@pytest.mark.parametrize(
    ("sections", "memory", "advice"),
    [
        ({"evaluate": {"backbone": "ease"}}, 2**36, "evaluate needs about .* Use evaluate.backbone: itemknn"),
        ({}, 2**26, r"fewer windows \(--limit\)"),
    ],
    ids=["EASE", "all"],
)
def test_memory_that_cannot_fit_is_refused_with_what_helps(large, free, tmp_path, sections, memory, advice):
    config = configuration(decide={"policy": "probability"}, **sections)
    free(memory)
    with pytest.raises(ModelError, match=advice):
        preflight.refuse(large, LM, config, STAGES, tmp_path)
    free()
    preflight.refuse(large, LM, configuration(), STAGES, tmp_path)
    free(0)  # unknown
    preflight.refuse(large, LM, configuration(), STAGES, tmp_path)


def test_passes_that_cannot_fit_are_refused(free, tmp_path):
    """4,096 tokens of an embedded model this wide take 3.9 GiB; a single window takes 47 MiB."""
    free(2**31)
    wide = replace(LM, hidden=2048, intermediate=8192, layers=12)
    with pytest.raises(ModelError, match=r"train needs .* Lower train\.batch_tokens"):
        preflight.refuse(SIZES, wide, configuration(decide={"policy": "probability"}), STAGES, tmp_path)


def test_a_full_disk_is_refused(free, tmp_path):
    free(disk=2**10)
    with pytest.raises(OutputError, match=r"MiB of disk; 1 MiB are free .* Choose --out on another disk"):
        preflight.refuse(SIZES, LM, configuration(), STAGES, tmp_path / "not" / "there")


def run(monkeypatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["llm4dsr", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_the_command_stops_before_any_work_unless_told_to_go_on(tiny_demo, tmp_path, free, monkeypatch, capsys):
    tiny_demo.write(tmp_path / "data")
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(
        "{threads: 1, model: {hidden_size: 16, layers: 1, vector_size: 16}, train: {epochs: 1, samples: 30}, "
        "score: {calibration: off}, decide: {policy: probability}, evaluate: {recommender: {epochs: 1}}}"
    )
    command = ("run", "--data", tmp_path / "data", "--out", out, "--config", recipe)
    free(memory=2**20)
    assert run(monkeypatch, *command) == ModelError.exit_code
    assert "--skip-estimate" in capsys.readouterr().err
    assert not out.exists()
    free(disk=2**10)
    assert run(monkeypatch, *command) == OutputError.exit_code
    assert not out.exists()
    assert run(monkeypatch, "prepare", *command[1:]) == 0
    assert run(monkeypatch, "train", "--run", out) == OutputError.exit_code
    assert not (out / "model").exists()
    assert run(monkeypatch, "train", "--run", out, "--skip-estimate") == 0
    assert "Needs about" not in capsys.readouterr().err


def test_cached_files_count_as_free_in_a_container(tmp_path: Path):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 300\ninactive_file 600\nactive_file 0\n")
    assert free_in_container(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    with pytest.raises(ValueError, match="max"):
        free_in_container(tmp_path)
