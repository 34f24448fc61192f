"""From a log that streams to a folder of windows; every row that came is in a window or counted with its reason."""

import json
import os
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4dsr import columns as c
from llm4dsr.data import interaction_log as reading
from llm4dsr.data import prepare as preparing
from llm4dsr.data.catalogue import clean_title, clean_titles
from llm4dsr.data.dataset import make_windows
from llm4dsr.data.prepare import PrepareOptions, prepare
from llm4dsr.data.read import read_data
from llm4dsr.data.sources import Source, from_frames
from llm4dsr.errors import ConfigError, DataError, OutputError

LETTERS = [chr(ord("a") + i) for i in range(26)]
ITEMS = pl.DataFrame({"item_id": LETTERS, "title": [f"Toy {letter}" for letter in LETTERS]})


def log(**histories: str) -> pl.DataFrame:
    """log(ann="abc") - ann took a, b, c, one a second. Later users begin where the one before ended."""
    rows = [(user, item) for user, items in histories.items() for item in items]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    return frame.with_columns(timestamp=pl.int_range(len(frame), dtype=pl.Int64))


def source_of(interactions: pl.DataFrame, items: pl.DataFrame = ITEMS, batch: int = 7) -> Source:
    """A log in small batches, with whatever columns it has."""
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


# --- the same windows as in memory -----------------------------------------------------------------------------------


@st.composite
def logs(draw):
    """A small log: few users and items and many equal times, so that ties, repeats and small cores occur."""
    n = draw(st.integers(30, 120))
    seed = draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame({
        "user_id": rng.choice(["ann", "bob", "eve", "joe", "kim"], n),
        "item_id": rng.choice(LETTERS[: draw(st.integers(4, 26))], n),
        "timestamp": rng.integers(0, draw(st.sampled_from([5, 50, 10**6])), n),
    })  # fmt: skip
    if draw(st.booleans()):
        clean = np.where(rng.random(n) < 0.2, rng.choice(LETTERS, n), frame["item_id"])
        clean = [None if inserted else item for item, inserted in zip(clean, rng.random(n) < 0.1, strict=True)]
        frame = frame.with_columns(clean_item_id=pl.Series(clean, dtype=pl.String))
    return frame


@settings(max_examples=60, deadline=None)
@given(logs(), st.integers(1, 12), st.integers(0, 3), st.integers(1, 50))
def test_same_as_make_windows(tmp_path_factory, interactions, history, k_core, batch):
    """Tables, report and refusals of the two are the same, in whatever batches the log comes."""
    out = tmp_path_factory.mktemp("prepare") / "out"

    def result(of, *arguments):
        try:
            return of(*arguments)
        except DataError as error:
            return str(error)

    expected = result(make_windows, interactions, ITEMS, history, k_core)
    report = result(prepare, source_of(interactions, batch=batch), out, PrepareOptions(history, k_core))
    if isinstance(expected, str):
        assert report == expected
        assert not out.exists()
        return
    for name, windows in expected.splits.items():
        assert pl.read_parquet(out / f"{name}.parquet").equals(windows.to_frame(expected.catalogue))
    assert pl.read_parquet(out / "items.parquet").equals(expected.catalogue.to_frame())
    counts = report["interactions"]
    assert counts["in"] == len(interactions) == counts["out"] + sum(counts["dropped"].values())
    assert {k: v for k, v in counts["dropped"].items() if k in expected.report} == expected.report


def test_written_part_by_part_it_is_the_same(tmp_path, monkeypatch):
    interactions = log(ann=ALPHABET, bob=ALPHABET[::-1])
    _, whole = run(tmp_path / "whole", interactions)
    monkeypatch.setattr(reading, "READ", 10)
    monkeypatch.setattr(preparing, "WRITE", 5)
    _, parts = run(tmp_path / "parts", interactions)
    assert parts == whole
    assert (
        pq.ParquetFile(tmp_path / "parts" / "out" / "train.parquet").metadata.num_row_groups == 5
    )  # 25 windows in fives
    assert pl.read_parquet(tmp_path / "parts" / "out" / "train.parquet")[c.WINDOW].to_list() == list(range(25))


