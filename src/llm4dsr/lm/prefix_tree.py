"""Prefix trees over the titles of a window: one pass through a tree scores every title."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llm4dsr.errors import ModelError
from llm4dsr.lm.attention import layer_windows, tree_masks, warn_of_slow_scoring
from llm4dsr.lm.collate import Batch, collate, stack_features
from llm4dsr.lm.model import NoiseLM
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
    model: NoiseLM, prompts: Sequence[Tokens], trees: Sequence[WindowTree], first_token: bool = False
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

    Returns
    -------
    list of list of float
        log P(sequence | prompt) for each sequence of each tree.
    """
    windows = layer_windows(model.base)
    if windows is None:
        warn_of_slow_scoring(type(model.base).__name__)
        return [_one_by_one(model, p, t, first_token) for p, t in zip(prompts, trees, strict=True)]
    size = max(len(p) + len(t.tokens) for p, t in zip(prompts, trees, strict=True))
    ids, slots = np.zeros((len(prompts), size), dtype=np.int64), np.full((len(prompts), size), -1)
    places = np.zeros((len(prompts), size), dtype=np.int64)
    seen = np.tile(np.eye(size, dtype=bool), (len(prompts), 1, 1))  # [B, T, T]
    for b, (prompt, tree) in enumerate(zip(prompts, trees, strict=True)):
        start, end = len(prompt), len(prompt) + len(tree.tokens)
        ids[b, :end], slots[b, :start] = [*prompt.ids, *tree.tokens], prompt.slots
        depths = np.array(tree.depths, dtype=np.int64)
        places[b, :end] = np.concatenate([np.arange(start), start + depths])
        seen[b, :start, :start] = np.tri(start, dtype=bool)
        parents = start + np.array(tree.parents, dtype=np.int64)  # -1 is the prompt's last token
        for depth in range(depths.max(initial=-1) + 1):
            (nodes,) = np.nonzero(depths == depth)
            seen[b, start + nodes] |= seen[b, parents[nodes]]
    device, dtype = model.device, model.base.get_input_embeddings().weight.dtype
    tokens, items, positions, sees = (torch.from_numpy(part).to(device) for part in (ids, slots, places, seen))
    masks = tree_masks(windows, sees, positions, dtype)
    batch = Batch(tokens, items, stack_features(prompts, device), torch.full((len(prompts),), size))
    hidden = model.hidden(batch, attention_mask=masks, position_ids=positions)
    # The prompt's end, then the nodes
    return [_path_log_probs(model, hidden[b, len(prompt) - 1 : len(prompt) + len(tree.tokens)], tree, first_token)
            for b, (prompt, tree) in enumerate(zip(prompts, trees, strict=True))]  # fmt: skip


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
    at, place = zip(*(ends[node] for node in range(-1, len(tree.tokens))), strict=True)
    return _path_log_probs(model, hidden[list(at), list(place)], tree, first_token)


def _path_log_probs(model: NoiseLM, hidden: Tensor, tree: WindowTree, first_token: bool) -> list[float]:
    """log P of each path, from the states [1 + nodes, H] of the prompt's end and of the nodes."""
    paths = [path[:1] if first_token else path for path in tree.paths]
    # (parent, token) of all paths, one after the other
    steps = np.array([step for path in paths for step in path], dtype=np.int64).reshape(-1, 2)
    logits = model.logits(hidden)  # [1 + nodes, vocabulary]
    parent, token = torch.from_numpy(steps.T).to(model.device)
    log_probs = (logits[parent + 1, token] - logits.logsumexp(-1)[parent + 1]).double().cpu().numpy()
    starts = np.cumsum([0, *map(len, paths)])[:-1]
    scores: list[float] = np.add.reduceat(log_probs, starts).tolist()
    return scores


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
