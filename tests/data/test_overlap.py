"""Histories longer than a window: cut with an overlap, scored, and merged again."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4dsr import columns as c
from llm4dsr.data.overlap import merge_scores, overlapping
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError


def scores_of(windows: Windows, log_odds) -> pl.DataFrame:
    """A table as of `Denoiser.score`. log_odds: a number for all, or one for each interaction."""
    log_odds = np.broadcast_to(np.asarray(log_odds, dtype=float), windows.items.shape)
    return pl.DataFrame({
        c.WINDOW: windows.window_ids[windows.owners], c.POSITION: windows.positions, c.ITEM: windows.items,
        c.LOG_ODDS: log_odds, c.NOISE_PROBABILITY: 1 / (1 + np.exp(-log_odds)), c.RANK: 1,
    })  # fmt: skip


def rows(windows: Windows) -> list[list[int]]:
    return [windows.row(i) for i in range(len(windows))]


def test_windows_overlap_and_the_last_ends_with_the_history():
    windows, origin = overlapping(Windows.from_lists([[10, 11, 12, 13, 14, 15, 16, 17]]), width=4, stride=3)
    assert rows(windows) == [[10, 11, 12, 13], [13, 14, 15, 16], [14, 15, 16, 17]]
    assert origin.offsets.tolist() == [0, 3, 4]
    assert origin.window_ids.tolist() == [0, 0, 0]


def test_what_belongs_to_an_item_or_user_goes_along():
    histories = Windows.from_lists(
        [[1, 2, 3], [4, 5]],
        window_ids=np.array([70, 30]),
        user_ids=pl.Series(["ann", "bob"]),
        timestamps=np.array([500, 600]),
        noise_mask=np.array([False, True, False, True, False]),
        clean_items=np.array([1, 9, 3, 8, 5]),
        weights=np.array([1.0, 0.5, 1.0, 0.25, 1.0]),
    )
    windows, origin = overlapping(histories, width=2, stride=1)
    assert rows(windows) == [[1, 2], [2, 3], [4, 5]]
    assert windows.window_ids.tolist() == [0, 1, 2]
    assert origin.window_ids.tolist() == [70, 70, 30]
    assert windows.user_ids.to_list() == ["ann", "ann", "bob"]
    assert windows.timestamps.tolist() == [-1, 500, 600]  # when 2 was taken is not known, only when 3 was
    assert windows.noise_mask.tolist() == [False, True, True, False, True, False]
    assert windows.clean_items.tolist() == [1, 9, 9, 3, 8, 5]
    assert windows.weights.tolist() == [1.0, 0.5, 0.5, 1.0, 0.25, 1.0]


def test_merged_scores_are_means_with_new_ranks():
    histories = Windows.from_lists([[10, 11, 12], [20, 21]], window_ids=np.array([7, 5]))
    windows, origin = overlapping(histories, width=2, stride=1)  # 10 11 | 11 12 | 20 21
    merged = merge_scores(scores_of(windows, [0.0, 1.0, 3.0, 2.0, -4.0, -1.0]), origin)
    assert merged[c.WINDOW].to_list() == [7, 7, 7, 5, 5]  # in the order in which they were given
    assert merged[c.POSITION].to_list() == [0, 1, 2, 0, 1]
    assert merged[c.ITEM].to_list() == [10, 11, 12, 20, 21]
    assert merged[c.LOG_ODDS].to_list() == [0.0, (1.0 + 3.0) / 2, 2.0, -4.0, -1.0]
    assert merged[c.COVER].to_list() == [1, 2, 1, 1, 1]
    assert merged[c.RANK].to_list() == [3, 1, 2, 2, 1]  # 11 and 12 are even: the older first
    assert merged[c.NOISE_PROBABILITY][1] == pytest.approx((1 / (1 + np.exp(-1)) + 1 / (1 + np.exp(-3))) / 2)


histories_ = st.lists(st.integers(1, 40), min_size=1, max_size=8)
width_and_stride = st.integers(1, 12).flatmap(lambda width: st.tuples(st.just(width), st.integers(1, width)))


def numbered(lengths: list[int]) -> Windows:
    """Histories whose items are all different, so that one tells where it stood."""
    return Windows.from_lists([np.arange(n) + 100 * i for i, n in enumerate(lengths)])


@given(histories_, width_and_stride)
def test_every_interaction_is_in_a_window_at_its_place(lengths, cut):
    width, stride = cut
    histories = numbered(lengths)
    windows, origin = overlapping(histories, width, stride)
    assert (windows.lengths == np.minimum(histories.lengths, width)[origin.window_ids]).all()
    assert {item for row in rows(windows) for item in row} == {item for row in rows(histories) for item in row}
    for row, history, offset in zip(rows(windows), origin.window_ids, origin.offsets, strict=True):
        assert row == histories.row(history)[offset : offset + len(row)]


@given(histories_, width_and_stride, st.integers(-5, 5))
def test_the_mean_of_a_constant_is_the_constant(lengths, cut, value):
    windows, origin = overlapping(numbered(lengths), *cut)
    merged = merge_scores(scores_of(windows, value), origin)
    assert merged[c.ITEM].to_list() == [100 * i + k for i, n in enumerate(lengths) for k in range(n)]
    assert set(merged[c.LOG_ODDS]) == {value}
    assert merged[c.RANK].to_list() == [k + 1 for n in lengths for k in range(n)]  # all even: by age
    assert merged[c.COVER].sum() == windows.lengths.sum()


@given(histories_, st.integers(40, 50))
def test_a_history_that_fits_is_unchanged(lengths, width):
    histories = numbered(lengths)
    windows, origin = overlapping(histories, width, stride=width)
    assert (windows.items == histories.items).all()
    scores = scores_of(histories, np.arange(sum(lengths)))
    merged = merge_scores(scores, origin)
    assert merged.drop(c.COVER, c.RANK).equals(scores.drop(c.RANK))
    assert set(merged[c.COVER]) == {1}


@pytest.mark.parametrize(("width", "stride"), [(0, 1), (4, 0), (4, 5)])
def test_strides_that_would_miss_items_are_refused(width, stride):
    with pytest.raises(DataError, match=r"expected a stride from 1 to the width"):
        overlapping(numbered([9]), width, stride)


def test_scores_of_other_windows_are_refused():
    windows, origin = overlapping(numbered([9]), 4, 2)
    scores = scores_of(windows, 0.0).with_columns(window_id=pl.col("window_id") + 100)
    with pytest.raises(DataError, match=r"windows 100 to 103; expected 0 to 3"):
        merge_scores(scores, origin)
