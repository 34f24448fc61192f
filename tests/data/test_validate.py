"""What `validate` finds: each case is a small valid folder with one thing changed."""

import gzip
import json
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llm4dsr.core.memory import available_memory
from llm4dsr.data.noise.folder import noise_folder
from llm4dsr.data.noise.kinds import KINDS
from llm4dsr.data.validate import checks as module
from llm4dsr.data.validate.checks import validate
from llm4dsr.data.validate.findings import CODES, Report, size

LETTERS = list("abcdefgh")
ITEMS = pl.DataFrame({"item_id": LETTERS, "title": [f"Toy {letter}" for letter in LETTERS]})
# 12 users take 12 of 8 items in turn, so that a 5-core holds them all.
LOG = pl.DataFrame(
    [(f"u{u:02}", LETTERS[(u + 3 * t) % 8], 1_600_000_000 + 100 * t + u) for u in range(12) for t in range(12)],
    schema=["user_id", "item_id", "timestamp"], orient="row",
)  # fmt: skip


def windows(*histories: str, user: str = "ann", **columns) -> pl.DataFrame:
    return pl.DataFrame({
        "window_id": range(len(histories)), "user_id": [f"{user}{i}" for i in range(len(histories))],
        "item_ids": [list(items) for items in histories], **columns,
    })  # fmt: skip


def write(folder, **frames):
    folder.mkdir(exist_ok=True)
    for name, frame in frames.items():
        frame.write_parquet(folder / f"{name}.parquet")
    return folder


def of_windows(folder, **changed):
    parts = {
        "train": windows("abcdefgh", "hgfedc"),
        "valid": windows("abcd", user="bob"),
        "test": windows("bcde", user="eve"),
    }
    return write(folder, items=ITEMS, **{**parts, **changed})


def of_log(folder, interactions=LOG, items=ITEMS):
    return write(folder, items=items, interactions=interactions)


def codes(report: Report) -> list[str]:
    return [finding.code for finding in report.findings if finding.code != "few_windows"]


def the(report: Report, code: str):
    """The one finding with this code."""
    (finding,) = [finding for finding in report.findings if finding.code == code]
    return finding


def test_valid_folders(tmp_path):
    for folder in (of_log(tmp_path / "log"), of_windows(tmp_path / "windows")):
        report = validate(folder)
        assert codes(report) == []
        assert report.ok()
    assert validate(tmp_path / "log").rows == {"items": 8, "interactions": 144}
    assert validate(tmp_path / "log", strict=True).ok()
    assert not validate(tmp_path / "windows", strict=True).ok()  # two windows to learn from are few
    assert validate(tmp_path / "windows").ok(strict=False)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_of_every_kind_is_valid(tmp_path, kind):
    for folder in (of_log(tmp_path / "log"), of_windows(tmp_path / "windows")):
        noise_folder(folder, tmp_path / f"{folder.name} out", kind, 0.3)
        assert validate(tmp_path / f"{folder.name} out", strict=True).errors == []


# --- items -----------------------------------------------------------------------------------------------------------


def titled(title: str | None, letter: str = "b") -> pl.Expr:
    """The titles with another one for one item."""
    return pl.when(pl.col("item_id") == letter).then(pl.lit(title)).otherwise(pl.col("title")).alias("title")


@pytest.mark.parametrize(
    ("items", "code", "count", "examples"),
    [
        (ITEMS.drop("title"), "missing_column", 1, []),
        (ITEMS.with_columns(item_id=pl.int_range(8) / 2), "column_type", 1, []),
        (ITEMS.with_columns(item_id=pl.concat_list("item_id")), "column_type", 1, []),
        (ITEMS.with_columns(title=pl.int_range(8)), "column_type", 1, []),
        (pl.concat([ITEMS, ITEMS[:1].with_columns(item_id=pl.lit(None, pl.String))]), "missing_id", 1, ["'Toy a'"]),
        (pl.concat([ITEMS, ITEMS[1:3]]), "repeated_id", 2, ["'b'", "'c'"]),
        (ITEMS.with_columns(titled(None)).with_columns(titled(" \n\u200b", "c")), "no_title", 2, ["'b'", "'c'"]),
        (ITEMS.with_columns(titled("Toy&#32; a\n")), "same_title", 2, ["'Toy a'", "'Toy a'"]),
        (ITEMS.with_columns(titled("b" * 501)), "long_title", 1, ["'b'"]),
        (ITEMS.with_columns(titled("Toy\x1b[31m b")), "control_characters", 1, [r"'Toy\x1b[31m b'"]),
        (pl.concat([ITEMS, pl.DataFrame({"item_id": ["x"], "title": ["New"]})]), "unused_item", 1, ["'x'"]),
        (ITEMS.clear(), "no_rows", 1, []),
    ],
)  # fmt: skip
def test_items(tmp_path, items, code, count, examples):
    found = the(validate(of_log(tmp_path, items=items)), code)
    assert (found.count, found.examples) == (count, examples)


