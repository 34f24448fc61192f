"""What a data folder holds, in numbers that can be counted by hand."""

import datetime as dt

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4dsr import columns as c
from llm4dsr.data.describe import _gini, describe, describe_text
from llm4dsr.errors import DataError

ITEMS = pl.DataFrame({
    "item_id": list("abcde"),
    "title": ["Tom &amp; Jerry", "Tom  & Jerry", "Ball", None, " "],
})  # fmt: skip
LOG = pl.DataFrame({
    "user_id": ["ann", "ann", "ann", "ann", "bob", "bob"],
    "item_id": ["a", "b", "a", "a", "a", "x"],
    "timestamp": [86_400, 3, 4, 5, 0, 7],
    "noise_mask": [0, 1, 0, 0, 1, 1],
})  # fmt: skip


def save(frame: pl.DataFrame, path) -> None:
    write = {".parquet": frame.write_parquet, ".csv": frame.write_csv, ".jsonl": frame.write_ndjson}
    write[path.suffix](path)


@pytest.fixture(params=["parquet", "csv", "jsonl"])
def log_folder(tmp_path, request):
    save(ITEMS, tmp_path / f"items.{request.param}")
    save(LOG, tmp_path / f"interactions.{request.param}")
    return tmp_path


def test_a_log(log_folder):
    assert describe(log_folder) == {
        "form": "log",
        "users": 2,
        "items": 3,  # a, b and x
        "interactions": 6,
        "windows": {},
        "history_length": {"min": 2, "p25": 2, "median": 4, "p75": 4, "p95": 4, "max": 4, "mean": 3.0},
        "popularity": {"top_1_percent": 4 / 6, "gini": pytest.approx((-2 * 1 + 0 * 1 + 2 * 4) / (3 * 6))},
        "time": {"first": "1970-01-01T00:00:00+00:00", "last": "1970-01-02T00:00:00+00:00"},
        "repeats": {"count": 2, "share": 2 / 6},  # ann took a three times; bob's is his first
        "titles": {
            "items": 5,
            "without_title": 2,
            "duplicates": 1,
            "length": {"min": 4, "p25": 11, "median": 11, "p75": 11, "p95": 11, "max": 11, "mean": 26 / 3},
        },
        "never_taken": 3,
        "unknown": 1,
        "noise": {"log": 0.5},
    }


def test_windows(tmp_path):
    ITEMS.write_parquet(tmp_path / "items.parquet")
    splits = {
        "train": ([["a", "b", "a"], ["c", "a"]], [10, 20], [[0, 1, 0], [0, 0]]),
        "valid": ([["b", "c", "b", "b", "a"]], [30], [[0, 1, 1, 0, 0]]),
        "test": ([["a", "b"], ["b", "c"]], [-1, 40], [[0, 0], [0, 0]]),
    }
    for name, (items, times, mask) in splits.items():
        users = ["ann", "bob"][: len(items)]
        pl.DataFrame({
            "window_id": range(len(items)), "user_id": users, "item_ids": items, "timestamp": times, "noise_mask": mask
        }).write_parquet(tmp_path / f"{name}.parquet")  # fmt: skip
    found = describe(tmp_path)
    assert found["form"] == "windows"
    assert (found["users"], found["items"], found["interactions"]) == (2, 3, 14)
    assert found["windows"] == {"train": 2, "valid": 1, "test": 2}
    assert found["history_length"]["min"] == 2
    assert found["history_length"]["max"] == 5
    assert found["history_length"]["mean"] == 14 / 5
    assert found["popularity"]["top_1_percent"] == 6 / 14  # b
    assert found["time"] == {"first": "1970-01-01T00:00:10+00:00", "last": "1970-01-01T00:00:40+00:00"}  # -1: unknown
    assert found["repeats"] == {"count": 1 + 2, "share": 3 / 14}
    assert found["noise"] == {"train": 1 / 5, "valid": 2 / 5, "test": 0.0}
    assert (found["never_taken"], found["unknown"]) == (2, 0)


def test_as_text(log_folder):
    assert describe_text(describe(log_folder)).splitlines() == [
        "holds                   6 interactions of 2 users with 3 items",
        "noise                   log 50.0%",
        "time                    1970-01-01 to 1970-01-02",
        "interactions per user   2 to 4; median 4, mean 3.0, 95 % up to 4",
        "popularity              the top 1 % of the items have 66.7% of the interactions; Gini 0.33",
        "repeats                 2 interactions (33.3%) with an item that the user had before",
        "titles                  5 items; 2 without a title, 1 with that of an earlier item",
        "title length            4 to 11; median 11, mean 8.7, 95 % up to 11 characters",
        "items never taken       3",
        "items without an entry  1",
    ]


