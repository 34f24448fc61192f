"""Suggesting: a replacement for each flagged interaction, always an item that exists (arXiv 2408.08208, section 4.3).

Never the noisy item, never an item of the history, and never one item twice in a history. Items with the same title
count as one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from llm4dsr.config import Config
from llm4dsr.core.arrays import BoolArray, IntArray
from llm4dsr.core.device import precision
from llm4dsr.core.progress import Progress
from llm4dsr.data.catalogue import Catalogue, clean_title
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.best_items import ItemRanker
from llm4dsr.denoise.predictions import Predictions, predict
from llm4dsr.denoise.ranking import RankingWeights, assign_distinct
from llm4dsr.lm.catalogue_tree import CatalogueTree
from llm4dsr.lm.collate import collate, run_batches
from llm4dsr.lm.decode import decode_freely, decode_in_catalogue
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.passes import decoding_tokens, pass_tokens_of
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.lm.tokens import Tokens

FLAGS = 256  # whose items are ranked at once


@dataclass
class Suggestions:
    """Suggestions for F flagged interactions.

    Attributes
    ----------
    rows, positions : array of int
        [F] window and position of each.
    items : array of int
        [F] suggested catalogue rows; -1 = none left.
    generated : list of str or None
        Generated text; None for soft tokens.
    grounding : list of str
        How each item was found; one of columns.GROUNDINGS.
    distance : array of float
        [F] distance to the item; 0 = exact.
    probability : array of float
        [F] probability that exactly this item belongs there, in [0, 1]; NaN where titles are generated.
    """

    rows: IntArray
    positions: IntArray
    items: IntArray
    generated: list[str | None]
    grounding: list[str]
    distance: npt.NDArray[np.float64]
    probability: npt.NDArray[np.float64]

    @classmethod
    def none(cls, rows: IntArray, positions: IntArray) -> Suggestions:
        """Make an empty suggestion for each flagged interaction."""
        n = len(rows)
        unknown = np.full(n, np.nan)
        return cls(rows, positions, np.full(n, -1), [None] * n, ["none"] * n, unknown, unknown.copy())


NOTHING = Suggestions.none(np.empty(0, np.int64), np.empty(0, np.int64))


def suggest(
    model: NoiseLM,
    builder: PromptBuilder,
    windows: Windows,
    flagged: BoolArray,
    catalogue: Catalogue,
    config: Config,
    ranking_weights: RankingWeights | None = None,
    progress: Progress | None = None,
    histories: Windows | None = None,
    history_rows: IntArray | None = None,
    states: npt.NDArray[np.float32] | None = None,
) -> Suggestions:
    """Suggest a replacement for each flagged interaction.

    Parameters
    ----------
    model : NoiseLM
        A tuned model.
    builder : PromptBuilder
        Its prompts.
    windows : Windows
        W windows with n interactions.
    flagged : array of bool
        [n] True where a replacement is wanted.
    catalogue : Catalogue
        The items.
    config : Config
        All options. item_input: soft_token takes the item that ranks first. item_input: title decodes a title, inside
        the catalogue's tree by default.
    ranking_weights : RankingWeights, optional
        For soft tokens.
    progress : Progress, optional
        Called with (flags done, all flags, "suggest").
    histories : Windows, optional
        The whole histories, where windows are parts of long ones. Default: the windows.
    history_rows : array of int, optional
        [W] row in `histories` of each window, ascending. Default: 0, 1, 2, …
    states : array of float32, optional
        As in `predict`.

    Returns
    -------
    Suggestions
        In the order of np.flatnonzero(flagged).
    """
    model.eval()
    rows, positions = windows.owners[flagged], windows.positions[flagged]
    count, out = len(rows), Suggestions.none(rows, positions)
    if not count:
        return out
    whole = windows if histories is None else histories
    of = rows if history_rows is None else history_rows[rows]  # [F] the history of each flag
    if config.model.item_input == "soft_token":
        weights, most = ranking_weights or RankingWeights(), config.suggest.popularity_weight
        ranker = ItemRanker(model, builder.cooccurrence, catalogue, weights, most)

        def choose(predictions: Predictions) -> None:
            group = predictions.flags
            asked, at, flags = np.unique(of[group], return_inverse=True, return_counts=True)
            best = ranker.best(predictions, whole.take(asked), at, int(flags.max()))
            chosen = assign_distinct(best.evidence, best.items, at)
            some = np.flatnonzero(chosen >= 0)
            found, pick = group[some], (some, chosen[some])
            out.items[found], out.probability[found] = best.items[pick], best.probability[pick]
            out.distance[found] = 1 - best.cosine[pick]

        for group, _ in predict(model, builder, windows, flagged, config, choose, FLAGS, of, states):
            if progress:
                progress(int(group[-1]) + 1, count, "suggest")
        out.grounding = ["none" if item < 0 else "nearest_vector" for item in out.items.tolist()]
        return out
    state = _Work(model, builder, whole, of, catalogue, config, out)
    features = builder.features(windows.take(rows))
    prompts = [builder.suggestion_prompt(windows.row(rows[i]), int(positions[i]), features[i]) for i in range(count)]
    tree = CatalogueTree(builder.titles[: len(catalogue)], catalogue.canonical.tolist())
    constrained = config.suggest.mode == "constrained"

    def write(flags: list[int]) -> list[list[int]]:
        asked = [prompts[i] for i in flags]
        with precision(config.model.dtype, model.device):
            if not constrained:
                return decode_freely(model, asked, builder.close, config.suggest.max_new_tokens)
            items = decode_in_catalogue(model, asked, tree, [state.excluded(i) for i in flags])
        return [builder.titles[item] if item >= 0 else [] for item in items.tolist()]

    budget = decoding_tokens(config)
    done, nth = 0, np.arange(count) - np.searchsorted(of, of)  # 0 for the first flag of a history, …
    for turn in range(int(nth.max()) + 1):  # later flags of a history must not get what earlier ones got
        turns = np.flatnonzero(nth == turn).tolist()
        for some, written in run_batches([len(prompts[i]) for i in turns], budget,
                                         lambda part, turns=turns: write([turns[k] for k in part])):  # type: ignore[misc]  # fmt: skip
            with torch.inference_mode():
                state.ground([turns[k] for k in some], written, tree, constrained)
            done += len(some)
            if progress:
                progress(done, count, "suggest")
    return out


@dataclass
class _Work:
    model: NoiseLM
    builder: PromptBuilder
    histories: Windows
    of: IntArray  # [F] the history of each flag, ascending
    catalogue: Catalogue
    config: Config
    out: Suggestions
    _title_embeddings: Tensor | None = None

    def excluded(self, i: int) -> list[int]:
        """Canonical rows of the history's items, the noisy one among them, and of what was suggested for others."""
        rows: list[int] = self.catalogue.canonical[self.histories.row(self.of[i])].tolist()
        here = slice(*np.searchsorted(self.of, [self.of[i], self.of[i] + 1]))
        return rows + [item for item in self.out.items[here].tolist() if item >= 0]

    def ground(self, group: list[int], written: list[list[int]], tree: CatalogueTree, constrained: bool) -> None:
        stray = []
        for i, tokens in zip(group, written, strict=True):
            item = tree.row(tokens)
            text = self.model.tokenizer.decode(tokens, skip_special_tokens=True)
            self.out.generated[i] = clean_title(text.removesuffix('"')) or None  # printable, as titles are
            if item >= 0 and item not in self.excluded(i):
                self.out.items[i], self.out.distance[i] = item, 0.0
                self.out.grounding[i] = "constrained" if constrained else "exact"
            elif not constrained:
                stray.append(i)
        if stray:
            texts = self._embed([self.builder.encode(self.out.generated[i] or "") or self.builder.open for i in stray])
            self._take_nearest(stray, torch.cdist(texts, self._titles()))

    def _take_nearest(self, group: list[int], distance: Tensor) -> None:
        """Take the allowed canonical item of the smallest distance [G, N]."""
        distance[:, torch.from_numpy(self.catalogue.canonical != np.arange(len(self.catalogue)))] = torch.inf
        for g, i in enumerate(group):
            distance[g, self.excluded(i)] = torch.inf
            value, item = distance[g].min(dim=0)
            if torch.isfinite(value):
                self.out.items[i], self.out.distance[i] = int(item), float(value)
                self.out.grounding[i] = "nearest_embedding"

    def _titles(self) -> Tensor:
        if self._title_embeddings is None:
            self._title_embeddings = self._embed([t[: -len(self.builder.close)] for t in self.builder.titles[:-1]])
        return self._title_embeddings

    def _embed(self, texts: list[list[int]]) -> Tensor:
        """[n, H] last layer at the last token, of the base model without its adapter (published grounding)."""
        out: list[Any] = [None] * len(texts)
        tokens = [Tokens(ids=t, slots=[-1] * len(t)) for t in texts]

        def last(group: list[int]) -> Tensor:
            hidden = self.model.hidden(collate([tokens[i] for i in group], self.model.device))
            return hidden[range(len(group)), [len(tokens[i]) - 1 for i in group]].float()

        with self.model.without_adapter():
            for group, states in run_batches([len(t) for t in tokens], pass_tokens_of(self.model, self.config), last):
                for i, state in zip(group, states, strict=True):
                    out[i] = state
        return torch.stack(out)
