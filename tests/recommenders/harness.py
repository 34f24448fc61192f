"""Data whose correct ranking is known, and small models: 12 items in a circle, each followed by the next one."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from llm4dsr.config import LLaRAConfig, ModelConfig, NeighborhoodConfig, RecommenderConfig
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.recommenders import BACKBONES, NEIGHBORHOODS
from llm4dsr.recommenders.backbone import Backbone
from llm4dsr.recommenders.llara import LLaRA
from llm4dsr.recommenders.llara_training import build_hybrid_lm
from llm4dsr.recommenders.neighborhood import Neighborhood, history_matrix, user_matrix
from llm4dsr.recommenders.sasrec import SASRec

TITLES = [
    "Red Train",
    "Red Train Track",  # the title above is a prefix of it
    "Blue Boat",
    "Kite",
    "Doll House",
    "Doll",
    "Chess",
    "Yo-Yo",
    "Ünï ☕",
    "Wooden Blocks",
    "Puzzle",
    "Drum",
]
N = len(TITLES)


def circle(size: int, seed: int) -> Windows:
    """Windows of 3 to 6 items, i -> i + 1 (mod N)."""
    rng = np.random.default_rng(seed)
    return Windows.from_lists([(rng.integers(N) + np.arange(rng.integers(3, 7))) % N for _ in range(size)])


# --- backbones -------------------------------------------------------------------------------------------------------

SMALL = RecommenderConfig(
    hidden_size=32,
    blocks=1,
    dropout=0.1,
    history=5,
    learning_rate=1e-2,
    batch_size=32,
    negatives=10,
    epochs=8,
    patience=8,
)
every_backbone = pytest.mark.parametrize("kind", BACKBONES.values(), ids=BACKBONES)
Kind = type[Backbone] | type[Neighborhood]
_kinds: dict[str, Kind] = {**BACKBONES, **NEIGHBORHOODS}
every_recommender = pytest.mark.parametrize("kind", _kinds.values(), ids=_kinds)


def untrained(kind: type[Backbone]) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(N, SMALL).eval()


def ready(kind: Kind) -> Backbone | Neighborhood:
    """A model that can rank: untrained, or with the weights of the circle, made unequal so that few scores tie."""
    if issubclass(kind, Backbone):
        return untrained(kind)
    windows = circle(60, 1)
    unequal = replace(windows, weights=np.random.default_rng(2).uniform(0.1, 1, windows.items.shape))
    return kind(user_matrix(unequal, N), NeighborhoodConfig(ridge=2))


def scores_of(model: Backbone | Neighborhood, histories: Windows) -> np.ndarray:
    """[W, N] scores, computed at once."""
    if isinstance(model, Backbone):
        return (model.last_states(torch.from_numpy(histories.item_matrix)) @ model.item_vectors.T).detach().numpy()
    weights = model.weights if isinstance(model.weights, np.ndarray) else model.weights.toarray()
    return history_matrix(histories, N, model.config.decay).toarray() @ weights


def encoder(kind: type[Backbone]) -> Backbone:
    """An untrained model of two blocks, for 30 items."""
    return kind(30, replace(SMALL, blocks=2)).eval()


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-6)


# --- LLaRA -----------------------------------------------------------------------------------------------------------

MODEL = ModelConfig(
    item_input="title", readout="title", hidden_size=32, layers=2, heads=2, vocabulary=300, pretrain_epochs=1
)
LLARA = LLaRAConfig(model=MODEL, epochs=3, batch_windows=16, learning_rate=1e-2, candidates=0, samples=0)
SASREC = RecommenderConfig(
    hidden_size=16, blocks=1, history=5, learning_rate=1e-2, batch_size=64, negatives=8, epochs=2
)


def catalogue(titles: Sequence[str] = TITLES) -> Catalogue:
    return Catalogue(pl.Series("item_id", range(len(titles))), list(titles))


def untrained_llara(titles: Sequence[str] = TITLES, **changes: object) -> LLaRA:
    """A model with enlarged weights: with the initial ones, all titles of a length are about equally likely."""
    items, config = catalogue(titles), replace(LLARA, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sasrec = SASRec(len(titles), SASREC).eval()
        lm = build_hybrid_lm(items, sasrec.item_vectors.detach(), config, 0)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(4)
    return LLaRA(lm.eval(), sasrec, items, config)