def test_the_demo(tmp_path, tiny_demo):
    tiny_demo.write(tmp_path)
    found = describe(tmp_path)
    assert found["windows"] == {name: len(windows) for name, windows in tiny_demo.splits.items()}
    assert found["noise"]["train"] == pytest.approx(
        tiny_demo.splits["train"].noise_mask.sum() / tiny_demo.splits["train"].lengths.sum()
    )
    assert "windows" in describe_text(found)


def test_an_open_truth_is_noise_where_items_differ(tmp_path):
    ITEMS.write_csv(tmp_path / "items.csv")
    LOG.drop("noise_mask").with_columns(clean_item_id=pl.Series(["a", "b", "a", "c", "a", None])).write_parquet(
        tmp_path / "interactions.parquet"
    )
    assert describe(tmp_path)["noise"] == {"log": 2 / 6}  # c for a, and x was inserted


@pytest.mark.parametrize(
    "times",
    [
        [dt.date(2024, 1, day) for day in (5, 4, 3, 1, 2, 4)],
        [dt.datetime(2024, 1, day) for day in (5, 4, 3, 1, 2, 4)],
        [f"2024-01-0{day}" for day in (5, 4, 3, 1, 2, 4)],
        [f"2024-01-0{day}T00:00:00" for day in (5, 4, 3, 1, 2, 4)],
        [1_704_067_200.0 + 86_400 * day for day in (4, 3, 2, 0, 1, 3)],
        [1_704_067_200_000 + 86_400_000 * day for day in (4, 3, 2, 0, 1, 3)],
        [f"{1_704_067_200_000_000 + 86_400_000_000 * day}" for day in (4, 3, 2, 0, 1, 3)],
        [f"{dt.date(2024, 1, day):%a %b %d} 00:00:00 -0000 2024" for day in (5, 4, 3, 1, 2, 4)],
    ],
    ids=["date", "datetime", "text date", "text datetime", "float", "ms", "text of µs", "Goodreads"],
)
def test_times_of_any_kind(tmp_path, times):
    ITEMS.write_parquet(tmp_path / "items.parquet")
    LOG.with_columns(timestamp=pl.Series(times)).write_parquet(tmp_path / "interactions.parquet")
    assert describe(tmp_path)["time"] == {"first": "2024-01-01T00:00:00+00:00", "last": "2024-01-05T00:00:00+00:00"}


def test_unknown_facts_are_null(tmp_path):
    ITEMS.write_parquet(tmp_path / "items.parquet")
    LOG.select("user_id", "item_id").write_parquet(tmp_path / "interactions.parquet")
    found = describe(tmp_path)
    assert found["time"] is None
    assert found["noise"] is None
    assert "noise                   not known" in describe_text(found)


def test_an_empty_log_has_nothing(tmp_path):
    ITEMS.write_parquet(tmp_path / "items.parquet")
    LOG.clear().write_parquet(tmp_path / "interactions.parquet")
    found = describe(tmp_path)
    assert found["interactions"] == found["users"] == found["items"] == 0
    assert found["history_length"] is None
    assert "interactions per user   none" in describe_text(found)


@given(st.integers(1, 50), st.integers(1, 20))
def test_gini_of_equals_is_0_and_of_one_alone_is_nearly_1(n, each):
    counts = pl.Series([each] * n).to_numpy()
    assert _gini(counts) == pytest.approx(0)
    assert _gini(pl.Series([0] * (n - 1) + [each]).to_numpy()) == pytest.approx(1 - 1 / n)


def _only_csv(folder, row):
    (folder / "interactions.parquet").unlink()
    (folder / "interactions.csv").write_bytes(b"user_id,item_id,timestamp\n" + row)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "items.parquet").unlink(), "lacks items"),
        (lambda f: ITEMS.drop("title").write_parquet(f / "items.parquet"), "'title' is missing"),
        (lambda f: LOG.drop("user_id").write_parquet(f / "interactions.parquet"), "'user_id' is missing"),
        (lambda f: (f / "interactions.parquet").write_bytes(b"PAR1"), "interactions.parquet cannot be read"),
        (lambda f: (f / "items.parquet").write_bytes(b""), "items.parquet cannot be read"),
        (lambda f: _only_csv(f, b"u,a,-99999999999"), r"-99,999,999,999 seconds since 1970, outside of the years"),
        (lambda f: _only_csv(f, b"\xff\xfeu,a,1"), "interactions.csv cannot be read: .*utf-8"),
    ],
)
def test_refuses_files(tmp_path, break_it, message):
    ITEMS.write_parquet(tmp_path / "items.parquet")
    LOG.write_parquet(tmp_path / "interactions.parquet")
    break_it(tmp_path)
    with pytest.raises(DataError, match=message):
        describe(tmp_path)


def test_refuses_windows_without_lists(tmp_path):
    ITEMS.write_parquet(tmp_path / "items.parquet")
    for name in c.SPLITS:
        pl.DataFrame({"user_id": [1], "item_ids": ["a b"]}).write_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"'item_ids' of train has the type String; expected a list"):
        describe(tmp_path)