def test_the_folder_is_read_like_any_other(tmp_path):
    items = ITEMS.with_columns(item_id=pl.int_range(100, 126))
    interactions = log(ann=ALPHABET, bob=ALPHABET).with_columns(
        item_id=pl.col("item_id").replace_strict(dict(zip(LETTERS, range(100, 126), strict=True)))
    )
    prepare(from_frames(interactions, items), tmp_path / "out", PrepareOptions(k_core=2))
    data = read_data(tmp_path / "out")
    assert data.catalogue.ids.to_list() == list(range(100, 126))
    assert [len(data.splits[name]) for name in c.SPLITS] == [25, 3, 4]
    assert data.splits["train"].user_ids[0] == "ann"


# --- nothing lost without a count ------------------------------------------------------------------------------------

all_options = st.builds(
    PrepareOptions,
    history=st.integers(1, 12),
    k_core=st.integers(0, 3),
    split=st.sampled_from(["time", "leave-one-out", "user"]),
    ratios=st.sampled_from([(8, 1, 1), (1, 1, 1)]),
    min_rating=st.sampled_from([None, 3.0]),
    repeats=st.sampled_from(["keep", "first", "consecutive"]),
    merge_titles=st.booleans(),
    max_history=st.sampled_from([None, 7, 20]),
)


@settings(max_examples=40, deadline=None)
@given(logs(), all_options, st.integers(0, 2**31))
def test_windows_of_any_options(tmp_path_factory, interactions, options, seed):
    """Lengths, order, contiguity, and in = out + dropped, for rows and for items."""
    rng = np.random.default_rng(seed)
    interactions = interactions.drop(c.CLEAN_ITEM, strict=False).with_columns(
        pl.when(pl.Series(rng.random(len(interactions)) < 0.95)).then(pl.col("user_id")),
        pl.when(pl.Series(rng.random(len(interactions)) < 0.95)).then(pl.col("item_id")).otherwise(pl.lit("?")),
        pl.when(pl.Series(rng.random(len(interactions)) < 0.95)).then(pl.col("timestamp")),
        rating=pl.Series(rng.integers(1, 6, len(interactions)).astype(float)),
    )
    title = pl.col("title").replace({"Toy b": "Toy a", "Toy c": None})
    out = tmp_path_factory.mktemp("prepare") / "out"
    try:
        report = prepare(source_of(interactions, ITEMS.with_columns(title)), out, options)
    except DataError:
        assert not out.exists()
        return
    frames = {name: pl.read_parquet(out / f"{name}.parquet") for name in c.SPLITS}
    every = pl.concat(frames.values())
    for table in ("interactions", "items"):
        assert report[table]["in"] == report[table]["out"] + sum(report[table]["dropped"].values())
    assert report["interactions"]["in"] == len(interactions)
    assert report["windows"] == {name: len(frame) for name, frame in frames.items()}
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))

    assert every[c.ITEMS].list.len().is_between(min(4, options.history) + 1, options.history + 1).all()
    catalogue = pl.read_parquet(out / "items.parquet")
    assert report["items"]["out"] == len(catalogue)
    assert set(every[c.ITEMS].explode()) <= set(catalogue[c.ITEM])
    # Laid end to end, the windows of a user are what is left of its history: each is a run of it, and nothing is lost.
    one = {"b": "a"} if options.merge_titles else {}  # under either of the two ids: that which was taken
    left = 0
    for (user,), windows in every.group_by([c.USER], maintain_order=True):
        texts = windows[c.ITEMS].to_list()
        assert all(after[:-1] == before[1 - len(after) :] for before, after in pairwise(texts))
        history = texts[0] + [text[-1] for text in texts[1:]]
        in_order = interactions.filter(user_id=user).drop_nulls().sort("timestamp", maintain_order=True)["item_id"]
        taken = (one.get(item, item) for item in in_order)
        assert all(
            one.get(item, item) in taken for item in history
        )  # in the order of time; `in` goes on where it last stopped
        left += len(history)
    assert report["interactions"]["out"] == left
    assert report["users"]["out"] == every[c.USER].n_unique()

    if options.split == "time":
        times = [frames[name][c.TIME] for name in c.SPLITS]
        assert times[0].max() <= times[1].min() <= times[1].max() <= times[2].min()
    if options.split == "user":
        users = [set(frames[name][c.USER]) for name in c.SPLITS]
        assert not users[0] & users[1] | users[1] & users[2] | users[0] & users[2]
    if options.split == "leave-one-out":
        assert not frames["test"][c.USER].is_duplicated().any()
        assert set(frames["train"][c.USER]) <= set(frames["valid"][c.USER]) <= set(frames["test"][c.USER])