def test_ids_of_another_type_are_not_the_same(tmp_path):
    numbers = {letter: i for i, letter in enumerate(LETTERS)}
    as_number, as_text = (
        pl.col("item_id").replace_strict(numbers),
        pl.col("item_id").replace_strict(numbers).cast(pl.String),
    )
    report = validate(of_log(tmp_path, LOG.with_columns(as_text), ITEMS.with_columns(as_number)))
    assert "ids of type String; the items have Int64" in the(report, "id_type").text
    small = validate(of_log(tmp_path, LOG.with_columns(as_number.cast(pl.UInt8)), ITEMS.with_columns(as_number)))
    assert codes(small) == []  # whole numbers of any size are the same


def test_categories_are_text(tmp_path):
    categories = pl.col("item_id").cast(pl.Categorical)
    assert codes(validate(of_log(tmp_path, LOG.with_columns(categories), ITEMS.with_columns(categories)))) == []


# --- a log -----------------------------------------------------------------------------------------------------------

TODAY = int(time.time()) // 86_400 * 86_400  # so that test names are the same in every process
HOUR_AGO, TOMORROW = TODAY - 3600, TODAY + 3 * 86_400


def first(n: int, **values) -> pl.DataFrame:
    """The log with other values in its first n rows."""
    return LOG.with_columns(
        pl.when(pl.int_range(pl.len()) < n).then(pl.lit(value)).otherwise(pl.col(name)).alias(name)
        for name, value in values.items()
    )


@pytest.mark.parametrize(
    ("log", "code", "count", "example"),
    [
        (LOG.drop("user_id"), "missing_column", 1, None),
        (LOG.with_columns(user_id=pl.concat_list("user_id")), "column_type", 1, None),
        (LOG.with_columns(timestamp=pl.lit(True)), "column_type", 1, None),
        (LOG.with_columns(timestamp=pl.col("timestamp").cast(pl.Duration("ms"))), "column_type", 1, None),
        (first(3, item_id=None), "missing_value", 3, "{'user_id': 'u00', 'item_id': None, 'timestamp': 1600000000}"),
        (first(2, item_id="?"), "unknown_item", 1, "'?'"),
        (pl.concat([LOG, LOG[:4]]), "repeated_row", 4, "{'user_id': 'u00', 'item_id': 'a', 'timestamp': 1600000000}"),
        (first(2, timestamp=-5), "negative_time", 2, "-5"),
        (first(2, timestamp=TOMORROW), "future_time", 2, str(TOMORROW)),
        (first(12, timestamp=7), "no_order", 1, "'u00'"),
        (LOG.with_columns(timestamp=pl.lit("soon")), "time_type", 144, "'soon'"),
        (pl.concat([LOG, LOG[:1].with_columns(user_id=pl.lit("new"))]), "one_interaction", 1, "'new'"),
        (first(2, item_id="a").with_columns(noise_mask=2), "value", 144, "2"),
        (LOG.with_columns(noise_mask=pl.lit("no")), "column_type", 1, None),
        (LOG.with_columns(clean_item_id=pl.lit("?")), "unknown_item", 1, "'?'"),
        (first(2, item_id="h").with_columns(clean_item_id=LOG["item_id"], noise_mask=0), "unmarked_noise", 2,
         "{'item_id': 'h', 'clean_item_id': 'a'}"),
        (LOG.with_columns(clean_item_id=pl.lit(None, pl.String), noise_mask=0), "unmarked_noise", 144,
         "{'item_id': 'a', 'clean_item_id': None}"),
        (LOG.with_columns(clean_item_id="item_id", noise_mask=1), "marked_clean", 144, "'a'"),
        (LOG[:20], "refused", 1, None),
    ],
)  # fmt: skip
def test_a_log(tmp_path, log, code, count, example):
    found = the(validate(of_log(tmp_path, log)), code)
    assert found.count == count
    assert found.examples[:1] == ([] if example is None else [example[:59] + "…" if len(example) > 60 else example])


