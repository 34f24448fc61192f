"""Item-kNN and EASE: weights against hand-computed values and dense formulas, and ranks whose order is planted."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from llm4dsr.config import NeighborhoodConfig, RecommenderConfig
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ModelError
from llm4dsr.metrics import ndcg
from llm4dsr.recommenders import NEIGHBORHOODS, SEEDLESS, fit
from llm4dsr.recommenders.ease import EASE, memory_needed
from llm4dsr.recommenders.item_knn import ItemKNN
from llm4dsr.recommenders.neighborhood import Neighborhood, fit_neighborhood, history_matrix, user_matrix

from .harness import N, catalogue, circle

both = pytest.mark.parametrize("kind", NEIGHBORHOODS.values(), ids=NEIGHBORHOODS)
OPTIONS = NeighborhoodConfig()


def of_users(rows: list[Any], **columns: Any) -> Windows:
    """A window of each of so many users, also where two windows are alike."""
    return Windows.from_lists(rows, user_ids=pl.Series("user_id", range(len(rows))), **columns)


THREE = of_users([[0, 1], [1, 2], [0, 1, 2]])  # three users; item 1 has all of them, items 0 and 2 have two


def dense(model: Neighborhood) -> np.ndarray:
    return model.weights if isinstance(model.weights, np.ndarray) else model.weights.toarray()


def random_users(weighted: bool = True) -> Windows:
    """40 windows of 12 users, who have repeated items and weights."""
    rng = np.random.default_rng(5)
    rows = [rng.integers(N, size=rng.integers(2, 7)) for _ in range(40)]
    windows = Windows.from_lists(rows, user_ids=pl.Series([f"user {u}" for u in rng.integers(12, size=40)]))
    return replace(windows, weights=rng.uniform(0, 1, windows.items.shape)) if weighted else windows


def dense_users(windows: Windows) -> np.ndarray:
    """[users, N] the largest weight of each pair, one pair at a time."""
    ids = sorted(set(windows.user_ids))
    users = np.zeros((len(ids), N))
    for w, user in enumerate(windows.user_ids):
        for position, item in enumerate(windows.row(w)):
            weight = 1.0 if windows.weights is None else windows.weights[windows.offsets[w] + position]
            users[ids.index(user), item] = max(users[ids.index(user), item], weight)
    return users


def groups(size: int, seed: int) -> Windows:
    """Each user takes the three items of one of four groups, in random order, and half of them one more item."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(size):
        group = rng.permutation(3) + 3 * rng.integers(4)
        extra = rng.integers(N, size=rng.integers(2))
        rows.append([*extra, *group])
    return of_users(rows)


# --- users and histories ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [True, False])
def test_a_pair_counts_once_per_user_by_its_largest_weight(weighted: bool) -> None:
    windows = random_users(weighted)
    found = user_matrix(windows, N).toarray()
    assert found[found.any(axis=1)] == pytest.approx(dense_users(windows), abs=1e-7)


def test_a_window_without_a_user_id_is_its_own_user() -> None:
    windows = Windows.from_lists([[0, 1], [0, 2], [0, 3], [0, 4]], user_ids=pl.Series(["a", None, "a", None]))
    found = user_matrix(windows, 5).toarray()
    assert sorted(found[found.any(axis=1)].tolist()) == [[1, 0, 0, 0, 1], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0]]


def test_decay_and_weights_of_a_history_by_hand() -> None:
    histories = Windows.from_lists([[2, 0, 2], [1], []])
    assert history_matrix(histories, 3, 0.5).toarray().tolist() == [[0.5, 0, 1.25], [0, 1, 0], [0, 0, 0]]
    weighted = replace(histories, weights=np.array([1.0, 0.5, 0.0, 0.2]))
    assert history_matrix(weighted, 3, 0.5).toarray() == pytest.approx(
        np.array([[0.25, 0, 0.25], [0, 0.2, 0], [0] * 3])
    )
    assert history_matrix(histories, 3, 0.0).toarray()[0].tolist() == [0, 0, 1]  # the newest item alone


# --- weights ---------------------------------------------------------------------------------------------------------


def test_cosine_by_hand() -> None:
    found = dense(ItemKNN(user_matrix(THREE, 3), OPTIONS))
    near = 2 / math.sqrt(6)  # two users have items 0 and 1, of two and three
    assert found == pytest.approx(np.array([[0, near, 0.5], [near, 0, near], [0.5, near, 0]]))
    shrunk = dense(ItemKNN(user_matrix(THREE, 3), NeighborhoodConfig(shrink=2)))
    assert shrunk[0] == pytest.approx([0, 2 / (math.sqrt(6) + 2), 1 / 4])


def test_cosine_of_weights_by_hand() -> None:
    windows = of_users([[0, 1], [0, 1]], weights=np.array([1, 0.5, 0.5, 1]))
    assert dense(ItemKNN(user_matrix(windows, 2), OPTIONS))[0, 1] == pytest.approx(1 / 1.25)


