"""Models from a checkpoint on disk, as the hub gives them: tuned in full or by LoRA, saved, moved, damaged."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm4dsr import Config, Denoiser
from llm4dsr.config import ModelConfig
from llm4dsr.data.windows import limit_windows
from llm4dsr.errors import ConfigError, ModelError
from llm4dsr.lm.load import add_lora, load_lm
from llm4dsr.lm.prompt import MARKERS, NO, YES

torch.set_num_threads(1)
FORMS = [("title", "title"), ("title", "per_position"), ("soft_token", "per_position")]
ADAPTER = "adapter_model.safetensors"


def make_checkpoint(folder: Path, titles: list[str], hidden_size: int = 16, layers: int = 1) -> Path:
    """A small Llama with a byte-level tokenizer of its own and untied embeddings, as save_pretrained writes it."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    raw.train_from_iterator([*titles, *[YES, NO, *MARKERS] * 50], trainer)
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    torch.manual_seed(0)
    settings = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=32, num_hidden_layers=layers,
        num_attention_heads=2, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(settings).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_demo) -> Path:
    """Shared; do not change it."""
    return make_checkpoint(tmp_path_factory.mktemp("hub") / "base", tiny_demo.catalogue.titles)


def configured(source: Path | str, items: str = "title", answer: str = "title", tuning: str = "lora", **more) -> Config:
    model = {"source": str(source), "item_input": items, "readout": answer, "tuning": tuning, "vector_size": 16, **more}
    train = {"folds": 1, "epochs": 1, "samples": 40, "batch_windows": 20, "learning_rate": 0.01}
    return Config.from_dict({"threads": 1, "model": model, "train": train, "score": {"calibration_draws": 1}})


def fitted(config: Config, data) -> Denoiser:
    return Denoiser(config).fit(
        data.splits["train"], data.catalogue, limit_windows(data.splits["valid"].histories(), 25, 0)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_demo) -> Path:
    """A denoiser tuned by LoRA, beside the base that it needs. Shared; copy it before changing it."""
    folder = tmp_path_factory.mktemp("saved")
    make_checkpoint(folder / "base", tiny_demo.catalogue.titles)
    fitted(configured(folder / "base"), tiny_demo).save_pretrained(folder / "model")
    return folder


def adapter_of(saved: Path, tmp_path: Path) -> Path:
    """A copy of the saved adapter, to be damaged."""
    shutil.copytree(saved / "model" / "lm", tmp_path / "adapter")
    return tmp_path / "adapter"


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize(("items", "answer"), FORMS)
def test_a_checkpoint_is_tuned_saved_and_loaded(tmp_path, checkpoint, tiny_demo, items, answer, tuning):
    before = {name: (checkpoint / name).read_bytes() for name in ("model.safetensors", "config.json")}
    denoiser = fitted(configured(checkpoint, items, answer, tuning), tiny_demo)
    denoiser.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "lm" / (ADAPTER if tuning == "lora" else "model.safetensors")).is_file()
    assert all((checkpoint / name).read_bytes() == content for name, content in before.items())

    histories = tiny_demo.splits["test"].histories()
    scores, loaded = denoiser.score(histories), Denoiser.from_pretrained(tmp_path / "model")
    np.testing.assert_allclose(loaded.score(histories)["log_odds"], scores["log_odds"], atol=1e-5)
    assert len(scores) == histories.lengths.sum()
    assert scores["log_odds"].is_finite().all()
    flagged = denoiser.decide(scores, "rate", 0.05)
    suggested = loaded.suggest(histories, flagged)
    assert suggested["suggested_item_id"].null_count() == 0


def test_lora_changes_its_adapter_and_full_tuning_the_model(checkpoint, tiny_demo):
    base = load_file(checkpoint / "model.safetensors")
    lora = fitted(configured(checkpoint, tuning="lora"), tiny_demo).model
    for name, weight in lora.base.state_dict().items():
        if "lora" not in name:
            assert torch.equal(weight, base[name.replace(".base_layer", "")]), name
    assert all(w.any() for name, w in lora.lm.named_parameters() if "lora_B" in name)  # zero before tuning
    full = fitted(configured(checkpoint, tuning="full"), tiny_demo).model
    assert not torch.equal(full.base.state_dict()["lm_head.weight"], base["lm_head.weight"])


def test_tuning_can_go_on_from_an_adapter(tmp_path, saved, tiny_demo):
    """A source may be an adapter: its base is found, and the same adapter is tuned further."""
    adapter = saved / "model" / "lm"
    fitted(configured(adapter), tiny_demo).save_pretrained(tmp_path / "more")
    before, after = load_file(adapter / ADAPTER), load_file(tmp_path / "more" / "lm" / ADAPTER)
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[k], after[k]) for k in before)


# --- a base that is elsewhere ----------------------------------------------------------------------------------------


