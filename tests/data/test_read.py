"""Read data folders: logs and ready windows, in every format, and files that cannot be used."""

import dataclasses
import os

import numpy as np
import polars as pl
import pytest

from llm4dsr import columns as c
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.dataset import Dataset, make_windows
from llm4dsr.data.read import as_windows, read_data
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError

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


# --- files -----------------------------------------------------------------------------------------------------------


def save(frame: pl.DataFrame, path) -> None:
    write = {".parquet": frame.write_parquet, ".csv": frame.write_csv, ".jsonl": frame.write_ndjson}
    write[path.suffix](path)


BIG_LOG = log(ann="abcdefghijklmnopqrst", bob="tsrqponmlkjihgfedcba")


@pytest.mark.parametrize("numbers", [False, True], ids=["str ids", "int ids"])
def test_a_log_reads_the_same_from_parquet_csv_and_jsonl(tmp_path, numbers):
    interactions, items = BIG_LOG, ITEMS.with_columns(title=pl.Series([str(1960 + i) for i in range(26)]))
    if numbers:  # titles that are numbers, too
        as_number = pl.col("item_id").replace_strict({letter: 100 + i for i, letter in enumerate(LETTERS)})
        interactions, items = interactions.with_columns(as_number), items.with_columns(as_number)
    expected = all_windows(make_windows(interactions, items, k_core=2))
    for end in ("parquet", "csv", "jsonl"):
        (tmp_path / end).mkdir()
        save(interactions, tmp_path / end / f"interactions.{end}")
        save(items, tmp_path / end / f"items.{end}")
        data = read_data(tmp_path / end, k_core=2)
        assert all_windows(data).equals(expected)
        assert data.catalogue.titles == sorted(items["title"])[:20]


@pytest.mark.parametrize("end", ["parquet", "jsonl"])
def test_ready_windows_read_the_same(tmp_path, tiny_demo, end):
    save(tiny_demo.catalogue.to_frame(), tmp_path / f"items.{end}")
    for name, windows in tiny_demo.splits.items():
        save(windows.to_frame(tiny_demo.catalogue), tmp_path / f"{name}.{end}")
    again = read_data(tmp_path)
    for name, windows in tiny_demo.splits.items():
        for field in dataclasses.fields(Windows):
            before, after = getattr(windows, field.name), getattr(again.splits[name], field.name)
            assert (before is None and after is None) or np.array_equal(before, after), field.name


def test_write_and_read_back_with_weights_and_text_ids(tmp_path):
    data = make_windows(BIG_LOG, ITEMS, k_core=2)
    for windows in data.splits.values():
        windows.weights = np.full(len(windows.items), 0.5)
    data.write(tmp_path / "new" / "folder")
    again = read_data(tmp_path / "new" / "folder")
    assert all_windows(again).equals(all_windows(data))
    assert all_windows(again)[c.WEIGHTS].explode().to_list() == [0.5] * (11 * 20)
    assert again.splits["train"].user_ids.to_list() == data.splits["train"].user_ids.to_list()
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "items.parquet", "test.parquet", "train.parquet", "valid.parquet"
    ]  # fmt: skip


def test_a_prefix_names_one_data_set_of_a_folder(tmp_path, tiny_demo):
    def add(prefix: str) -> None:
        tiny_demo.write(tmp_path)
        for name in ("items", *c.SPLITS):
            os.replace(tmp_path / f"{name}.parquet", tmp_path / f"{prefix}_{name}.parquet")

    add("toys")
    save(ITEMS, tmp_path / "lonely_items.parquet")  # no set: there are no windows with it
    assert len(read_data(tmp_path / "toys").catalogue) == 60
    assert len(read_data(tmp_path).catalogue) == 60  # the only whole set
    add("games")
    with pytest.raises(DataError, match=r"several data sets: \['games', 'toys'\]. Name one, for example .*games"):
        read_data(tmp_path)
    (tmp_path / "toys_valid.parquet").unlink()
    with pytest.raises(
        DataError, match=r"lacks toys_valid; it holds .*toys_train.parquet.*Expected either ready windows"
    ):
        read_data(tmp_path / "toys")


