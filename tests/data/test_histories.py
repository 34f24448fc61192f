"""Histories in the form in which people hold them come back in the same form."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.histories import Histories
from llm4dsr.errors import ConfigError, DataError

ITEMS = Catalogue(pl.Series("item_id", [10, 20, 30, 40]), ["red ball", "blue ball", "a train", "a book"])
LONG = {  # user 7 has 10, 20, 30 in order of time; user 5 has 40, 10; user 6 has one item
    "note": list("abcdef"), "user_id": [5, 7, 7, 6, 7, 5], "item_id": [10, 30, 10, 20, 20, 40],
    "timestamp": [9, 3, 1, 4, 2, 8],
}  # fmt: skip


def edits(*rows: tuple[int, int, str, int | None, float]) -> pl.DataFrame:
    schema = {"window_id": pl.Int64, "position": pl.Int64, "action": pl.String, "kept_item_id": pl.Int64,
              "noise_probability": pl.Float64}  # fmt: skip
    return pl.DataFrame(rows, schema=schema, orient="row")


def test_a_long_table_is_read_user_by_user_in_order_of_time():
    found = Histories.of(pd.DataFrame(LONG), ITEMS)
    assert found.windows.user_ids.to_list() == [5, 7]
    assert [ITEMS.ids.gather(found.windows.row(i)).to_list() for i in range(2)] == [[40, 10], [10, 20, 30]]


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
@pytest.mark.parametrize(
    ("edit", "action", "item_ids", "notes"),
    [
        ((1, 1, "drop", None, 0.9), "drop", [10, 30, 10, 20, 40], "abcdf"),
        ((1, 1, "replace", 40, 0.9), "replace", [10, 30, 10, 20, 40, 40], "abcdef"),
        ((1, 1, "keep", 20, 0.9), "replace", [10, 30, 10, 20, 20, 40], "abcdef"),
    ],
)
def test_a_long_table_keeps_columns_and_order(kind, edit, action, item_ids, notes):
    given = kind(LONG)
    got = Histories.of(given, ITEMS).corrected(edits(edit), action)
    assert type(got) is kind
    assert list(got.columns) == list(LONG)
    assert list(got["item_id"]) == item_ids
    assert "".join(got["note"]) == notes
    assert list(given["item_id"]) == LONG["item_id"]  # what was given is unchanged


def test_a_long_table_keeps_its_index_and_gets_weights():
    given = pd.DataFrame(LONG, index=list("uvwxyz"))
    got = Histories.of(given, ITEMS).corrected(edits((1, 1, "downweight", 20, 0.75)), "downweight")
    assert got["weight"].to_dict() == {"u": 1, "v": 1, "w": 1, "x": 1, "y": 0.25, "z": 1}
    again = Histories.of(got, ITEMS).corrected(edits((1, 1, "downweight", 20, 0.5)), "downweight")
    assert again["weight"]["y"] == 0.125  # weights that are there are multiplied
    dropped = Histories.of(given, ITEMS).corrected(edits((1, 1, "drop", None, 0.75)), "drop")
    assert dropped.index.tolist() == list("uvwxz")


def test_a_categorical_column_gets_the_new_item():
    given = pd.DataFrame({"user_id": [1, 1, 1], "item_id": pd.Categorical(["10", "20", "30"])})
    text = Catalogue(pl.Series("item_id", ["10", "20", "30", "40"]), ITEMS.titles)
    got = Histories.of(given, text).corrected(
        edits((0, 2, "replace", 40, 0.9)).cast({"kept_item_id": pl.String}), "replace"
    )
    assert got["item_id"].tolist() == ["10", "20", "40"]


WIDE = Catalogue(pl.Series("item_id", [10, 20, 30, 300, -1]), ["red ball", "blue ball", "a train", "a book", "a kite"])


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt8, pl.UInt32, pl.Float32])
@pytest.mark.parametrize("convert", [pl.DataFrame.to_pandas, pl.DataFrame.to_arrow, lambda frame: frame])
@pytest.mark.parametrize("new", [20, 300, -1])
def test_a_narrow_column_of_numbers_gets_any_new_item(kind, convert, new):
    """It becomes wider only if it has to."""
    long = pl.DataFrame({"user_id": [1, 1, 1], "item_id": pl.Series([10, 20, 30], dtype=kind)})
    lists = long.group_by("user_id").agg(item_ids="item_id")
    for name, table in (("item_id", long), ("item_ids", lists)):
        got = Histories.of(convert(table), WIDE).corrected(edits((0, 2, "replace", new, 0.9)), "replace")
        ids = pl.DataFrame(got)[name] if name == "item_id" else pl.DataFrame(got)[name].explode()
        assert ids.to_list() == [10, 20, new]
        assert (ids.dtype == kind) == (pl.Series([new]).cast(kind, strict=False).to_list() == [new])


@pytest.mark.parametrize("kind", ["Int8", "UInt8", "int8[pyarrow]", "uint8[pyarrow]", "object"])
def test_a_column_of_pandas_with_missing_values_gets_any_new_item(kind):
    given = pd.DataFrame({"user_id": [1, 1, 1, 1], "item_id": pd.array([10, 20, 30, None], dtype=kind)})
    got = Histories.of(given, WIDE).corrected(edits((0, 2, "replace", 300, 0.9)), "replace")
    assert got["item_id"].tolist()[:3] == [10, 20, 300]
    assert got["item_id"].isna().tolist() == [False, False, False, True]


def test_a_list_that_cannot_hold_the_new_item_is_refused():
    narrow = pd.Series([[10, 20, 30]], dtype=pd.ArrowDtype(pa.list_(pa.int8())))
    found = Histories.of(pd.DataFrame({"item_ids": narrow}), WIDE)
    with pytest.raises(DataError, match=r"'item_ids' has the type list<.*int8>.*300 not in range.*lists of int64"):
        found.corrected(edits((0, 2, "replace", 300, 0.9)), "replace")


def test_a_column_of_fixed_categories_gets_the_new_item():
    text = Catalogue(pl.Series("item_id", ["10", "20", "30", "4000"]), ITEMS.titles)
    one = edits((0, 2, "replace", 4000, 0.9)).cast({"kept_item_id": pl.String})
    long = pl.DataFrame(
        {"user_id": [1, 1, 1], "item_id": pl.Series(["10", "20", "30"], dtype=pl.Enum(["10", "20", "30"]))}
    )
    lists = long.group_by("user_id").agg(item_ids="item_id")
    arrays = pd.DataFrame({"item_ids": [np.array(["10", "20", "30"])]})  # of text with two characters
    assert Histories.of(long, text).corrected(one, "replace")["item_id"].to_list() == ["10", "20", "4000"]
    for given in (lists, arrays):
        assert list(Histories.of(given, text).corrected(one, "replace")["item_ids"][0]) == ["10", "20", "4000"]


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame])
def test_a_table_of_histories_keeps_rows_that_are_too_short(kind):
    given = kind({"item_ids": [[10], [10, 20, 30], []], "note": ["a", "b", "c"], "user_id": [1, 2, 3]})
    found = Histories.of(given, ITEMS)
    got = found.corrected(edits((0, 0, "drop", None, 0.9), (0, 2, "replace", 40, 0.9)), "mixed")
    assert [list(row) for row in got["item_ids"]] == [[10], [20, 40], []]
    assert list(got.columns) == ["item_ids", "note", "user_id"]
    weighted = found.corrected(edits((0, 1, "downweight", 20, 0.9)), "downweight")
    assert [list(row) for row in weighted["weights"]] == [[1], [1, pytest.approx(0.1), 1], []]


def test_lists_of_a_fixed_length_become_shorter():
    given = pl.DataFrame({"item_ids": pl.Series([[10, 20], [30, 40]], dtype=pl.Array(pl.Int64, 2))})
    got = Histories.of(given, ITEMS).corrected(edits((1, 1, "drop", None, 0.9)), "drop")
    assert got["item_ids"].to_list() == [[10, 20], [30]]


def test_arrays_in_a_table_stay_arrays():
    given = pd.DataFrame({"item_ids": [np.array([10, 20, 30]), np.array([40, 10])]})
    got = Histories.of(given, ITEMS).corrected(edits((0, 0, "replace", 40, 0.9)), "replace")
    assert [type(row) for row in got["item_ids"]] == [np.ndarray] * 2
    assert got["item_ids"][0].tolist() == [40, 20, 30]


def test_lists_come_back_as_lists():
    given = [[10, 20], [30], [], [40, 30, 10]]
    got = Histories.of(given, ITEMS).corrected(edits((1, 1, "drop", None, 0.9)), "drop")
    assert got == [[10, 20], [30], [], [40, 10]]
    with pytest.raises(ConfigError, match="Lists hold no weights"):
        Histories.of(given, ITEMS).corrected(edits(), "downweight")


def test_unknown_items_stay_where_they_are():
    found = Histories.of([[99, 10, 98, 20]], ITEMS)
    assert found.unknown == 2
    assert found.corrected(edits((0, 1, "drop", None, 0.9)), "drop") == [[99, 10, 98]]
    with pytest.raises(DataError, match="not in the items table"):
        Histories.of([[99, 10, 98, 20]], ITEMS, strict=True)


def test_rows_without_a_user_are_left_alone():
    given = pl.DataFrame({"user_id": [None, 1, 1, None], "item_id": [10, 20, 30, 40]})
    found = Histories.of(given, ITEMS)
    assert found.windows.row(0) == [1, 2]
    assert found.corrected(edits((0, 1, "drop", None, 1.0)), "drop")["item_id"].to_list() == [10, 20, 40]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (pd.DataFrame({"user_id": [1], "sku": [1]}), "The table has the columns user_id, sku"),
        (pd.DataFrame({"item_id": [1]}), "'user_id' is missing"),
        (pl.DataFrame({"item_ids": [1]}), "expected a list of item ids"),
        ({"item_ids": [[1]]}, "of type dict"),
        ([10, 20], "A history is 10; expected a list"),
        (["10", "20"], "A history is '10'"),
        (pl.LazyFrame({"item_ids": [[1]]}), "LazyFrame"),
        (pd.DataFrame({"user_id": [1, 1], "item_id": ["10", "20"]}), "not in the items table"),
    ],
)
def test_other_tables_are_refused(given, message):
    with pytest.raises(DataError, match=message):
        Histories.of(given, ITEMS)
