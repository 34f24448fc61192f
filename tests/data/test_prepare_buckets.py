"""A log in many buckets of files gives what it gives in one bucket in memory, and leaves nothing but that."""

import shutil
from collections import namedtuple
from unittest import mock

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4dsr.data import buckets as storage
from llm4dsr.data import in_order as ordering
from llm4dsr.data import interaction_log as reading
from llm4dsr.data import windowing
from llm4dsr.data.buckets import Bucket, BucketedRows
from llm4dsr.data.in_order import in_order, split_by_rank
from llm4dsr.data.prepare import PrepareOptions, prepare
from llm4dsr.data.sources import Source
from llm4dsr.data.sources.source import TIMES
from llm4dsr.errors import DataError, OutputError

LETTERS = [chr(ord("a") + i) for i in range(26)]
TITLES = {"b": "Toy a", "c": None, "g": "Toy f", "h": " "}  # same titles, none, and an empty one
ITEMS = pl.DataFrame({"item_id": LETTERS, "title": [TITLES.get(letter, f"Toy {letter}") for letter in LETTERS]})
USERS = ["ann", "bob", "eve", "joe", "kim", "a user with a long id"]


def source_of(interactions: pl.DataFrame, batch: int = 7) -> Source:
    interactions = interactions.with_columns(pl.from_epoch("timestamp", "s").cast(TIMES))
    source = Source("letters", ITEMS, lambda tally: iter(()))
    source.batches = lambda: interactions.iter_slices(batch)
    return source


@pytest.fixture
def tiny(monkeypatch):
    """Three buckets from the sixth row on, and a few windows at once."""
    monkeypatch.setattr(storage, "BUCKET", 5)
    monkeypatch.setattr(storage, "BUCKETS", 3)


def some_log(seed: int, rows: int = 200) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    return pl.DataFrame({
        "user_id": rng.choice(USERS, rows),
        "item_id": rng.choice([letter for letter in LETTERS if letter not in TITLES], rows),
        "timestamp": rng.integers(0, 1000, rows),
    })  # fmt: skip


# --- the same files --------------------------------------------------------------------------------------------------


@st.composite
def logs(draw):
    """Few users and items and many equal times, gaps, and the truth of some: ties, repeats and small cores occur."""
    n, rng = draw(st.integers(30, 150)), np.random.default_rng(draw(st.integers(0, 2**31)))
    frame = pl.DataFrame({
        "user_id": rng.choice(USERS[: draw(st.integers(1, 6))], n),
        "item_id": rng.choice([*LETTERS[: draw(st.integers(8, 26))], "?"], n),
        "timestamp": rng.integers(0, draw(st.sampled_from([1, 5, 50, 10**6])), n),
        "rating": rng.integers(1, 6, n).astype(float),
    })  # fmt: skip
    if draw(st.booleans()):
        frame = frame.with_columns(user_id=pl.col("user_id").str.len_bytes().cast(pl.Int64) + pl.col("timestamp") % 3)
    frame = frame.with_columns(
        pl.when(pl.Series(rng.random(n) < 0.95)).then(name) for name in ("user_id", "item_id", "timestamp")
    )
    if draw(st.booleans()):
        clean, at = pl.Series(rng.choice(LETTERS, n)), pl.Series(rng.random(n))
        truth = pl.when(at < 0.2).then(clean).when(at < 0.9).then("item_id")  # otherwise the item was inserted
        frame = frame.with_columns(clean_item_id=truth)
    if draw(st.booleans()):
        frame = frame.with_columns(noise_mask=pl.Series(rng.integers(0, 2, n).astype(np.int8)))
    if draw(st.integers(0, 5)) == 0:
        frame = frame.with_columns(timestamp=pl.lit(None, pl.Int64))
    return frame


all_options = st.builds(
    PrepareOptions,
    history=st.integers(1, 12),
    k_core=st.integers(0, 3),
    split=st.sampled_from(["time", "leave-one-out", "user"]),
    ratios=st.sampled_from([(8, 1, 1), (1, 1, 1), (1, 2, 3)]),
    min_rating=st.sampled_from([None, 2.0]),
    repeats=st.sampled_from(["keep", "first", "consecutive"]),
    merge_titles=st.booleans(),
    max_history=st.sampled_from([None, 7, 20]),
    seed=st.integers(0, 3),
)


