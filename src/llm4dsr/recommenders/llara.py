"""LLaRA (Liao et al., SIGIR 2024, arXiv 2312.02445): a language model that reads titles together with item vectors.

Each title of a history is followed by a soft token: the vector of the item from a SASRec that was trained on the same
windows, projected into the embedding space by a small MLP. The model continues with the title of the next item:

    These items were chosen by a user, oldest first: "t1" [v1], "t2" [v2]. The next item is "t3"

Departure from the paper: its prompts hold 20 candidates, and the model writes one of them. Ours hold no candidates, and
items are ranked by the likelihood of their titles. So a rank counts the whole catalogue, as for the other backbones.

To train it, use `llara_training.fit_llara`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from llm4dsr.config import LLaRAConfig
from llm4dsr.core.arrays import PAD, FloatArray, IntArray
from llm4dsr.core.device import precision
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.lm.collate import run_batches
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prefix_tree import WindowTree, sequence_log_probs
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.lm.tokens import Tokens
from llm4dsr.recommenders.backbone import Backbone

HEAD, TAIL = "These items were chosen by a user, oldest first:", ". The next item is"
HISTORIES = 256  # whose scores of all items are in memory at a time
MAX_TOKENS = 512  # of a prompt with its answer; the oldest items of a longer history are left out
MAX_NODES = 2048  # of a prefix tree; its attention mask is quadratic in the nodes
MAX_LOGITS = 2**26  # of a prefix tree; the vocabularies of pre-trained models are large


class HybridLM(NoiseLM):
    """A causal LM that reads hybrid prompts: titles as tokens, and projected item vectors as soft tokens.

    It has no checkpoint format, because LLaRA is trained for evaluation only.

    Parameters
    ----------
    lm : PreTrainedModel or PeftModel
        The language model.
    tokenizer : PreTrainedTokenizerBase
        Its tokenizer.
    vectors : Tensor of float
        [N, d] one vector for each item of the catalogue; not trained.
    """

    def __init__(self, lm: Any, tokenizer: Any, vectors: Tensor) -> None:
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

    def embed(self, ids: Tensor, slots: Tensor, features: Tensor | None = None) -> Tensor:
        """Embed tokens; a soft token is the projected item vector alone.

        Parameters
        ----------
        ids, slots : Tensor of int
            [B, T] as in `Batch`. Where a slot is a catalogue row, the vector of this item replaces the token.
        features : None
            Not used; hybrid prompts have no co-occurrence features.

        Returns
        -------
        Tensor of float
            [B, T, H] input embeddings.
        """
        embeds: Tensor = self.base.get_input_embeddings()(ids)
        filled = slots >= 0
        soft = self.projector(self.items[slots[filled]])  # [filled, H]
        return embeds.index_put(torch.where(filled), soft.to(embeds.dtype))


class LLaRA:
    """A recommender that ranks items by the log-likelihood of their titles.

    Parameters
    ----------
    lm : HybridLM
        The language model.
    sasrec : Backbone
        Source of the item vectors, and of the candidates if `config.candidates` > 0.
    catalogue : Catalogue
        The items to rank.
    config : LLaRAConfig
        Options of LLaRA.
    """

    def __init__(self, lm: HybridLM, sasrec: Backbone, catalogue: Catalogue, config: LLaRAConfig) -> None:
        self.lm, self.sasrec, self.config = lm, sasrec, config
        pieces = PromptBuilder(lm.tokenizer, catalogue.titles, config.language_model, MAX_TOKENS)
        self.titles = pieces.titles[: len(catalogue)]  # tokens with the closing quote, at most a quarter of MAX_TOKENS
        bos = getattr(lm.tokenizer, "bos_token_id", None)
        self.head, self.tail = ([] if bos is None else [bos]) + pieces.encode(HEAD), pieces.encode(TAIL) + pieces.open
        self.open, self.separator = pieces.open, pieces.separator
        self._history_tokens = MAX_TOKENS - len(self.head) - len(self.tail) - max(map(len, self.titles))
        self._max_nodes = max(64, min(MAX_NODES, MAX_LOGITS // len(lm.tokenizer)))
        self._catalogue_trees: list[tuple[IntArray, WindowTree]] = []

    def prompt(self, history: Sequence[int], hybrid: bool = True) -> Tokens:
        """Build the prompt: everything before the first token of the answer.

        Parameters
        ----------
        history : sequence of int
            Catalogue rows, oldest first. Only the newest are used: as many as SASRec reads and as fit.
        hybrid : bool, default True
            Put a soft token behind each title; False: text only.

        Returns
        -------
        Tokens
            Its `read` holds the start of each title.
        """
        free, used = self._history_tokens, list[int]()
        for row in reversed(history[-self.sasrec.config.history :]):
            free -= len(self.separator) + len(self.open) + len(self.titles[row]) + 1
            if free < 0:
                break
            used.insert(0, row)
        out = Tokens()
        out.add(self.head)
        for i, row in enumerate(used):
            out.add((self.separator if i else []) + self.open)
            out.read.append(len(out))
            out.add(self.titles[row])
            if hybrid:
                out.add([0], slot=row)
        out.add(self.tail)
        out.answer = len(out)
        return out

    def example(self, windows: Windows, w: int, hybrid: bool, all_titles: bool) -> tuple[Tokens, FloatArray]:
        """Build the training example of one window: its prompt and the answer.

        Parameters
        ----------
        windows : Windows
            Training windows, targets included.
        w : int
            Index of the window.
        hybrid : bool
            As in `prompt`.
        all_titles : bool
            Learn the titles of the history too, not the answer alone.

        Returns
        -------
        tokens : Tokens
            Prompt and answer.
        weights : array of float
            [tokens] weight of the loss at each token; NaN where there is no loss.
        """
        row = windows.row(w)
        out = self.prompt(row[:-1], hybrid)
        out.read.append(len(out))
        out.add(self.titles[row[-1]])
        weights = np.full(len(out), np.nan)
        for back, start in enumerate(reversed(out.read if all_titles else out.read[-1:])):
            at = len(row) - 1 - back
            weight = 1.0 if windows.weights is None else windows.weights[windows.offsets[w] + at]
            weights[start : start + len(self.titles[row[at]])] = weight
        return out, weights

    def score(self, histories: Windows, items: Sequence[IntArray] | None = None) -> list[FloatArray]:
        """Score items by the log-likelihood of their titles.

        All titles of a history are scored in one pass over a prefix tree, or in several if there are many. Items with
        the same title have the same score.

        Parameters
        ----------
        histories : Windows
            W histories, without their targets.
        items : sequence of array of int, optional
            Catalogue rows to score for each history. Default: the whole catalogue.

        Returns
        -------
        list of array of float
            W arrays of log-likelihoods ≤ 0, higher = more likely next.
        """
        prompts = [self.prompt(histories.row(w)) for w in range(len(histories))]
        if items is None and not self._catalogue_trees:
            self._catalogue_trees = self._trees(np.arange(len(self.titles)))
        trees = [self._catalogue_trees if items is None else self._trees(items[w]) for w in range(len(prompts))]
        jobs = [(w, columns, tree) for w, own in enumerate(trees) for columns, tree in own]
        out = [np.empty(len(self.titles) if items is None else len(items[w])) for w in range(len(prompts))]

        def run(chosen: list[int]) -> list[list[float]]:
            with precision(self.config.model.dtype, self.lm.device):
                return sequence_log_probs(self.lm, [prompts[jobs[j][0]] for j in chosen], [jobs[j][2] for j in chosen])

        self.lm.eval()
        sizes = [len(prompts[w]) + len(tree.tokens) for w, _, tree in jobs]
        for chosen, scores in run_batches(sizes, self.config.batch_tokens, run):
            for j, values in zip(chosen, scores, strict=True):
                w, columns, _ = jobs[j]
                out[w][columns] = values
        return out

    def _score_each(self, histories: Windows, items: Sequence[IntArray] | None) -> Iterator[FloatArray]:
        """The scores of each history; those of HISTORIES are in memory at a time."""
        for start in range(0, len(histories), HISTORIES):
            end = min(start + HISTORIES, len(histories))
            yield from self.score(histories.take(np.arange(start, end)), None if items is None else items[start:end])

    def _trees(self, rows: IntArray) -> list[tuple[IntArray, WindowTree]]:
        """(indices into `rows`, prefix tree of their titles), at most `_max_nodes` each; similar titles together."""
        parts, free = list[list[int]](), 0
        for i in sorted(range(len(rows)), key=lambda i: self.titles[rows[i]]):
            free -= len(self.titles[rows[i]])
            if free < 0:
                parts.append([])
                free = self._max_nodes - len(self.titles[rows[i]])
            parts[-1].append(i)
        return [(np.array(part), WindowTree.of([self.titles[rows[i]] for i in part])) for part in parts]

    def rank(self, histories: Windows, targets: IntArray) -> IntArray:
        """Rank each target among the whole catalogue; ties count against the target.

        With `config.candidates`, the language model reorders SASRec's best items. All other items keep their SASRec
        rank. After an empty history, the target ranks last.

        Parameters
        ----------
        histories : Windows
            W histories, without their targets.
        targets : array of int
            [W] catalogue rows.

        Returns
        -------
        array of int
            [W] ranks from 1 to the size of the catalogue, 1 = best.
        """
        ranks = self.sasrec.rank(histories, targets)
        inside, items = np.flatnonzero(histories.lengths > 0), None
        if self.config.candidates:
            candidates = self.candidates(histories)
            inside = np.array([w for w in inside if targets[w] in candidates[w]], dtype=np.int64)
            items = [candidates[w] for w in inside]
        catalogue = np.arange(len(self.titles))
        for n, scores in enumerate(self._score_each(histories.take(inside), items)):
            target = scores[(catalogue if items is None else items[n]) == targets[inside[n]]]
            ranks[inside[n]] = len(scores) - np.count_nonzero(scores < target)  # a NaN score ranks last
        return ranks

    def recommend(self, histories: Windows, k: int) -> IntArray:
        """Return the best items [W, k] of each history, best first; PAD where there are fewer candidates.

        Parameters
        ----------
        histories : Windows
            W histories, without their targets.
        k : int
            Number of items.
        """
        out = np.full((len(histories), k), PAD)
        inside = np.flatnonzero(histories.lengths > 0)
        some = histories.take(inside)
        items = self.candidates(some) if self.config.candidates else None
        for n, scores in enumerate(self._score_each(some, items)):
            best = np.argsort(-scores, kind="stable")[:k]
            out[inside[n], : len(best)] = best if items is None else items[n][best]
        return out

    def candidates(self, histories: Windows) -> list[IntArray]:
        """Return for each history the items of SASRec ranks 1 to `config.candidates`, best first.

        Fewer if scores tie at the limit: tied items all have the lowest of their ranks.
        """
        count, out = min(self.config.candidates, self.sasrec.n_items), list[IntArray]()

        def choose(_: slice, scores: Tensor) -> None:
            best, rows = scores.topk(min(count + 1, self.sasrec.n_items), dim=1)
            beyond = best[:, count:].max(1, keepdim=True).values if best.shape[1] > count else -torch.inf
            out.extend([row[kept].cpu().numpy() for row, kept in zip(rows, best > beyond, strict=True)])

        self.sasrec.read_scores(histories, choose)
        return out
