"""Rows of a Parquet file are read by their numbers, and no more of the file than that takes."""

import polars as pl
import pytest

from llm4dsr.core.parquet import footer_hash, parquet_spans
from llm4dsr.errors import DataError


def in_groups(path, values, rows):
    pl.DataFrame({"value": values}).write_parquet(path, row_group_size=rows)
    return path


@pytest.mark.parametrize(
    "spans",
    [
        [(0, 25)],
        [(0, 10), (10, 10), (20, 5)],  # one after another, across row groups
        [(3, 2), (5, 1), (20, 4)],  # with gaps, two in one row group
        [(13, 1)],
        [],
    ],
)
def test_spans_are_the_rows_that_were_asked_for(tmp_path, spans):
    path = in_groups(tmp_path / "a.parquet", range(25), 7)
    found = [frame["value"].to_list() for frame in parquet_spans(path, spans)]
    assert found == [list(range(first, first + size)) for first, size in spans]


def test_row_groups_without_wanted_rows_are_not_read(tmp_path):
    path = in_groups(tmp_path / "a.parquet", range(3_000), 1_000)
    content = bytearray(path.read_bytes())
    content[4:60] = bytes(56)  # the first row group
    path.write_bytes(content)
    (frame,) = parquet_spans(path, [(2_500, 2)])
    assert frame["value"].to_list() == [2_500, 2_501]
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        list(parquet_spans(path, [(500, 2)]))


def test_a_file_with_fewer_rows_than_expected(tmp_path):
    path = in_groups(tmp_path / "a.parquet", range(25), 7)
    with pytest.raises(DataError, match=r"has 25 rows; expected at least 30"):
        list(parquet_spans(path, [(0, 10), (20, 10)]))


def test_footers_tell_files_of_other_values_apart(tmp_path):
    first, same, other = (
        in_groups(tmp_path / f"{name}.parquet", values, 7)
        for name, values in (("first", [1, 2, 3]), ("same", [1, 2, 3]), ("other", [1, 2, 4]))
    )
    assert first.stat().st_size == other.stat().st_size
    assert footer_hash(first) == footer_hash(same) != footer_hash(other)
    first.write_bytes(b"short")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        footer_hash(first)
