"""Memory of a forward pass, and how many tokens it may have: on a CPU, few.

On a GPU a pass has `train.batch_tokens`, and is halved on out-of-memory. A CPU does not fail in time for that: it
swaps, or the process is killed. Larger passes are no faster there, because activations no longer fit into its caches.
"""

from __future__ import annotations

from llm4dsr.config import EMBEDDED, Config
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.shape import LMShape

CPU_BYTES = 3 * 2**29  # of activations in tuning, in one pass on a CPU
CPU_WIDTHS = 32  # where passes keep memory, padded prompts have a multiple of it
LOGITS = 2**24  # next-token logits that are in memory at a time
GPU_LOGITS = 2**27  # the same in scoring on a GPU, where larger products are faster
CPU_TOKENS = 4_096  # of the embedded model there: with four times as many, scoring of Toys took a third longer
CPU_TITLE_TOKENS = 1_024  # of a pass there that reads next-token logits; larger ones took longer, by up to a third


def token_bytes(lm: LMShape, config: Config, tokens: float, tuned: bool, gpu: bool = False) -> int:
    """Return the bytes of activations for each token of a forward pass over prompts of so many tokens.

    Tuning keeps for each layer 14 vectors of the hidden size and 4 of the feed-forward layer, for the backward pass.
    With dropout on attention, it also keeps 3 rows of attention for each head; else fused kernels keep none. Dropout of
    LoRA keeps a byte for each input of an adapter, and on a GPU the input as well. A scoring pass keeps one layer.
    Quantized models keep the input of each layer, and compute it again.
    """
    size = 4 if config.model.dtype == "fp32" else 3
    if not tuned:
        return size * (6 * lm.hidden + 3 * lm.intermediate)
    has_dropout = config.model.source == EMBEDDED and config.model.dropout > 0
    layer = 14 * lm.hidden + 4 * lm.intermediate + 3 * lm.heads * tokens * has_dropout
    if config.model.load_in != "full":
        return int(size * (lm.layers * lm.hidden + layer))
    masks = lm.adapter_inputs * (1 + size * gpu) if config.model.lora_dropout else 0
    return int(size * (lm.layers * layer + 4 * lm.hidden) + masks)


def pass_tokens(lm: LMShape, config: Config, gpu: bool) -> int:
    """Return the most tokens of a forward pass.

    Examples
    --------
    SmolLM2-135M:

    >>> from llm4dsr.config import Config, ModelConfig
    >>> shape = LMShape(134_515_008, 2_442_240, 576, 1536, 30, 9, 49_152, adapter_inputs=30 * (6 * 576 + 1536))
    >>> config = Config(model=ModelConfig(source="smollm2", item_input="title", tuning="lora"))
    >>> pass_tokens(shape, config, gpu=True), pass_tokens(shape, config, gpu=False)
    (16384, 864)
    """
    most = config.train.batch_tokens
    if gpu:
        return most
    if config.model.source == EMBEDDED:
        return min(most, CPU_TOKENS)
    return max(1, min(most, CPU_BYTES // token_bytes(lm, config, config.train.max_tokens, tuned=True)))


def scoring_tokens(lm: LMShape, config: Config, gpu: bool) -> int:
    """Return the most tokens of a scoring pass."""
    most = pass_tokens(lm, config, gpu)
    return most if gpu or config.model.readout == "per_position" else min(most, CPU_TITLE_TOKENS)


def keeps_memory(config: Config, gpu: bool) -> bool:
    """Return whether tuning passes leave memory in use, so that it adds up: those of a language model on a CPU.

    Each new shape of a matrix product keeps memory there, and freed activations of many sizes leave gaps. The embedded
    model has short prompts of few shapes.
    """
    return not gpu and config.model.source != EMBEDDED


def width_multiple(config: Config, gpu: bool) -> int:
    """Return what the width of a padded tuning pass is a multiple of."""
    return CPU_WIDTHS if keeps_memory(config, gpu) else 1


def tokens_at_once(vocabulary: int) -> int:
    """Return of how many tokens a tuning pass holds the next-token logits.

    Examples
    --------
    >>> tokens_at_once(49_152), tokens_at_once(4_000)
    (341, 4194)
    """
    return max(1, LOGITS // vocabulary)


def scored_at_once(vocabulary: int, gpu: bool) -> int:
    """Return of how many tokens scoring holds the next-token logits.

    Examples
    --------
    >>> scored_at_once(49_152, gpu=False), scored_at_once(49_152, gpu=True)
    (341, 2730)
    """
    return max(1, (GPU_LOGITS if gpu else LOGITS) // vocabulary)


def decoding_tokens(config: Config) -> int:
    """Return the most tokens of the prompts whose titles are written together.

    On a CPU too, since each step reads all weights for a token of each prompt: more prompts at once cost little more.
    """
    return max(1, config.train.batch_tokens // 4)


def decoding_bytes(lm: LMShape, config: Config, tokens: float) -> int:
    """Return the bytes for each token of these prompts: one layer's activations, and all keys and values."""
    size = 4 if config.model.dtype == "fp32" else 2
    return token_bytes(lm, config, tokens, tuned=False) + 2 * size * lm.layers * lm.hidden


def pass_tokens_of(model: NoiseLM, config: Config) -> int:
    """Return `pass_tokens` of a loaded model."""
    return pass_tokens(LMShape.of(model.base, config.model), config, model.device.type != "cpu")


def scoring_tokens_of(model: NoiseLM, config: Config) -> int:
    """Return `scoring_tokens` of a loaded model."""
    return scoring_tokens(LMShape.of(model.base, config.model), config, model.device.type != "cpu")