def test_a_moved_denoiser_finds_its_base_by_the_recorded_path(tmp_path, saved, tiny_demo):
    shutil.copytree(saved / "model", tmp_path / "elsewhere")
    recorded = json.loads((tmp_path / "elsewhere" / "lm" / "adapter_config.json").read_text())
    assert recorded["base_model_name_or_path"] == str(saved / "base")
    histories = tiny_demo.splits["test"].histories()
    here, there = (Denoiser.from_pretrained(f).score(histories) for f in (saved / "model", tmp_path / "elsewhere"))
    np.testing.assert_allclose(here["log_odds"], there["log_odds"], atol=1e-5)


def test_a_relative_source_is_recorded_in_full(tmp_path, checkpoint, monkeypatch):
    """Else the denoiser could only be loaded from the working directory in which it was tuned."""
    monkeypatch.chdir(checkpoint.parent)
    config = ModelConfig(source="base")
    lm, _ = load_lm("base", config)
    add_lora(lm, config).save_pretrained(tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    again, tokenizer = load_lm("adapter", config)  # no tokenizer beside the adapter: the base's
    assert again.get_base_model().name_or_path == str(checkpoint)
    assert tokenizer.bos_token == "<s>"


def test_without_its_base_a_denoiser_says_what_to_do(tmp_path, saved):
    adapter = adapter_of(saved, tmp_path)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    gone = str(tmp_path / "gone")
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": gone}))
    with pytest.raises(ModelError, match=rf"needs its base, and there is nothing at {gone}\. Put the base back"):
        load_lm(str(adapter), ModelConfig())
    for nothing in ("{}", "not json", json.dumps({**settings, "base_model_name_or_path": None})):
        (adapter / "adapter_config.json").write_text(nothing)
        with pytest.raises(ModelError, match="does not say of which base"):
            load_lm(str(adapter), ModelConfig())


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"hidden_size": 32}, "size mismatch"),
        ({"layers": 2}, "tuned on other weights"),  # the adapter has none for the second layer
    ],
)
def test_an_adapter_of_another_base_is_refused(tmp_path, saved, tiny_demo, other, reason):
    adapter = adapter_of(saved, tmp_path)
    base = make_checkpoint(tmp_path / "other", tiny_demo.catalogue.titles, **other)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(base)}))
    with pytest.raises(ModelError, match=reason):
        load_lm(str(adapter), ModelConfig())


def test_a_base_that_changed_in_any_layer_is_refused(tmp_path, tiny_demo):
    """Its embeddings are the same; the saved denoiser names the base at the same path."""
    base = make_checkpoint(tmp_path / "base", tiny_demo.catalogue.titles)
    fitted(configured(base, tuning="lora"), tiny_demo).save_pretrained(tmp_path / "model")
    Denoiser.from_pretrained(tmp_path / "model")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 0.01
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="tuned on other weights"):
        Denoiser.from_pretrained(tmp_path / "model")


def test_an_adapter_for_other_weights_of_the_same_shape_is_refused(tmp_path, saved, tiny_demo):
    adapter = adapter_of(saved, tmp_path)
    settings = json.loads((adapter / "adapter_config.json").read_text())
    twin = shutil.copytree(settings["base_model_name_or_path"], tmp_path / "twin")
    weights = load_file(twin / "model.safetensors")
    save_file({k: w + 0.01 for k, w in weights.items()}, twin / "model.safetensors", metadata={"format": "pt"})
    (adapter / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": str(twin)}))
    with pytest.raises(ModelError, match="tuned on other weights"):
        load_lm(str(adapter), ModelConfig())


# --- damaged weights -------------------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    weights = load_file(path)
    first = next(iter(weights))
    if how == "empty":
        weights = {}
    elif how == "no numbers":
        weights = {k: w[:0].clone() for k, w in weights.items()}
    elif how == "not finite":
        weights[first][0, 0] = torch.nan
    elif how == "missing":
        del weights[first]
    elif how == "foreign":
        weights = {k.replace("layers.0", "layers.7"): w for k, w in weights.items()}
    save_file(weights, path, metadata={"format": "pt"})
    if how == "cut off":
        path.write_bytes(path.read_bytes()[:-20])
    elif how == "no file":
        path.unlink()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", "is empty: the weights were not saved"),
        ("no numbers", "is empty: the weights were not saved"),
        ("not finite", "not finite, in base_model"),
        ("missing", "lacks 1 weights, for example .*lora_A"),
        ("foreign", "does not belong to its base .*layers.7"),
        ("cut off", "not a readable safetensors file"),
        ("no file", r"holds no \*\.safetensors"),
    ],
)
def test_a_damaged_adapter_is_refused(tmp_path, saved, how, message):
    adapter = adapter_of(saved, tmp_path)
    damage(adapter / ADAPTER, how)
    with pytest.raises(ModelError, match=message):
        load_lm(str(adapter), ModelConfig())


def test_a_checkpoint_without_some_weights_is_refused(tmp_path, checkpoint):
    """transformers would make up random ones and go on."""
    shutil.copytree(checkpoint, tmp_path / "base")
    damage(tmp_path / "base" / "model.safetensors", "missing")
    with pytest.raises(ModelError, match=r"lacks 1 of the model's weights, for example lm_head.weight"):
        load_lm(str(tmp_path / "base"), ModelConfig())


