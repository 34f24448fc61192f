"""Plain tables and windows in the forms of other libraries, by hand."""

import datetime as dt
import math
import re

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
    "rating": [4.0, 2.0, 3.0], "more": [1, 2, 3],
})  # fmt: skip
WINDOWS = Windows.from_lists([[0, 1, 2], [2, 0]], user_ids=pl.Series(["u", "v"]), timestamps=np.array([5, 6]))


def test_recbole_reads_names_with_types_and_no_quotes(tmp_path):
    to_recbole(LOG, ITEMS, tmp_path, "shop")
    assert (tmp_path / "shop.inter").read_text().splitlines() == [
        "user_id:token\titem_id:token\ttimestamp:float\trating:float\tweight:float",
        "u\ta\t0.0\t4.0\t1.0", "u\tb\t86400.0\t2.0\t0.25", "v\tc\t10.0\t3.0\t1.0",
    ]  # fmt: skip
    assert (tmp_path / "shop.item").read_text().splitlines() == [
        "item_id:token\ttitle:token_seq", "a\tBall", 'b\tA "new" ball', "c\tTrain",
    ]  # fmt: skip


def test_recbole_reads_windows_as_sequences(tmp_path):
    weighted = Windows.from_lists([[0, 1, 2]], user_ids=pl.Series(["u"]), weights=np.array([1, 1 / 3, 0.5]))
    to_recbole_splits({"train": WINDOWS, "test": weighted}, ITEMS, tmp_path, "shop")
    assert (tmp_path / "shop.train.inter").read_text().splitlines()[1:] == ["u\ta b\tc\t2\t5", "v\tc\ta\t1\t6"]
    assert (tmp_path / "shop.test.inter").read_text().splitlines()[1:] == ["u\ta b\tc\t2\t-1\t1.0 0.333333\t0.5"]


@pytest.mark.parametrize("user", ["u\tv", "u\nv", "u\rv"])
def test_recbole_has_no_ids_with_tabs_or_line_breaks(tmp_path, user):
    """Without quotes, they would be another column or row."""
    with pytest.raises(DataError, match=re.escape(f"The id {user!r} has a tab or line break")):
        to_recbole(LOG.with_columns(user_id=pl.lit(user)), ITEMS, tmp_path, "shop")
    assert not list(tmp_path.iterdir())
    to_recbole(LOG.with_columns(user_id=pl.lit("u v")), ITEMS, tmp_path, "shop")


@pytest.mark.parametrize("item", ["Red ball", "a\tb", "a\nb", ""])
def test_recbole_has_no_sequences_of_ids_with_white_space(tmp_path, item):
    """`item_id_list` is separated by spaces."""
    odd = Catalogue(pl.Series("item_id", ["a", item, "c"]), ITEMS.titles)
    with pytest.raises(DataError, match=re.escape(f"The id {item!r} is empty or has white space")):
        to_recbole_splits({"train": WINDOWS}, odd, tmp_path, "shop")
    assert not list(tmp_path.iterdir())


def test_rectools_takes_weights_and_dates():
    got = to_rectools(LOG)
    assert list(got.columns) == ["user_id", "item_id", "weight", "datetime"]
    assert got["datetime"][1] == pd.Timestamp("1970-01-02")
    assert got["weight"].tolist() == [1, 0.25, 1]
    assert to_rectools(LOG.to_pandas().drop(columns="weight"))["weight"].tolist() == [1, 1, 1]


def test_replay_takes_the_weight_as_the_strength_of_a_rating():
    got = to_replay(LOG)
    assert got.columns == ["query_id", "item_id", "timestamp", "rating"]
    assert got["rating"].to_list() == [4, 0.5, 3]
    assert got["timestamp"].dtype == pl.Datetime("us")
    assert to_replay(LOG.drop("rating"))["rating"].to_list() == [1, 0.25, 1]
    assert to_replay(LOG.with_columns(rating=None))["rating"].to_list() == [1, 0.25, 1]
    with pytest.raises(DataError, match="1 of 3 interactions have no rating, which RePlay needs of all or none"):
        to_replay(LOG.with_columns(rating=pl.Series([4.0, None, 3.0])))


SECONDS = [1_700_000_000, 1_700_086_400, 1_700_000_010]
DATES = ["2023-11-14T22:13:20", "2023-11-15T22:13:20", "2023-11-14T22:13:30"]


@pytest.mark.parametrize(
    "times",
    [
        pl.Series(SECONDS),
        pl.Series(SECONDS) * 1000,
        pl.Series(SECONDS, dtype=pl.Float64),
        pl.Series(SECONDS).cast(pl.String),
        pl.Series(DATES),
        pl.Series(DATES).str.to_datetime(),
        pl.Series(DATES).str.to_datetime(time_zone="UTC").dt.convert_time_zone("Asia/Tokyo"),
    ],
    ids=["seconds", "milliseconds", "floats", "text of seconds", "text of dates", "dates", "dates in Tokyo"],
)
def test_times_are_those_that_transform_takes(tmp_path, times):
    log = LOG.with_columns(timestamp=times)
    assert to_rectools(log)["datetime"].tolist() == [pd.Timestamp(date) for date in DATES]
    assert to_replay(log)["timestamp"].dt.epoch("s").to_list() == SECONDS
    to_recbole(log, ITEMS, tmp_path, "shop")
    assert pl.read_csv(tmp_path / "shop.inter", separator="\t")["timestamp:float"].to_list() == SECONDS


@pytest.mark.parametrize("half", ["1970-01-01 00:00:10.5", dt.datetime(1970, 1, 1, 0, 0, 10, 500_000)], ids=repr)
def test_dates_keep_fractions_of_a_second(tmp_path, half):
    log = LOG.with_columns(timestamp=pl.Series([half] * 3))
    to_recbole(log, ITEMS, tmp_path, "shop")
    assert pl.read_csv(tmp_path / "shop.inter", separator="\t")["timestamp:float"].to_list() == [10.5] * 3
    assert to_replay(log)["timestamp"].dt.epoch("ms").to_list() == [10_500] * 3


def recbole(log):
    to_recbole(log, ITEMS, "not written")


@pytest.mark.parametrize("function", [to_rectools, to_replay, recbole])
def test_what_cannot_be_read_is_named(function):
    with pytest.raises(DataError, match="'timestamp' of the interactions has 'soon'"):
        function(LOG.with_columns(timestamp=pl.Series(["0", "soon", ""])))
    with pytest.raises(DataError, match="'timestamp' of the interactions has inf, and 0 other value"):
        function(LOG.with_columns(timestamp=pl.Series([0.0, math.inf, math.nan])))
    with pytest.raises(DataError, match=r"'weight'.*0,5.*Give numbers"):
        function(LOG.with_columns(weight=pl.Series(["1", "0,5", "1"])))


def test_only_rectools_has_no_use_for_ratings():
    age = LOG.with_columns(rating=pl.lit("PG-13"))
    assert len(to_rectools(age)) == 3
    for function in (to_replay, recbole):
        with pytest.raises(DataError, match=r"'rating'.*PG-13.*Give numbers as weight and rating"):
            function(age)


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
