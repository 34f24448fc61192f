"""Planted noise: the mask tells exactly where it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4dsr.errors import DataError
from llm4dsr.noise import add_noise

HISTORIES = st.lists(st.lists(st.integers(0, 19), max_size=12).map(lambda x: np.array(x, dtype=np.int64)), max_size=8)


@given(HISTORIES, st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_noise_is_exactly_where_the_mask_says(histories, rate, seed):
    before = [h.copy() for h in histories]
    noisy, masks = add_noise(histories, 20, rate, seed)

    assert [len(h) for h in noisy] == [len(m) for m in masks] == [len(h) for h in histories]
    for old, unchanged, new, mask in zip(before, histories, noisy, masks, strict=True):
        assert (old == unchanged).all()  # the given histories are left as they are
        assert ((new != old) == mask).all()
        assert ((new >= 0) & (new < 20)).all()


def test_rate_0_changes_nothing_and_rate_1_everything():
    histories = [np.arange(10)]
    assert not add_noise(histories, 10, 0.0, seed=0)[1][0].any()
    assert add_noise(histories, 10, 1.0, seed=0)[1][0].all()


def test_uniform_over_the_other_items():
    (noisy,), (mask,) = add_noise([np.full(40_000, 2)], 5, 0.5, seed=1)
    assert mask.mean() == pytest.approx(0.5, abs=0.01)
    counts = np.bincount(noisy[mask], minlength=5) / mask.sum()
    assert counts == pytest.approx([0.25, 0.25, 0, 0.25, 0.25], abs=0.01)


def test_seed_decides():
    histories = [np.arange(50), np.arange(50)]
    first, again, other = (np.concatenate(add_noise(histories, 50, 0.3, seed)[0]) for seed in (7, 7, 8))
    assert (first == again).all()
    assert (first != other).any()
    assert (first[:50] != first[50:]).any()  # each user has noise of their own


@pytest.mark.parametrize(
    ("history", "n_items", "rate", "message"),
    [
        ([0, 1], 2, 1.5, "noise rate is 1.5; expected a probability"),
        ([0, 1], 2, float("nan"), "expected a probability"),
        ([0, 0], 1, 0.1, "needs at least two"),
        ([0, 5], 5, 0.1, "Items are rows 0 to 5; expected 0 to 4"),
        ([-1, 2], 5, 0.1, "Items are rows -1 to 2"),
    ],
)
def test_refuses(history, n_items, rate, message):
    with pytest.raises(DataError, match=message):
        add_noise([np.array(history)], n_items, rate, seed=0)
