"""Recommenders in little memory: what does not fit is halved, and the result is the same."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from llm4dsr.config import NeighborhoodConfig
from llm4dsr.errors import ModelError
from llm4dsr.recommenders import BACKBONES, neighborhood
from llm4dsr.recommenders.backbone import Backbone
from llm4dsr.recommenders.ease import EASE
from llm4dsr.recommenders.item_knn import ItemKNN, weight_bytes
from llm4dsr.recommenders.neighborhood import user_matrix
from llm4dsr.recommenders.sasrec import SASRec
from llm4dsr.recommenders.training import train

from .harness import SMALL, Kind, N, circle, every_recommender, ready


@pytest.fixture
def limit(monkeypatch) -> Callable[..., None]:
    """limit(owner, name, most): a call whose argument at `place` has more rows than `most` is out of memory."""

    def patch(owner: Any, name: str, most: int, place: int = 0) -> None:
        original = getattr(owner, name)

        def limited(*arguments: Any, **options: Any) -> Any:
            if arguments[place].shape[0] > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, limited)

    return patch


@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "cl4srec"])  # contrasts views within a pass
def test_a_step_that_does_not_fit_is_taken_in_smaller_passes(name: str, limit, caplog) -> None:
    kind = BACKBONES[name]

    def vectors() -> torch.Tensor:
        config = replace(SMALL, dropout=0.0, epochs=1)
        return train(kind, circle(32, 1), circle(20, 2), N, config, 0).model.item_vectors.detach()

    plenty = vectors()
    limit(kind, "encode", 9, place=2)
    with caplog.at_level(logging.WARNING, "llm4dsr"):
        assert torch.allclose(vectors(), plenty, atol=1e-5)
    assert "at a time from now on" in caplog.text


def test_a_single_window_that_does_not_fit_is_an_error_for_people(limit) -> None:
    limit(SASRec, "encode", 0, place=2)
    with pytest.raises(ModelError, match="single one of the windows of SASRec"):
        train(SASRec, circle(64, 1), circle(20, 2), N, SMALL, 0)


@every_recommender
def test_ranks_and_recommendations_in_little_memory_are_the_same(kind: Kind, limit, caplog) -> None:
    histories, targets = circle(30, 3).histories(), circle(30, 3).targets()
    model = ready(kind)
    ranks, shown = model.rank(histories, targets), model.recommend(histories, 3)
    if issubclass(kind, Backbone):
        limit(kind, "last_states", 7, place=1)
    else:
        limit(neighborhood, "_count_below", 7)
    with caplog.at_level(logging.WARNING, "llm4dsr"):
        np.testing.assert_array_equal(model.rank(histories, targets), ranks)
        np.testing.assert_array_equal(model.recommend(histories, 3), shown)
    assert "histories for" in caplog.text


@pytest.mark.parametrize("kind", [ItemKNN, EASE])
def test_item_item_weights_in_little_memory_are_the_same(kind: Kind, limit) -> None:
    users, config = user_matrix(circle(60, 1), N), NeighborhoodConfig(ridge=2)
    plenty = kind(users, config).weights
    limit(*((ItemKNN, "_similar", 5, 2) if kind is ItemKNN else (sparse.csr_matrix, "toarray", 5)))
    little = kind(users, config).weights
    assert (plenty != little).sum() == 0


def test_item_knn_that_cannot_fit_is_refused_with_what_it_needs(monkeypatch) -> None:
    users = user_matrix(circle(60, 1), N)
    needed = weight_bytes(users, 0)
    assert needed == 2 * 8 * (users.T @ users).nnz  # fewer items than are sampled: exact
    assert weight_bytes(users, 2) == 2 * 8 * 2 * N
    monkeypatch.setattr("llm4dsr.recommenders.item_knn.available_memory", lambda: needed - 1)
    with pytest.raises(ModelError, match=r"item-kNN needs .* GiB of memory for 12 items"):
        ItemKNN(users, NeighborhoodConfig())
    ItemKNN(users, NeighborhoodConfig(neighbors=2))
    monkeypatch.setattr("llm4dsr.recommenders.item_knn.available_memory", lambda: 0)  # unknown
    ItemKNN(users, NeighborhoodConfig())