@settings(max_examples=80, deadline=None)
@given(logs(), all_options, st.integers(1, 50), st.integers(0, 20), st.integers(1, 6), st.integers(2, 100))
def test_same_bytes_in_any_buckets(tmp_path_factory, interactions, options, batch, limit, buckets, part):
    """Files, report and refusals do not depend on buckets, batches and parts."""
    folder = tmp_path_factory.mktemp("prepare")

    def result(name):
        try:
            prepare(source_of(interactions, batch), folder / name, options)
        except DataError as error:
            return str(error)
        return {file.name: file.read_bytes() for file in (folder / name).iterdir()}

    expected = result("one")
    with (
        mock.patch.object(storage, "BUCKET", limit),
        mock.patch.object(storage, "BUCKETS", buckets),
        mock.patch.object(ordering, "CHUNK", part),
        mock.patch.object(windowing, "PART", part),
    ):
        assert result("many") == expected
    assert {entry.name for entry in folder.iterdir()} == (set() if isinstance(expected, str) else {"one", "many"})


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=30), min_size=1, max_size=4),
       st.integers(1, 40), st.integers(1, 7))  # fmt: skip
def test_in_order(keys, size, multiple):
    """Keys of buckets with users of their own, against a sort of all of them."""
    buckets = []
    for number, some in enumerate(keys):
        bucket, some = Bucket(), sorted(some)
        bucket["time"] = np.array([time for time, _ in some], dtype=np.int64)
        bucket["user"] = np.array([user * len(keys) + number for _, user in some], dtype=np.int64)
        buckets.append(bucket)
    whole = sorted(
        (time, user, number, at)
        for number, bucket in enumerate(buckets)
        for at, (time, user) in enumerate(zip(bucket["time"].tolist(), bucket["user"].tolist(), strict=True))
    )
    ranges = np.array([[0, len(bucket["time"])] for bucket in buckets]).T
    parts = [np.stack(part) for part in in_order(buckets, ranges, size, multiple)]
    assert np.concatenate(parts, axis=1).T.tolist() == [list(entry[2:]) for entry in whole]
    assert all(part.shape[1] % multiple == 0 for part in parts[:-1])

    ranks = [0, len(whole) // 3, len(whole)]
    with mock.patch.object(ordering, "CHUNK", size):
        found = split_by_rank(buckets, ranks)
    for rank, counts in zip(ranks, found, strict=True):
        assert counts.tolist() == np.bincount([entry[2] for entry in whole[:rank]], minlength=len(keys)).tolist()


def test_a_user_is_in_one_bucket_in_the_order_of_the_log(tmp_path, tiny):
    interactions = some_log(0)
    rows = BucketedRows(tmp_path, 1)
    for part in interactions.iter_slices(9):
        rows.add(part)
    rows.close()
    found = [some for some, _ in rows.take()]
    assert len(found) == len(rows) == 3
    for user in USERS:
        (mine,) = [some.filter(user_id=user) for some in found if user in some["user_id"]]
        assert mine.equals(interactions.filter(user_id=user))


# --- nothing is left -------------------------------------------------------------------------------------------------


def test_scratch_is_removed(tmp_path, tiny):
    prepare(source_of(some_log(1)), tmp_path / "out", PrepareOptions(k_core=2))
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    files = ("items.parquet", "manifest.json", "report.json", "test.parquet", "train.parquet", "valid.parquet")
    assert names == ["out", *(f"out/{name}" for name in files)]


@pytest.mark.parametrize("step", ["read interactions", "build windows", "write windows"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, DataError])
def test_nothing_is_left_after_an_error_or_interruption(tmp_path, tiny, step, error):
    def progress(done, total, doing):
        if doing == step and done > 1:
            assert list(tmp_path.glob(".out.*/scratch-*/*"))
            raise error("stop")

    with pytest.raises(error, match="stop"):
        prepare(source_of(some_log(1)), tmp_path / "out", PrepareOptions(k_core=2), progress)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("free", [1_000_000, 10_000_000])
def test_a_disk_that_is_too_small(tmp_path, tiny, monkeypatch, free):
    """It is refused as soon as the rows that were read need more than there is."""
    monkeypatch.setattr(reading, "READ", 10_000)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free))
    with pytest.raises(
        OutputError,
        match=r"too small: [0-9]+ MB are free, and the first [0-9,]+ interactions need about [0-9]+ MB for scratch",
    ):
        prepare(source_of(some_log(1, 200_000), 10_000), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up(tmp_path, tiny, monkeypatch):
    def disk_full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", disk_full)
    with pytest.raises(OutputError, match=r"Cannot write .*out: No space left on device"):
        prepare(source_of(some_log(1)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
