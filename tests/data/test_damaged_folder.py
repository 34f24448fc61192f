"""Prepared folders that changed after they were written."""

import polars as pl
import pytest

from llm4dsr.data.demo import make_demo
from llm4dsr.data.noise import noise_folder
from llm4dsr.data.read import read_data
from llm4dsr.errors import DataError


@pytest.fixture
def noisy(tmp_path):
    make_demo(size="tiny").data.write(tmp_path / "data")
    for path in (tmp_path / "data").glob("*.parquet"):
        pl.read_parquet(path).drop("noise_mask", "clean_item_ids", strict=False).write_parquet(path)
    noise_folder(tmp_path / "data", tmp_path / "noisy", "uniform", 0.1, seed=0)
    return tmp_path / "noisy"


def test_a_damaged_file_is_named(noisy):
    content = bytearray((noisy / "train.parquet").read_bytes())
    content[len(content) // 2] ^= 4
    (noisy / "train.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"train.parquet is damaged.*If the files were changed on purpose, remove"):
        read_data(noisy)


def test_a_file_changed_on_purpose_is_read_without_the_manifest(noisy):
    """Files that belong to the folder's owner, such as notes, do not matter."""
    whole = read_data(noisy)
    (noisy / "notes.txt").write_text("mine")
    (noisy / "items.parquet").unlink()
    whole.catalogue.to_frame().write_parquet(noisy / "items.parquet", compression="gzip")
    with pytest.raises(DataError, match=r"items.parquet is damaged"):
        read_data(noisy)
    (noisy / "manifest.json").unlink()
    assert read_data(noisy).catalogue.titles == whole.catalogue.titles
