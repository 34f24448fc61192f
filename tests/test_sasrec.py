"""SASRec on data whose right answer is known: 30 items in a circle, each followed by the next one."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from llm4dsr.catalogue import PAD, Windows
from llm4dsr.config import RecommenderConfig
from llm4dsr.errors import ConfigError, DataError
from llm4dsr.metrics import hit_rate, ndcg
from llm4dsr.recommenders.backbone import Dropout
from llm4dsr.recommenders.sasrec import SASRec
from llm4dsr.recommenders.training import train

N = 30


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These matrices are so small that threads cost more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SMALL = RecommenderConfig(
    hidden_size=32, blocks=1, dropout=0.1, history=5, learning_rate=1e-2, batch_size=64, negatives=20, epochs=12
)


def circle(size: int, seed: int, step: int = 1) -> Windows:
    """Windows of 3 to 6 items, i -> i + step (mod 30)."""
    rng = np.random.default_rng(seed)
    return Windows.from_lists([(rng.integers(N) + step * np.arange(rng.integers(3, 7))) % N for _ in range(size)])


def untrained(n_items: int = N, config: RecommenderConfig = SMALL) -> SASRec:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SASRec(n_items, config).eval()


@pytest.mark.parametrize("supervise", ["last", "all"])
@pytest.mark.parametrize("loss", ["sampled", "full", "bce"])
def test_learns_the_circle(loss: str, supervise: str) -> None:
    config = replace(SMALL, loss=loss, supervise=supervise)
    if loss == "bce":  # one negative at a time teaches slowly
        config = replace(config, learning_rate=2e-2, epochs=40, patience=40, dropout=0.0)
    messages: list[tuple[int, int, str]] = []
    done = train(SASRec, circle(600, 1), circle(300, 2), N, config, 0, lambda *m: messages.append(m))
    test = circle(100, 3)
    ranks = done.model.rank(test.histories(), test.targets())
    assert hit_rate(ranks, 1) > 0.95
    assert len(messages) == len(done.curve)
    assert "NDCG@20" in messages[-1][2]


def test_gives_back_the_model_of_the_best_epoch() -> None:
    valid = circle(60, 2)
    done = train(SASRec, circle(200, 1), valid, N, replace(SMALL, epochs=8, dropout=0.5), 0)
    assert done.best_epoch == int(np.argmax(done.curve))
    ranks = done.model.rank(valid.histories(), valid.targets())
    assert ndcg(ranks, 20) == pytest.approx(done.curve[done.best_epoch])


def test_stops_when_validation_no_longer_rises() -> None:
    config = replace(SMALL, learning_rate=0.0, epochs=50, patience=3)  # nothing changes, so the first epoch is the best
    assert len(train(SASRec, circle(100, 1), circle(20, 2), N, config, 0).curve) == 4


def test_the_seed_decides_and_nothing_else_is_disturbed() -> None:
    def weights(seed: int) -> torch.Tensor:
        done = train(SASRec, circle(100, 1), circle(20, 2), N, replace(SMALL, epochs=2), seed)
        return done.model.item_vectors.detach()

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = weights(0)
    assert torch.equal(torch.rand(3), expected)  # the caller's random numbers go on as if nothing had been trained
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_a_state_sees_no_later_item() -> None:
    model = untrained()
    items = torch.tensor([[3, 7, 1, 9, 4]])
    changed = torch.tensor([[3, 7, 1, 20, 21]])
    assert torch.equal(model(items)[:, :3], model(changed)[:, :3])
    assert not torch.allclose(model(items)[:, 3:], model(changed)[:, 3:])


def test_padding_changes_nothing() -> None:
    model = untrained()
    short, padded = torch.tensor([[3, 7, 1]]), torch.tensor([[3, 7, 1, PAD, PAD]])
    assert torch.allclose(model.last_states(short), model.last_states(padded), atol=1e-6)


def test_the_most_recent_items_count() -> None:
    model = untrained()  # reads 5 items
    long = Windows.from_lists([[8, 9, 10, 1, 2, 3, 4, 5], [6, 7]])
    short = Windows.from_lists([[1, 2, 3, 4, 5], [6, 7]])
    wanted = np.array([6, 8])
    assert (model.rank(long, wanted) == model.rank(short, wanted)).all()


def test_ranks_are_those_of_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    model = untrained()
    windows = circle(50, 4)
    histories, targets = windows.histories(), windows.targets()
    scores = (model.last_states(torch.from_numpy(histories.items)) @ model.item_vectors.T).detach().numpy()
    sorted_ids = np.argsort(-scores, axis=1)
    expected = [list(row).index(target) + 1 for row, target in zip(sorted_ids, targets, strict=True)]
    assert model.rank(histories, targets).tolist() == expected
    monkeypatch.setattr("llm4dsr.recommenders.backbone.LOGITS", 7 * N)  # in pieces of seven windows
    assert model.rank(histories, targets).tolist() == expected


def test_ties_count_against_the_target() -> None:
    windows = circle(5, 5)
    model = untrained()
    torch.nn.init.constant_(model.items.weight, 1.0)  # all items score the same
    assert (model.rank(windows.histories(), windows.targets()) == N).all()
    model = untrained()
    with torch.no_grad():
        model.items.weight[3] = model.items.weight[4]
    after_two = Windows.from_lists([[0, 1, 2]])
    ranks = [int(model.rank(after_two, np.array([i]))[0]) for i in range(N)]
    assert ranks[3] == ranks[4]  # both have the lower of their two places …
    assert ranks[3] - 1 not in ranks  # … and nobody the higher one


def test_an_empty_history_or_a_broken_model_ranks_last() -> None:
    model = untrained()
    assert model.rank(Windows.from_lists([[], [1, 2]]), np.array([0, 3]))[0] == N
    assert model.rank(Windows.from_lists([[]]), np.array([0])).tolist() == [N]
    torch.nn.init.constant_(model.items.weight, float("nan"))
    assert model.rank(Windows.from_lists([[1, 2]]), np.array([3])).tolist() == [N]


@pytest.mark.parametrize("supervise", ["last", "all"])
def test_a_weight_of_zero_removes_an_interaction_as_a_target(supervise: str) -> None:
    right = circle(600, 1)
    rows = [row[:n].copy() for row, n in zip(right.items, right.lengths, strict=True)]
    weights = np.ones(right.items.shape)
    for i in range(0, 400):  # two windows of three end on a wrong item, seven places too far
        rows[i][-1] = (rows[i][-1] + 7) % N
        weights[i, right.lengths[i] - 1] = 0.0
    test = circle(100, 4)

    def hit(weights: np.ndarray | None) -> float:
        config = replace(SMALL, supervise=supervise)
        done = train(SASRec, Windows.from_lists(rows, weights=weights), circle(60, 3), N, config, 0)
        return hit_rate(done.model.rank(test.histories(), test.targets()), 1)

    assert hit(weights) > 0.9
    if supervise == "last":  # with "all", the right items inside the windows outvote the wrong ones at their ends
        assert hit(None) < 0.4


@pytest.mark.parametrize("loss", ["sampled", "full"])
def test_a_batch_in_pieces_is_the_same_step(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def weights() -> torch.Tensor:
        config = replace(SMALL, loss=loss, dropout=0.0, epochs=1)
        return train(SASRec, circle(64, 1), circle(20, 2), N, config, 0).model.item_vectors.detach()

    whole = weights()
    monkeypatch.setattr("llm4dsr.recommenders.backbone.LOGITS", 400)
    assert torch.allclose(weights(), whole, atol=1e-5)


def test_dropout_keeps_the_mean_and_rests_in_evaluation() -> None:
    torch.manual_seed(0)
    layer, x = Dropout(0.3), torch.ones(100, 1001)
    out = layer(x)
    assert (out == 0).double().mean() == pytest.approx(0.3, abs=0.01)
    assert out.mean() == pytest.approx(1, abs=0.01)
    assert torch.equal(layer.eval()(x), x)


def test_windows_of_one_item_are_skipped() -> None:
    single = Windows.from_lists([[1], [2]])
    mixed = Windows.from_lists([[1], [2, 3], [4, 5, 6]])
    assert len(train(SASRec, mixed, mixed, N, replace(SMALL, epochs=2), 0).curve) == 2
    with pytest.raises(DataError, match="training"):
        train(SASRec, single, mixed, N, SMALL, 0)
    with pytest.raises(DataError, match="validation"):
        train(SASRec, mixed, single, N, SMALL, 0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"heads": 3}, "multiple"), ({"negatives": 0}, "negatives = 0"), ({"dropout": 1.0}, "below 1")],
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SASRec(N, replace(SMALL, **wrong))


def test_the_last_state_alone_is_the_same_state() -> None:
    model = untrained()
    items = torch.tensor([[3, 7, 1, PAD, PAD], [1, 2, 3, 4, 5]])
    states = model(items)
    assert torch.allclose(model.last_states(items), torch.stack([states[0, 2], states[1, 4]]), atol=1e-5)
