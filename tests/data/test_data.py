"""Reading what a user has, and cutting windows from a log. Small cases whose result can be checked by eye."""

import dataclasses
import datetime as dt
import os
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4dsr import columns as c
from llm4dsr.core.io import write_parquet
from llm4dsr.data.dataset import Dataset, make_windows
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.errors import DataError, OutputError

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


# --- windows ---------------------------------------------------------------------------------------------------------


def test_a_long_history_gives_a_window_per_step():
    assert spelled(cut(log(ann="abcdefgh"), history=5)) == ["abcdef", "bcdefg", "cdefgh"]


def test_a_short_history_is_one_window_and_a_very_short_one_none():
    data = cut(log(ann="abcdefg", bob="vwxyz", eve="klmn"))
    assert spelled(data) == ["abcdefg", "vwxyz"]  # 4 items and a target are enough; 3 and a target are not
    assert data.report == {"missing_value": 0, "repeated_row": 0, "k_core": 0, "short_history": 4}
    assert data.splits["train"].user_ids.to_list() == ["ann", "bob"]
    assert data.splits["train"].timestamps.tolist() == [6, 11]  # when the target was taken


def test_ten_items_and_a_target_unless_told_otherwise():
    assert spelled(cut(log(ann="abcdefghijkl"))) == ["abcdefghijk", "bcdefghijkl"]


def test_time_decides_the_order_and_ties_keep_that_of_the_file():
    shuffled = pl.DataFrame({
        "user_id": ["ann", "bob", "ann", "ann", "ann", "ann"],
        "item_id": ["e", "z", "a", "c", "b", "d"],
        "timestamp": [50, 0, 10, 20, 20, 40],
    })  # fmt: skip
    assert spelled(cut(shuffled)) == ["acbde"]


@given(st.lists(st.text(LETTERS, min_size=5, max_size=20), min_size=1, max_size=5), st.integers(1, 12))
def test_windows_laid_end_to_end_are_the_histories(histories, history):
    """The first window of a user and the targets of the others: nothing lost, nothing made up."""
    data = cut(log(**{f"user{i}": text for i, text in enumerate(histories)}), history=history)
    frame = data.splits["train"].to_frame(data.catalogue)
    for i, text in enumerate(histories):
        windows = ["".join(w) for w in frame.filter(user_id=f"user{i}").sort("timestamp")[c.ITEMS].to_list()]
        assert windows[0] + "".join(w[-1] for w in windows[1:]) == text
        assert all(before[1:] == after[:-1] for before, after in pairwise(windows))


def test_split_by_the_time_of_the_target():
    """20 windows: 16, 2 and 2, in the order in which their targets were taken; the two users take turns."""
    ann, bob = "abcde" + "fghijklmno", "abcde" + "pqrstuvwxy"
    both = log(ann=ann, bob=bob).with_columns(timestamp=pl.Series([*range(0, 30, 2), *range(1, 31, 2)]))
    data = make_windows(both, ITEMS, history=5, k_core=0)
    assert [len(data.splits[name]) for name in c.SPLITS] == [16, 2, 2]
    assert [data.splits[name].timestamps.tolist() for name in c.SPLITS[1:]] == [[26, 27], [28, 29]]
    assert [spelled(data, name) for name in c.SPLITS[1:]] == [["ijklmn", "stuvwx"], ["jklmno", "tuvwxy"]]
    assert data.splits["test"].window_ids.tolist() == [0, 1]


@pytest.mark.parametrize(("windows", "sizes"), [(10, [8, 1, 1]), (11, [8, 1, 2]), (19, [15, 2, 2]), (21, [16, 2, 3])])
def test_split_sizes_round_down(windows, sizes):
    data = make_windows(log(ann=("ab" * 20)[: windows + 1]), ITEMS, history=1, k_core=0)
    assert [len(data.splits[name]) for name in c.SPLITS] == sizes


def test_truth_is_carried_and_test_targets_are_restored():
    noisy, clean = "abcdefxhijklmn", "abcdefghijklmn"  # x was put in place of g
    interactions = log(ann=noisy).with_columns(clean_item_id=pl.Series(list(clean)))
    data = make_windows(interactions, ITEMS, history=5, k_core=0, ratios=(1, 1, 7))
    assert spelled(data, "train") == ["abcdef"]
    assert spelled(data, "valid") == ["bcdefx"]  # a validation target stays as it was
    assert spelled(data, "test")[0] == "cdefxh"
    assert data.splits["valid"].noise_mask.tolist() == [[False] * 5 + [True]]

    # Cut so that x is a test target: g again there, though it stays x in the histories of later windows.
    data = make_windows(interactions, ITEMS, history=5, k_core=0, ratios=(1, 0, 8))
    assert spelled(data, "test")[:2] == ["bcdefg", "cdefxh"]
    assert data.splits["test"].noise_mask.tolist()[:2] == [[False] * 6, [False] * 4 + [True, False]]


# --- k-core ----------------------------------------------------------------------------------------------------------


def test_k_core_goes_on_until_nothing_changes():
    """3-core: z is taken twice only and leaves; dan then has two left and leaves; now y has two, and leaves too."""
    data = cut(log(ann="abc", bob="abcz", eve="abcy", joe="aby", dan="zay"), k_core=3, history=2)
    assert data.catalogue.ids.to_list() == ["a", "b", "c"]
    assert sorted(spelled(data)) == ["abc", "abc", "abc"]  # joe too: a and b are all that he has left
    assert data.report["k_core"] == 1 + 1 + 3 + 3  # bob's z, eve's y, all of joe, all of dan


