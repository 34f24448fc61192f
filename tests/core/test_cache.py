"""Finished parts are computed once, and survive interruption and damage."""

import numpy as np
import polars as pl

from llm4dsr.core.cache import PartCache


def counted(calls: list[int]) -> pl.DataFrame:
    calls.append(1)
    return pl.DataFrame({"x": [len(calls)]})


def test_a_part_is_made_once_per_key(tmp_path):
    calls: list[int] = []
    cache = PartCache(tmp_path)
    assert cache.table(("a", 1), lambda: counted(calls))["x"].to_list() == [1]
    assert cache.table(("a", 1), lambda: counted(calls))["x"].to_list() == [1]
    assert cache.table(("a", 2), lambda: counted(calls))["x"].to_list() == [2]


def test_without_a_folder_nothing_is_kept():
    calls: list[int] = []
    cache = PartCache()
    for _ in range(2):
        cache.table(("a",), lambda: counted(calls))
    assert len(calls) == 2


def test_a_damaged_part_is_made_again(tmp_path):
    calls: list[int] = []
    cache = PartCache(tmp_path)
    cache.table(("a",), lambda: counted(calls))
    (part,) = tmp_path.iterdir()
    part.write_bytes(part.read_bytes()[:20])
    assert cache.table(("a",), lambda: counted(calls))["x"].to_list() == [2]


def test_arrays_keep_nan(tmp_path):
    array = np.array([1.0, np.nan, 0.1 + 0.2, -np.inf])
    for _ in range(2):
        np.testing.assert_array_equal(PartCache(tmp_path).array(("m",), lambda: array), array)
