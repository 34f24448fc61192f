"""Windows and catalogues in memory."""

import numpy as np
import polars as pl
import pytest

from llm4dsr import columns as c
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.dataset import Dataset, make_windows
from llm4dsr.data.read import as_windows
from llm4dsr.data.windows import Windows, limit_windows, to_matrix
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
    assert (few.items == train.items[few.window_ids]).all()
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


@pytest.mark.parametrize("position", [-1, 3, 10**6])
def test_a_position_outside_its_window_is_named(position):
    windows = Windows.from_lists([[0, 1, 2, 3, 4], [5, 6, 7]], window_ids=np.array([7, 3]))
    table = pl.DataFrame({c.WINDOW: [7, 3], c.POSITION: [4, position]})
    with pytest.raises(DataError, match=f"names position {position} of window_id 3, which has the positions 0 to 2"):
        to_matrix(table, windows, None)


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
