"""Greedy decoding with a key-value cache: inside the tree of a catalogue, or freely."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llm4dsr.core.arrays import IntArray
from llm4dsr.errors import ModelError
from llm4dsr.lm.attention import layer_windows
from llm4dsr.lm.catalogue_tree import CatalogueTree
from llm4dsr.lm.collate import collate, stack_features
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prefix_tree import check_log_probs
from llm4dsr.lm.tokens import Tokens

Prompt = Tokens | Sequence[int]
PROBE = 4  # tokens of the prompt that a model is checked with
CHECKED = "_llm4dsr_checked"  # on a model whose probabilities were compared once


def as_model(model: Any) -> NoiseLM:
    """Return the model itself, or a causal LM of transformers as one.

    Raises
    ------
    ModelError
        If the model has no next-token probabilities, or computes others than are read from it.
    """
    lm = (model if isinstance(model, NoiseLM) else NoiseLM(model, None)).eval()
    if lm.bidirectional:
        raise ModelError("The model is bidirectional: a token sees what follows, so nothing can be predicted from it.")
    if not getattr(lm.base, CHECKED, False):
        some = [token % lm.base.get_output_embeddings().weight.shape[0] for token in range(1, 2 * PROBE)]
        check_log_probs(lm, Tokens(some[:PROBE], [-1] * PROBE), [some[PROBE:], some[PROBE : PROBE + 1] + some[:2]])
        setattr(lm.base, CHECKED, True)
    return lm


def as_tokens(prompt: Prompt) -> Tokens:
    """Return the prompt itself, or token ids as one."""
    if isinstance(prompt, Tokens):
        return prompt
    return Tokens([int(token) for token in prompt], [-1] * len(prompt))


@torch.inference_mode()
def decode_in_catalogue(
    model: Any, prompts: Sequence[Prompt], tree: CatalogueTree, excluded: Sequence[Sequence[int]] | None = None
) -> IntArray:
    """Choose a title for each prompt by greedy decoding that can only write titles of a catalogue.

    At each step the most probable token is written among those that lead to a title. All prompts advance together, and
    the allowed tokens are found on the model's device. Once a single title is left, the rest of it needs no model.

    Parameters
    ----------
    model : NoiseLM or PreTrainedModel
        A causal language model; it is put in evaluation mode.
    prompts : sequence of Tokens or of sequences of int
        B prompts, one batch.
    tree : CatalogueTree
        The titles. End each with a token that stands at no other place, such as a quote.
    excluded : sequence of sequence of int, optional
        [B] rows whose titles must not be written.

    Returns
    -------
    array of int
        [B] the row of each title, the first with its tokens; -1 where all are excluded.

    Examples
    --------
    >>> import torch, transformers
    >>> _ = torch.manual_seed(0)
    >>> config = transformers.LlamaConfig(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
    ...     num_attention_heads=2)
    >>> model, tree = transformers.LlamaForCausalLM(config).eval(), CatalogueTree([[5, 9], [5, 6, 9], [7, 9]])
    >>> decode_in_catalogue(model, [[1, 2], [3]], tree, [[0, 1], [0, 1, 2]])
    array([ 2, -1])
    """
    lm = as_model(model)
    device, barred = lm.device, [np.empty(0, np.int64)] * len(prompts)
    if excluded is not None:
        barred = [tree.places(rows) for rows in excluded]
    places = np.full((len(prompts), max(map(len, barred), default=0)), -1)  # [B, E] excluded titles
    for row, some in zip(places, barred, strict=True):
        row[: len(some)] = some
    tokens, children, leaves = tree.on(device)
    nodes = torch.zeros(len(prompts), dtype=torch.long, device=device)
    left = torch.from_numpy(tree.leaves[0] - (places >= 0).sum(1)).to(device)  # [B] titles that may be written, below
    if bool((left > 1).any()):
        steps = next_states(lm, [as_tokens(prompt) for prompt in prompts])
        states = next(steps)
        for depth in range(1, tree.depth + 1):
            begin = children[nodes, None].long()
            count = children[nodes + 1, None] - begin
            column = torch.arange(int(count.max()) + 1, device=device)  # one more, for what is elsewhere
            child = (begin + column).clamp_(max=len(tokens) - 1)  # [B, C]
            open_leaves = leaves[child].masked_fill_(column >= count, 0)
            at = torch.from_numpy(tree.above(places, depth)).to(device) - begin  # [B, E]
            at = at.where((at >= 0) & (at < count), len(column) - 1)
            open_leaves.scatter_add_(1, at, open_leaves.new_full(at.shape, -1))
            logits = lm.logits(states).gather(1, tokens[child].long()).masked_fill_(open_leaves < 1, -torch.inf)
            best = logits.argmax(1, keepdim=True)
            more = left > 1  # the others have their title
            nodes = child.gather(1, best)[:, 0].where(more, nodes)
            left = open_leaves.gather(1, best)[:, 0].where(more, left)
            if not bool((left > 1).any()):
                break
            states = steps.send(tokens[nodes].long())
    return np.array([tree.last(n, some) for n, some in zip(nodes.tolist(), barred, strict=True)], dtype=np.int64)


@torch.inference_mode()
def decode_freely(
    model: NoiseLM, prompts: Sequence[Tokens], stop: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """Continue each prompt greedily with any text (published).

    Parameters
    ----------
    model : NoiseLM
        The model.
    prompts : sequence of Tokens
        B prompts.
    stop : sequence of int
        Tokens that end a text.
    max_new_tokens : int
        Longest text.

    Returns
    -------
    list of list of int
        The new tokens of each prompt.
    """
    steps, written = next_states(model, prompts), list[list[int]]([] for _ in prompts)
    states, done = next(steps), [False] * len(prompts)
    while True:
        best = model.logits(states).argmax(1)
        for b, token in enumerate(best.tolist()):
            if not done[b]:
                written[b].append(token)
                ended = written[b][-len(stop) :] == list(stop) or token == model.tokenizer.eos_token_id
                done[b] = ended or len(written[b]) >= max_new_tokens
        if all(done):
            return written
        states = steps.send(best)


def next_states(model: NoiseLM, prompts: Sequence[Tokens]) -> Generator[Tensor, Tensor, None]:
    """Yield the states [B, H] that the next tokens follow; take these tokens [B], and so on."""
    steps = _cached_states if layer_windows(model.base) is not None else _recomputed_states
    return steps(model, prompts)


def _cached_states(model: NoiseLM, prompts: Sequence[Tokens]) -> Generator[Tensor, Tensor, None]:
    width, device = max(len(p) for p in prompts), model.device
    ids, slots = torch.zeros(len(prompts), width, dtype=torch.long), torch.full((len(prompts), width), -1)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for b, p in enumerate(prompts):
        ids[b, width - len(p) :], slots[b, width - len(p) :] = torch.tensor(p.ids), torch.tensor(p.slots)
        mask[b, width - len(p) :] = 1
    ids, slots, mask, features = ids.to(device), slots.to(device), mask.to(device), stack_features(prompts, device)
    cache = None
    while True:
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        embeds = model.embed(ids, slots, features)
        state = model.states(embeds, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
        cache = state.past_key_values
        ids = (yield state.last_hidden_state[:, -1])[:, None]
        slots, features = torch.full_like(ids, -1), None
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)


def _recomputed_states(model: NoiseLM, prompts: Sequence[Tokens]) -> Generator[Tensor, Tensor, None]:
    """As `_cached_states`, for models whose cache does not take padding."""
    rows = [Tokens([*p.ids], [*p.slots], features=p.features) for p in prompts]
    while True:
        hidden = model.hidden(collate(rows, model.device))
        tokens = yield hidden[range(len(rows)), [len(row) - 1 for row in rows]]
        for row, token in zip(rows, tokens.tolist(), strict=True):
            row.add([token])