def test_giant_histories(tmp_path):
    robot = pl.DataFrame({"user_id": "robot", "item_id": LETTERS * 700, "timestamp": range(5600)})
    assert the(validate(of_log(tmp_path, pl.concat([LOG, robot]))), "giant_history").examples == ["'robot'"]


@pytest.mark.parametrize("of", ["datetime", "text", "float"])
def test_times_of_other_types_are_fine(tmp_path, of):
    stamp = pl.col("timestamp")
    times = {"datetime": pl.from_epoch(stamp), "text": pl.from_epoch(stamp).dt.to_string(), "float": stamp + 0.5}[of]
    assert codes(validate(of_log(tmp_path, LOG.with_columns(timestamp=times)))) == []


# --- ready windows ---------------------------------------------------------------------------------------------------

PAIR = ("abcdefgh", "hgfedc")
MASK = [[0, 0, 1], [0] * 8, [0] * 6]


@pytest.mark.parametrize(
    ("train", "code", "count", "examples"),
    [
        (windows(*PAIR).drop("window_id"), "missing_column", 1, []),
        (windows(*PAIR).with_columns(item_ids=pl.lit("abc")), "column_type", 1, []),
        (windows([["a"], ["b"]], [["c"], ["d"]]), "column_type", 1, []),
        (windows(*PAIR).with_columns(pl.col("item_ids").list.head(4).list.to_array(4)), "column_type", 1, []),
        (windows(*PAIR).with_columns(pl.col("window_id").cast(pl.String)), "column_type", 1, []),
        (windows(*PAIR, timestamp=[1.5, 2.5]), "column_type", 1, []),
        (windows(*PAIR).with_columns(user_id=pl.lit(None, pl.String)), "missing_id", 2, None),
        (windows(*PAIR).with_columns(window_id=3), "repeated_id", 1, ["3"]),
        (windows(*PAIR, "", ""), "empty_history", 2, ["2", "3"]),
        (windows(*PAIR, "a"), "one_item", 1, ["2"]),
        (windows(*PAIR, "abcdefgh" * 4), "long_window", 1, ["2"]),
        (windows(*PAIR, ["a", None, "c"]), "missing_item", 1, ["2"]),
        (windows(*PAIR, "ab?", "xy?"), "unknown_item", 3, ["'?'", "'x'", "'y'"]),
        (windows(*PAIR, "abca", "aa"), "target_in_history", 2, ["2", "3"]),
        (windows(*PAIR, *PAIR).with_columns(user_id=pl.lit("ann")), "repeated_window", 2, ["2", "3"]),
        (windows(*PAIR), "few_windows", 2, []),
        (windows(*PAIR, timestamp=[-1, -2]), "negative_time", 1, ["-2"]),
        (windows(*PAIR, timestamp=[-1, 1_600_000_000_000]), "milliseconds", 1, ["1600000000000"]),
        (windows("abc", *PAIR, noise_mask=[[0], [0] * 8, [0] * 6]), "list_length", 1, ["0"]),
        (windows("abc", *PAIR, noise_mask=[[0, 3, -1], [0] * 8, [0] * 6]), "value", 2, ["3.0", "-1.0"]),
        (windows("abc", *PAIR, weights=[[0.0, 0.5, 1.1], [0.0] * 8, [0.0] * 6]), "value", 1, ["1.1"]),
        (windows("abc", *PAIR, noise_mask=["no"] * 3), "column_type", 1, []),
        (windows("abc", *PAIR, clean_item_ids=[list("ab?"), *map(list, PAIR)]), "unknown_item", 1, ["'?'"]),
        (windows("abc", *PAIR, clean_item_ids=[list("add"), *map(list, PAIR)], noise_mask=MASK),
         "unmarked_noise", 1, ["{'item_ids': 'b', 'clean_item_ids': 'd'}"]),
        (windows("abc", *PAIR, clean_item_ids=[list("abc"), *map(list, PAIR)], noise_mask=MASK),
         "marked_clean", 1, ["'c'"]),
    ],
)  # fmt: skip
def test_training_windows(tmp_path, train, code, count, examples):
    found = the(validate(of_windows(tmp_path, train=train)), code)
    assert found.count == count
    assert examples is None or found.examples == examples