def test_toys(toys_path):
    data = read_data(toys_path)
    assert len(data.catalogue) == 11_758
    assert {name: len(windows) for name, windows in data.splits.items()} == {
        "train": 38_344,
        "valid": 4_793,
        "test": 4_794,
    }
    train, test = data.splits["train"], data.splits["test"]
    assert np.unique(train.lengths).tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert ((train.items != train.clean_items) == train.noise_mask).all()
    history = test.histories()
    assert history.noise_mask.sum() / history.lengths.sum() == pytest.approx(0.1035, abs=5e-5)
    assert (test.targets() == test.clean_items[test.is_last]).all()
    shared_title = data.catalogue.canonical != np.arange(len(data.catalogue))
    assert shared_title.any()
    ids = pl.read_parquet(f"{toys_path}_items.parquet")
    assert data.catalogue.to_frame()[c.CANONICAL].to_list() == ids["canonical_id"].to_list()


# --- files that cannot be used ---------------------------------------------------------------------------------------


def windows_frame(**columns) -> pl.DataFrame:
    return pl.DataFrame({"window_id": [0, 1], "user_id": [7, 8], "item_ids": [list("abc"), list("de")], **columns})


@pytest.fixture
def folder(tmp_path):
    """Ready windows, two in each split."""
    ITEMS.write_parquet(tmp_path / "items.parquet")
    for name in c.SPLITS:
        windows_frame().write_parquet(tmp_path / f"{name}.parquet")
    return tmp_path


def test_least_windows_that_are_enough(folder):
    data = read_data(folder)
    assert spelled(data) == ["abc", "de"]
    assert data.splits["train"].timestamps.tolist() == [-1, -1]
    assert data.report == {}


def test_unknown_times_are_minus_one(folder):
    windows_frame(timestamp=[5, None]).write_parquet(folder / "train.parquet")
    assert read_data(folder).splits["train"].timestamps.tolist() == [5, -1]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (windows_frame().drop("item_ids"), "'item_ids' is missing"),
        (windows_frame(item_ids=["a b", "c d"]), "type String; expected a list of item ids"),
        (windows_frame(item_ids=[["a", "b"], []]), r"an empty history, for example window_id \[1\]"),
        (windows_frame(item_ids=[["a", "b"], None]), "an empty history"),
        (windows_frame(item_ids=[["a"], ["b", "c"]]), "a history of one item.*at least two items"),
        (windows_frame(item_ids=[["a", "?"], ["b", "c"]]), r"1 item id\(s\) in .*train.parquet are not in.*\['\?'\]"),
        (windows_frame(item_ids=[["a", None], ["b", "c"]]), r"are not in the items table, for example \[None\]"),
        (windows_frame(item_ids=[[1, 2], [3, 4]]), "of type int; the items table has String"),
        (windows_frame(item_ids=[[["a"], ["b"]], [["c"], ["d"]]]), "Item ids in .*train.parquet are lists or records"),
        (windows_frame(window_id=["x", "y"]), "'window_id' in .* has the type String; expected integers"),
        (windows_frame(window_id=[3, 3]), r"must be unique in .*repeated: \[3\]"),
        (windows_frame(window_id=[3, None]), r"1 row\(s\) of .* have no 'window_id'"),
        (windows_frame(timestamp=["a", "b"]), "'timestamp' in .* has the type String; expected integers"),
        (windows_frame(noise_mask=[0, 1]), "'noise_mask' in .*type Int64; expected a list of numbers"),
        (windows_frame(noise_mask=[["0"], ["1"]]), r"type List\(String\); expected a list of numbers"),
        (windows_frame(noise_mask=[[0, 2, 0], [0, 0]]), "values from 0 to 2; expected 0 to 1"),
        (windows_frame(noise_mask=[[0, 1], [0, 0]]), "as many entries per window as 'item_ids'"),
        (windows_frame(weights=[[1.0, 1.0, -0.5], [1.0, 1.0]]), "values from -0.5 to 1; expected 0 to 1"),
        (windows_frame(clean_item_ids=["abc", "de"]), "cannot be used"),
        (windows_frame().clear(), "has no rows; expected at least one window"),
    ],
)
def test_refuses_windows(folder, frame, message):
    frame.write_parquet(folder / "train.parquet")
    with pytest.raises(DataError, match=message):
        read_data(folder)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (ITEMS.drop("title"), "'title' is missing"),
        (ITEMS.with_columns(pl.col("title").replace({"Toy b": None})), r"1 item\(s\) have no title.*\['b'\]"),
        (pl.concat([ITEMS, ITEMS[:1]]), r"must be unique in the items table; repeated: \['a'\]"),
        (ITEMS.clear(), "no rows"),
    ],
)  # fmt: skip
def test_refuses_items(folder, items, message):
    items.write_parquet(folder / "items.parquet")
    with pytest.raises(DataError, match=message):
        read_data(folder)


