"""Exact log-probabilities of given continuations: the language model as a scorer of items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from llm4dsr.core.arrays import FloatArray
from llm4dsr.errors import DataError
from llm4dsr.lm.decode import Prompt, as_model, as_tokens
from llm4dsr.lm.prefix_tree import WindowTree, sequence_log_probs

NODES = 1024  # of a tree in one pass; its attention mask is quadratic in them


@torch.inference_mode()
def score_continuations(model: Any, prompt: Prompt, continuations: Sequence[Sequence[int]]) -> FloatArray:
    """Score continuations of a prompt by their exact log-probabilities.

    The continuations form a prefix tree, so what they share is computed once, and one pass scores many of them. Scores
    do not depend on the order of the continuations, nor on which others are scored, up to the rounding of the model.

    Parameters
    ----------
    model : NoiseLM or PreTrainedModel
        A causal language model; it is put in evaluation mode.
    prompt : Tokens or sequence of int
        The prompt, at least one token.
    continuations : sequence of sequence of int
        n token sequences, at least one token each. End each with a token that closes it, such as a quote: else the
        beginning of another is at least as probable.

    Returns
    -------
    array of float
        [n] log P(continuation | prompt), the sum over its tokens, at most 0.

    Raises
    ------
    DataError
        If the prompt or a continuation has no tokens.

    Examples
    --------
    >>> import torch, transformers
    >>> _ = torch.manual_seed(0)
    >>> config = transformers.LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...     num_attention_heads=2)
    >>> model = transformers.LlamaForCausalLM(config).eval()
    >>> every_token = score_continuations(model, [1, 2, 3], [[token] for token in range(20)])
    >>> round(float(np.exp(every_token).sum()), 4)
    1.0
    """
    lm, start = as_model(model), as_tokens(prompt)
    asked = [tuple(int(token) for token in tokens) for tokens in continuations]
    if not len(start):
        raise DataError("The prompt has no tokens; expected at least one.")
    if () in asked:
        raise DataError(f"Continuation {asked.index(())} has no tokens; expected at least one for each continuation.")
    scores: dict[tuple[int, ...], float] = {}
    group, nodes = list[tuple[int, ...]](), 0

    def score() -> None:
        ((*found,),) = sequence_log_probs(lm, [start], [WindowTree.of(group)])
        scores.update(zip(group, found, strict=True))

    for tokens in sorted(set(asked)):  # what begins alike is scored together
        if group and nodes + len(tokens) > NODES:
            score()
            group, nodes = [], 0
        shared = next((i for i, (a, b) in enumerate(zip(group[-1], tokens, strict=False)) if a != b), 0) if group else 0
        group.append(tokens)
        nodes += len(tokens) - 1 - min(shared, len(tokens) - 1)
    if group:
        score()
    return np.array([scores[tokens] for tokens in asked])
