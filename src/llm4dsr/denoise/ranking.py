"""Ranking of suggestions for soft tokens: a choice model over the catalogue, fitted on injected noise.

Each item gets a score from three sources of evidence and its popularity. The softmax of the scores over the items that
are allowed is the probability that the item belongs at the flagged position. It is fitted where the truth is known: on
injected items, whose originals were replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm4dsr.config import Config
from llm4dsr.core.arrays import PAD, BoolArray, FloatArray, IntArray
from llm4dsr.core.progress import log
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.predictions import Predictions, predict
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prompt import PromptBuilder

SCORES = 30_000_000  # items × flags that are held at once when the weights are fitted
NEIGHBORS = 2_000_000  # entries of co-occurring items that are held at once there
FEATURES = 4  # what RankingWeights weighs, if there are counts
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

    def by_evidence(self, popularity: float = 0.0) -> RankingWeights:
        """Return the weights that suggestions are ordered by: an item gains nothing by being popular.

        A popular item is the more probable choice, all else being equal. But thousands of such choices are the same few
        items, which narrows the catalogue that a recommender learns from.

        Parameters
        ----------
        popularity : float, default 0
            Most that popularity may weigh (`suggest.popularity_weight`); below 0, it counts against an item.
        """
        return dataclasses.replace(self, popularity=min(self.popularity, popularity))


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
    most, n_items, count = max(50, SCORES // len(model.vectors)), len(model.vectors), 0
    size = min(most, int(chosen.sum()))
    x = torch.empty(FEATURES, size, n_items)  # filled in place: the parts need not be kept
    y, mask = torch.empty(size, dtype=torch.long), torch.empty(size, n_items, dtype=torch.bool)
    for group, features in ranking_features(model, builder, windows, chosen, config):
        group = group[: size - count]
        here, some = slice(count, count + len(group)), np.arange(len(group))
        truth = catalogue.canonical[originals[group]]
        allowed = allowed_items(windows.take(group), catalogue)
        allowed[some, truth] = True  # it may stand in the window twice
        x[:, here], y[here], mask[here] = features[:, some], torch.from_numpy(truth), torch.from_numpy(~allowed)
        count += len(group)
        if count >= size:
            break
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


def assign_distinct(values: FloatArray, items: IntArray, histories: IntArray) -> IntArray:
    """Choose one of its best items for each flag, no item twice in a history; the most confident flag chooses first.

    Parameters
    ----------
    values : array of float
        [G, k] log-probability of the best items at each flag, best first; -inf where there is none.
    items : array of int
        [G, k] these items. With as many as the history has flags, one is left unless none is allowed.
    histories : array of int
        [G] the history of each flag.

    Returns
    -------
    array of int
        [G] which of its best items each flag gets, 0 to k - 1; -1 where none is left.

    Examples
    --------
    >>> values = np.log([[0.6, 0.3], [0.8, 0.1]])
    >>> assign_distinct(values, np.array([[5, 2], [5, 4]]), np.array([7, 7]))  # the second flag is surer of item 5
    array([1, 0])
    """
    left, out = values.copy(), np.full(len(values), -1)
    open_flags = np.arange(len(values))
    while len(open_flags):
        best = left[open_flags].argmax(axis=1)
        value = left[open_flags, best]
        order = np.lexsort((open_flags, -value, histories[open_flags]))  # by history, the most confident first
        _, first = np.unique(histories[open_flags[order]], return_index=True)
        winners, taken = open_flags[order[first]], np.isfinite(value[order[first]])
        out[winners[taken]] = best[order[first]][taken]
        open_flags = np.setdiff1d(open_flags, winners)
        claimed = {histories[w]: items[w, out[w]] for w in winners[taken].tolist()}
        theirs = np.array([claimed.get(h, PAD) for h in histories[open_flags].tolist()], dtype=np.int64)
        left[open_flags] = np.where(items[open_flags] == theirs[:, None], -np.inf, left[open_flags])
    return out


def ranking_features(
    model: NoiseLM, builder: PromptBuilder, windows: Windows, flagged: BoolArray, config: Config
) -> Iterator[tuple[IntArray, Tensor]]:
    """Describe every item as a suggestion for each flag, by the items of the window that are not flagged.

    Yields
    ------
    flags : array of int
        G flags, in the order of np.flatnonzero(flagged); the flags of a window come together.
    features : Tensor
        [K, G, N] what `RankingWeights` weighs; the first is the cosine of title vector and predicted vector.

    Raises
    ------
    ModelError
        If the flags of a single window do not fit into memory.
    """
    assert model.vectors is not None
    vectors, counts = F.normalize(model.vectors, dim=-1), builder.cooccurrence
    popularity = None if counts is None else torch.log1p(torch.tensor(counts.popularity).float())

    def describe(found: Predictions) -> Tensor:
        columns = [(found.vectors @ vectors.T).cpu()]
        if counts is not None and popularity is not None:
            assert counts.vectors is not None
            neighbor_scores = counts.neighbor_scores(found.windows, found.context)
            columns.append(torch.log1p(10 * torch.from_numpy(neighbor_scores).float()))
            columns.append(torch.from_numpy(counts.vectors.similarities(found.windows, found.context)))
            columns.append(popularity.expand_as(columns[0]))
        return torch.stack(columns)

    size = SCORES // 8 // len(vectors)
    if counts is not None:  # neighbors of all items of a window are in memory at once
        size = min(size, int(NEIGHBORS / max(1.0, counts.mean_neighbors * windows.lengths.mean())))
    size = max(1, size)
    with torch.inference_mode():
        yield from predict(model, builder, windows, flagged, config, describe, size)
