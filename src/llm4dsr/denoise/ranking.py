"""Ranking of suggestions for soft tokens: a choice model over the catalogue, fitted on injected noise.

Each item gets a score from three sources of evidence and its popularity. The softmax of the scores over the items that
are allowed is the probability that the item belongs at the flagged position. It is fitted where the truth is known: on
injected items, whose originals were replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm4dsr.config import Config
from llm4dsr.core.arrays import BoolArray, FloatArray, IntArray
from llm4dsr.core.device import halve_batch, precision, run_or_oom
from llm4dsr.core.progress import log
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.lm.collate import collate
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prompt import PromptBuilder

SCORES = 30_000_000  # items × flags that are held at once when the weights are fitted
MIN_GAIN = 0.002  # nats per suggestion that the model must add to co-occurrence, or a warning is logged


@dataclass
class RankingWeights:
    """How suggestions are ranked, for soft tokens.

    score = cosine · cos(title vector, predicted vector) + cooccurrence · log(1 + 10 · neighbor score)
    + collaborative · cos(collaborative vector, that of the context) + popularity · log(1 + users of the item)

    Attributes
    ----------
    cosine, cooccurrence, collaborative : float
        Weights of evidence, at least 0: an item never ranks lower because it fits better.
    popularity : float
        Any number. Frequent items have much co-occurrence; a negative weight corrects for it.
    """

    cosine: float = 10.0
    cooccurrence: float = 0.0
    collaborative: float = 0.0
    popularity: float = 0.0

    def __call__(self, features: Tensor) -> Tensor:
        """Score items: features [K, G, N] → [G, N]. K is 1 (cosine alone) or 4."""
        weights = torch.tensor([self.cosine, self.cooccurrence, self.collaborative, self.popularity])
        scores: Tensor = torch.tensordot(weights[: len(features)].to(features), features, dims=1)
        return scores

    def by_evidence(self) -> RankingWeights:
        """Return the weights that suggestions are ordered by: an item gains nothing by being popular.

        A popular item is the more probable choice, all else being equal. But thousands of such choices are the same few
        items, which narrows the catalogue that a recommender learns from.
        """
        return dataclasses.replace(self, popularity=min(self.popularity, 0.0))


def fit_ranking_weights(
    model: NoiseLM,
    builder: PromptBuilder,
    windows: Windows,
    chosen: BoolArray,
    originals: IntArray,
    catalogue: Catalogue,
    config: Config,
) -> RankingWeights:
    """Fit the ranking weights on injected noise (multinomial logit).

    Under the fitted weights, the items that were replaced are the most likely choice among all items outside the
    window. A warning is logged where the model adds nothing to co-occurrence.

    Parameters
    ----------
    model : NoiseLM
        A tuned model.
    builder : PromptBuilder
        Its prompts.
    windows : Windows
        W windows with one injected item each, n interactions.
    chosen : array of bool
        [n] True where an item was replaced; one position in each window.
    originals : array of int
        [W] the catalogue rows that stood there.
    catalogue : Catalogue
        The items.
    config : Config
        All options.
    """
    if builder.cooccurrence is None:
        return RankingWeights()
    assert model.vectors is not None
    most = max(50, SCORES // len(model.vectors))
    columns, wanted, barred, count = [], [], [], 0
    for group, features in ranking_features(model, builder, windows, chosen, config):
        truth = catalogue.canonical[originals[group]]
        allowed = allowed_items(windows.take(group), catalogue)
        allowed[np.arange(len(group)), truth] = True  # it may stand in the window twice
        columns.append(features)
        wanted.append(torch.from_numpy(truth))
        barred.append(torch.from_numpy(~allowed))
        count += len(group)
        if count >= most:
            break
    x, y, mask = torch.cat(columns, dim=1)[:, :most], torch.cat(wanted)[:most], torch.cat(barred)[:most]
    weights, loss = _fit(x, y, mask)
    _, without = _fit(x[1:], y, mask)
    if without - loss < MIN_GAIN:
        log.warning(
            "The model's own suggestions add nothing to co-occurrence (%.4f nats), so co-occurrence alone ranks "
            "suggestions. More windows or epochs may help.",
            without - loss,
        )  # fmt: skip
    return RankingWeights(*weights)


def _fit(features: Tensor, wanted: Tensor, barred: Tensor) -> tuple[list[float], float]:
    """(weights, mean loss in nats); all weights but the last are at least 0. features: [K, n, N]."""
    raw = torch.zeros(len(features), requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=60, line_search_fn="strong_wolfe")

    def value() -> Tensor:
        weights = torch.cat([F.softplus(raw[:-1]), raw[-1:]])
        return F.cross_entropy(torch.tensordot(weights, features, dims=1).masked_fill(barred, -torch.inf), wanted)

    def step() -> float:
        optimizer.zero_grad()
        loss = value()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    optimizer.step(step)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return torch.cat([F.softplus(raw[:-1]), raw[-1:]]).tolist(), float(value())


def allowed_items(windows: Windows, catalogue: Catalogue) -> BoolArray:
    """[W, N] True for items that may be suggested: one of each title, and no title of the window."""
    allowed = np.repeat((catalogue.canonical == np.arange(len(catalogue)))[None], len(windows), axis=0)
    allowed[windows.owners, catalogue.canonical[windows.items]] = False
    return allowed


def assign_distinct(scores: FloatArray, histories: IntArray) -> tuple[IntArray, FloatArray]:
    """Choose an item for each flag, no item twice in a history; the most confident flag chooses first.

    Parameters
    ----------
    scores : array of float
        [G, N] log-probability of each item at each flag; -inf where it is not allowed.
    histories : array of int
        [G] the history of each flag.

    Returns
    -------
    items : array of int
        [G] the chosen item; -1 where none is left.
    values : array of float
        [G] its score.

    Examples
    --------
    >>> scores = np.log([[0.6, 0.3, 0.1], [0.8, 0.1, 0.1]])
    >>> assign_distinct(scores, np.array([7, 7]))[0]  # the second flag is surer of item 0
    array([1, 0])
    """
    scores = scores.copy()
    items, values = np.full(len(scores), -1), np.full(len(scores), -np.inf)
    left = np.arange(len(scores))
    while len(left):
        best = scores[left].argmax(axis=1)
        value = scores[left, best]
        order = np.lexsort((left, -value, histories[left]))  # by history, the most confident first
        _, first = np.unique(histories[left[order]], return_index=True)
        taken = np.isfinite(value[order[first]])
        winners = left[order[first]]
        items[winners[taken]], values[winners[taken]] = best[order[first]][taken], value[order[first]][taken]
        left = np.setdiff1d(left, winners)
        whose = dict(zip(histories[winners].tolist(), items[winners].tolist(), strict=True))
        claimed = np.array([whose[h] for h in histories[left].tolist()], dtype=np.int64)
        some = claimed >= 0
        scores[left[some], claimed[some]] = -np.inf
    return items, values


def ranking_features(
    model: NoiseLM,
    builder: PromptBuilder,
    windows: Windows,
    flagged: BoolArray,
    config: Config,
    histories: IntArray | None = None,
    read: Callable[[IntArray, Tensor], Any] = lambda _, features: features,
) -> Iterator[tuple[IntArray, Any]]:
    """Describe every item as a suggestion for each flag, by the items of the window that are not flagged.

    Parameters
    ----------
    model, builder, windows, config
        As in `suggest.suggest`.
    flagged : array of bool
        [n] True where items are described.
    histories : array of int, optional
        [F] the history of each flag, ascending. Default: the window.
    read : callable, optional
        Flags [G] and their features → what is made of them. On out-of-memory it is called again, for fewer flags.
        Default: the features.

    Yields
    ------
    flags : array of int
        G flags, in the order of np.flatnonzero(flagged); the flags of a history come together.
    result
        Of `read` on their features: [K, G, N] what `RankingWeights` weighs; the first is the cosine of title vector
        and predicted vector.

    Raises
    ------
    ModelError
        If the flags of a single history do not fit into memory.
    """
    assert model.vectors is not None
    rows, positions = windows.owners[flagged], windows.positions[flagged]
    vectors = F.normalize(model.vectors, dim=-1)
    starts = np.flatnonzero(np.diff(rows if histories is None else histories, prepend=-1))  # of histories
    size = max(1, SCORES // 8 // len(vectors))
    counts = builder.cooccurrence
    popularity = None if counts is None else torch.log1p(torch.tensor(counts.popularity).float())

    def describe(group: IntArray) -> Tensor:
        some = windows.take(rows[group])
        if config.model.readout == "per_position":
            prompts = builder.prompts(some)
            reads = [prompt.read[p] for prompt, p in zip(prompts, positions[group], strict=True)]
        else:
            described = builder.features(some)
            prompts = [builder.suggestion_prompt(some.row(i), int(p), described[i])
                       for i, p in enumerate(positions[group])]  # fmt: skip
            reads = [len(prompt) - 1 for prompt in prompts]
        with torch.inference_mode(), precision(config.model.dtype, model.device):
            hidden = model.hidden(collate(prompts, model.device))[range(len(group)), reads]
            cosine = (F.normalize(model.out(hidden.float()), dim=-1) @ vectors.T).cpu()
        columns = [cosine]
        if counts is not None and popularity is not None:
            assert counts.vectors is not None
            context = ~flagged[windows.interactions(rows[group])]
            columns.append(torch.log1p(10 * torch.from_numpy(counts.neighbor_scores(some, context)).float()))
            columns.append(torch.from_numpy(counts.vectors.similarities(some, context)))
            columns.append(popularity.expand_as(cosine))
        return torch.stack(columns)

    begin = 0
    while begin < len(rows):
        ends = np.append(starts[starts > begin], len(rows))  # never inside a history
        end = int(ends[ends <= begin + size].max(initial=ends[0]))
        group = np.arange(begin, end)
        found = run_or_oom(lambda group=group: (read(group, describe(group)),))  # type: ignore[misc]
        if found is None:
            size = halve_batch(1 if end == ends[0] else len(group), "flags")
            continue
        yield group, found[0]
        begin = end
