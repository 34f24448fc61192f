"""Write tables atomically."""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import polars as pl
import pytest

from llm4dsr import columns as c
from llm4dsr.core.io import as_data_error, check_new_folder, new_folder, write_bytes, write_parquet
from llm4dsr.data.dataset import Dataset, make_windows
from llm4dsr.errors import ConfigError, DataError, OutputError

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


def test_a_folder_in_place_of_a_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match=r"Cannot write \.: it is a folder"):
        write_bytes(".", b"content")


def test_a_link_stays_and_the_folder_that_it_points_to_is_filled(tmp_path):
    (tmp_path / "disk").mkdir()
    for link, target in (("link", "disk"), ("early", "not there yet")):
        (tmp_path / link).symlink_to(tmp_path / target)
        with new_folder(tmp_path / link) as part:
            (part / "a").touch()
        assert (tmp_path / link).is_symlink()
        assert os.listdir(tmp_path / target) == ["a"]
    assert sorted(os.listdir(tmp_path)) == ["disk", "early", "link", "not there yet"]


def test_the_current_folder_is_filled_and_stays_the_current_one(tmp_path, monkeypatch):
    """A shell that stands in a folder does not see what takes the place of that folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with new_folder(".") as part:
        (part / "folder").mkdir()
        (part / "folder" / "a").touch()
    assert os.listdir() == ["folder"]
    assert os.listdir("folder") == ["a"]
    assert os.listdir("..") == ["here"]


def test_only_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "full" / "folder").mkdir(parents=True)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "full")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for name in ("full", "file", "link", "circle"):
        with pytest.raises(OutputError, match=f"{name} exists already and is not an empty folder"):
            check_new_folder(tmp_path / name)
    assert check_new_folder(tmp_path / "new") == tmp_path / "new"


def test_faults_of_our_own_code_are_not_reported_as_unreadable_data():
    for own in (ValueError("shapes do not fit"), TypeError("no argument"), KeyError("x"), ConfigError("Wrong.")):
        with pytest.raises(type(own)), as_data_error("The file cannot be read", "Is it cut off?"):
            raise own
    for theirs in (OSError("gone"), pl.exceptions.ComputeError("cut off")):
        said = pytest.raises(DataError, match=r"The file cannot be read: (gone|cut off)\. Is it cut off")
        with said, as_data_error("The file cannot be read", "Is it cut off?"):
            raise theirs


def test_two_writers_may_make_the_folder_at_the_same_moment(tmp_path):
    together = Barrier(2, timeout=10)

    def write(name: str) -> None:
        for i in range(200):
            together.wait()
            write_bytes(tmp_path / f"folder {i}" / name, b"content")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ["one", "two"]))
    assert len(list(tmp_path.glob("*/one"))) == len(list(tmp_path.glob("*/two"))) == 200
