"""Options of `prepare`, titles, logs that cannot be used, and the folder that it writes."""

import os
import platform
import re

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm4dsr import columns as c
from llm4dsr.data.catalogue import clean_title, clean_titles
from llm4dsr.data.prepare import PrepareOptions, prepare
from llm4dsr.data.read import read_data
from llm4dsr.data.sources import Source
from llm4dsr.data.sources.source import TIMES
from llm4dsr.errors import ConfigError, DataError, OutputError

LETTERS = [chr(ord("a") + i) for i in range(26)]
ITEMS = pl.DataFrame({"item_id": LETTERS, "title": [f"Toy {letter}" for letter in LETTERS]})


def log(**histories: str) -> pl.DataFrame:
    """log(ann="abc") - ann took a, b, c, one a second. Later users begin where the one before ended."""
    rows = [(user, item) for user, items in histories.items() for item in items]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    return frame.with_columns(timestamp=pl.int_range(len(frame), dtype=pl.Int64))


def source_of(interactions: pl.DataFrame, items: pl.DataFrame = ITEMS, batch: int = 7) -> Source:
    """A log in small batches, with whatever columns it has; times are seconds."""
    if "timestamp" in interactions.columns:
        interactions = interactions.with_columns(pl.from_epoch("timestamp", "s").cast(TIMES))
    source = Source("letters", items, lambda tally: iter(()))
    source.batches = lambda: interactions.iter_slices(batch)
    return source


def run(tmp_path, interactions, items=ITEMS, **options):
    """(report, the windows of each split as text). All of the log unless options say otherwise."""
    out = tmp_path / "out"
    report = prepare(source_of(interactions, items), out, PrepareOptions(**{"k_core": 0, **options}))
    frames = {name: pl.read_parquet(out / f"{name}.parquet") for name in c.SPLITS}
    return report, {name: ["".join(ids) for ids in frame[c.ITEMS].to_list()] for name, frame in frames.items()}


ALPHABET = "".join(LETTERS)


# --- options ---------------------------------------------------------------------------------------------------------


def test_leave_one_out(tmp_path):
    """Test ends with the last item, valid with the one before, train before that, however short the history is."""
    report, windows = run(tmp_path, log(ann="abcdefghij", bob="klmnopq", eve="rstuv"), history=5, split="leave-one-out")
    assert windows["train"] == ["abcdef", "bcdefg", "cdefgh", "klmno"]
    assert windows["valid"] == ["defghi", "klmnop"]
    assert windows["test"] == ["efghij", "lmnopq", "rstuv"]
    assert report["interactions"]["out"] == 10 + 7 + 5


def test_by_user(tmp_path):
    histories = {f"user{i}": ALPHABET[i : i + 10] for i in range(10)}
    _, one = run(tmp_path / "1", log(**histories), history=5, split="user", seed=1)
    assert [len(one[name]) for name in c.SPLITS] == [8 * 5, 5, 5]
    _, again = run(tmp_path / "2", log(**histories), history=5, split="user", seed=1)
    assert again == one
    _, other = run(tmp_path / "3", log(**histories), history=5, split="user", seed=2)
    assert other["test"] != one["test"]


@pytest.mark.parametrize(
    ("repeats", "left"), [("keep", "aabbcadefa"), ("consecutive", "abcadefa"), ("first", "abcdef")]
)
def test_repeats(tmp_path, repeats, left):
    """Another user's items in between do not matter."""
    data = log(ann="aabbcadefa", bob="aaghijkl" * 4, eve=ALPHABET)
    report, windows = run(tmp_path, data, history=35, split="user", repeats=repeats, ratios=(1, 1, 1))
    assert left in [w for split in windows.values() for w in split]
    dropped = report["interactions"]["dropped"].get("repeated_item", 0)
    assert dropped == {"keep": 0, "consecutive": 2 + 4, "first": 4 + 25}[repeats]


def test_the_newest_of_a_giant_history(tmp_path):
    report, windows = run(tmp_path, log(ann=ALPHABET), history=5, max_history=8, ratios=(1, 1, 1))
    assert windows == {"train": ["stuvwx"], "valid": ["tuvwxy"], "test": ["uvwxyz"]}
    assert report["interactions"]["dropped"]["max_history"] == 18


def test_without_times_the_order_of_the_log_counts(tmp_path):
    data = log(ann="zyxwvutsr").with_columns(timestamp=pl.lit(None, pl.Int64))
    with pytest.raises(DataError, match=r"letters has no timestamps.*Choose --split leave-one-out or --split user"):
        run(tmp_path, data)
    report, windows = run(tmp_path, data, history=5, split="leave-one-out")
    assert windows == {"train": ["zyxwvu", "yxwvut"], "valid": ["xwvuts"], "test": ["wvutsr"]}
    assert "missing_time" not in report["interactions"]["dropped"]
    assert read_data(tmp_path / "out").splits["test"].timestamps.tolist() == [-1]


