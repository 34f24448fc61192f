"""Sizes of a language model, without its weights: what memory and disk it needs can be told before it is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from llm4dsr.config import EMBEDDED, ModelConfig
from llm4dsr.config.denoiser import ALL_LINEAR
from llm4dsr.lm.embedded import embedded_lm
from llm4dsr.lm.gguf import gguf_path, read_gguf_header
from llm4dsr.lm.load import MOST_LAYERS, check_files, resolve_base


@dataclass(frozen=True)
class LMShape:
    """Sizes of a language model.

    Attributes
    ----------
    parameters : int
        All weights of the model.
    trainable : int
        Weights that are tuned, without the projectors of soft tokens.
    hidden, intermediate, layers, heads, vocabulary : int
        As in the configuration of the model.
    adapter_inputs, adapted : int
        Over all layers with a LoRA adapter: their inputs for one token, and their own weights.
    """

    parameters: int
    trainable: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    vocabulary: int
    adapter_inputs: int = 0
    adapted: int = 0

    @classmethod
    def of(cls, lm: Any, config: ModelConfig) -> LMShape:
        """Read the sizes of a causal LM; its weights may be on the meta device."""
        found = lm.config.get_text_config()
        parameters = sum(p.numel() for p in lm.parameters())
        trainable, inputs, adapted = parameters, 0, 0
        if config.tuning == "lora":
            every = config.lora_targets == (ALL_LINEAR,)  # all linear layers but the output
            head = lm.get_output_embeddings()
            layers = [(name, m) for name, m in lm.named_modules() if m is not head and ".lora_" not in name]
            linear = [
                m
                for name, m in layers
                if (isinstance(m, torch.nn.Linear) if every else name.rsplit(".", 1)[-1] in config.lora_targets)
            ]
            shapes = [
                (m.weight.shape, getattr(m, "in_features", m.weight.shape[0])) for m in linear if hasattr(m, "weight")
            ]
            trainable = sum(config.lora_rank * sum(shape) for shape, _ in shapes)
            inputs, adapted = sum(size for _, size in shapes), sum(shape.numel() for shape, _ in shapes)
        hidden = int(found.hidden_size)
        return cls(
            parameters, trainable, hidden, int(getattr(found, "intermediate_size", None) or 4 * hidden),
            int(found.num_hidden_layers), int(found.num_attention_heads), int(found.vocab_size),
            inputs, adapted,
        )  # fmt: skip


def lm_shape(config: ModelConfig, titles: list[str], max_tokens: int) -> tuple[LMShape, Any]:
    """Return the sizes of the model that a configuration names, and its tokenizer. No weights are read.

    Parameters
    ----------
    config : ModelConfig
        Source and tuning.
    titles : list of str
        Cleaned titles of the catalogue, for the embedded tokenizer.
    max_tokens : int
        Longest prompt.

    Raises
    ------
    ModelError
        If a local source is no model.
    OSError, ValueError
        As transformers raises them, if the model is not known.
    """
    if config.source == EMBEDDED:
        with torch.device("meta"):
            lm, tokenizer = embedded_lm(titles, config, max_tokens, 0)
        return LMShape.of(lm, config), tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    source, base = resolve_base(config.source)
    for folder in {source, base}:
        if os.path.isdir(folder):
            check_files(Path(folder))
    packed = gguf_path(base)
    if packed:
        found, tokenizer = read_gguf_header(packed, MOST_LAYERS)
    else:
        found, tokenizer = AutoConfig.from_pretrained(base, trust_remote_code=False), None
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(found)
    is_adapter = source != base
    own = is_adapter and (Path(source) / "tokenizer_config.json").is_file()
    tuned = replace(config, tuning="lora") if is_adapter else config
    if own or not packed:
        tokenizer = AutoTokenizer.from_pretrained(source if own else base, trust_remote_code=False)
    return LMShape.of(lm, tuned), tokenizer
