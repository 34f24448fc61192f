"""The matrix of positive PMI, against one that is made of dense tables."""

import numpy as np
import pytest

from llm4dsr.features import ppmi as module
from llm4dsr.features.pair_counts import pair_keys, run_of, split_keys
from llm4dsr.features.ppmi import by_larger, ppmi


def test_of_pairs_by_hand():
    """Two separate pairs, counts 3 and 1. PMI = ln(3 · 8 / (3 · 3)) and ln(1 · 8 / (1 · 1)), both discounted."""
    pairs = pair_keys(np.array([0, 2]), np.array([1, 3]))
    matrix = ppmi(pairs, np.array([3, 1], np.int32), by_larger(pairs, 4)[1], 4).toarray()
    often, once = np.log(8 / 3) * (3 / 4) * (3 / 4), np.log(8) * (1 / 2) * (1 / 2)
    np.testing.assert_allclose(matrix, [[0, often, 0, 0], [often, 0, 0, 0], [0, 0, 0, once], [0, 0, once, 0]])


@pytest.mark.parametrize("at_once", [1, 10, 10**6])
def test_it_is_that_of_a_dense_table(monkeypatch, at_once):
    """Some pairs have lost all their users, others are rarer than by chance: none of them has an entry."""
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    rng, n_items = np.random.default_rng(0), 12
    left, right = rng.integers(0, n_items, (2, 300))
    pairs, counts = run_of(pair_keys(left[left != right], right[left != right]))
    counts[rng.random(len(pairs)) < 0.3] = 0
    matrix = ppmi(pairs, counts, by_larger(pairs, n_items)[1], n_items)

    table = np.zeros((n_items, n_items))
    table[split_keys(pairs)] = counts
    table += table.T
    totals = table.sum(axis=1)
    rarer = np.minimum(totals[:, None], totals)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(table * totals.sum() / np.outer(totals, totals)) * table / (table + 1) * rarer / (rarer + 1)
    expected = np.where(table > 0, np.maximum(np.nan_to_num(found), 0), 0)
    np.testing.assert_allclose(matrix.toarray(), expected, rtol=1e-12)
    assert 0 < matrix.nnz == np.count_nonzero(expected) < 2 * np.count_nonzero(counts)
    assert matrix.has_canonical_format


def test_pairs_by_their_larger_item():
    """Of the items 0 to 3: no pair ends in 0, one in 1, none in 2, and three in 3."""
    pairs = pair_keys(np.array([0, 0, 1, 2]), np.array([1, 3, 3, 3]))
    starts, places = by_larger(pairs, 4)
    assert starts.tolist() == [0, 0, 1, 1, 4]
    assert places.tolist() == [0, 1, 2, 3]
