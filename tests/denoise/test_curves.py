"""How precise flags are, as stated and as the truth has it: values computed by hand."""

import numpy as np
import polars as pl
import pytest

from llm4dsr.data.windows import Windows
from llm4dsr.denoise.curves import expected_precision, reliability, with_truth
from llm4dsr.errors import DataError

from ..scored import scores


def test_stated_and_true_precision_at_each_rate():
    table = scores([0.9, 0.8, 0.1, 0.0], [1, 2, 1, 2]).with_columns(noise=pl.Series([1, 0, 0, 0]))
    last = expected_precision(table, cap=1).row(-1, named=True)
    assert last["flagged"] == 0.5
    assert last["stated"] == pytest.approx(0.85)
    assert last["precision"] == 0.5
    assert last["recall"] == 1


def test_reliability_in_bins_of_a_tenth():
    table = scores([0.95, 0.91, 0.05, 1.0]).with_columns(noise=pl.Series([1, 0, 0, 1]))
    assert reliability(table).rows() == [(0.05, 0.0, 1), (pytest.approx(2.86 / 3), pytest.approx(2 / 3), 3)]


def test_the_truth_of_each_scored_position():
    windows = Windows.from_lists([np.array([0, 1, 2]), np.array([1, 2])])
    windows.noise_mask = np.array([False, True, False, False, True])
    table = pl.DataFrame({"window_id": [1, 0, 0], "position": [1, 1, 2]})
    assert with_truth(table, windows)["noise"].to_list() == [1, 1, 0]


def test_without_a_known_truth_the_message_names_what_needs_none():
    windows = Windows.from_lists([np.array([0, 1])])
    with pytest.raises(DataError, match="plot 'precision', which needs no truth"):
        with_truth(pl.DataFrame({"window_id": [0], "position": [0]}), windows)
