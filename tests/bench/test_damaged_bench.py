"""Damaged results and scores of baselines are refused, not read."""

import shutil

import pytest

from llm4dsr.bench.cells import RESULTS, bench
from llm4dsr.bench.datasets import load_dataset
from llm4dsr.bench.studies.study import smaller
from llm4dsr.config import Config
from llm4dsr.errors import OutputError

DATASET, CONFIG = load_dataset("demo", tiny=True), smaller(Config())


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    bench(DATASET, folder, ["itemknn"], ["none", "tfidf"], CONFIG)
    return folder


@pytest.mark.parametrize("name", [RESULTS, "baselines/tfidf/train.parquet", "baselines/tfidf/card.json"])
def test_a_damaged_file_is_named(out, tmp_path, name):
    folder = shutil.copytree(out / DATASET.name, tmp_path / DATASET.name)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(OutputError, match=rf"{name} is damaged"):
        bench(DATASET, tmp_path, ["itemknn"], ["none", "tfidf"], CONFIG)