def test_ease_by_hand() -> None:
    """Two items of the same two users, λ = 1: the inverse of [[3, 2], [2, 3]] is [[3, -2], [-2, 3]] / 5."""
    windows = of_users([[0, 1], [0, 1]])
    assert dense(EASE(user_matrix(windows, 2), NeighborhoodConfig(ridge=1))) == pytest.approx(
        np.array([[0, 2 / 3], [2 / 3, 0]])
    )
    # Three items, λ = 1: the cofactors of [[3, 2, 1], [2, 4, 2], [1, 2, 3]] have rows 8 -4 0, -4 8 -4, 0 -4 8.
    three = dense(EASE(user_matrix(THREE, 3), NeighborhoodConfig(ridge=1)))
    assert three == pytest.approx(np.array([[0, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0]]), abs=1e-6)


@pytest.mark.parametrize("weighted", [True, False])
def test_weights_agree_with_dense_formulas(weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = random_users(weighted)
    x = dense_users(windows)
    gram, lengths = x.T @ x, np.sqrt((x**2).sum(axis=0))
    cosine = gram / (np.outer(lengths, lengths) + 0.7)
    np.fill_diagonal(cosine, 0)
    inverse = np.linalg.inv(gram + 3 * np.eye(N))
    linear = -inverse / np.diag(inverse)
    np.fill_diagonal(linear, 0)
    config = NeighborhoodConfig(shrink=0.7, ridge=3)
    for room in (4_000_000, 10):  # at once, and one item at a time
        monkeypatch.setattr("llm4dsr.recommenders.neighborhood.MAX_ENTRIES", room)
        assert dense(ItemKNN(user_matrix(windows, N), config)) == pytest.approx(cosine, abs=1e-6)
        assert dense(EASE(user_matrix(windows, N), config)) == pytest.approx(linear, abs=1e-5)


@pytest.mark.parametrize("n_users", [5, N - 1, N, N + 1, 3 * N])
@pytest.mark.parametrize("weighted", [True, False])
def test_ease_is_the_same_with_few_and_many_users(n_users: int, weighted: bool) -> None:
    """With fewer users than items it inverts a matrix of users. An item without users and an empty user do no harm."""
    rng = np.random.default_rng(n_users)
    windows = of_users([rng.permutation(N - 1)[: rng.integers(2, 7)] for _ in range(n_users)])
    if weighted:
        weights = rng.uniform(0, 1, windows.items.shape)
        weights[windows.owners == 0] = 0
        windows = replace(windows, weights=weights)
    x = dense_users(windows)
    inverse = np.linalg.inv(x.T @ x + 2 * np.eye(N))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0)
    assert dense(EASE(user_matrix(windows, N), NeighborhoodConfig(ridge=2))) == pytest.approx(expected, abs=1e-5)


def test_ease_by_users_in_blocks_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    users = user_matrix(random_users(), N)
    at_once = dense(EASE(users, OPTIONS))
    monkeypatch.setattr("llm4dsr.recommenders.ease.COLUMNS", 7)
    assert dense(EASE(users, OPTIONS)) == pytest.approx(at_once, abs=1e-6)


@pytest.mark.parametrize("neighbors", [1, 3, 30])
def test_the_most_similar_neighbors_are_kept(neighbors: int) -> None:
    users = user_matrix(random_users(), N)
    whole = dense(ItemKNN(users, OPTIONS))
    kept = dense(ItemKNN(users, NeighborhoodConfig(neighbors=neighbors)))
    for all_of, some in zip(whole, kept, strict=True):
        expected = np.sort(all_of)[::-1][:neighbors]
        assert np.sort(some[some > 0])[::-1] == pytest.approx(expected[expected > 0])
        assert (some[some > 0] == all_of[some > 0]).all()


