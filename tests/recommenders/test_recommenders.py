"""What every backbone promises, on data whose right answer is known: items in a circle, each followed by the next."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from llm4dsr.config import RecommenderConfig
from llm4dsr.core.arrays import PAD
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ConfigError, DataError
from llm4dsr.metrics import hit_rate, ndcg
from llm4dsr.recommenders import BACKBONES
from llm4dsr.recommenders.backbone import Backbone, last_of
from llm4dsr.recommenders.sasrec import SASRec
from llm4dsr.recommenders.training import train

N = 12
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


def circle(size: int, seed: int) -> Windows:
    """Windows of 3 to 6 items, i -> i + 1 (mod N)."""
    rng = np.random.default_rng(seed)
    return Windows.from_lists([(rng.integers(N) + np.arange(rng.integers(3, 7))) % N for _ in range(size)])


def budget(kind: type[Backbone], **options: Any) -> RecommenderConfig:
    """SMALL, with more epochs for BERT4Rec: half of what it learns is to fill gaps, and not what comes next."""
    return replace(SMALL, **{"epochs": 24 if kind.name == "BERT4Rec" else SMALL.epochs, **options})


def untrained(kind: type[Backbone]) -> Backbone:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(N, SMALL).eval()


# --- it learns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["sampled", "full", "bce"])
@every_backbone
def test_learns_the_circle(kind: type[Backbone], loss: str) -> None:
    config, enough = budget(kind, loss=loss), 0.95
    if loss == "bce":  # one negative at a time teaches slowly; chance is 1 / 12
        config, enough = budget(kind, loss=loss, epochs=12, dropout=0.0), 0.5
    done = train(kind, circle(300, 1), circle(60, 2), N, config, 0)
    test = circle(100, 3)
    assert hit_rate(done.model.rank(test.histories(), test.targets()), 1) > enough


@pytest.mark.parametrize("kind", [SASRec, BACKBONES["gru4rec"], BACKBONES["cl4srec"]])
def test_learns_from_each_item_of_a_window(kind: type[Backbone]) -> None:
    config = replace(SMALL, supervise="all", epochs=4)
    done = train(kind, circle(300, 1), circle(60, 2), N, config, 0)
    test = circle(100, 3)
    assert hit_rate(done.model.rank(test.histories(), test.targets()), 1) > 0.95


@every_backbone
def test_a_weight_of_zero_removes_an_interaction_as_a_target(kind: type[Backbone]) -> None:
    right = circle(300, 1)
    rows = [row[:n].copy() for row, n in zip(right.items, right.lengths, strict=True)]
    weights = np.ones(right.items.shape)
    for i in range(200):  # two windows of three end on a wrong item, seven places too far
        rows[i][-1] = (rows[i][-1] + 7) % N
        weights[i, right.lengths[i] - 1] = 0.0
    test = circle(100, 4)

    def hit(weights: np.ndarray | None) -> float:
        done = train(kind, Windows.from_lists(rows, weights=weights), circle(60, 3), N, budget(kind, loss="full"), 0)
        return hit_rate(done.model.rank(test.histories(), test.targets()), 1)

    assert hit(weights) > 0.9
    if kind is SASRec:  # the weights are what did it
        assert hit(None) < 0.5


@every_backbone
def test_windows_of_one_item_are_skipped(kind: type[Backbone]) -> None:
    single = Windows.from_lists([[1], [2]])
    mixed = Windows.from_lists([[1], [2, 3], [4, 5, 6]])
    assert len(train(kind, mixed, mixed, N, replace(SMALL, epochs=2), 0).curve) == 2
    with pytest.raises(DataError, match=f"training.*{kind.name}"):
        train(kind, single, mixed, N, SMALL, 0)
    with pytest.raises(DataError, match=f"validation.*{kind.name}"):
        train(kind, mixed, single, N, SMALL, 0)


@every_backbone
def test_the_seed_decides_and_nothing_else_is_disturbed(kind: type[Backbone]) -> None:
    def weights(seed: int) -> torch.Tensor:
        return train(kind, circle(64, 1), circle(20, 2), N, replace(SMALL, epochs=2), seed).model.item_vectors.detach()

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = weights(0)
    assert torch.equal(torch.rand(3), expected)  # the caller's random numbers go on as if nothing had been trained
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


@pytest.mark.parametrize("loss", ["sampled", "full"])
@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "cl4srec"])  # its negatives are the piece's
def test_a_batch_in_pieces_is_the_same_step(name: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights() -> torch.Tensor:
        config = replace(SMALL, loss=loss, dropout=0.0, epochs=1)
        return train(BACKBONES[name], circle(32, 1), circle(20, 2), N, config, 0).model.item_vectors.detach()

    whole = weights()
    monkeypatch.setattr("llm4dsr.recommenders.backbone.LOGITS", 100)
    assert torch.allclose(weights(), whole, atol=1e-5)


# --- it reads a history ----------------------------------------------------------------------------------------------


@every_backbone
def test_padding_changes_nothing(kind: type[Backbone]) -> None:
    model = untrained(kind)
    short, padded = torch.tensor([[3, 7, 1]]), torch.tensor([[3, 7, 1, PAD, PAD]])
    assert torch.allclose(model.last_states(short), model.last_states(padded), atol=1e-6)


@every_backbone
def test_the_order_of_a_history_counts(kind: type[Backbone]) -> None:
    model = untrained(kind)
    one, other = torch.tensor([[3, 7, 1]]), torch.tensor([[7, 3, 1]])
    assert not torch.allclose(model.last_states(one), model.last_states(other), atol=1e-6)


@every_backbone
def test_the_most_recent_items_count(kind: type[Backbone]) -> None:
    model = untrained(kind)  # reads 5 items
    long = Windows.from_lists([[8, 9, 10, 1, 2, 3, 4, 5], [6, 7]])
    short = Windows.from_lists([[1, 2, 3, 4, 5], [6, 7]])
    wanted = np.array([6, 8])
    assert (model.rank(long, wanted) == model.rank(short, wanted)).all()


@every_backbone
def test_the_last_state_alone_is_the_same_state(kind: type[Backbone]) -> None:
    model = untrained(kind)
    items = torch.tensor([[3, 7, 1, PAD, PAD], [1, 2, 3, 4, 5]])
    ends = model.ends_with(items)
    states = model(ends)  # [2, L, d]
    assert states.shape[:2] == ends.shape
    expected = states[torch.arange(2), last_of(ends)]
    assert torch.allclose(model.last_states(items), expected, atol=1e-5)


# --- it ranks --------------------------------------------------------------------------------------------------------


@every_backbone
def test_ranks_are_those_of_sorting(kind: type[Backbone], monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained(kind)
    windows = circle(50, 4)
    histories, targets = windows.histories(), windows.targets()
    scores = (model.last_states(torch.from_numpy(histories.items)) @ model.item_vectors.T).detach().numpy()
    expected = [list(order).index(t) + 1 for order, t in zip(np.argsort(-scores, axis=1), targets, strict=True)]
    assert model.rank(histories, targets).tolist() == expected
    monkeypatch.setattr("llm4dsr.recommenders.backbone.LOGITS", 7 * N)  # in pieces of seven windows
    assert model.rank(histories, targets).tolist() == expected


@every_backbone
def test_ties_count_against_the_target(kind: type[Backbone]) -> None:
    windows = circle(5, 5)
    model = untrained(kind)
    torch.nn.init.constant_(model.items.weight, 1.0)  # all items score the same
    assert (model.rank(windows.histories(), windows.targets()) == N).all()
    model = untrained(kind)
    with torch.no_grad():
        model.items.weight[3] = model.items.weight[4]
    after_two = Windows.from_lists([[0, 1, 2]])
    ranks = [int(model.rank(after_two, np.array([i]))[0]) for i in range(N)]
    assert ranks[3] == ranks[4]  # both have the lower of their two places …
    assert ranks[3] - 1 not in ranks  # … and nobody the higher one


@every_backbone
def test_an_empty_history_or_a_broken_model_ranks_last(kind: type[Backbone]) -> None:
    model = untrained(kind)
    assert model.rank(Windows.from_lists([[], [1, 2]]), np.array([0, 3]))[0] == N
    assert model.rank(Windows.from_lists([[]]), np.array([0])).tolist() == [N]
    torch.nn.init.constant_(model.items.weight, float("nan"))
    assert model.rank(Windows.from_lists([[1, 2]]), np.array([3])).tolist() == [N]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"heads": 3}, "multiple"), ({"dropout": 1.0}, "below 1")],
)
@every_backbone
def test_settings_that_cannot_work_are_refused(kind: type[Backbone], wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind.name}.*{said}"):
        kind(N, replace(SMALL, **wrong))


@pytest.mark.parametrize("option", ["hidden_size", "heads", "history", "batch_size", "negatives"])
def test_sizes_of_zero_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} = 0; expected a number of at least 1"):
        replace(SMALL, **{option: 0})


# --- training is the same for each, so one stands for all ------------------------------------------------------------


def test_gives_back_the_model_of_the_best_epoch() -> None:
    valid = circle(60, 2)
    messages: list[tuple[int, int, str]] = []
    config = replace(SMALL, dropout=0.5)
    done = train(SASRec, circle(100, 1), valid, N, config, 0, lambda *m: messages.append(m))
    assert done.best_epoch == int(np.argmax(done.curve))
    assert ndcg(done.model.rank(valid.histories(), valid.targets()), 20) == pytest.approx(done.curve[done.best_epoch])
    assert [m[:2] for m in messages] == [(i + 1, config.epochs) for i in range(len(done.curve))]
    assert "NDCG@20" in messages[-1][2]


def test_stops_when_validation_no_longer_rises() -> None:
    config = replace(SMALL, learning_rate=0.0, patience=3)  # nothing changes, so the first epoch is the best
    assert len(train(SASRec, circle(64, 1), circle(20, 2), N, config, 0).curve) == 4