def test_each_reason_has_its_count(tmp_path):
    interactions = log(ann="abcdefxy" + "hijklmn", eve="abc").with_columns(rating=pl.lit(5.0))
    more = pl.DataFrame({
        "user_id": ["ann", None, "ann", "ann", "ann", "ann"],
        "item_id": ["a", "b", None, "?", "b", "c"],
        "timestamp": [0, 3, 4, 5, None, 6],
        "rating": [5.0, 5.0, 5.0, 5.0, 5.0, 1.0],
    })  # fmt: skip
    items = ITEMS.with_columns(pl.col("title").replace({"Toy x": None, "Toy y": " &nbsp; "}))
    report, windows = run(tmp_path, pl.concat([interactions, more]), items, history=5, min_rating=2)
    assert report["interactions"] == {
        "in": 18 + 6,
        "out": 13,
        "dropped": {
            "missing_value": 2,
            "unknown_item": 1,
            "low_rating": 1,
            "missing_time": 1,
            "item_without_title": 2,  # x has no title, y none that is left after cleaning
            "repeated_row": 1,
            "k_core": 0,
            "short_history": 3,
        },
    }
    assert "".join(windows["train"][0]) == "abcdef"
    assert windows["test"][-1] == "ijklmn"


def test_items_have_counts_too(tmp_path):
    items = pl.concat([ITEMS, ITEMS[:2], pl.DataFrame({"item_id": [None], "title": ["Toy"]})])
    items = items.with_columns(pl.col("title").replace({"Toy c": None, "Toy b": "Toy a"}))
    report, windows = run(tmp_path, log(ann="abcdefgh" * 3), items, k_core=1, history=5, merge_titles=True)
    assert report["items"] == {
        "in": 29,
        "out": 6,
        "dropped": {
            "missing_id": 1, "repeated_id": 2, "without_title": 1, "merged": 1, "without_interaction": 18
        },
    }  # fmt: skip
    assert windows["train"][0] == "aadefg"  # b is one with a, c is gone


def test_what_the_source_left_out_is_in_the_report(tmp_path):
    interactions = log(ann=ALPHABET).with_columns(pl.when(pl.col("timestamp") != 3).then("item_id"))
    items = pl.concat([ITEMS, ITEMS[:1]])
    report = prepare(from_frames(interactions, items), tmp_path / "out", PrepareOptions(k_core=0))
    assert report["unreadable"] == {"interactions": {"missing_value": 1}, "items": {"repeated_item": 1}}
    assert report["interactions"]["in"] == 25


def test_the_report_has_options_and_versions(tmp_path):
    report, _ = run(tmp_path, log(ann=ALPHABET), seed=3)
    assert report["options"] == {**asdict(PrepareOptions()), "k_core": 0, "seed": 3}
    assert set(report["versions"]) == {"python", "llm4dsr", "numpy", "polars", "pyarrow"}


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
    with pytest.raises(DataError, match=r"letters has no timestamps.*Choose the split leave-one-out or user"):
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
    assert test.noise_mask.tolist() == [[False, True] + [False] * 4, [True, False, False, False, True, False]]


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
    assert test.noise_mask.tolist() == [
        [False, True, False, False, True, False],
        [False, False, True, False, True, False],
    ]
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
        (GOOD.clear(), ITEMS, "The log has no interactions"),
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
    (tmp_path / ".out.999999999.part").mkdir()  # larger than any process id
    (tmp_path / f".out.{os.getppid()}.part").mkdir()  # a process that is alive
    run(tmp_path, GOOD)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f".out.{os.getppid()}.part", "out"]


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