def test_of_equally_similar_neighbors_the_first_are_kept() -> None:
    users = user_matrix(Windows.from_lists([[3, 0, 2, 1]]), 4)  # all are equally similar
    assert dense(ItemKNN(users, NeighborhoodConfig(neighbors=2))).tolist() == [
        [0, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]  # fmt: skip


def test_item_knn_stays_sparse() -> None:
    n_items = 300_000  # a dense matrix would take 335 GiB
    pairs = np.arange(n_items).reshape(-1, 2)
    model = ItemKNN(user_matrix(Windows.from_lists(list(pairs[:1000])), n_items), OPTIONS)
    assert model.weights.nnz == 2000
    assert model.rank(Windows.from_lists([[0], [5]]), np.array([1, 1])).tolist() == [1, n_items]


@both
def test_a_weight_of_zero_removes_an_item(kind: type[Neighborhood]) -> None:
    clean, wrong = groups(60, 1), groups(60, 1)
    rows = [[*wrong.row(w), (wrong.row(w)[-1] + 5) % N] for w in range(60)]
    weights = np.concatenate([[1.0] * (len(row) - 1) + [0.0] for row in rows])
    removed = kind(user_matrix(of_users(rows, weights=weights), N), OPTIONS)
    assert dense(removed) == pytest.approx(dense(kind(user_matrix(clean, N), OPTIONS)), abs=1e-6)
    assert dense(kind(user_matrix(of_users(rows), N), OPTIONS)) != pytest.approx(dense(removed), abs=1e-6)


# --- ranks -----------------------------------------------------------------------------------------------------------


@both
def test_ranks_the_planted_item_first(kind: type[Neighborhood]) -> None:
    trained = fit_neighborhood(kind, groups(400, 1), groups(60, 2), N, OPTIONS)
    rows = [[3 * g + a, 3 * g + b] for g in range(4) for a in range(3) for b in range(3) if a != b]
    targets = np.array([3 * (a // 3) + 3 - a % 3 - b % 3 for a, b in rows])  # the third of the group
    assert trained.model.rank(Windows.from_lists(rows), targets).tolist() == [1] * 24


@both
def test_the_newest_item_counts_most(kind: type[Neighborhood]) -> None:
    model = fit_neighborhood(kind, groups(400, 1), groups(60, 2), N, OPTIONS).model
    histories = Windows.from_lists([[0, 3], [3, 0]])
    assert (model.rank(histories, np.array([4, 1])) <= 2).all()  # beside the other free item of the newest's group
    assert (model.rank(histories, np.array([1, 4])) > 2).all()
    rank = {w: model.rank(replace(histories, weights=np.array([1, w, 1, w])), np.array([1, 4])) for w in (0.0, 1.0)}
    assert (rank[0.0] <= 2).all()  # weights of a history count: the newest item is ignored
    assert (rank[1.0] > 2).all()


@both
def test_equal_items_share_the_worse_rank(kind: type[Neighborhood]) -> None:
    model = kind(user_matrix(Windows.from_lists([[0, 1, 2], [3, 4]]), 6), OPTIONS)
    ranks = [int(model.rank(Windows.from_lists([[0]]), np.array([item]))[0]) for item in range(6)]
    assert ranks == [6, 2, 2, 6, 6, 6]  # items of the same two users, and items without a shared user


@both
def test_a_history_of_unknown_items_ranks_the_target_last(kind: type[Neighborhood]) -> None:
    model = kind(user_matrix(Windows.from_lists([[0, 1], [1, 2]]), 6), OPTIONS)
    assert model.rank(Windows.from_lists([[5, 4], [5, 0]]), np.array([1, 1])).tolist() == [6, 1]


# --- fitting by name -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEEDLESS)
def test_fit_by_name_has_one_value_and_ignores_the_seed(name: str) -> None:
    windows, valid, messages = groups(100, 1), groups(30, 2), []
    found = [fit(name, windows, valid, catalogue(), RecommenderConfig(), seed, lambda *m: messages.append(m))
             for seed in (0, 1)]  # fmt: skip
    test = circle(30, 3)
    one, other = (trained.model.rank(test.histories(), test.targets()).tolist() for trained in found)
    assert one == other
    assert len(found[0].curve) == 1
    assert found[0].curve[0] == ndcg(found[0].valid_ranks, 20)
    assert found[0].valid_ranks.tolist() == found[0].model.rank(valid.histories(), valid.targets()).tolist()
    assert found[0].best_epoch == 0
    assert [m[:2] for m in messages] == [(1, 1)] * 2


def test_fit_by_name_reads_its_options() -> None:
    windows, options = groups(50, 1), NeighborhoodConfig(decay=0.5, neighbors=2, shrink=1, ridge=7)
    for name, kind in NEIGHBORHOODS.items():
        found = fit(name, windows, windows, catalogue(), RecommenderConfig(), 0, neighborhood=options)
        assert isinstance(found.model, kind)
        assert found.model.config == options
        assert (dense(found.model) == dense(kind(user_matrix(windows, N), options))).all()
        assert (dense(found.model) != dense(kind(user_matrix(windows, N), OPTIONS))).any()


def test_ease_states_the_memory_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm4dsr.recommenders.ease.available_memory", lambda: 2**30)
    users = user_matrix(THREE, 20_000)
    with pytest.raises(ModelError, match=r"EASE needs 3\.3 GiB of memory for 20000 items; 1\.0 GiB.*itemknn"):
        EASE(users, OPTIONS)
    assert memory_needed(20_000) >= 2 * 4 * 20_000**2  # two matrices of four bytes a number


def test_ease_without_a_ridge_needs_items_that_differ() -> None:
    with pytest.raises(ModelError, match="ridge"):
        EASE(user_matrix(Windows.from_lists([[0, 1], [0, 1]]), 3), NeighborhoodConfig(ridge=0))
