"""Plain tables and windows in the forms of other libraries, by hand."""

import math

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch.utils.data import DataLoader

from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError
from llm4dsr.export import TorchHistories, to_datasets, to_recbole, to_recbole_splits, to_rectools, to_replay, to_torch

ITEMS = Catalogue(pl.Series("item_id", ["a", "b", "c"]), ["Ball", 'A "new"\tball', "Train"])
LOG = pl.DataFrame({
    "user_id": ["u", "u", "v"], "item_id": ["a", "b", "c"], "timestamp": [0, 86_400, 10], "weight": [1.0, 0.25, 1.0],
    "rating": [4.0, 2.0, None], "more": [1, 2, 3],
})  # fmt: skip
WINDOWS = Windows.from_lists([[0, 1, 2], [2, 0]], user_ids=pl.Series(["u", "v"]), timestamps=np.array([5, 6]))


def test_recbole_reads_names_with_types_and_no_quotes(tmp_path):
    to_recbole(LOG, ITEMS, tmp_path, "shop")
    assert (tmp_path / "shop.inter").read_text().splitlines() == [
        "user_id:token\titem_id:token\ttimestamp:float\trating:float\tweight:float",
        "u\ta\t0\t4.0\t1.0", "u\tb\t86400\t2.0\t0.25", "v\tc\t10\t\t1.0",
    ]  # fmt: skip
    assert (tmp_path / "shop.item").read_text().splitlines() == [
        "item_id:token\ttitle:token_seq", "a\tBall", 'b\tA "new" ball', "c\tTrain",
    ]  # fmt: skip


def test_recbole_reads_windows_as_sequences(tmp_path):
    weighted = Windows.from_lists([[0, 1, 2]], user_ids=pl.Series(["u"]), weights=np.array([1, 1 / 3, 0.5]))
    to_recbole_splits({"train": WINDOWS, "test": weighted}, ITEMS, tmp_path, "shop")
    assert (tmp_path / "shop.train.inter").read_text().splitlines()[1:] == ["u\ta b\tc\t2\t5", "v\tc\ta\t1\t6"]
    assert (tmp_path / "shop.test.inter").read_text().splitlines()[1:] == ["u\ta b\tc\t2\t-1\t1.0 0.333333\t0.5"]


def test_rectools_takes_weights_and_dates():
    got = to_rectools(LOG)
    assert list(got.columns) == ["user_id", "item_id", "weight", "datetime"]
    assert got["datetime"][1] == pd.Timestamp("1970-01-02")
    assert got["weight"].tolist() == [1, 0.25, 1]
    assert to_rectools(LOG.to_pandas().drop(columns="weight"))["weight"].tolist() == [1, 1, 1]


def test_replay_takes_the_weight_as_the_strength_of_a_rating():
    got = to_replay(LOG)
    assert got.columns == ["query_id", "item_id", "timestamp", "rating"]
    assert got["rating"].to_list() == [4, 0.5, 1]
    assert got["timestamp"].dtype == pl.Datetime("us")
    assert to_replay(LOG.drop("rating"))["rating"].to_list() == [1, 0.25, 1]


@pytest.mark.parametrize("function", [to_rectools, to_replay])
def test_what_is_missing_is_named(function):
    with pytest.raises(DataError, match="'timestamp' is missing"):
        function(LOG.drop("timestamp"))


def test_a_dataset_of_hugging_face_has_the_windows():
    pytest.importorskip("datasets")
    got = to_datasets({"train": WINDOWS}, ITEMS)["train"]
    assert got["item_ids"][:] == [["a", "b", "c"], ["c", "a"]]
    assert got.column_names == ["window_id", "user_id", "item_ids", "timestamp"]


def test_a_data_loader_gets_padded_batches():
    batch = next(iter(DataLoader(TorchHistories(WINDOWS), batch_size=2)))
    assert batch["items"].tolist() == [[1, 2], [0, 3]]
    assert batch["weights"].tolist() == [[1, 1], [0, 1]]  # nothing weighs where nothing is
    assert batch["target"].tolist() == [3, 1]
    assert batch["weights"].dtype == torch.float32


def test_only_the_newest_items_fit_a_narrow_tensor():
    frame = WINDOWS.to_frame(ITEMS).with_columns(weights=pl.Series([[0.5, 0.25, 1.0], [0.125, 0.75]]))
    histories = to_torch(frame, ITEMS, width=1)
    assert [{name: value.tolist() for name, value in row.items()} for row in histories] == [
        {"items": [2], "weights": [0.25], "target": 3, "target_weight": 1},
        {"items": [3], "weights": [0.125], "target": 1, "target_weight": 0.75},
    ]
    with pytest.raises(DataError, match="at least 1"):
        to_torch(frame, ITEMS, width=0)


def test_a_soft_loss_weighs_each_target():
    """As a training loop would: the loss of a target counts by its weight."""
    weights = np.array([1, 1, 0.5, 1, 1.0])
    histories = TorchHistories(Windows.from_lists([[0, 1, 2], [2, 0]], weights=weights))
    losses = torch.tensor([2.0, 4.0])
    mean = (losses * histories.target_weights).sum() / histories.target_weights.sum()
    assert math.isclose(mean.item(), 10 / 3, rel_tol=1e-6)