def test_truth_goes_along_and_test_targets_are_restored(tmp_path):
    data = log(ann="abcdefxhijxl").with_columns(clean_item_id=pl.Series(list("abcdefghijkl")))
    _, windows = run(tmp_path, data, history=5, ratios=(1, 4, 2))
    assert windows["train"] == ["abcdef"]
    assert windows["valid"][0] == "bcdefx"
    assert windows["test"] == ["fxhijk", "xhijxl"]  # the target is k again, the history stays as it was
    test = read_data(tmp_path / "out").splits["test"]
    assert test.noise_mask.tolist() == [False, True] + [False] * 4 + [True, False, False, False, True, False]


def test_inserted_items_go_along_and_are_no_test_targets(tmp_path):
    data = log(ann="abcdefxhixjxk").with_columns(
        clean_item_id=pl.Series([*"abcdef", None, *"hi", None, "j", None, "k"])
    )
    data = pl.concat(
        [data, log(eve="stuvw").with_columns(timestamp=pl.lit(99, pl.Int64), clean_item_id=pl.Series([*"stuv", None]))]
    )
    report, windows = run(tmp_path, data, history=5, ratios=(1, 4, 4))
    assert windows["test"] == ["fxhixj", "hixjxk"]  # none ends in x, nor in w
    assert report["interactions"]["dropped"]["inserted_target"] == 5  # those of eve, whose only window it was
    assert report["interactions"]["out"] == 13
    assert report["users"] == {"in": 2, "out": 1}
    test = read_data(tmp_path / "out").splits["test"]
    assert test.noise_mask.nonzero()[0].tolist() == [1, 4, 6 + 2, 6 + 4]
    assert test.to_frame(read_data(tmp_path / "out").catalogue)["clean_item_ids"].to_list() == [
        ["f", None, "h", "i", None, "j"], ["h", "i", None, "j", None, "k"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"history": 0}, "history is 0; expected a whole number from 1 on"),
        ({"k_core": -1}, "k_core is -1"),
        ({"max_history": 0}, "max_history is 0"),
        ({"split": "random"}, "split is 'random'; expected one of time, leave-one-out, user"),
        ({"repeats": "last"}, "repeats is 'last'; expected one of keep, first, consecutive"),
        ({"ratios": (8, 2)}, "expected three whole numbers"),
        ({"ratios": (9, 0, 1)}, "each of train, valid and test needs windows"),
    ],
)
def test_refuses_options(options, message):
    with pytest.raises(ConfigError, match=message):
        PrepareOptions(**options)


# --- titles ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.one_of(st.none(), st.text(), st.sampled_from(["&amp;amp;nbsp;", "a  b", "A & B", '"x"', "x "]))))
def test_titles_are_clean_once_and_for_all(titles):
    clean = clean_titles(pl.Series(titles, dtype=pl.String)).to_list()
    assert [t is None for t in clean] == [t is None for t in titles]
    assert all(clean_title(t) == t for t in clean if t is not None)
    for before, after in zip(titles, clean, strict=True):
        if before is not None and "&" not in before:
            assert after == clean_title(before)


def test_merging_goes_by_the_clean_title(tmp_path):
    items = ITEMS.with_columns(pl.col("title").replace({"Toy a": "Tom &amp; Jerry", "Toy c": "Tom  & Jerry"}))
    _, windows = run(tmp_path, log(ann=ALPHABET), items, merge_titles=True)
    assert windows["train"][0] == "abadefghijk"
    catalogue = pl.read_parquet(tmp_path / "out" / "items.parquet")
    assert catalogue[:2].rows() == [("a", "Tom & Jerry", "a"), ("b", "Toy b", "b")]
    assert "c" not in catalogue["item_id"]


def test_same_titles_stay_two_items_by_default(tmp_path):
    items = ITEMS.with_columns(pl.col("title").replace({"Toy c": "Toy a"}))
    _, windows = run(tmp_path, log(ann=ALPHABET), items)
    assert windows["train"][0] == "abcdefghijk"
    assert pl.read_parquet(tmp_path / "out" / "items.parquet")["canonical_id"].to_list()[:4] == ["a", "b", "a", "d"]


# --- what cannot be used ---------------------------------------------------------------------------------------------

GOOD = log(ann=ALPHABET)


