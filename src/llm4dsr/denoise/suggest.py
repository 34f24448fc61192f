"""Suggesting: a replacement for each flagged interaction, always an item that exists (arXiv 2408.08208, section 4.3).

Never the noisy item, never an item of the window. Items with the same title count as one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from llm4dsr.config import Config
from llm4dsr.core.arrays import BoolArray, IntArray
from llm4dsr.core.device import precision
from llm4dsr.core.progress import Progress
from llm4dsr.data.catalogue import Catalogue, clean_title
from llm4dsr.data.windows import Windows
from llm4dsr.lm.collate import collate, run_batches
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prefix_tree import CatalogueTree, decode
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.lm.tokens import Tokens

LOGITS = 30_000_000  # items × flags that are held at once when the blend is fitted


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
    """

    rows: IntArray
    positions: IntArray
    items: IntArray
    generated: list[str | None]
    grounding: list[str]
    distance: npt.NDArray[np.float64]


NOTHING = Suggestions(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), [], [], np.empty(0))


@dataclass
class RankingWeights:
    """How suggestions are ranked, for soft tokens.

    score = cosine · cos(title vector, predicted vector) + cooccurrence · log(1 + 10 · neighbor score)
    + popularity · log(1 + users of the item)

    Attributes
    ----------
    cosine, cooccurrence, popularity : float
        The weights.
    """

    cosine: float = 1.0
    cooccurrence: float = 0.0
    popularity: float = 0.0

    def __call__(self, cosine: Tensor, neighbor_scores: Tensor | None, popularity: Tensor | None) -> Tensor:
        """Score items [G, N] by cosine and neighbor_scores [G, N] and popularity [N]; the last two may be None."""
        score = self.cosine * cosine
        if neighbor_scores is not None and popularity is not None:
            speaks, known = _logs(neighbor_scores, popularity)
            score = score + self.cooccurrence * speaks + self.popularity * known
        return score


def _logs(neighbor_scores: Tensor, popularity: Tensor) -> tuple[Tensor, Tensor]:
    """What `cooccurrence` and `popularity` weigh."""
    return torch.log1p(10 * neighbor_scores), torch.log1p(popularity)


