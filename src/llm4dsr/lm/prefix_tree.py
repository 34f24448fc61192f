"""Prefix trees over titles.

One pass through a tree scores every title of a window. Decoding inside the catalogue's tree can only write titles that
exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from llm4dsr.lm.collate import Batch, stack_features
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.tokens import Tokens


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
    position that it would have in plain text.

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
    blocked = ~torch.from_numpy(seen).to(device)
    mask = torch.zeros(blocked.shape, dtype=dtype, device=device).masked_fill(blocked, torch.finfo(dtype).min)
    tokens, items, positions = (torch.from_numpy(part).to(device) for part in (ids, slots, places))
    batch = Batch(tokens, items, stack_features(prompts, device), torch.full((len(prompts),), size))
    hidden = model.hidden(batch, attention_mask=mask[:, None], position_ids=positions)
    out = []
    for b, (prompt, tree) in enumerate(zip(prompts, trees, strict=True)):
        paths = [path[:1] if first_token else path for path in tree.paths]
        # (parent, token) of all paths, one after the other
        steps = np.array([step for path in paths for step in path], dtype=np.int64).reshape(-1, 2)
        # The prompt's end, then the nodes
        logits = model.logits(hidden[b, len(prompt) - 1 : len(prompt) + len(tree.tokens)])  # [1 + nodes, vocabulary]
        parent, token = torch.from_numpy(steps.T).to(device)
        log_probs = (logits[parent + 1, token] - logits.logsumexp(-1)[parent + 1]).double().cpu().numpy()
        starts = np.cumsum([0, *map(len, paths)])[:-1]
        out.append(np.add.reduceat(log_probs, starts).tolist())
    return out


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
    """Continue each prompt greedily, with a key-value cache.

    Parameters
    ----------
    model : NoiseLM
        The model.
    prompts : sequence of Tokens
        The prompts; they are left-padded.
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
    width = max(len(p) for p in prompts)
    device = model.device
    ids, slots = torch.zeros(len(prompts), width, dtype=torch.long), torch.full((len(prompts), width), -1)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for b, p in enumerate(prompts):
        ids[b, width - len(p) :], slots[b, width - len(p) :] = torch.tensor(p.ids), torch.tensor(p.slots)
        mask[b, width - len(p) :] = 1
    ids, slots, mask, features = ids.to(device), slots.to(device), mask.to(device), stack_features(prompts, device)
    nodes = [0] * len(prompts)
    closed = [trees.closed(e) if trees else {} for e in excluded]
    written: list[list[int]] = [[] for _ in prompts]
    done = [trees is not None and not trees.allowed(0, closed[b]) for b in range(len(prompts))]
    cache = None
    while not all(done):
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        embeds = model.embed(ids, slots, features)
        state = model.states(embeds, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True)
        cache = state.past_key_values
        logits = model.logits(state.last_hidden_state[:, -1])  # [B, vocabulary]
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
        ids = torch.tensor([[w[-1] if w else 0] for w in written], device=device)  # finished rows idle along
        slots, features = torch.full_like(ids, -1), None
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return written
