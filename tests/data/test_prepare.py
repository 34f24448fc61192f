"""From a streamed log to a folder of windows: every row is in a window or counted with its reason."""

import json
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4dsr import columns as c
from llm4dsr.data import interaction_log as reading
from llm4dsr.data import prepare as preparing
from llm4dsr.data.dataset import make_windows
from llm4dsr.data.prepare import PrepareOptions, prepare
from llm4dsr.data.read import read_data
from llm4dsr.data.sources import Source, from_frames
from llm4dsr.data.sources.source import TIMES
from llm4dsr.data.times import to_microseconds
from llm4dsr.errors import DataError

LETTERS = [chr(ord("a") + i) for i in range(26)]
ITEMS = pl.DataFrame({"item_id": LETTERS, "title": [f"Toy {letter}" for letter in LETTERS]})


def log(**histories: str) -> pl.DataFrame:
    """log(ann="abc") - ann took a, b, c, one a second. Later users begin where the one before ended."""
    rows = [(user, item) for user, items in histories.items() for item in items]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    return frame.with_columns(timestamp=pl.int_range(len(frame), dtype=pl.Int64))


def source_of(interactions: pl.DataFrame, items: pl.DataFrame = ITEMS, batch: int = 7) -> Source:
    """A log in small batches, with whatever columns it has, and times as a source gives them."""
    if "timestamp" in interactions.columns:
        times = to_microseconds(interactions["timestamp"], "the log")
        interactions = interactions.with_columns(times.cast(TIMES))
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
    if draw(st.booleans()):  # several interactions within a second
        frame = frame.with_columns(timestamp=1_700_000_000_000 + pl.col("timestamp") * 100)
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


def test_interactions_within_a_second_keep_their_order(tmp_path):
    """Newest first, and 300 ms apart: no row is taken for a repeated one, and histories are in order of time."""
    letters = "abcdefgcba"
    times = [1_700_000_000_000 + 300 * i for i in range(len(letters))]
    newest_first = pl.DataFrame({"user_id": "ann", "item_id": list(letters), "timestamp": times})[::-1]
    report, windows = run(tmp_path, newest_first, history=20, split="leave-one-out")
    assert windows["test"] == [letters]
    assert report["interactions"]["dropped"]["repeated_row"] == 0
    test = pl.read_parquet(tmp_path / "out" / "test.parquet")
    assert test["timestamp"].to_list() == [1_700_000_002]  # whole seconds
