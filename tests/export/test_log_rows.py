"""Each interaction of each window is found again in the log that the windows were built from."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from llm4dsr.core.manifest import write_manifest
from llm4dsr.data.prepare import prepare
from llm4dsr.data.read import read_data
from llm4dsr.data.sources import read_source
from llm4dsr.errors import DataError, OutputError
from llm4dsr.export.export import log_root
from llm4dsr.export.log_rows import find_rows, log_origin
from llm4dsr.pipeline import Run

from ..tiny_run import CONFIG
from .shop import shop_log, windows_of, write_log


def found(windows, folder):
    """A run that is prepared, and the rows of its windows."""
    run = Run.create(folder, CONFIG)
    run.prepare(windows)
    data = run.data()
    return run, find_rows(log_origin(run), data.splits, data.catalogue)


def agrees(run, rows) -> int:
    """Every interaction of a window is in its row of the log, in order of time. Returns their number."""
    data, keys = run.data(), rows.keys
    for name, windows in data.splits.items():
        at = rows.of_windows[name]
        assert keys["user_id"].gather(at).to_list() == windows.user_ids.gather(windows.owners).to_list()
        assert keys["item_id"].gather(at).to_list() == data.catalogue.ids.gather(windows.items).to_list()
        times = keys["timestamp"].gather(at).to_numpy()
        begins = windows.offsets[1:-1]
        assert (np.delete(np.diff(times), begins - 1) >= 0).all()
        assert times[windows.offsets[1:] - 1].tolist() == windows.timestamps.tolist()
    return sum(map(len, rows.of_windows.values()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"split": "leave-one-out"},
        {"split": "user", "seed": 3},
        {"repeats": "first"},
        {"repeats": "consecutive", "max_history": 9},
        {"min_rating": 2},
        {"merge_titles": True},
        {"k_core": 10},
    ],
    ids=str,
)
def test_rows_of_overlapping_windows_are_found(tiny_demo, tmp_path, options):
    """With repeats, rows written twice, low ratings and items that share a title."""
    log = shop_log(tiny_demo).rename({"price": "rating"})
    again = log.sample(200, seed=1).with_columns(pl.col("when") + 5)  # another interaction with the same item
    log = pl.concat([log, again, log.sample(50, seed=2)])  # and 50 rows that were written twice
    if "merge_titles" in options:
        log = log.with_columns(pl.when(pl.col("sku") == "s1002").then(pl.lit("s1001")).otherwise("sku").alias("sku"))
        log = log.with_columns(sku=pl.when(pl.int_range(pl.len()) % 2 == 0).then("sku").otherwise(pl.col("sku") + "b"))
        log = log.with_columns(name=pl.col("name").first().over(pl.col("sku").str.strip_suffix("b")))
    path = write_log(log, tmp_path / "logs", "interactions.csv")
    windows = windows_of(path.parent, tmp_path / "windows", history=5, **options)
    if "merge_titles" in options:
        run = Run.create(tmp_path / "run", CONFIG)
        run.prepare(windows)
        data = run.data()
        rows = find_rows(log_origin(run), data.splits, data.catalogue)
        first = dict(zip(log["name"], log["sku"], strict=True))
        assert len(data.catalogue) <= len(first)
        for name, w in data.splits.items():
            raw = rows.keys["item_id"].gather(rows.of_windows[name]).str.strip_suffix("b")
            assert raw.to_list() == data.catalogue.ids.gather(w.items).str.strip_suffix("b").to_list()
        return
    run, rows = found(windows, tmp_path / "run")
    assert agrees(run, rows) > 1000
    twice = rows.twins != np.arange(len(rows.twins))
    assert twice.sum() == 50


@pytest.mark.parametrize("name", ["interactions.tsv", "interactions.jsonl", "interactions.parquet"])
def test_every_format_is_read(tiny_demo, tmp_path, name):
    path = write_log(shop_log(tiny_demo), tmp_path / "logs", name)
    run, rows = found(windows_of(path.parent, tmp_path / "windows", history=5), tmp_path / "run")
    assert agrees(run, rows) > 1000


def test_whole_numbers_dates_and_gzip(tiny_demo, tmp_path):
    """Ids as pandas writes a column with gaps, and times as text."""
    log = shop_log(tiny_demo).with_columns(
        visitor=pl.col("visitor").str.slice(1).cast(pl.Float64), sku=pl.col("sku").str.slice(1).cast(pl.Int64),
        when=pl.from_epoch("when", "s").dt.strftime("%Y-%m-%d %H:%M:%S"),
    )  # fmt: skip
    plain = write_log(log, tmp_path / "logs", "interactions.csv")
    (tmp_path / "logs" / "interactions.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    run, rows = found(windows_of(tmp_path / "logs", tmp_path / "windows", history=5), tmp_path / "run")
    assert run.data().catalogue.ids.dtype == pl.Int64
    assert agrees(run, rows) > 1000


@pytest.mark.parametrize("name", ["interactions.jsonl", "interactions.parquet"])
def test_hashes_as_ids(tiny_demo, tmp_path, name):
    """Unsigned numbers of 64 bits: windows have them as text."""
    hashes = [pl.col(column).hash().alias(column) for column in ("visitor", "sku")]
    path = write_log(shop_log(tiny_demo).with_columns(hashes), tmp_path / "logs", name)
    run, rows = found(windows_of(path.parent, tmp_path / "windows", history=5), tmp_path / "run")
    assert run.data().catalogue.ids.dtype == pl.String
    assert agrees(run, rows) > 1000


def test_a_log_without_times_is_in_its_own_order(tiny_demo, tmp_path):
    log = shop_log(tiny_demo).sort("when").drop("when")
    columns = {"user_id": "visitor", "item_id": "sku", "title": "name"}
    path = write_log(log, tmp_path / "logs", "interactions.csv")
    from llm4dsr.data.prepare import PrepareOptions, prepare
    from llm4dsr.data.sources import read_source

    prepare(
        read_source(path.parent, None, columns), tmp_path / "windows", PrepareOptions(split="leave-one-out", history=5)
    )
    run, rows = found(tmp_path / "windows", tmp_path / "run")
    for name, windows in run.data().splits.items():
        at = rows.of_windows[name]
        begins = windows.offsets[1:-1]
        assert (np.delete(np.diff(at), begins - 1) > 0).all()
        assert rows.keys["item_id"].gather(at).to_list() == run.data().catalogue.ids.gather(windows.items).to_list()


def test_ratings_with_a_decimal_comma(tiny_demo, tmp_path):
    """`data prepare` leaves out those below 2, so the windows are found only where they are read alike."""
    log = shop_log(tiny_demo).with_columns(rating=pl.format("{},5", "price"))
    path = write_log(log, tmp_path / "logs", "interactions.csv")
    log.write_csv(path, separator=";")
    run, rows = found(windows_of(path.parent, tmp_path / "windows", history=5, min_rating=2), tmp_path / "run")
    assert agrees(run, rows) > 1000
    assert rows.keys["rating"].to_list() == (log["price"] + 0.5).to_list()


def test_a_log_that_run_reads_itself(tiny_demo, tmp_path):
    names = {"visitor": "user_id", "sku": "item_id", "when": "timestamp", "name": "title"}
    log = shop_log(tiny_demo).rename(names)
    (tmp_path / "logs").mkdir()
    log.write_csv(tmp_path / "logs" / "interactions.csv")
    log.select("item_id", "title").unique().write_csv(tmp_path / "logs" / "items.csv")
    run, rows = found(tmp_path / "logs", tmp_path / "run")
    assert agrees(run, rows) > 1000


def test_a_log_of_several_files_that_was_moved(tiny_demo, tmp_path):
    log = shop_log(tiny_demo)
    write_log(log[:800], tmp_path / "logs" / "interactions", "a.csv")
    write_log(log[800:], tmp_path / "logs" / "interactions", "b.csv")
    (tmp_path / "logs" / "interactions" / "items.parquet").unlink()
    log.select("sku", "name").unique().write_csv(tmp_path / "logs" / "items.csv")
    windows = windows_of(tmp_path / "logs", tmp_path / "windows", history=5)
    run, rows = found(windows, tmp_path / "run")
    assert agrees(run, rows) > 1000
    assert [file.path.name for file in rows.files] == ["a.csv", "b.csv"]
    (tmp_path / "logs" / "interactions").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"no longer there\. Say where it is now with --log"):
        log_origin(run)
    origin = log_origin(run, tmp_path / "elsewhere")
    assert (
        find_rows(origin, run.data().splits, run.data().catalogue).of_windows["test"] == rows.of_windows["test"]
    ).all()


def test_a_log_that_was_moved_may_be_named_by_its_folder(tiny_demo, tmp_path):
    """As `data prepare` takes it: the file with the interactions beside that of the items."""
    log = shop_log(tiny_demo)
    path = write_log(log, tmp_path / "logs", "interactions.csv")
    run, rows = found(windows_of(tmp_path / "logs", tmp_path / "windows", history=5), tmp_path / "run")
    (tmp_path / "logs").rename(tmp_path / "moved")
    for moved in (tmp_path / "moved", tmp_path / "moved" / path.name):
        again = find_rows(log_origin(run, moved), run.data().splits, run.data().catalogue)
        assert (again.of_windows["test"] == rows.of_windows["test"]).all()


def test_a_log_in_milliseconds_is_found_again(tiny_demo, tmp_path):
    """`run` reads the log itself, without `data prepare`."""
    names = {"visitor": "user_id", "sku": "item_id", "when": "timestamp", "name": "title"}
    log = shop_log(tiny_demo).rename(names).with_columns(pl.col("timestamp") * 1000)
    folder = tmp_path / "logs"
    folder.mkdir()
    log.select("item_id", "title").unique(maintain_order=True).write_csv(folder / "items.csv")
    log.select("user_id", "item_id", "timestamp").write_csv(folder / "interactions.csv")
    run, rows = found(folder, tmp_path / "run")
    assert agrees(run, rows) > 1000


@pytest.mark.parametrize("prepared", [True, False])
def test_rows_within_a_second_are_found_again(tiny_demo, tmp_path, prepared):
    """All interactions of a user within seconds of each other, newest first in the file."""
    names = {"visitor": "user_id", "sku": "item_id", "when": "timestamp", "name": "title"}
    log = shop_log(tiny_demo).rename(names).sort("timestamp")
    log = log.with_columns(timestamp=1_700_000_000_000 + 150 * pl.int_range(pl.len())).reverse()
    folder = tmp_path / "logs"
    folder.mkdir()
    log.select("item_id", "title").unique(maintain_order=True).write_csv(folder / "items.csv")
    log.select("user_id", "item_id", "timestamp").write_csv(folder / "interactions.csv")
    if prepared:
        prepare(read_source(folder), tmp_path / "windows")
    run, rows = found(tmp_path / "windows" if prepared else folder, tmp_path / "run")
    assert agrees(run, rows) > 1000
    exact = log["timestamp"].gather(rows.of_windows["test"]).to_numpy()
    begins = run.data().splits["test"].offsets[1:-1]
    assert (np.delete(np.diff(exact), begins - 1) > 0).all()


def test_a_partitioned_log_keeps_its_folders():
    """`region=eu` is in both paths, behind what differs."""
    paths = [Path(f"/logs/date={day}/region=eu/part-0.csv") for day in (1, 2)]
    root = log_root(SimpleNamespace(files=[SimpleNamespace(path=path) for path in paths]))
    assert [str(path.relative_to(root)) for path in paths] == [
        "date=1/region=eu/part-0.csv", "date=2/region=eu/part-0.csv",
    ]  # fmt: skip


def test_a_log_that_has_changed_is_refused(tiny_demo, tmp_path):
    path = write_log(shop_log(tiny_demo), tmp_path / "logs", "interactions.csv")
    run, _ = found(windows_of(path.parent, tmp_path / "windows"), tmp_path / "run")
    path.write_bytes(path.read_bytes() + b'x,v1,9,s1,"A",1\r\n')
    with pytest.raises(OutputError, match="has changed since"):
        log_origin(run)


def test_windows_that_came_from_no_log_have_no_rows(tiny_demo, tmp_path):
    run = Run.create(tmp_path / "run", CONFIG)
    run.prepare(tiny_demo)
    with pytest.raises(DataError, match="were not built from tables of yours"):
        log_origin(run)


def test_windows_with_noise_are_no_part_of_the_log(tiny_demo, tmp_path):
    """Another item in one window: nothing is exported rather than something wrong."""
    path = write_log(shop_log(tiny_demo), tmp_path / "logs", "interactions.csv")
    windows = windows_of(path.parent, tmp_path / "windows")
    table = pl.read_parquet(windows / "train.parquet")
    ids = read_data(windows).catalogue.ids
    lists = table["item_ids"].to_list()
    lists[7][2] = next(item for item in ids if item not in lists[7])
    table.with_columns(item_ids=pl.Series(lists)).write_parquet(windows / "train.parquet")
    write_manifest(windows)
    run = Run.create(tmp_path / "run", CONFIG)
    run.prepare(windows)
    with pytest.raises(DataError, match="Window 7 of train and 0 other"):
        find_rows(log_origin(run), run.data().splits, run.data().catalogue)


def test_the_report_says_where_the_log_is(tiny_demo, tmp_path):
    path = write_log(shop_log(tiny_demo), tmp_path / "logs", "interactions.csv")
    windows = windows_of(path.parent, tmp_path / "windows")
    told = json.loads((windows / "report.json").read_text())["log"]
    assert told["path"] == str(path)
    assert told["columns"]["user_id"] == "visitor"
    assert list(told["files"]) == [str(path)]
