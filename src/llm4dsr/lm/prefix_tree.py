"""Prefix trees over the titles of a window: one pass through a tree scores every title."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llm4dsr.errors import ModelError
from llm4dsr.lm.attention import layer_windows, tree_masks, warn_of_slow_scoring
from llm4dsr.lm.collate import collate
from llm4dsr.lm.log_probs import token_log_probs
from llm4dsr.lm.model import NoiseLM, Prefix
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.lm.tokens import Tokens

PROBE = 16  # tokens of a prompt that is scored to check a model


@dataclass
class WindowTree:
    """The inner nodes of a prefix tree over a few token sequences; parents come first.

    Attributes
    ----------
    tokens, parents, depths : list of int
        One entry per inner node. Parent -1 is the end of the prompt.
    paths : list of list of (int, int)
        For each sequence, its tokens as (parent node, token). The last token of a sequence is never an inner node.
    """

    tokens: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    paths: list[list[tuple[int, int]]] = field(default_factory=list)

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]]) -> WindowTree:
        """Build the tree of token sequences."""
        tree, nodes = cls(), dict[tuple[int, int], int]()
        for sequence in sequences:
            parent, path = -1, []
            for depth, token in enumerate(sequence):
                path.append((parent, token))
                if depth == len(sequence) - 1:
                    break
                if (parent, token) not in nodes:
                    nodes[parent, token] = len(tree.tokens)
                    tree.tokens.append(token)
                    tree.parents.append(parent)
                    tree.depths.append(depth)
                parent = nodes[parent, token]
            tree.paths.append(path)
        return tree


@torch.inference_mode()
def sequence_log_probs(
    model: NoiseLM,
    prompts: Sequence[Tokens],
    trees: Sequence[WindowTree],
    first_token: bool = False,
    prefix: Prefix | None = None,
) -> list[list[float]]:
    """Score every sequence of each tree, in one forward pass for the whole batch.

    The nodes of a tree follow the prompt. An attention mask lets each see the prompt and its ancestors only, at the
    position that it would have in plain text. Models that take no such mask score each sequence in its own row.

    Parameters
    ----------
    model : NoiseLM
        The model.
    prompts : sequence of Tokens
        One prompt per tree.
    trees : sequence of WindowTree
        The sequences to score.
    first_token : bool, default False
        Score the first token only (published).
    prefix : Prefix, optional
        What all prompts begin with, computed before.

    Returns
    -------
    list of list of float
        log P(sequence | prompt) for each sequence of each tree.
    """
    windows, device = layer_windows(model.base), model.device
    if windows is None:
        warn_of_slow_scoring(type(model.base).__name__)
        return [_one_by_one(model, p, t, first_token) for p, t in zip(prompts, trees, strict=True)]
    rows = [
        Tokens(p.ids + t.tokens, p.slots + [-1] * len(t.tokens), features=p.features)
        for p, t in zip(prompts, trees, strict=True)
    ]
    batch = collate(rows, device)
    size, known = batch.ids.shape[1], 0 if prefix is None else prefix.states.shape[1]
    places = np.tile(np.arange(size), (len(rows), 1))
    for b, (prompt, tree) in enumerate(zip(prompts, trees, strict=True)):
        places[b, len(prompt) : len(rows[b])] = len(prompt) + np.array(tree.depths, dtype=np.int64)
    positions = torch.from_numpy(places).to(device)
    seen = _seen([len(p) for p in prompts], trees, size, known, device)
    masks = tree_masks(windows, seen, positions, model.base.get_input_embeddings().weight.dtype)
    hidden = model.hidden(batch, prefix, attention_mask=masks, position_ids=positions[:, known:])
    nodes = [
        list(range(b * size + len(p) - 1, b * size + len(row)))
        for b, (p, row) in enumerate(zip(prompts, rows, strict=True))
    ]
    return _path_log_probs(model, hidden, nodes, trees, first_token)


def _seen(starts: list[int], trees: Sequence[WindowTree], size: int, known: int, device: torch.device) -> Tensor:
    """[B, T - known, T] what each token sees: the prompt up to itself; a node, the prompt, its ancestors and itself."""
    column = torch.arange(size, device=device)
    row = column[known:, None]
    ends = torch.tensor(starts, device=device)[:, None, None]
    seen = ((column <= row) & (column < ends)) | (column == row)
    owner = np.repeat(np.arange(len(trees)), [len(tree.tokens) for tree in trees])
    first = np.cumsum([0, *(len(tree.tokens) for tree in trees)])[owner]  # of all nodes, the first of the same tree
    parents = np.array([parent for tree in trees for parent in tree.parents], dtype=np.int64)
    node = np.flatnonzero(parents >= 0)
    above, pairs = parents[node], [np.empty((3, 0), dtype=np.int64)]
    while len(node):
        start = np.array(starts)[owner[node]]
        pairs.append(np.stack([owner[node], start + node - first[node] - known, start + above]))
        above = parents[first[node] + above]
        node, above = node[above >= 0], above[above >= 0]
    at = torch.from_numpy(np.concatenate(pairs, axis=1)).to(device)
    seen[at[0], at[1], at[2]] = True
    return seen


def _one_by_one(model: NoiseLM, prompt: Tokens, tree: WindowTree, first_token: bool) -> list[float]:
    """The scores of one tree from a pass over its paths, each behind its own copy of the prompt."""
    ends: dict[int, tuple[int, int]] = {-1: (0, len(prompt) - 1)}  # node → (row, place) of its token
    rows: list[Tokens] = []
    for path in tree.paths or [[]]:
        row = Tokens(list(prompt.ids), list(prompt.slots), features=prompt.features)
        for node, _ in path[1:]:
            ends[node] = (len(rows), len(row))
            row.add([tree.tokens[node]])
        rows.append(row)
    hidden = model.hidden(collate(rows, model.device))
    places = [row * hidden.shape[1] + column for row, column in (ends[node] for node in range(-1, len(tree.tokens)))]
    return _path_log_probs(model, hidden, [places], [tree], first_token)[0]


def _path_log_probs(
    model: NoiseLM, hidden: Tensor, places: list[list[int]], trees: Sequence[WindowTree], first_token: bool
) -> list[list[float]]:
    """log P of the paths of each tree; `places` in `hidden` are those of the prompt's end and of the nodes."""
    paths = [[path[:1] if first_token else path for path in tree.paths] for tree in trees]
    steps = [
        (of[parent + 1], token)
        for of, some in zip(places, paths, strict=True)
        for path in some
        for parent, token in path
    ]
    at, tokens = np.array(steps, dtype=np.int64).reshape(-1, 2).T
    starts = np.cumsum([0, *(len(path) for some in paths for path in some)])
    sums = np.add.reduceat(token_log_probs(model, hidden, at, tokens), starts[:-1]) if len(steps) else np.empty(0)
    return [part.tolist() for part in np.split(sums, np.cumsum([len(some) for some in paths])[:-1])]


