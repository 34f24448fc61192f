"""What every recommender guarantees about ranks, and every backbone about states and options.

Training is tested in test_training.py.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm4dsr.config import NeighborhoodConfig
from llm4dsr.core.arrays import PAD
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ConfigError
from llm4dsr.recommenders.backbone import Backbone, Dropout, last_of
from llm4dsr.recommenders.cl4srec import CL4SRec
from llm4dsr.recommenders.gru4rec import GRU4Rec
from llm4dsr.recommenders.item_knn import ItemKNN
from llm4dsr.recommenders.neighborhood import user_matrix
from llm4dsr.recommenders.sasrec import SASRec

from .harness import (
    SMALL,
    Kind,
    N,
    circle,
    encoder,
    every_backbone,
    every_recommender,
    ready,
    same,
    scores_of,
    untrained,
)


def test_dropout_keeps_the_mean_and_is_off_in_evaluation() -> None:
    layer, x = Dropout(0.3), torch.ones(100, 1001)
    out = layer(x)
    assert (out == 0).double().mean() == pytest.approx(0.3, abs=0.01)
    assert out.mean() == pytest.approx(1, abs=0.01)
    assert torch.equal(layer.eval()(x), x)


# --- states ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SASRec, GRU4Rec, CL4SRec])
def test_a_causal_state_sees_no_later_item(kind: type[Backbone]) -> None:
    model = encoder(kind)
    states = model(torch.tensor([[3, 7, 1, 9, 4], [3, 7, 1, 20, 21]]))
    assert same(states[0, :3], states[1, :3])
    assert not same(states[0, 3], states[1, 3])
    assert not same(states[0, 4], states[1, 4])


@every_backbone
def test_padding_has_no_effect(kind: type[Backbone]) -> None:
    model = untrained(kind)
    short, padded = torch.tensor([[3, 7, 1]]), torch.tensor([[3, 7, 1, PAD, PAD]])
    assert same(model.last_states(short), model.last_states(padded))


@every_backbone
def test_the_order_of_a_history_has_an_effect(kind: type[Backbone]) -> None:
    model = untrained(kind)
    one, other = torch.tensor([[3, 7, 1]]), torch.tensor([[7, 3, 1]])
    assert not same(model.last_states(one), model.last_states(other))


@every_backbone
def test_only_the_newest_items_are_read(kind: type[Backbone]) -> None:
    model = untrained(kind)  # reads 5 items
    long = Windows.from_lists([[8, 9, 10, 1, 2, 3, 4, 5], [6, 7]])
    short = Windows.from_lists([[1, 2, 3, 4, 5], [6, 7]])
    targets = np.array([6, 8])
    assert (model.rank(long, targets) == model.rank(short, targets)).all()


@every_backbone
def test_the_last_state_computed_alone_is_the_same(kind: type[Backbone]) -> None:
    model = untrained(kind)
    items = torch.tensor([[3, 7, 1, PAD, PAD], [1, 2, 3, 4, 5]])
    inputs = model.prediction_input(items)
    states = model(inputs)  # [2, L, d]
    assert states.shape[:2] == inputs.shape
    expected = states[torch.arange(2), last_of(inputs)]
    assert torch.allclose(model.last_states(items), expected, atol=1e-5)


# --- ranks -----------------------------------------------------------------------------------------------------------


@every_recommender
def test_ranks_equal_those_of_sorting(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ready(kind)
    windows = circle(50, 4)
    histories, targets = windows.histories(), windows.targets()
    scores = scores_of(model, histories)
    own = scores[np.arange(50), targets]
    expected = [N - int(np.searchsorted(np.sort(row), score)) for row, score in zip(scores, own, strict=True)]
    assert len(set(expected)) > 3
    assert model.rank(histories, targets).tolist() == expected
    monkeypatch.setattr("llm4dsr.recommenders.backbone.MAX_SCORES", 7 * N)  # in batches of seven windows
    monkeypatch.setattr("llm4dsr.recommenders.neighborhood.MAX_ENTRIES", 7 * N)
    assert model.rank(histories, targets).tolist() == expected


@every_recommender
def test_an_item_of_rank_r_is_the_rth_that_is_recommended(kind: Kind) -> None:
    """Items that score no more than an unrelated one are not recommended; nor is anything after an empty history."""
    model = ready(kind)
    histories = circle(30, 4).histories()
    shown = model.recommend(histories, 3)
    for r in range(3):
        known = np.flatnonzero(shown[:, r] >= 0)
        assert len(known)
        ranks = model.rank(histories.take(known), shown[known, r])
        assert (ranks >= r + 1).all()  # ties have the worse rank
        assert (ranks == r + 1).mean() > 0.5
    assert (model.recommend(Windows.from_lists([[], [1, 2]]), 3)[0] == -1).all()


@every_backbone
def test_ties_count_against_the_target(kind: type[Backbone]) -> None:
    windows = circle(5, 5)
    model = untrained(kind)
    torch.nn.init.constant_(model.items.weight, 1.0)  # all items have the same score
    assert (model.rank(windows.histories(), windows.targets()) == N).all()
    model = untrained(kind)
    with torch.no_grad():
        model.items.weight[3] = model.items.weight[4]
    after_two = Windows.from_lists([[0, 1, 2]])
    ranks = [int(model.rank(after_two, np.array([i]))[0]) for i in range(N)]
    assert ranks[3] == ranks[4]  # both have the lower of their two ranks …
    assert ranks[3] - 1 not in ranks  # … and no item has the higher one


@every_recommender
def test_an_empty_history_ranks_last(kind: Kind) -> None:
    model = ready(kind)
    first, second = model.rank(Windows.from_lists([[], [1, 2]]), np.array([0, 3]))
    assert first == N
    assert second == model.rank(Windows.from_lists([[1, 2]]), np.array([3]))[0]
    assert model.rank(Windows.from_lists([[]]), np.array([0])).tolist() == [N]
    assert model.rank(Windows.from_lists([]), np.array([], dtype=np.int64)).tolist() == []


@every_backbone
def test_scores_of_nan_rank_last(kind: type[Backbone]) -> None:
    model = untrained(kind)
    torch.nn.init.constant_(model.items.weight, float("nan"))
    assert model.rank(Windows.from_lists([[1, 2]]), np.array([3])).tolist() == [N]


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "message"), [({"heads": 3}, "multiple"), ({"dropout": 1.0}, "below 1")])
@every_backbone
def test_impossible_options_are_refused(kind: type[Backbone], option: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=f"{kind.name}.*{message}"):
        kind(N, replace(SMALL, **option))


@pytest.mark.parametrize("option", ["hidden_size", "heads", "history", "batch_size", "negatives"])
def test_sizes_of_zero_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} = 0; expected a number of at least 1"):
        replace(SMALL, **{option: 0})


def test_recommending_keeps_sparse_scores_sparse() -> None:
    """A dense row of 10 million items has 40 MB, and one batch holds 100,000 histories."""
    model = ItemKNN(user_matrix(Windows.from_lists([[0, 1], [1, 9_999_999]]), 10_000_000), NeighborhoodConfig())
    shown = model.recommend(Windows.from_lists([[1]] * 100_000), 3)
    assert (shown == [0, 9_999_999, -1]).all()  # of equals, the first in the catalogue