def test_k_core_with_short_histories_counts_both_reasons():
    data = cut(log(ann="abcde", bob="abcde", eve="ab"), k_core=2)
    assert data.report == {"missing_value": 0, "repeated_row": 0, "k_core": 0, "short_history": 2}
    assert len(data.catalogue) == 5  # items that nobody took leave the catalogue


def test_without_k_core_the_catalogue_stays_whole():
    assert len(cut(log(ann="abcde"), k_core=0).catalogue) == 26


def test_an_empty_core_says_so():
    with pytest.raises(DataError, match=r"5-core is empty: none of the 10 interactions.*Set a smaller k_core"):
        make_windows(log(ann="abcde", bob="fghij"), ITEMS)


# --- rows that cannot be used ----------------------------------------------------------------------------------------


def test_rows_left_out_are_counted():
    rows = log(ann="abcde")
    lacking = pl.DataFrame({"timestamp": [None, 9, 9], "user_id": ["ann", None, "ann"], "item_id": ["f", "g", None]})
    data = cut(pl.concat([rows, rows[:2], lacking], how="diagonal_relaxed"))
    assert data.report == {"missing_value": 3, "repeated_row": 2, "k_core": 0, "short_history": 0}
    assert spelled(data) == ["abcde"]


def test_repeats_at_another_time_stay():
    assert spelled(cut(log(ann="abaca"))) == ["abaca"]


@pytest.mark.parametrize(
    "times",
    [
        [dt.date(2024, 1, day) for day in (5, 4, 3, 2, 1)],
        [dt.datetime(2024, 1, 1, 12, 0, 0, micro) for micro in (5, 4, 3, 2, 1)],
        ["2024-01-05", "2024-01-04", "2024-01-03", "2024-01-02", "2024-01-01"],
        [f"2024-01-01T0{hour}:00:00" for hour in (5, 4, 3, 2, 1)],
        [0.5, 0.4, 0.3, 0.2, 0.1],
    ],
    ids=["date", "datetime", "text date", "text datetime", "float"],
)  # fmt: skip
def test_times_of_any_kind(times):
    data = cut(log(ann="abcde").with_columns(timestamp=pl.Series(times)))
    assert spelled(data) == ["edcba"]
    if not isinstance(times[0], float):
        assert 1_704_067_200 <= data.splits["train"].timestamps[0] <= 1_704_412_800  # seconds, 1 to 5 January 2024


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.drop("timestamp"), "'timestamp' is missing"),
        (lambda d: d.with_columns(timestamp=pl.lit("soon")), "'timestamp' of the interactions is text that is no date"),
        (lambda d: d.with_columns(timestamp=pl.lit(True)), "type Boolean; expected a number or a date"),
        (
            lambda d: d.with_columns(item_id=pl.lit("?")),
            r"1 item id\(s\) in the interactions are not in the items table",
        ),
        (lambda d: d.with_columns(item_id=pl.lit(7)), "of type int; the items table has String"),
        (
            lambda d: d.with_columns(noise_mask=pl.lit(2)),
            r"'noise_mask' of the interactions holds \[2\]; expected 0 or 1",
        ),
        (lambda d: d.with_columns(clean_item_id=pl.lit(1)), "cannot be compared.*same type"),
        (lambda d: d.with_columns(clean_item_id=pl.lit("?")), "in clean_item_id are not in the items table"),
        (lambda d: d.clear(), r"0 row\(s\)"),
        (lambda d: d[:4], "No user has the 5 interactions that a window needs"),
        (lambda d: d, r"1 window\(s\) are too few to split 8:1:1: train, valid would be empty"),
    ],
)
def test_refuses_a_log(change, message):
    with pytest.raises(DataError, match=message):
        make_windows(change(log(ann="abcde")), ITEMS, k_core=0)


def test_refuses_options_out_of_range():
    for options in ({"history": 0}, {"ratios": (8, 1)}, {"ratios": (0, 0, 0)}, {"ratios": (8, -1, 1)}):
        with pytest.raises(DataError, match=r"expected at least 1, and three shares"):
            cut(log(ann="abcde"), **options)


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
        windows.weights = np.where(windows.present, 0.5, 1.0)
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
    assert ((train.items != train.clean_items) == train.noise_mask)[train.present].all()
    history = test.histories()
    assert history.noise_mask.sum() / history.lengths.sum() == pytest.approx(0.1035, abs=5e-5)
    assert (test.targets() == test.clean_items[np.arange(len(test)), test.lengths - 1]).all()
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


# --- helpers ---------------------------------------------------------------------------------------------------------


def test_write_parquet_leaves_the_old_file_whole_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    write_parquet(ITEMS, path)

    def disk_full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", disk_full)
    with pytest.raises(OutputError, match=r"Cannot write .*x.parquet: No space left on device"):
        write_parquet(ITEMS[:1], path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.parquet"]
    assert pl.read_parquet(path).equals(ITEMS)


def test_write_parquet_where_a_file_is_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"Cannot write"):
        write_parquet(ITEMS, tmp_path / "file" / "x.parquet")


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
