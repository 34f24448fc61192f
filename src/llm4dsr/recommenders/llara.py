"""LLaRA (Liao et al., SIGIR 2024, arXiv 2312.02445): a language model that reads titles together with item vectors.

Behind each title of a history stands a soft token: the item's vector from a SASRec that was trained on the same
windows, brought into the space of the model's embeddings by a small MLP. The model answers with the next item's title:

    These items were chosen by a user, oldest first: "t1" [v1], "t2" [v2]. The next item is "t3"

The paper puts 20 candidates into the prompt and lets the model write one of them. Here no candidate is shown, and items
are ranked by the likelihood of their titles, so that a rank counts the whole catalogue, as every other backbone's does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm4dsr.batch import precision, run_batches
from llm4dsr.catalogue import Catalogue, FloatArray, IntArray, Windows
from llm4dsr.config import LLaRAConfig
from llm4dsr.model import NoiseLM
from llm4dsr.prompt import PromptBuilder, Tokens
from llm4dsr.recommenders.backbone import Backbone
from llm4dsr.tree import WindowTree, sequence_log_probs

HEAD, TAIL = "These items were chosen by a user, oldest first:", ". The next item is"
MAX_TOKENS = 512  # of a prompt with its answer; of a longer history the oldest items are left out
NODES = 2048  # of a prefix tree at most: its attention mask is a square
LOGITS = 2**26  # of a tree at most: the vocabularies of pre-trained models are large


class MixedLM(NoiseLM):
    """A causal LM that reads item vectors between its tokens. Made to be measured: it is not saved."""

    def __init__(self, lm: Any, tokenizer: Any, vectors: Tensor) -> None:
        """vectors: [N, d], one for each item of the catalogue; they stay as they are."""
        super().__init__(lm, tokenizer)
        embeddings = self.base.get_input_embeddings()
        hidden = embeddings.embedding_dim
        self.register_buffer("items", vectors / vectors.std().clamp(min=1e-9), persistent=False)
        self.items: Tensor
        last = nn.Linear(hidden, hidden)
        self.projector = nn.Sequential(nn.Linear(vectors.shape[1], hidden), nn.GELU(), last)
        # The first soft tokens should be about as long as the model's own embeddings.
        scale = float(embeddings.weight.detach().float().std())
        nn.init.normal_(last.weight, std=scale * (8 / hidden) ** 0.5)
        nn.init.zeros_(last.bias)

    def embed(self, ids: Tensor, slots: Tensor, evidence: Tensor | None = None) -> Tensor:
        """ids, slots [B, T] -> [B, T, H]: the projected vector of item s where slots = s >= 0, else the token's."""
        embeds: Tensor = self.base.get_input_embeddings()(ids)
        filled = slots >= 0
        soft = self.projector(self.items[slots[filled]])  # [filled, H]
        return embeds.index_put(torch.where(filled), soft.to(embeds.dtype))