def test_a_target_that_is_evaluated_should_be_no_noise(tmp_path):
    noisy = windows("abc", user="eve", noise_mask=[[0, 0, 1]])
    assert codes(validate(of_windows(tmp_path, test=noisy, train=windows(*PAIR, noise_mask=[[1] * 8, [1] * 6])))) == [
        "noisy_target"
    ]


def test_training_that_knows_what_is_tested(tmp_path):
    """u0 has a window in both; u1's target of test is one of training; u2 is another user and has none of it."""
    train = windows("abcd", "cdef", "hgfe", user="u")
    report = validate(of_windows(tmp_path, train=train, test=windows("abcd", "bcdf", "cdef", user="u")))
    assert (the(report, "leak").level, the(report, "leak").examples) == ("error", ["0"])
    assert (the(report, "target_in_train").level, the(report, "target_in_train").examples) == ("warning", ["1"])


def test_a_user_who_repeats_himself_is_no_leak(tmp_path):
    """One window of thirty stands in training, too: it is told, but no run is refused for it."""
    many = windows(*["abcd"] * 30, user="v").with_columns(user_id=pl.Series([f"v{i}" for i in range(30)]))
    train = windows("abcd", "cdef", user="w").with_columns(user_id=pl.Series(["v0", "w"]))
    report = validate(of_windows(tmp_path, train=train, test=many))
    assert (the(report, "repeated_in_train").level, the(report, "repeated_in_train").count) == ("warning", 1)
    assert report.ok()


def test_training_that_is_later_than_test(tmp_path):
    train, test = (windows("abcd", "bcde", user=u, timestamp=times) for u, times in (("x", [5, 9]), ("x", [7, 8])))
    report = validate(
        of_windows(tmp_path, train=train, test=test.with_columns(item_ids=pl.Series(["efg", "fgh"]).str.split("")))
    )
    assert the(report, "time_order").examples == ["'x1'"]


# --- files -----------------------------------------------------------------------------------------------------------


