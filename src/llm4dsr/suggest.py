"""Suggesting: a better item for each flagged interaction, always one that exists (arXiv 2408.08208, section 4.3).

Never the noisy item itself, never an item of the window, whatever the mode; items with one title count as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from llm4dsr.catalogue import BoolArray, Catalogue, IntArray, Windows
from llm4dsr.config import Config
from llm4dsr.model import NoiseLM
from llm4dsr.prompt import PromptBuilder, Tokens
from llm4dsr.tree import CatalogueTree, decode
from llm4dsr.tune import Progress, collate, precision, token_batches


@dataclass
class Suggestions:
    """One entry per flagged interaction. rows, positions: [F] where. items: [F] suggested catalogue rows, -1 = none
    left. generated: what was written, or None. grounding: how the item was found. distance: to it, 0 = exact."""

    rows: IntArray
    positions: IntArray
    items: IntArray
    generated: list[str | None]
    grounding: list[str]
    distance: npt.NDArray[np.float64]


def suggest(model: NoiseLM, builder: PromptBuilder, windows: Windows, flagged: BoolArray, catalogue: Catalogue,
            config: Config, progress: Progress | None = None) -> Suggestions:  # fmt: skip
    """Suggestions for the flagged [W, L] interactions only. items: vector takes the catalogue item whose title vector
    is nearest (cosine) to the predicted one; items: text decodes a title, by default inside the catalogue's tree."""
    model.eval()
    rows, positions = np.nonzero(flagged)
    count = len(rows)
    out = Suggestions(rows, positions, np.full(count, -1), [None] * count, ["none"] * count, np.full(count, np.nan))
    if not count:
        return out
    state = _Work(model, builder, windows, catalogue, config, out)
    by_vector = config.model.items == "vector"
    if by_vector and config.model.answer == "position":  # all flags of a window are read from one prompt
        flags = np.split(np.arange(count), np.flatnonzero(np.diff(rows)) + 1)
        prompts = [builder.prompt(state.window(f[0])) for f in flags]
        reads = [[prompt.read[positions[i]] for i in f] for prompt, f in zip(prompts, flags, strict=True)]
    else:
        flags = [np.array([i]) for i in range(count)]
        prompts = [builder.suggestion_prompt(state.window(i), int(positions[i])) for i in range(count)]
        reads = [[len(prompt) - 1] for prompt in prompts]
    tree = None
    if not by_vector:
        tree = CatalogueTree(builder.titles[: len(catalogue)], catalogue.canonical.tolist())
    done = 0
    budget = config.train.batch_tokens // (1 if by_vector else 4)
    for group in token_batches([len(p) for p in prompts], budget):
        with torch.inference_mode(), precision(config.model.dtype, model.device):
            if by_vector:
                hidden = model.hidden(*collate([prompts[i] for i in group], model.device))
                at = [(b, t) for b, p in enumerate(group) for t in reads[p]]
                flagged_here = [int(i) for p in group for i in flags[p]]
                state.nearest_vector(flagged_here, hidden[[b for b, _ in at], [t for _, t in at]])
            else:
                assert tree is not None
                limit = tree if config.suggest.mode == "constrained" else None
                written = decode(model, [prompts[i] for i in group], limit, [state.excluded(i) for i in group],
                                 builder.close, config.suggest.max_new_tokens)  # fmt: skip
                state.ground(group, written, tree, constrained=limit is not None)
        done += sum(len(flags[p]) for p in group)
        if progress:
            progress(done, count, "suggest")
    return out


@dataclass
class _Work:
    model: NoiseLM
    builder: PromptBuilder
    windows: Windows
    catalogue: Catalogue
    config: Config
    out: Suggestions
    _title_embeddings: Tensor | None = None

    def window(self, i: int) -> list[int]:
        return self.windows.row(self.out.rows[i])

    def excluded(self, i: int) -> list[int]:
        """Canonical rows of the window's items, the noisy one among them."""
        rows: list[int] = self.catalogue.canonical[self.window(i)].tolist()
        return rows

    def nearest_vector(self, group: list[int], hidden: Tensor) -> None:
        assert self.model.vectors is not None
        similarity = F.normalize(self.model.out(hidden.float()), dim=-1) @ F.normalize(self.model.vectors, dim=-1).T
        self._take(group, 1 - similarity, "nearest_vector")  # [G, N] cosine distance

    def ground(self, group: list[int], written: list[list[int]], tree: CatalogueTree, constrained: bool) -> None:
        stray = []
        for i, tokens in zip(group, written, strict=True):
            item = tree.row(tokens)
            text = self.model.tokenizer.decode(tokens, skip_special_tokens=True)
            self.out.generated[i] = text.removesuffix('"') or None
            if item >= 0 and item not in self.excluded(i):
                self.out.items[i], self.out.distance[i] = item, 0.0
                self.out.grounding[i] = "constrained" if constrained else "exact"
            elif not constrained:
                stray.append(i)
        if stray:
            texts = self._embed([self.builder.encode(self.out.generated[i] or "") or self.builder.open for i in stray])
            self._take(stray, torch.cdist(texts, self._titles()), "nearest_embedding")

    def _take(self, group: list[int], distance: Tensor, how: str) -> None:
        """Nearest allowed canonical item by a distance matrix [G, N]."""
        distance = distance.clone()
        distance[:, torch.from_numpy(self.catalogue.canonical != np.arange(len(self.catalogue)))] = torch.inf
        for g, i in enumerate(group):
            distance[g, self.excluded(i)] = torch.inf
        value, item = distance.min(dim=1)
        for g, i in enumerate(group):
            if torch.isfinite(value[g]):
                self.out.items[i], self.out.distance[i], self.out.grounding[i] = int(item[g]), float(value[g]), how

    def _titles(self) -> Tensor:
        if self._title_embeddings is None:
            self._title_embeddings = self._embed([t[: -len(self.builder.close)] for t in self.builder.titles[:-1]])
        return self._title_embeddings

    def _embed(self, texts: list[list[int]]) -> Tensor:
        """[n, H] last layer at the last token, of the base model without its adapter (published grounding)."""
        out: list[Any] = [None] * len(texts)
        tokens = [Tokens(ids=t, slots=[-1] * len(t)) for t in texts]
        adapter_off = self.model.lm.disable_adapter if hasattr(self.model.lm, "peft_config") else torch.no_grad
        with adapter_off():
            for group in token_batches([len(t) for t in tokens], self.config.train.batch_tokens):
                hidden = self.model.hidden(*collate([tokens[i] for i in group], self.model.device))
                for g, i in enumerate(group):
                    out[i] = hidden[g, len(tokens[i]) - 1].float()
        return torch.stack(out)