def test_no_folder(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere, nor files whose names begin with.*Expected either"):
        read_data(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no folder"):
        read_data(tmp_path / "no" / "where")


def test_missing_files_are_named_with_what_is_there(folder):
    (folder / "valid.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks valid; it holds items.parquet, test.parquet, train.parquet. Expected"):
        read_data(folder)
    BIG_LOG.write_parquet(folder / "interactions.parquet")  # half of each: better ask than guess
    with pytest.raises(DataError, match=r"lacks valid"):
        read_data(folder)
    (folder / "items.parquet").unlink()
    with pytest.raises(DataError, match=r"lacks items"):
        read_data(folder)


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"lacks items; it holds nothing"):
        read_data(tmp_path)


def test_one_file_in_two_formats(folder):
    ITEMS.write_csv(folder / "items.csv")
    with pytest.raises(DataError, match=r"holds items more than once: \['items.parquet', 'items.csv'\]. Keep one"):
        read_data(folder)


@pytest.mark.parametrize("size", [0, 4, 200])
def test_a_file_cut_off(folder, size):
    whole = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(whole[:size])
    with pytest.raises(DataError, match=r"train.parquet cannot be read as parquet: .*cut off"):
        read_data(folder)


def test_no_lists_in_csv(folder):
    (folder / "train.parquet").unlink()
    (folder / "train.csv").write_text('window_id,user_id,item_ids\n0,7,"[a, b]"\n')
    with pytest.raises(DataError, match=r"csv holds no lists. Give windows as .parquet or .jsonl"):
        read_data(folder)


def test_broken_text_files(folder):
    (folder / "train.parquet").unlink()
    (folder / "train.jsonl").write_text('{"window_id": 0, "user_id"')
    with pytest.raises(DataError, match=r"train.jsonl cannot be read as jsonl"):
        read_data(folder)
    (folder / "items.parquet").unlink()
    (folder / "items.csv").write_bytes(b"item_id,title\n1,\xff\xfe\n")
    with pytest.raises(DataError, match=r"items.csv cannot be read as csv"):
        read_data(folder)


@pytest.mark.parametrize(
    ("histories", "message"),
    [
        ([[1, 2], [1.5, 3]], "1.5"),  # it was read as item 1
        ([[1, 2], ["abc", 3]], "'abc'"),
        ([[1, None]], "None"),
        ([1, 2], "holds 1; expected a list of item ids"),
        (["12"], "holds '12'; expected a list of item ids"),
    ],
)
def test_ids_in_lists_are_never_changed_to_fit_the_items(histories, message):
    catalogue = Catalogue(pl.Series([1, 2, 3]), ["one", "two", "three"])
    with pytest.raises(DataError, match=message):
        as_windows(histories, catalogue)
    whole = as_windows([np.array([3, 1]), (2.0, 3), pl.Series([1, 2])], catalogue)
    assert [list(whole.row(i)) for i in range(3)] == [[2, 0], [1, 2], [0, 1]]
