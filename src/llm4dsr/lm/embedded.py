"""The embedded language model: a small Llama and its tokenizer, made from the catalogue."""

from __future__ import annotations

from typing import Any

from llm4dsr.config import EMBEDDED, ModelConfig
from llm4dsr.core.device import seeded
from llm4dsr.errors import ConfigError
from llm4dsr.lm.prompt import PHRASES


def embedded_lm(titles: list[str], config: ModelConfig, max_tokens: int, seed: int) -> tuple[Any, Any]:
    """Make the embedded language model, untrained.

    A small LlamaForCausalLM with a byte-level BPE tokenizer of the titles. Each fixed phrase of the prompt is one
    token, so a window costs little more than its items.

    Parameters
    ----------
    titles : list of str
        Cleaned titles of the catalogue.
    config : ModelConfig
        Its size.
    max_tokens : int
        Longest prompt.
    seed : int
        Seed of the initial weights.

    Returns
    -------
    lm : LlamaForCausalLM
    tokenizer : PreTrainedTokenizerFast

    Raises
    ------
    ConfigError
        If `tuning` is "lora", or the width does not fit the heads.
    """
    if config.tuning == "lora":  # its base is saved nowhere either
        raise ConfigError(
            f"model.tuning = 'lora' leaves the base as it is, but the base of {EMBEDDED!r} knows nothing yet. "
            "Use tuning: full, or another model.source."
        )
    if config.hidden_size % (2 * config.heads):  # rotary positions turn pairs of numbers
        raise ConfigError(
            f"model.hidden_size = {config.hidden_size} cannot be split evenly among model.heads = {config.heads}; "
            "expected a multiple of twice the heads."
        )
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary, special_tokens=["<s>", "<pad>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    raw.train_from_iterator(titles if config.item_input == "title" or config.readout == "title" else [], trainer)
    # single_word: else " A" would be cut out of a title such as "Toy Airplane". Not special: decoding keeps them.
    raw.add_tokens([AddedToken(p, single_word=True, normalized=False) for p in PHRASES])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="<s>", pad_token="<pad>")
    with seeded(seed):
        lm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=config.hidden_size, intermediate_size=4 * config.hidden_size,
                num_hidden_layers=config.layers, num_attention_heads=config.heads, attention_dropout=config.dropout,
                max_position_embeddings=max_tokens, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
                pad_token_id=1,
            )
        )  # fmt: skip
    return lm, tokenizer
