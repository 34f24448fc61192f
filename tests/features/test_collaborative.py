"""Collaborative vectors: two planted tastes, and histories that must not know themselves."""

import numpy as np
import polars as pl
import pytest

from llm4dsr.core.hashing import user_folds
from llm4dsr.data.windows import Windows
from llm4dsr.features.collaborative import GROUPS, N_COSINES, SIZES, CollaborativeVectors, _svd_vectors
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.features.pair_counts import pair_keys
from llm4dsr.features.ppmi import by_larger, ppmi

CARS, DOLLS = range(10), range(10, 20)  # two tastes; every user has one of them
ALONE = 20  # an item that no user has


def of_taste(items: range, users: int, rng: np.random.Generator) -> list[list[int]]:
    return [rng.choice(items, 4, replace=False).tolist() for _ in range(users)]


@pytest.fixture(scope="module")
def vectors() -> CollaborativeVectors:
    rng = np.random.default_rng(0)
    rows = of_taste(CARS, 200, rng) + of_taste(DOLLS, 200, rng)
    windows = Windows.from_lists(rows, user_ids=pl.Series("user_id", [f"u{i}" for i in range(400)]))
    fitted = CooccurrenceCounts.fit(windows, 21, seed=0).vectors
    assert fitted is not None
    return fitted


def histories(*rows: list[int], users: list[str] | None = None) -> Windows:
    return Windows.from_lists(rows, user_ids=pl.Series("user_id", users or [f"new{i}" for i in range(len(rows))]))


def test_an_item_of_another_taste_is_far_from_the_rest(vectors):
    features = vectors.features(histories([0, 1, 2, 13], [10, 11, 12, 3])).reshape(2, 4, N_COSINES)
    for k in range(len(SIZES)):
        centroid, closest = features[:, :, 3 * k], features[:, :, 3 * k + 1]
        assert (centroid[:, :3] > 0.3).all()
        assert (centroid[:, 3] < 0.1).all()
        assert (closest[:, 3] < closest[:, :3].min(axis=1)).all()
        np.testing.assert_allclose(features[:, :, 3 * k + 2], centroid.mean(axis=1, keepdims=True).repeat(4, 1), 1e-5)


def test_two_people_on_one_account_both_belong(vectors):
    """Three cars and three dolls: each item has company, so none is as far from the others as a single stray item."""
    both = vectors.features(histories([0, 10, 1, 11, 2, 12]))
    stray = vectors.features(histories([0, 1, 2, 3, 4, 12]))
    closest = 1  # cosine with the closest other item
    assert both[:, closest].min() > stray[5, closest] + 0.1
    assert both[:, 0].min() > stray[5, 0] + 0.1


def test_single_items_and_unknown_items_say_nothing(vectors):
    features = vectors.features(histories([0, 1, 2], [5], [ALONE, 1]))
    assert features.shape == (3 + 1 + 2, N_COSINES)
    assert not features[3].any()
    assert not features[4, [0, 3]].any()
    assert np.isfinite(features).all()


def test_the_cosine_with_the_centroid_by_hand():
    """Two coordinates: the first item (1, 0) and the rest (0, 1), (1, 0), whose sum is (1, 1)."""
    table = np.zeros((GROUPS, 3, max(SIZES)), np.float32)
    table[:, 0, 0] = table[:, 2, 0] = 5.0  # lengths do not matter
    table[:, 1, 1] = 2.0
    features = CollaborativeVectors(table, np.empty(0, np.uint64)).features(histories([0, 1, 2]))
    np.testing.assert_allclose(features[:, 0], [1 / np.sqrt(2), 0, 1 / np.sqrt(2)], atol=1e-6)
    np.testing.assert_allclose(features[:, 1], [1, 0, 1], atol=1e-6)
    context = np.array([False, True, True])
    found = CollaborativeVectors(table, np.empty(0, np.uint64)).similarities(histories([0, 1, 2]), context)
    np.testing.assert_allclose(found[0], np.array([1, 1, 1]) / np.sqrt(2), atol=1e-6)


def test_a_history_does_not_know_itself():
    """One user alone has a pair of items. It is in the vectors of other groups, never in those of the user's own."""
    rng = np.random.default_rng(1)
    rows, users = of_taste(CARS, 50, rng), [f"u{i}" for i in range(50)]
    windows = Windows.from_lists([*rows, [18, 19]], user_ids=pl.Series("user_id", [*users, "odd"]))
    vectors = CooccurrenceCounts.fit(windows, 21, seed=0).vectors
    assert vectors is not None
    own = vectors.features(histories([18, 19], users=["odd"]))
    assert not own[:, :2].any()
    groups = user_folds(pl.Series(users), GROUPS)
    of_group = {g: u for g, u in zip(groups.tolist(), users, strict=True)}
    others = [u for g, u in of_group.items() if g != user_folds(pl.Series(["odd"]), GROUPS)[0]]
    known = vectors.features(histories(*[[18, 19]] * len(others), users=others))
    assert (known[:, 0] > 0.99).all()


def test_all_users_that_were_not_learned_from_are_alike(vectors):
    features = vectors.features(histories(*[[0, 1, 13]] * 20)).reshape(20, 3, N_COSINES)
    assert (features == features[0]).all()


def test_vectors_of_pairs_by_hand():
    """Two separate pairs, counts 3 and 1. PMI = ln(3 · 8 / (3 · 3)) and ln(1 · 8 / (1 · 1)), both discounted.

    Each pair is one positive eigenvalue, shared evenly by its two items: squared length = value / 2.
    """
    pairs = pair_keys(np.array([0, 2]), np.array([1, 3]))
    vectors = _svd_vectors(ppmi(pairs, np.array([3, 1], np.int32), by_larger(pairs, 4)[1], 4), 3, seed=0)
    often, once = np.log(8 / 3) * (3 / 4) * (3 / 4), np.log(8) * (1 / 2) * (1 / 2)
    np.testing.assert_allclose((vectors[:2] ** 2).sum(axis=1), often / 2, rtol=1e-5)
    assert often > once


def test_saved_and_loaded_they_are_the_same(vectors, tmp_path):
    vectors.save(tmp_path)
    assert CollaborativeVectors.load(tmp_path).fingerprint == vectors.fingerprint
