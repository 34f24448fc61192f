"""Explanations: what an interaction would score without each other item of its history, and what both share."""

import numpy as np
import polars as pl
import pytest

from llm4dsr import Config, Denoiser
from llm4dsr.data.demo import make_demo
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError
from llm4dsr.features.title_vectors import title_similarities

DEMO = make_demo(size="tiny").data
CATALOGUE, TRAIN, TEST = DEMO.catalogue, DEMO.splits["train"], DEMO.splits["test"]
CONFIG = {
    "model": {"hidden_size": 16, "layers": 1, "heads": 2, "vector_size": 16},
    "train": {"epochs": 2, "folds": 2},
    "threads": 1,
}


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    return Denoiser(Config.from_dict(CONFIG)).fit(TRAIN, CATALOGUE, DEMO.splits["valid"].histories())


def chosen(scores: pl.DataFrame, count: int = 8) -> pl.DataFrame:
    return scores.sort("log_odds", descending=True).head(count)


def test_the_probability_is_that_of_the_scores(denoiser):
    """Also for test windows, which are scored with the counts of their time."""
    some = chosen(denoiser.score(TEST, has_target=True))
    found = denoiser.explain(TEST, some, has_target=True).unique(["window_id", "position"], maintain_order=True)
    assert found.select("window_id", "position", "item_id").equals(some.select("window_id", "position", "item_id"))
    assert found["noise_probability"].to_list() == pytest.approx(some["noise_probability"].to_list(), abs=1e-5)


def test_each_other_item_is_left_out_once(denoiser):
    """A shorter history, scored on its own, has the stated log-odds and probability."""
    histories = TEST.histories()
    some = chosen(denoiser.score(histories), 1)
    found = denoiser.explain(histories, some)
    window, position = some.row(0)[:2]
    row = int(np.flatnonzero(histories.window_ids == window)[0])
    items = histories.row(row)
    assert found["other_position"].to_list() == [p for p in range(len(items)) if p != position]
    for line in found.iter_rows(named=True):
        left = [item for p, item in enumerate(items) if p != line["other_position"]]
        alone = Windows.from_lists([left], user_ids=histories.user_ids.gather([row]))
        scored = denoiser.score(alone).filter(pl.col("item_id") == line["item_id"]).row(0, named=True)
        assert scored["noise_probability"] == pytest.approx(line["noise_probability_without"], abs=1e-5)
        assert some["log_odds"][0] - scored["log_odds"] == pytest.approx(line["log_odds_change"], abs=1e-4)


def test_users_of_both_items_are_counted_without_the_own_history(denoiser):
    some = chosen(denoiser.score(TRAIN), 3)
    counted = TRAIN.to_frame(CATALOGUE).select("user_id", "window_id", "item_ids")
    for line in denoiser.explain(TRAIN, some).iter_rows(named=True):
        own = counted.filter(pl.col("window_id") == line["window_id"])["user_id"][0]
        others = counted.filter(pl.col("user_id") != own)
        has = pl.col("item_ids").list.contains(pl.lit(line["item_id"]))
        has_other = pl.col("item_ids").list.contains(pl.lit(line["other_item_id"]))
        assert others.filter(has & has_other)["user_id"].n_unique() == line["pair_users"]
        assert others.filter(has)["user_id"].n_unique() == line["item_users"]
        assert others.filter(has_other)["user_id"].n_unique() == line["other_item_users"]


def test_a_long_history_is_explained_by_a_part_that_holds_the_item(denoiser):
    rows = [np.random.default_rng(0).permutation(len(CATALOGUE))[:35].tolist(), [1, 2, 3, 4]]
    histories = Windows.from_lists(rows, window_ids=np.array([7, 3]))
    some = pl.DataFrame({"window_id": [3, 7, 7], "position": [1, 0, 20]})
    found = denoiser.explain(histories, some)
    assert found.select("window_id", "position").unique(maintain_order=True).rows() == [(3, 1), (7, 0), (7, 20)]
    for line in found.iter_rows(named=True):
        items = CATALOGUE.ids.gather(rows[0] if line["window_id"] == 7 else rows[1])
        assert line["item_id"] == items[line["position"]]
        assert line["other_item_id"] == items[line["other_position"]] != line["item_id"]


def test_a_pair_has_nothing_to_compare_without_the_other_item(denoiser):
    pair = Windows.from_lists([[1, 2]])
    (line,) = denoiser.explain(pair, pl.DataFrame({"window_id": [0], "position": [0]})).to_dicts()
    assert np.isnan(line["log_odds_change"])


def test_nothing_chosen_gives_an_empty_table(denoiser):
    none = denoiser.score(TEST.histories()).head(0)
    assert denoiser.explain(TEST.histories(), none).height == 0


def test_an_unknown_window_is_named(denoiser):
    with pytest.raises(DataError, match="window_id 99999"):
        denoiser.explain(TEST.histories(), pl.DataFrame({"window_id": [99999], "position": [0]}))


def test_titles_are_compared_by_their_words():
    titles = ["red train", "red train", "blue doll", "!"]
    same, different = title_similarities(titles, np.array([0, 0]), np.array([1, 2]))
    assert same == pytest.approx(1)
    assert different == 0
    assert title_similarities(["!", "?"], np.array([0]), np.array([1])).tolist() == [0]