class LLaRA:
    """Ranks items by the log-likelihood of their titles, each to its end.

    sasrec: gives the item vectors and, where config.candidates > 0, the items whose titles are read at all.
    """

    def __init__(self, lm: MixedLM, sasrec: Backbone, catalogue: Catalogue, config: LLaRAConfig) -> None:
        self.lm, self.sasrec, self.config = lm, sasrec, config
        pieces = PromptBuilder(lm.tokenizer, catalogue.titles, config.language_model, MAX_TOKENS)
        self.titles = pieces.titles[: len(catalogue)]  # tokens with the closing quote, a quarter of MAX_TOKENS at most
        bos = getattr(lm.tokenizer, "bos_token_id", None)
        self.head, self.tail = ([] if bos is None else [bos]) + pieces.encode(HEAD), pieces.encode(TAIL) + pieces.open
        self.open, self.separator = pieces.open, pieces.separator
        self._room = MAX_TOKENS - len(self.head) - len(self.tail) - max(map(len, self.titles))
        self._nodes = max(64, min(NODES, LOGITS // len(lm.tokenizer)))
        self._all: list[tuple[IntArray, WindowTree]] = []

    def prompt(self, history: Sequence[int], mixed: bool = True) -> Tokens:
        """Everything before the first token of the answer. `read` holds where each title starts.

        history: catalogue rows, oldest first; the newest are taken, as many as SASRec reads and as have room. mixed:
        with the soft tokens, else text alone.
        """
        room, taken = self._room, list[int]()
        for row in reversed(history[-self.sasrec.config.history :]):
            room -= len(self.separator) + len(self.open) + len(self.titles[row]) + 1
            if room < 0:
                break
            taken.insert(0, row)
        out = Tokens()
        out.add(self.head)
        for i, row in enumerate(taken):
            out.add((self.separator if i else []) + self.open)
            out.read.append(len(out))
            out.add(self.titles[row])
            if mixed:
                out.add([0], slot=row)
        out.add(self.tail)
        out.answer = len(out)
        return out

    def example(self, windows: Windows, w: int, mixed: bool, whole: bool) -> tuple[Tokens, FloatArray]:
        """Window w as a prompt with its answer, and [tokens] the weight of the loss at each; NaN where there is none.

        whole: the titles of the history are learnt, too, and not the answer alone.
        """
        row = windows.row(w)
        out = self.prompt(row[:-1], mixed)
        out.read.append(len(out))
        out.add(self.titles[row[-1]])
        weights = np.full(len(out), np.nan)
        for back, start in enumerate(reversed(out.read if whole else out.read[-1:])):
            at = len(row) - 1 - back
            weight = 1.0 if windows.weights is None else windows.weights[w, at]
            weights[start : start + len(self.titles[row[at]])] = weight
        return out, weights

    def score(self, histories: Windows, items: Sequence[IntArray] | None = None) -> list[FloatArray]:
        """For each history the log-likelihoods, 0 at most, of the titles of its `items` (catalogue rows; None: of all).

        The titles of a history are scored in one pass, many of them in several. Items of one title have one score.
        """
        prompts = [self.prompt(histories.row(w)) for w in range(len(histories))]
        if items is None and not self._all:
            self._all = self._trees(np.arange(len(self.titles)))
        trees = [self._all if items is None else self._trees(items[w]) for w in range(len(prompts))]
        jobs = [(w, places, tree) for w, here in enumerate(trees) for places, tree in here]
        out = [np.empty(len(self.titles) if items is None else len(items[w])) for w in range(len(prompts))]

        def run(chosen: list[int]) -> list[list[float]]:
            with precision(self.config.model.dtype, self.lm.device):
                return sequence_log_probs(self.lm, [prompts[jobs[j][0]] for j in chosen], [jobs[j][2] for j in chosen])

        self.lm.eval()
        sizes = [len(prompts[w]) + len(tree.tokens) for w, _, tree in jobs]
        for chosen, scores in run_batches(sizes, self.config.batch_tokens, run):
            for j, values in zip(chosen, scores, strict=True):
                w, places, _ = jobs[j]
                out[w][places] = values
        return out

    def _trees(self, rows: IntArray) -> list[tuple[IntArray, WindowTree]]:
        """(places in `rows`, the tree of their titles) of `_nodes` nodes at most; like beginnings are together."""
        parts, room = list[list[int]](), 0
        for i in sorted(range(len(rows)), key=lambda i: self.titles[rows[i]]):
            room -= len(self.titles[rows[i]])
            if room < 0:
                parts.append([])
                room = self._nodes - len(self.titles[rows[i]])
            parts[-1].append(i)
        return [(np.array(part), WindowTree.of([self.titles[rows[i]] for i in part])) for part in parts]

    def rank(self, histories: Windows, targets: IntArray) -> IntArray:
        """[W] rank of each target among the whole catalogue, 1 = best; ties count against the target.

        With config.candidates, SASRec's best items are put in the order of their titles' likelihoods; all others keep
        their SASRec rank, and so does a target that is none of the best. An empty history ranks its target last.
        """
        ranks = self.sasrec.rank(histories, targets)
        inside, items = np.flatnonzero(histories.lengths > 0), None
        if self.config.candidates:
            candidates = self.candidates(histories)
            inside = np.array([w for w in inside if targets[w] in candidates[w]], dtype=np.int64)
            items = [candidates[w] for w in inside]
        everything = np.arange(len(self.titles))
        for n, scores in enumerate(self.score(histories.take(inside), items)):
            own = scores[(everything if items is None else items[n]) == targets[inside[n]]]
            ranks[inside[n]] = len(scores) - np.count_nonzero(scores < own)  # also last where it is not a number
        return ranks

    def candidates(self, histories: Windows) -> list[IntArray]:
        """For each history the items of SASRec ranks 1 to config.candidates, best first; fewer where scores tie."""
        count = min(self.config.candidates, self.sasrec.n_items)
        out = []
        for _, scores in self.sasrec.scored(histories):
            best, rows = scores.topk(min(count + 1, self.sasrec.n_items), dim=1)
            beyond = best[:, count:].max(1, keepdim=True).values if best.shape[1] > count else -torch.inf
            out += [row[kept].cpu().numpy() for row, kept in zip(rows, best > beyond, strict=True)]
        return out
