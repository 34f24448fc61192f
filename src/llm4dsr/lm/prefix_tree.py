"""Prefix trees over titles.

One pass through a tree scores every title of a window. Decoding inside the catalogue's tree can only write titles that
exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    titles = [builder.noise + builder.open, builder.noise[:1] + builder.suggested + builder.open]
    (scores,) = sequence_log_probs(model, [prompt], [WindowTree.of(titles)])
    exact = model.base.get_input_embeddings().weight.dtype == torch.float32
    for title, score in zip(titles, scores, strict=True):
        ids = torch.tensor([prompt.ids + title], device=model.device)
        steps = model.lm(input_ids=ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        expected = float(steps[range(len(title)), title].sum())
        if not abs(score - expected) <= (1e-3 if exact else 0.05) * max(1.0, abs(expected)):
            raise ModelError(
                f"{type(model.base).__name__} computes other probabilities than this package reads from it "
                f"({expected:.3f} and {score:.3f}). Use another model, for example a Llama, Qwen, Gemma or Mistral."
            )
    model.train(training).bidirectional = bidirectional


class CatalogueTree:
    """Prefix tree over all titles of a catalogue.

    Rows with the same title share a path, which ends at the canonical row.

    Parameters
    ----------
    titles : sequence of sequence of int
        Tokens of each title, by catalogue row.
    canonical : sequence of int
        The first row with the same title, by catalogue row.
    """

    def __init__(self, titles: Sequence[Sequence[int]], canonical: Sequence[int]) -> None:
        self.titles = titles
        self.children: list[dict[int, int]] = [{}]
        self.leaves = [0]  # titles below a node
        self.item = [-1]  # canonical row that ends at a node
        # Two titles may share all tokens in a tokenizer that drops characters: one leaf, the first row's.
        first: dict[tuple[int, ...], int] = {}
        for row in sorted(set(canonical)):
            first.setdefault(tuple(titles[row]), row)
        for tokens, row in first.items():
            node = 0
            self.leaves[0] += 1
            for token in tokens:
                if token not in self.children[node]:
                    self.children[node][token] = len(self.children)
                    self.children.append({})
                    self.leaves.append(0)
                    self.item.append(-1)
                node = self.children[node][token]
                self.leaves[node] += 1
            self.item[node] = row

    def closed(self, excluded: Sequence[int]) -> dict[int, int]:
        """Return node → number of excluded titles below it."""
        out: dict[int, int] = {}
        for tokens in {tuple(self.titles[row]) for row in excluded}:
            node = 0
            out[0] = out.get(0, 0) + 1
            for token in tokens:
                node = self.children[node][token]
                out[node] = out.get(node, 0) + 1
        return out

    def row(self, tokens: Sequence[int]) -> int:
        """Return the canonical row whose title these tokens are, or -1."""
        node = 0
        for token in tokens:
            if token not in self.children[node]:
                return -1
            node = self.children[node][token]
        return self.item[node]

    def allowed(self, node: int, closed: dict[int, int]) -> list[int]:
        """Return the tokens that lead to a title that is not excluded."""
        return [t for t, child in self.children[node].items() if self.leaves[child] > closed.get(child, 0)]


@torch.inference_mode()
def decode(
    model: NoiseLM,
    prompts: Sequence[Tokens],
    trees: CatalogueTree | None,
    excluded: Sequence[Sequence[int]],
    stop: Sequence[int],
    max_new_tokens: int,
) -> list[list[int]]:
    """Continue each prompt greedily.

    Parameters
    ----------
    model : NoiseLM
        The model.
    prompts : sequence of Tokens
        The prompts.
    trees : CatalogueTree or None
        Write only titles of this tree, to their end. None: write freely (published).
    excluded : sequence of sequence of int
        For each prompt, canonical rows whose titles must not be written.
    stop : sequence of int
        Tokens that end free text.
    max_new_tokens : int
        Longest free text.

    Returns
    -------
    list of list of int
        The new tokens of each prompt.
    """
    steps = _cached_states if layer_windows(model.base) is not None else _recomputed_states
    nodes = [0] * len(prompts)
    closed = [trees.closed(e) if trees else {} for e in excluded]
    written: list[list[int]] = [[] for _ in prompts]
    done = [trees is not None and not trees.allowed(0, closed[b]) for b in range(len(prompts))]
    if all(done):
        return written
    for states in steps(model, prompts, written):
        logits = model.logits(states)  # [B, vocabulary]
        for b in range(len(prompts)):
            if done[b]:
                continue
            if trees is not None:
                options = trees.allowed(nodes[b], closed[b])
                token = options[int(logits[b, options].argmax())]
                nodes[b] = trees.children[nodes[b]][token]
                done[b] = not trees.children[nodes[b]]
            else:
                token = int(logits[b].argmax())
            written[b].append(token)
            if trees is None:
                ended = written[b][-len(stop) :] == list(stop) or token == model.tokenizer.eos_token_id
                done[b] = ended or len(written[b]) >= max_new_tokens
        if all(done):
            break
    return written


def _cached_states(model: NoiseLM, prompts: Sequence[Tokens], written: list[list[int]]) -> Iterator[Tensor]:
    """The states [B, H] that the next tokens follow, again and again while `written` grows; with a key-value cache."""
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
        yield state.last_hidden_state[:, -1]
        ids = torch.tensor([[w[-1] if w else 0] for w in written], device=device)  # finished rows idle along
        slots, features = torch.full_like(ids, -1), None
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)


def _recomputed_states(model: NoiseLM, prompts: Sequence[Tokens], written: list[list[int]]) -> Iterator[Tensor]:
    """As `_cached_states`, for models whose cache does not take padding."""
    while True:
        rows = [Tokens([*p.ids, *w], p.slots + [-1] * len(w), features=p.features)
                for p, w in zip(prompts, written, strict=True)]  # fmt: skip
        hidden = model.hidden(collate(rows, model.device))
        yield hidden[range(len(rows)), [len(row) - 1 for row in rows]]
