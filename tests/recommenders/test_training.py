"""Training of every backbone on data whose correct ranking is known (harness.py)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from llm4dsr.config import NeighborhoodConfig, RecommenderConfig
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError
from llm4dsr.metrics import hit_rate, ndcg
from llm4dsr.recommenders import BACKBONES
from llm4dsr.recommenders.backbone import Backbone
from llm4dsr.recommenders.neighborhood import Neighborhood, fit_neighborhood
from llm4dsr.recommenders.sasrec import SASRec
from llm4dsr.recommenders.training import Trained, train

from .harness import SMALL, Kind, N, circle, every_backbone, every_recommender


def budget(kind: type[Backbone], **options: Any) -> RecommenderConfig:
    """SMALL, with more epochs for BERT4Rec: half of its examples are gaps, not next items."""
    return replace(SMALL, **{"epochs": 24 if kind.name == "BERT4Rec" else SMALL.epochs, **options})


# --- what is learned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["sampled", "full", "bce"])
@every_backbone
def test_learns_the_circle(kind: type[Backbone], loss: str) -> None:
    config, enough = budget(kind, loss=loss), 0.95
    if loss == "bce":  # one negative at a time teaches slowly; chance is 1 / 12
        config, enough = budget(kind, loss=loss, epochs=12, dropout=0.0), 0.5
    trained = train(kind, circle(300, 1), circle(60, 2), N, config, 0)
    test = circle(100, 3)
    assert hit_rate(trained.model.rank(test.histories(), test.targets()), 1) > enough


@pytest.mark.parametrize("kind", [SASRec, BACKBONES["gru4rec"], BACKBONES["cl4srec"]])
def test_learns_from_each_item_of_a_window(kind: type[Backbone]) -> None:
    config = replace(SMALL, supervise="all", epochs=4)
    trained = train(kind, circle(300, 1), circle(60, 2), N, config, 0)
    test = circle(100, 3)
    assert hit_rate(trained.model.rank(test.histories(), test.targets()), 1) > 0.95


@every_backbone
def test_a_weight_of_zero_removes_an_interaction_as_a_target(kind: type[Backbone]) -> None:
    correct = circle(300, 1)
    rows = [correct.row(i) for i in range(len(correct))]
    weights = np.ones(len(correct.items))
    for i in range(200):  # two windows of three end on a wrong item, seven positions too far
        rows[i][-1] = (rows[i][-1] + 7) % N
        weights[correct.offsets[i + 1] - 1] = 0.0
    test = circle(100, 4)

    def hit(weights: np.ndarray | None) -> float:
        windows = Windows.from_lists(rows, weights=weights)
        trained = train(kind, windows, circle(60, 3), N, budget(kind, loss="full"), 0)
        return hit_rate(trained.model.rank(test.histories(), test.targets()), 1)

    assert hit(weights) > 0.9
    if kind is SASRec:  # without the weights, the wrong items are learned
        assert hit(None) < 0.5


def fit_kind(kind: Kind, windows: Windows, valid: Windows) -> Trained:
    if issubclass(kind, Neighborhood):
        return fit_neighborhood(kind, windows, valid, N, NeighborhoodConfig())
    return train(kind, windows, valid, N, replace(SMALL, epochs=2), 0)


@every_recommender
def test_windows_of_one_item_are_skipped(kind: Kind) -> None:
    single = Windows.from_lists([[1], [2]])
    mixed = Windows.from_lists([[1], [2, 3], [4, 5, 6]])
    assert len(fit_kind(kind, mixed, mixed).valid_ranks) == 2
    with pytest.raises(DataError, match=f"training.*{kind.name}"):
        fit_kind(kind, single, mixed)
    with pytest.raises(DataError, match=f"validation.*{kind.name}"):
        fit_kind(kind, mixed, single)


# --- seeds and batches -----------------------------------------------------------------------------------------------


@every_backbone
def test_the_seed_determines_the_model_and_the_random_state_is_restored(kind: type[Backbone]) -> None:
    def vectors(seed: int) -> torch.Tensor:
        return train(kind, circle(64, 1), circle(20, 2), N, replace(SMALL, epochs=2), seed).model.item_vectors.detach()

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = vectors(0)
    assert torch.equal(torch.rand(3), expected)  # the caller's random numbers do not depend on training
    assert torch.equal(first, vectors(0))
    assert not torch.equal(first, vectors(1))


@pytest.mark.parametrize("loss", ["sampled", "full"])
@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "cl4srec"])  # contrasts views within a pass
def test_a_batch_in_several_passes_is_the_same_step(name: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def vectors() -> torch.Tensor:
        config = replace(SMALL, loss=loss, dropout=0.0, epochs=1)
        return train(BACKBONES[name], circle(32, 1), circle(20, 2), N, config, 0).model.item_vectors.detach()

    whole = vectors()
    monkeypatch.setattr("llm4dsr.recommenders.backbone.MAX_SCORES", 100)
    assert torch.allclose(vectors(), whole, atol=1e-5)


# --- early stopping: independent of the backbone ---------------------------------------------------------------------


def test_returns_the_model_of_the_best_epoch() -> None:
    valid = circle(60, 2)
    messages: list[tuple[int, int, str]] = []
    config = replace(SMALL, dropout=0.5)
    trained = train(SASRec, circle(100, 1), valid, N, config, 0, lambda *m: messages.append(m))
    assert trained.best_epoch == int(np.argmax(trained.curve))
    best = trained.curve[trained.best_epoch]
    assert ndcg(trained.model.rank(valid.histories(), valid.targets()), 20) == pytest.approx(best)
    assert [m[:2] for m in messages] == [(i + 1, config.epochs) for i in range(len(trained.curve))]
    assert "NDCG@20" in messages[-1][2]


def test_stops_when_validation_no_longer_rises() -> None:
    config = replace(SMALL, learning_rate=0.0, patience=3)  # no epoch changes the model, so the first is the best
    assert len(train(SASRec, circle(64, 1), circle(20, 2), N, config, 0).curve) == 4


@every_backbone
def test_trained_anew_on_the_same_windows_it_is_the_best_epoch(kind: type[Backbone]) -> None:
    windows, valid, config = circle(64, 1), circle(20, 2), replace(SMALL, epochs=4, dropout=0.5)
    once, anew = (train(kind, windows, valid, N, config, 0, refit=refit) for refit in (None, windows))
    assert once.curve == anew.curve
    assert once.valid_ranks.tolist() == anew.valid_ranks.tolist()
    for name, weight in once.model.state_dict().items():
        assert torch.equal(weight, anew.model.state_dict()[name])


def test_trained_anew_it_knows_the_other_windows_and_validation_stays_unknown() -> None:
    few, all_windows, valid = circle(3, 1), circle(100, 3), circle(40, 2)
    config = replace(SMALL, learning_rate=0.0, patience=3)
    still = train(SASRec, few, valid, N, config, 0, refit=all_windows)
    assert len(still.curve) == 4  # stopped by validation, not by what it is trained on anew
    learned = train(SASRec, few, valid, N, SMALL, 0, refit=all_windows)
    alone = train(SASRec, few, valid, N, SMALL, 0)
    assert learned.curve == alone.curve
    found = [hit_rate(t.model.rank(valid.histories(), valid.targets()), 1) for t in (alone, learned)]
    assert found[1] > 2 * found[0]