def test_files_that_are_missing(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        report = validate(folder)
        assert codes(report) == ["files"]
        assert "Expected either ready windows" in report.errors[0].text
        assert report.rows == {}
        assert "nothing could be read" in report.text()


def csv(folder, items: bytes):
    of_log(folder)
    (folder / "items.parquet").unlink()
    (folder / "items.csv").write_bytes(items)
    return folder


def test_why_a_file_cannot_be_read(tmp_path):
    table = ITEMS.write_csv().encode()
    latin = table.replace(b"Toy", "Été".encode("latin-1"))
    zipped = gzip.compress(table * 50)
    assert codes(validate(csv(tmp_path / "good", table))) == []
    assert codes(validate(csv(tmp_path / "latin", latin))) == ["not_utf8"]
    assert codes(validate(csv(tmp_path / "cut", zipped[:-20]))) == ["cut_short"]
    assert codes(validate(csv(tmp_path / "ragged", table + b'1,2,3\n"'))) == ["unreadable"]
    whole = (of_log(tmp_path / "short") / "items.parquet").read_bytes()
    (tmp_path / "short" / "items.parquet").write_bytes(whole[:-30])
    assert codes(validate(tmp_path / "short")) == ["cut_short"]
    (tmp_path / "short" / "items.parquet").write_bytes(table)
    assert codes(validate(tmp_path / "short")) == ["not_parquet"]


def test_damage_inside_of_parquet(tmp_path):
    path = of_log(tmp_path) / "interactions.parquet"
    data = bytearray(path.read_bytes())
    data[20:200] = b"\xff" * 180
    path.write_bytes(data)
    assert "unreadable" in codes(validate(tmp_path))


def test_jsonl_and_csv_are_checked_alike(tmp_path):
    broken = first(2, item_id="?")
    of_log(tmp_path, broken)
    expected = [(f.code, f.count, f.examples) for f in validate(tmp_path).findings]
    for end, save in (("jsonl", pl.DataFrame.write_ndjson), ("csv", pl.DataFrame.write_csv)):
        (tmp_path / end).mkdir()
        save(ITEMS, tmp_path / end / f"items.{end}")
        save(broken, tmp_path / end / f"interactions.{end}")
        assert [(f.code, f.count, f.examples) for f in validate(tmp_path / end).findings] == expected


# --- memory ----------------------------------------------------------------------------------------------------------


def test_more_data_than_memory(tmp_path, monkeypatch):
    of_log(tmp_path)
    report = validate(tmp_path)
    assert 144 * 100 < report.needed < 144 * 1000 + 10_000
    assert report.available == pytest.approx(available_memory(), rel=0.5)
    assert report.available > 2**20
    monkeypatch.setattr(module, "available_memory", lambda: 1000)
    report = validate(tmp_path)
    assert codes(report) == ["memory"]
    assert f"about {size(report.needed)} of memory; 0.0 MiB are free" in report.warnings[0].text
    assert "takes about" in report.text()


def test_the_estimate_grows_with_the_data(tmp_path):
    one = validate(of_windows(tmp_path / "one")).needed
    many = windows(*["abcdefgh"] * 2000)
    assert validate(of_windows(tmp_path / "many", train=many)).needed > one + 2000 * 8 * 100
    many.write_ndjson(tmp_path / "many" / "train.jsonl")
    (tmp_path / "many" / "train.parquet").unlink()
    assert validate(tmp_path / "many").needed > one + 2000 * 8 * 100


# --- the report ------------------------------------------------------------------------------------------------------


def test_the_report_in_words(tmp_path):
    report = validate(of_log(tmp_path, first(2, item_id="?")))
    text = report.text()
    assert f"{tmp_path}: items 8, interactions 144\n" in text
    assert (
        "Errors: 1\n"
        "  [unknown_item] 1 item id(s) of 'item_id' in interactions are not among the items. For example '?'.\n"
        "    Add them to the items, or remove these interactions.\n"
        "\nWarnings: none\n"
    ) in text
    assert json.loads(json.dumps(report.to_dict()))["findings"][0]["code"] == "unknown_item"
    assert report.to_dict()["ok"] is False


def test_the_report_is_plain_text_whatever_the_data(tmp_path):
    ugly = "\x1b[31m[red]\u202e\x07" + "x" * 5_000
    report = validate(of_log(tmp_path, first(2, item_id=ugly)))
    assert report.text().replace("\n", "").isprintable()
    assert the(report, "unknown_item").examples == [r"'\x1b[31m[red]\u202e\x07" + "x" * 35 + "…"]


def test_milliseconds_of_a_log_are_read_as_such(tmp_path):
    report = validate(of_log(tmp_path, LOG.with_columns(pl.col("timestamp") * 1000)))
    assert not {"milliseconds", "future_time"} & set(codes(report))


def test_parquet_with_another_name_is_to_be_named_rightly(tmp_path):
    of_log(tmp_path)
    (tmp_path / "interactions.parquet").rename(tmp_path / "interactions.csv")
    assert "interactions.csv holds Parquet" in str(the(validate(tmp_path), "misnamed"))


def test_every_code_is_found_by_some_test():
    """A code that nothing can bring about would be dead text."""
    source = Path(__file__).read_text(encoding="utf-8")
    assert [code for code in CODES if f'"{code}"' not in source] == []


def test_nothing_is_written(tmp_path):
    of_windows(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    validate(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_toys(toys_path):
    report = validate(toys_path)
    assert report.errors == []
    assert the(report, "noisy_target").count == 485
    assert np.isclose(the(report, "same_title").count, 120)