@pytest.mark.parametrize(
    ("interactions", "items", "message"),
    [
        (GOOD.drop("timestamp"), ITEMS, "'timestamp' is missing"),
        (GOOD, ITEMS.drop("title"), "'title' is missing"),
        (GOOD.clear(), ITEMS, "The log of letters has no interactions; expected at least one"),
        (GOOD.with_columns(item_id=pl.lit(7)), ITEMS, "type Int32 in the log, and String in the items table"),
        (GOOD.with_columns(item_id=pl.lit("?")), ITEMS, "None of the 26.*letters can be used.*unknown_item 26"),
        (GOOD.with_columns(noise_mask=pl.lit(2)), ITEMS, r"'noise_mask' of the log holds \[2\]; expected 0 or 1"),
        (GOOD[:6], ITEMS, "too few to split 8:1:1"),
        (GOOD[:4], ITEMS, "No user has the 5 interactions"),
    ],
)  # fmt: skip
def test_refuses_a_log(tmp_path, interactions, items, message):
    with pytest.raises(DataError, match=message):
        run(tmp_path, interactions, items)
    assert list(tmp_path.iterdir()) == []


def test_too_few_for_a_split(tmp_path):
    """Histories of 6 are long enough for the windows of valid and test, and no train."""
    with pytest.raises(DataError, match=r"4 window\(s\) are too few to split leave-one-out: train would be empty"):
        run(tmp_path, log(ann="abcdef", bob="abcdef"), split="leave-one-out")
    with pytest.raises(DataError, match=r"3 user\(s\) are too few to split 8:1:1: valid would be empty"):
        run(tmp_path, log(ann=ALPHABET, bob=ALPHABET, eve=ALPHABET), split="user", ratios=(8, 1, 1))


def test_refuses_ratings_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match=r"'rating' is missing, which min_rating needs"):
        run(tmp_path, GOOD, min_rating=3)


def test_parts_that_do_not_fit_together(tmp_path):
    parts = [GOOD[:13], GOOD[13:].with_columns(item_id=pl.lit([1]))]
    source = source_of(GOOD)
    source.batches = lambda: iter(parts)
    with pytest.raises(DataError, match=r"The parts of the log do not fit together"):
        prepare(source, tmp_path / "out")


# --- the folder ------------------------------------------------------------------------------------------------------


def test_an_empty_folder_is_taken_and_a_full_one_refused(tmp_path):
    (tmp_path / "out").mkdir()
    run(tmp_path, GOOD)
    before = (tmp_path / "out" / "train.parquet").read_bytes()
    with pytest.raises(OutputError, match=r"exists already and is not an empty folder"):
        run(tmp_path, GOOD)
    assert (tmp_path / "out" / "train.parquet").read_bytes() == before


def test_an_empty_folder_behind_a_link_is_filled(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    run(tmp_path, GOOD)
    assert (tmp_path / "out").is_symlink()
    assert len(read_data(tmp_path / "disk").splits["train"]) > 0


def test_nothing_is_left_when_the_log_breaks_off(tmp_path):
    def broken():
        yield GOOD[:20]
        raise DataError("log.json.gz is cut short")

    source = source_of(GOOD)
    source.batches = broken
    with pytest.raises(DataError, match="cut short"):
        prepare(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def disk_full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", disk_full)
    with pytest.raises(OutputError, match=r"Cannot write .*out: No space left on device"):
        run(tmp_path, GOOD)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"Cannot write .*file/out"):
        prepare(source_of(GOOD), tmp_path / "file" / "out")


def test_what_a_killed_process_left_is_removed(tmp_path):
    """A process id says nothing on another machine, where a process with this id may be writing."""
    here = re.sub(r"[^A-Za-z0-9_-]", "-", platform.node())
    (tmp_path / f".out.{here}.999999999.part").mkdir()  # larger than any process id
    kept = [f".out.{here}.{os.getppid()}.part", ".out.another-machine.999999999.part"]  # one is alive, one may be
    for name in kept:
        (tmp_path / name).mkdir()
    run(tmp_path, GOOD)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "out"])


def test_same_bytes_again(tmp_path):
    for name in ("1", "2"):
        run(tmp_path / name, GOOD)
    for file in (tmp_path / "1" / "out").iterdir():
        assert file.read_bytes() == (tmp_path / "2" / "out" / file.name).read_bytes()


def test_progress(tmp_path):
    told = []
    prepare(source_of(GOOD), tmp_path / "out", PrepareOptions(k_core=0), lambda *step: told.append(step))
    assert told == [
        (26, 0, "read interactions"), (0, 1, "build windows"), (1, 1, "build windows"),
        (12, 16, "write windows"), (14, 16, "write windows"), (16, 16, "write windows"),
    ]  # fmt: skip