@torch.inference_mode()
def check_scores(model: NoiseLM, builder: PromptBuilder) -> None:
    """Compare a few scores with what the model's own class computes.

    Raises
    ------
    ModelError
        If they differ: items see what follows, or something stands between the last state and the output layer.
    """
    training, bidirectional = model.training, model.bidirectional
    model.eval().bidirectional = False
    prompt = Tokens(builder.head[-PROBE:], [-1] * len(builder.head[-PROBE:]))
    check_log_probs(model, prompt, [builder.noise + builder.open, builder.noise[:1] + builder.suggested + builder.open])
    model.train(training).bidirectional = bidirectional


@torch.inference_mode()
def check_log_probs(model: NoiseLM, prompt: Tokens, sequences: Sequence[list[int]]) -> None:
    """Compare scores of sequences behind a prompt with those of the model's own class. Raises ModelError."""
    (scores,) = sequence_log_probs(model, [prompt], [WindowTree.of(sequences)])
    exact = model.base.get_input_embeddings().weight.dtype == torch.float32
    for sequence, score in zip(sequences, scores, strict=True):
        ids = torch.tensor([prompt.ids + sequence], device=model.device)
        steps = model.lm(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        expected = float(steps[range(len(sequence)), sequence].sum())
        if not abs(score - expected) <= (1e-3 if exact else 0.05) * max(1.0, abs(expected)):
            raise ModelError(
                f"{type(model.base).__name__} computes other probabilities than this package reads from it "
                f"({expected:.3f} and {score:.3f}). Use another model, for example a Llama, Qwen, Gemma or Mistral."
            )