def suggest(
    model: NoiseLM,
    builder: PromptBuilder,
    windows: Windows,
    flagged: BoolArray,
    catalogue: Catalogue,
    config: Config,
    ranking_weights: RankingWeights | None = None,
    progress: Progress | None = None,
) -> Suggestions:
    """Suggest a replacement for each flagged interaction.

    Parameters
    ----------
    model : NoiseLM
        A tuned model.
    builder : PromptBuilder
        Its prompts.
    windows : Windows
        W windows of up to L items.
    flagged : array of bool
        [W, L] True where a replacement is wanted.
    catalogue : Catalogue
        The items.
    config : Config
        All options. item_input: soft_token takes the item that ranks first. item_input: title decodes a title, inside
        the catalogue's tree by default.
    ranking_weights : RankingWeights, optional
        For soft tokens.
    progress : Progress, optional
        Called with (flags done, all flags, "suggest").

    Returns
    -------
    Suggestions
        In the order of np.nonzero(flagged).
    """
    model.eval()
    rows, positions = np.nonzero(flagged)
    count = len(rows)
    out = Suggestions(rows, positions, np.full(count, -1), [None] * count, ["none"] * count, np.full(count, np.nan))
    if not count:
        return out
    state = _Work(model, builder, windows, catalogue, config, out)
    if config.model.item_input == "soft_token":
        popularity = None if builder.cooccurrence is None else torch.tensor(builder.cooccurrence.popularity)
        for group, cosine, neighbor_scores in _similarities(model, builder, windows, flagged, config):
            score = (ranking_weights or RankingWeights())(cosine, neighbor_scores, popularity)
            state.take(group, -score, "nearest_vector", 1 - cosine)
            if progress:
                progress(int(group[-1]) + 1, count, "suggest")
        return out
    features = builder.features(windows.take(rows))
    prompts = [builder.suggestion_prompt(state.window(i), int(positions[i]), features[i]) for i in range(count)]
    tree = CatalogueTree(builder.titles[: len(catalogue)], catalogue.canonical.tolist())
    limit = tree if config.suggest.mode == "constrained" else None

    def write(flags: list[int]) -> list[list[int]]:
        with torch.inference_mode(), precision(config.model.dtype, model.device):
            return decode(model, [prompts[i] for i in flags], limit, [state.excluded(i) for i in flags],
                          builder.close, config.suggest.max_new_tokens)  # fmt: skip

    done = 0
    for flags, written in run_batches([len(p) for p in prompts], config.train.batch_tokens // 4, write):
        with torch.inference_mode():
            state.ground(flags, written, tree, constrained=limit is not None)
        done += len(flags)
        if progress:
            progress(done, count, "suggest")
    return out


def fit_ranking_weights(
    model: NoiseLM, builder: PromptBuilder, windows: Windows, chosen: BoolArray, originals: IntArray, config: Config
) -> RankingWeights:
    """Fit the ranking weights on injected noise.

    Under the fitted weights, the items that were replaced are the most likely choice among all items outside the window
    (multinomial logit).

    Parameters
    ----------
    model, builder, config
        As in `suggest`.
    windows : Windows
        W windows with one injected item each.
    chosen : array of bool
        [W, L] True where an item was replaced; one position in each window.
    originals : array of int
        [W] the catalogue rows that stood there.

    Returns
    -------
    RankingWeights
    """
    if builder.cooccurrence is None:
        return RankingWeights()
    assert model.vectors is not None
    most = max(50, LOGITS // len(model.vectors))
    popularity = torch.tensor(builder.cooccurrence.popularity)
    columns, truth, inside = [], [], []
    for group, cosine, neighbor_scores in _similarities(model, builder, windows, chosen, config):
        assert neighbor_scores is not None
        speaks, known = _logs(neighbor_scores, popularity)
        columns.append(torch.stack([cosine, speaks, known.expand_as(cosine)]))
        truth.append(torch.from_numpy(originals[group]))
        here = np.zeros(cosine.shape, dtype=bool)
        rows, positions = np.nonzero(windows.present[group])
        here[rows, windows.items[group][rows, positions]] = True
        here[np.arange(len(group)), originals[group]] = False  # it may stand in the window twice
        inside.append(torch.from_numpy(here))
        if sum(len(t) for t in truth) >= most:
            break
    features, wanted = torch.cat(columns, dim=1)[:, :most].clone(), torch.cat(truth)[:most]  # [3, n, N], [n]
    barred = torch.cat(inside)[:most]  # [n, N]
    weights = torch.tensor([10.0, 1.0, 0.1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=30, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = F.cross_entropy(torch.tensordot(weights, features, dims=1).masked_fill(barred, -torch.inf), wanted)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return RankingWeights(*weights.detach().tolist())


def _similarities(
    model: NoiseLM, builder: PromptBuilder, windows: Windows, flagged: BoolArray, config: Config
) -> Iterator[tuple[IntArray, Tensor, Tensor | None]]:
    """Yield (flags, in the order of np.nonzero(flagged); [G, N] cosine of every title vector with the predicted
    one; [G, N] neighbor scores by the items of the window that are not flagged).
    """
    assert model.vectors is not None
    rows, positions = np.nonzero(flagged)
    vectors = F.normalize(model.vectors, dim=-1)
    size = max(1, LOGITS // 8 // len(vectors))
    for start in range(0, len(rows), size):
        group = np.arange(start, min(start + size, len(rows)))
        some = windows.take(rows[group])
        if config.model.readout == "per_position":
            prompts = builder.prompts(some)
            reads = [prompt.read[p] for prompt, p in zip(prompts, positions[group], strict=True)]
        else:
            features = builder.features(some)
            prompts = [builder.suggestion_prompt(some.row(i), int(p), features[i])
                       for i, p in enumerate(positions[group])]  # fmt: skip
            reads = [len(prompt) - 1 for prompt in prompts]
        with torch.inference_mode(), precision(config.model.dtype, model.device):
            hidden = model.hidden(collate(prompts, model.device))[range(len(group)), reads]
            cosine = F.normalize(model.out(hidden.float()), dim=-1) @ vectors.T
        neighbor_scores = None
        if builder.cooccurrence is not None:
            context = some.present & ~flagged[rows[group]]
            neighbor_scores = torch.from_numpy(builder.cooccurrence.neighbor_scores(some, context)).float()
        yield group, cosine.cpu(), neighbor_scores


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
            self.take(stray, torch.cdist(texts, self._titles()), "nearest_embedding")

    def take(self, group: Sequence[int] | IntArray, cost: Tensor, how: str, shown: Tensor | None = None) -> None:
        """Take the allowed canonical item of the lowest cost [G, N]; `shown` [G, N] goes into the table as distance."""
        cost = cost.clone()
        cost[:, torch.from_numpy(self.catalogue.canonical != np.arange(len(self.catalogue)))] = torch.inf
        for g, i in enumerate(group):
            cost[g, self.excluded(i)] = torch.inf
        value, item = cost.min(dim=1)
        distance = (cost if shown is None else shown).gather(1, item[:, None])[:, 0]
        for g, i in enumerate(group):
            if torch.isfinite(value[g]):
                self.out.items[i], self.out.distance[i], self.out.grounding[i] = int(item[g]), float(distance[g]), how

    def _titles(self) -> Tensor:
        if self._title_embeddings is None:
            self._title_embeddings = self._embed([t[: -len(self.builder.close)] for t in self.builder.titles[:-1]])
        return self._title_embeddings

    def _embed(self, texts: list[list[int]]) -> Tensor:
        """[n, H] last layer at the last token, of the base model without its adapter (published grounding)."""
        out: list[Any] = [None] * len(texts)
        tokens = [Tokens(ids=t, slots=[-1] * len(t)) for t in texts]
        adapter_off = self.model.lm.disable_adapter if hasattr(self.model.lm, "peft_config") else torch.no_grad

        def last(group: list[int]) -> Tensor:
            hidden = self.model.hidden(collate([tokens[i] for i in group], self.model.device))
            return hidden[range(len(group)), [len(tokens[i]) - 1 for i in group]].float()

        with adapter_off():
            for group, states in run_batches([len(t) for t in tokens], self.config.train.batch_tokens, last):
                for i, state in zip(group, states, strict=True):
                    out[i] = state
        return torch.stack(out)
