"""Windows and catalogues in memory."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4dsr import columns as c
from llm4dsr.core.arrays import PAD
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.dataset import Dataset, make_windows
from llm4dsr.data.read import as_windows
from llm4dsr.data.windows import Windows, align, limit_windows
from llm4dsr.errors import DataError
from llm4dsr.evaluate.rows import oracle_split

LETTERS = [chr(ord("a") + i) for i in range(26)]
ITEMS = pl.DataFrame({"item_id": LETTERS, "title": [f"Toy {letter}" for letter in LETTERS]})


def log(**histories: str) -> pl.DataFrame:
    """log(ann="abc") - ann took a, b, c, one a second. Later users begin where the one before ended."""
    rows = [(user, item) for user, items in histories.items() for item in items]
    return pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row").with_row_index("timestamp").cast({
        "timestamp": pl.Int64
    })  # fmt: skip


def cut(interactions, **options) -> Dataset:
    """All windows in one split, so that it is easy to look at them."""
    return make_windows(interactions, ITEMS, **{"k_core": 0, "ratios": (1, 0, 0), **options})


def spelled(data: Dataset, split: str = "train") -> list[str]:
    return ["".join(ids) for ids in data.splits[split].to_frame(data.catalogue)[c.ITEMS].to_list()]


def all_windows(data: Dataset) -> pl.DataFrame:
    return pl.concat([windows.to_frame(data.catalogue) for windows in data.splits.values()])


def test_limit_windows_is_a_seeded_sample_in_order(tiny_demo):
    train = tiny_demo.splits["train"]
    few = limit_windows(train, 20, seed=1)
    assert len(few) == 20
    assert (np.diff(few.window_ids) > 0).all()
    assert few.window_ids.tolist() == limit_windows(train, 20, seed=1).window_ids.tolist()
    assert few.window_ids.tolist() != limit_windows(train, 20, seed=2).window_ids.tolist()
    assert [few.row(i) for i in range(20)] == [train.row(w) for w in few.window_ids]
    assert limit_windows(train, 0, seed=1) is limit_windows(train, 10**9, seed=1) is train


def test_windows_of_text_users_can_be_sampled():
    data = cut(log(ann="abcdefgh", bob="ijklmnop"), history=4)
    assert limit_windows(data.splits["train"], 3, seed=0).user_ids.dtype == pl.String


def test_catalogue_of_a_core_keeps_shared_titles():
    """Rows are numbered anew: `canonical` must point into the catalogue that is left."""
    items = ITEMS.with_columns(title=pl.col("title").replace({"Toy c": "Same", "Toy e": "Same"}))
    data = make_windows(log(ann="bcdef", bob="bcdef"), items, k_core=2, ratios=(1, 0, 0))
    assert data.catalogue.ids.to_list() == list("bcdef")
    assert data.catalogue.canonical.tolist() == [0, 1, 2, 1, 4]


# --- values and offsets ----------------------------------------------------------------------------------------------

ROWS = st.lists(st.lists(st.integers(0, 25), min_size=1, max_size=9), max_size=8)
ALPHABET = Catalogue.from_frame(ITEMS)


def with_truth(rows: list[list[int]]) -> Windows:
    """Windows with a value of each kind for every interaction, which tells where it was."""
    n = sum(map(len, rows))
    return Windows.from_lists(
        rows, noise_mask=np.arange(n) % 3 == 0, clean_items=np.arange(n) % 26, weights=np.arange(n) / max(1, n)
    )


def lists(windows: Windows, values) -> list[list]:
    return [part.tolist() for part in np.split(values, windows.offsets[1:-1])][: len(windows)]


def columns(windows: Windows) -> dict[str, list[list]]:
    """All that windows hold of each interaction, window by window."""
    names = ("items", "noise_mask", "clean_items", "weights")
    return {name: lists(windows, getattr(windows, name)) for name in names}


@given(ROWS)
def test_lists_are_the_same_as_values_and_as_a_matrix(rows):
    windows = with_truth(rows)
    assert [windows.row(i) for i in range(len(windows))] == rows == lists(windows, windows.items)
    assert lists(windows, windows.positions) == [list(range(len(row))) for row in rows]
    assert lists(windows, windows.owners) == [[i] * len(row) for i, row in enumerate(rows)]
    assert lists(windows, windows.is_last) == [[False] * (len(row) - 1) + [True] for row in rows]
    assert windows.width == max(map(len, rows), default=0)
    assert windows.matrix(windows.weights, 9.0)[windows.present].tolist() == windows.weights.tolist()
    assert windows.item_matrix.tolist() == [row + [PAD] * (windows.width - len(row)) for row in rows]


@given(ROWS, st.data())
def test_taken_windows_are_those_of_the_lists(rows, data):
    windows = with_truth(rows)
    some = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=6)) if rows else []
    taken, before = windows.take(np.array(some, dtype=np.int64)), columns(windows)
    assert columns(taken) == {name: [values[i] for i in some] for name, values in before.items()}
    assert taken.window_ids.tolist() == some
    assert taken.width == windows.width  # what is computed of a window does not depend on its batch
    assert windows.items[windows.interactions(np.array(some, dtype=np.int64))].tolist() == taken.items.tolist()


@given(ROWS)
def test_histories_and_targets_are_the_windows(rows):
    windows = with_truth(rows)
    histories = windows.histories()
    assert columns(histories) == {n: [row[:-1] for row in values] for n, values in columns(windows).items()}
    assert windows.targets().tolist() == [row[-1] for row in rows]


@given(ROWS, st.integers(1, 30))
def test_batches_are_all_windows_in_order(rows, cells):
    windows = with_truth(rows)
    batches = list(windows.batches(cells))
    assert [row for _, batch in batches for row in lists(batch, batch.items)] == rows
    assert [i for here, _ in batches for i in windows.weights[here]] == windows.weights.tolist()
    assert all(len(batch) <= max(1, cells // max(1, windows.width)) for _, batch in batches)


@given(st.lists(st.lists(st.integers(0, 25), min_size=2, max_size=9), max_size=8))
@settings(deadline=None)  # the first call imports what reads and writes tables
def test_written_and_read_they_are_the_same(rows):
    windows = with_truth(rows)
    assert columns(Windows.from_frame(windows.to_frame(ALPHABET), ALPHABET)) == columns(windows)


@given(ROWS.filter(bool), st.integers(0, 25))
def test_titles_of_a_window(rows, item):
    """Items 0 and 1 have one title."""
    catalogue = Catalogue(ITEMS["item_id"], ["Toy a", *ITEMS["title"][:-1]])
    windows, every = Windows.from_lists(rows), np.arange(len(rows))
    same = {0, 1} if item < 2 else {item}
    found = windows.have_title(every, np.full(len(rows), item), catalogue)
    assert found.tolist() == [bool(same & set(row)) for row in rows]


def test_a_value_for_each_interaction_is_expected():
    with pytest.raises(DataError, match=r"weights has the shape \(2, 2\); expected 3 values, one per interaction"):
        Windows.from_lists([[0, 1], [2]], weights=np.ones((2, 2)))


@pytest.mark.parametrize("position", [-1, 3, 10**6])
def test_a_position_outside_its_window_is_named(position):
    windows = Windows.from_lists([[0, 1, 2, 3, 4], [5, 6, 7]], window_ids=np.array([7, 3]))
    table = pl.DataFrame({c.WINDOW: [7, 3], c.POSITION: [4, position]})
    with pytest.raises(DataError, match=f"names position {position} of window_id 3, which has the positions 0 to 2"):
        align(table, windows, None)


def test_the_id_of_a_history_without_a_user_is_its_content():
    catalogue = Catalogue(pl.Series("item_id", [10, 11, 12]), ["a", "b", "c"])
    listed = as_windows([[10, 11], [10, 11, 12], [11, 10], [10, 11]], catalogue).user_ids.to_list()
    assert listed[0] == listed[3]
    assert len(set(listed)) == 3
    assert listed == Windows.from_lists([[0, 1], [0, 1, 2], [1, 0], [0, 1]]).user_ids.to_list()


def test_truth_that_is_not_known_is_an_error_for_people(tiny_demo):
    windows = Windows.from_lists([[0, 1, 2]])
    with pytest.raises(DataError, match="no 'noise_mask', so their noise is not known"):
        windows.truth()
    with pytest.raises(DataError, match="no 'clean_item_ids'"):
        windows.true_items()
    with pytest.raises(DataError, match="no 'noise_mask'"):
        oracle_split(windows, tiny_demo.catalogue, "drop", has_target=True)