@pytest.mark.parametrize("how", ["not finite", "missing"])
def test_damaged_projectors_are_refused(tmp_path, checkpoint, tiny_demo, how):
    fitted(configured(checkpoint, "soft_token", "per_position"), tiny_demo).save_pretrained(tmp_path)
    projector = tmp_path / "projector.safetensors"
    weights = load_file(projector)
    if how == "missing":
        del weights["out.weight"]
    else:
        weights["out.weight"][0, 0] = torch.inf
    save_file(weights, projector)
    with pytest.raises(ModelError, match=r"projector.safetensors"):
        Denoiser.from_pretrained(tmp_path)


# --- sources that cannot be used -------------------------------------------------------------------------------------


def test_a_wrong_path_says_what_to_give(tmp_path):
    for source in (str(tmp_path / "nowhere"), "./nowhere", "~/nowhere/at/all"):
        with pytest.raises(ModelError, match=r"There is no model at .*nowhere.* Give a hub name .* or 'embedded'"):
            load_lm(source, ModelConfig())
    with pytest.raises(ModelError, match=r"holds no config.json: not a transformers checkpoint or adapter"):
        load_lm(str(tmp_path), ModelConfig())


def test_a_folder_without_tokenizer_or_weights_is_refused(tmp_path, checkpoint):
    for left_out in ("tokenizer.json", "model.safetensors"):
        folder = tmp_path / left_out
        shutil.copytree(checkpoint, folder, ignore=shutil.ignore_patterns(left_out))
        with pytest.raises(ModelError, match="No causal language model could be loaded"):
            load_lm(str(folder), ModelConfig())


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_quantized_bases_need_cuda(checkpoint, load_in):
    with pytest.raises(ModelError, match=f"load_in: {load_in} needs CUDA.* Use load_in: full"):
        load_lm(str(checkpoint), ModelConfig(load_in=load_in), device="cpu")


def test_lora_names_a_module_that_the_model_lacks(checkpoint):
    lm = AutoModelForCausalLM.from_pretrained(checkpoint)
    with pytest.raises(ModelError, match=r"no module named 'c_attn'; it has .*down_proj"):
        add_lora(lm, ModelConfig(lora_targets=("q_proj", "c_attn")))


def test_lora_is_refused_for_the_embedded_model(tiny_demo):
    with pytest.raises(ConfigError, match=r"Use tuning: full, or another model.source"):
        fitted(configured("embedded", tuning="lora"), tiny_demo)


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_small_steps_add_up_in_half_precision(tmp_path, checkpoint, tiny_demo, dtype, tuning):
    """Each step is below half the resolution of bf16 at 0.01, so none would change such a weight kept in bf16."""
    config = configured(checkpoint, "soft_token", "per_position", tuning, dtype=dtype)
    steps = {"epochs": 15, "batch_windows": 20, "learning_rate": 2e-5, "weight_decay": 0.0, "warmup_steps": 0}
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, **steps))
    before = load_file(checkpoint / "model.safetensors")
    denoiser = fitted(config, tiny_demo)
    assert np.isfinite(denoiser.curve).all()
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    if tuning == "full":
        denoiser.save_pretrained(tmp_path / "model")
        after = load_file(tmp_path / "model" / "lm" / "model.safetensors")
        for name, weight in after.items():
            assert weight.dtype == kind
            given = before[name].to(kind)
            if "proj" in name:
                assert (weight != given)[given.abs() > 0.01].float().mean() > 0.2, name
        histories = tiny_demo.splits["test"].histories()
        loaded = Denoiser.from_pretrained(tmp_path / "model").score(histories)["log_odds"]
        np.testing.assert_allclose(loaded, denoiser.score(histories)["log_odds"], atol=1e-4)
    else:
        assert {w.dtype for n, w in denoiser.model.lm.named_parameters() if "lora_" not in n} == {kind}


def test_quantized_weights_cannot_be_tuned_in_full(checkpoint):
    with pytest.raises(ConfigError, match=r"load_in: 8bit cannot be tuned in full\. Use tuning: lora"):
        load_lm(str(checkpoint), ModelConfig(load_in="8bit", tuning="full"), "cuda")


@pytest.mark.parametrize("source", ["x" * 5000, "\0", "~nobody-of-this-name/model", "./nowhere"])
def test_sources_that_are_no_names(source):
    with pytest.raises(ModelError, match=r"There is no model at|No causal language model could be loaded"):
        load_lm(source, ModelConfig())


@pytest.mark.parametrize("name", ["norm", "layers", "q_projection"])
def test_modules_that_lora_cannot_adapt(checkpoint, name):
    with pytest.raises(ModelError, match=r"^lora_targets: "):
        add_lora(load_lm(str(checkpoint), ModelConfig())[0], ModelConfig(lora_targets=(name,)))
