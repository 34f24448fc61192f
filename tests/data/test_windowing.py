"""Windows from an interaction log: small cases whose result can be checked by eye."""

import datetime as dt
from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4dsr import columns as c
from llm4dsr.data.dataset import Dataset, make_windows
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


# --- windows ---------------------------------------------------------------------------------------------------------


def test_a_long_history_gives_a_window_per_step():
    assert spelled(cut(log(ann="abcdefgh"), history=5)) == ["abcdef", "bcdefg", "cdefgh"]


def test_a_short_history_is_one_window_and_a_very_short_one_none():
    data = cut(log(ann="abcdefg", bob="vwxyz", eve="klmn"))
    assert spelled(data) == ["abcdefg", "vwxyz"]  # 4 items and a target are enough; 3 and a target are not
    assert data.report == {"missing_value": 0, "repeated_row": 0, "k_core": 0, "short_history": 4}
    assert data.splits["train"].user_ids.to_list() == ["ann", "bob"]
    assert data.splits["train"].timestamps.tolist() == [6, 11]  # when the target was taken


def test_ten_items_and_a_target_by_default():
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
    assert data.splits["valid"].noise_mask.tolist() == [False] * 5 + [True]

    # Cut so that x is a test target: g again there, though it stays x in the histories of later windows.
    data = make_windows(interactions, ITEMS, history=5, k_core=0, ratios=(1, 0, 8))
    assert spelled(data, "test")[:2] == ["bcdefg", "cdefxh"]
    assert data.splits["test"].noise_mask.tolist()[:12] == [False] * 6 + [False] * 4 + [True, False]


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
        (lambda d: d.with_columns(timestamp=pl.lit("soon")), "'timestamp' of the interactions has 'soon', and"),
        (lambda d: d.with_columns(timestamp=pl.lit(True)), "type Boolean; expected a number, a date or text"),
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
