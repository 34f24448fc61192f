"""Tiny random checkpoints of many kinds, each with a tokenizer of its own kind, as the hub gives them."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from llm4dsr.lm.prompt import MARKERS, NO, YES

WORDS = ["Red Train", "Blue Boat", "Noise Items:", "Suggested Replacements:", *[YES, NO, *MARKERS] * 50]
WINDOW = 16  # tokens of a sliding window; every prompt is longer
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def byte_level(titles: Sequence[str], bos: str | None = None, template: str | None = None) -> Any:
    """As GPT-2, Llama 3 and Qwen have."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["</s>", "<pad>", *([bos] if bos else []), "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet)
    raw.train_from_iterator([*titles, *WORDS], trainer)
    return _finished(raw, bos, template)


def sentence_piece(titles: Sequence[str], prefix: str | None, template: str | None = None) -> Any:
    """As Gemma (no prefix), Phi-3 and Llama 2 (`normalizer`) or Mistral (`first`) have: ▁ is a space."""
    raw = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    spaces = normalizers.Replace(" ", "▁")
    raw.normalizer = spaces
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")  # or words would be joined
    special = ["<unk>", "<s>", "</s>", "<pad>", "<|user|>", "<|assistant|>", "<|end|>", "<start_of_turn>",
               "<end_of_turn>"]  # fmt: skip
    in_bytes = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=special + in_bytes)
    raw.train_from_iterator([*titles, *WORDS, *string.printable.replace("\n", "")], trainer)
    plan = json.loads(raw.to_str())  # bytes are no added tokens
    plan["added_tokens"] = [token for token in plan["added_tokens"] if token["content"] not in in_bytes]
    raw = Tokenizer.from_str(json.dumps(plan | {"pre_tokenizer": None}))
    if prefix == "first":
        raw.normalizer = None
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif prefix == "normalizer":
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return _finished(raw, "<s>", template)


def _finished(raw: Tokenizer, bos: str | None, template: str | None) -> Any:
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, raw.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token=bos, eos_token="</s>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**SIZES, "num_key_value_heads": 1, "head_dim": 8}
SLIDING = {**LLAMA, "sliding_window": WINDOW}
MIXED = {**SLIDING, "layer_types": ["sliding_attention", "full_attention"]}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2}
OPT = {"hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
MAMBA = {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}

Tokens = Callable[[Sequence[str]], Any]
KINDS: dict[str, tuple[str, dict[str, Any], Tokens]] = {
    "gpt2": ("GPT2Config", GPT2, byte_level),
    "opt": ("OPTConfig", OPT, lambda titles: byte_level(titles, bos="<s>")),
    "gpt_neox": ("GPTNeoXConfig", SIZES, byte_level),
    "qwen3": ("Qwen3Config", LLAMA, lambda titles: byte_level(titles, template=THINKING)),
    "gemma3": ("Gemma3TextConfig", MIXED, lambda titles: sentence_piece(titles, None, GEMMA)),
    "phi3": ("Phi3Config", LLAMA, lambda titles: sentence_piece(titles, "normalizer", PHI)),
    "mistral": ("MistralConfig", SLIDING, lambda titles: sentence_piece(titles, "first")),
    "llama3": ("LlamaConfig", LLAMA, lambda titles: byte_level(titles, bos="<s>", template=CHATML)),
}
# Scored like those above, but not tuned in tests: caps and scales of logits, ALiBi, and no attention at all.
MORE: dict[str, tuple[str, dict[str, Any], Tokens]] = {
    "gemma2": ("Gemma2Config", {**MIXED, "final_logit_softcapping": 1.5}, KINDS["gemma3"][2]),
    "granite": ("GraniteConfig", {**LLAMA, "logits_scaling": 3.0}, byte_level),
    "cohere": ("CohereConfig", {**LLAMA, "logit_scale": 0.3}, byte_level),
    "llama_with_a_window_of_mistral": ("LlamaConfig", SLIDING, byte_level),
    "bloom": ("BloomConfig", {"hidden_size": 16, "n_layer": 2, "n_head": 2}, byte_level),
    "mamba": ("MambaConfig", MAMBA, byte_level),
}


def make_lm(name: str, titles: Sequence[str]) -> tuple[Any, Any]:
    """A random model of a kind, and its tokenizer."""
    kind, sizes, make_tokenizer = (KINDS | MORE)[name]
    tokenizer = make_tokenizer(titles)
    config = getattr(transformers, kind)(
        vocab_size=len(tokenizer) + 64, bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, **sizes,
    )  # fmt: skip
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # a fresh model is nearly uniform, whatever it sees
        for weight in lm.parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.2)
    return lm, tokenizer


def make_checkpoint(name: str, titles: Sequence[str], folder: Path) -> Path:
    """As save_pretrained writes it."""
    lm, tokenizer = make_lm(name, titles)
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
