"""A denoiser as a step of a scikit-learn pipeline: fitted once, it corrects what comes later."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import BaseEstimator, clone
from sklearn.pipeline import Pipeline

from llm4dsr import Denoiser
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ConfigError, DataError

from .tiny_run import CONFIG


@pytest.fixture(scope="module")
def denoiser(tiny_demo) -> Denoiser:
    return Denoiser(CONFIG).fit(tiny_demo.splits["train"], tiny_demo.catalogue)


@pytest.fixture(scope="module")
def served(tiny_demo) -> pd.DataFrame:
    frame = tiny_demo.splits["test"].histories().to_frame(tiny_demo.catalogue).to_pandas()
    return frame.drop(columns=["noise_mask", "clean_item_ids", "window_id"]).set_index(frame["window_id"] + 1000)


def test_what_is_flagged_is_dropped(denoiser, served, tiny_demo):
    """The flags are those of score and decide."""
    got = denoiser.transform(served, policy="rate", eta=0.1, action="drop")
    windows = tiny_demo.splits["test"].histories()
    flagged = denoiser.decide(denoiser.score(windows), "rate", 0.1, is_train=False)
    lost = served["item_ids"].map(len) - got["item_ids"].map(len)
    assert lost.sum() == len(flagged) > 10
    of_window = dict(flagged.group_by("window_id").len().iter_rows())
    assert lost[lost > 0].to_dict() == {window + 1000: count for window, count in of_window.items()}
    assert got.drop(columns="item_ids").equals(served.drop(columns="item_ids"))


def test_all_forms_agree(denoiser, served):
    def dropped(histories):
        return denoiser.transform(histories, policy="rate", eta=0.1, action="drop")

    of_table = [list(row) for row in dropped(served)["item_ids"]]
    assert [row.to_list() for row in dropped(pl.from_pandas(served))["item_ids"]] == of_table
    users = served.assign(user_id=range(len(served)))  # each row is a history of its own
    long = users.explode("item_ids").rename(columns={"item_ids": "item_id"}).astype({"item_id": int})
    again = dropped(long).groupby("user_id")["item_id"].agg(list)
    assert len(dropped(long)) == len(long) - round(0.1 * len(long))
    assert sum(len(row) for row in again) == sum(map(len, of_table))


def test_times_that_cannot_be_read_are_refused(denoiser, served):
    """Instead of the order of the rows."""
    long = served.explode("item_ids").rename(columns={"item_ids": "item_id"}).astype({"item_id": int})
    long["timestamp"] = "24.10.2024 10:00"
    with pytest.raises(DataError, match=r"'timestamp' of the histories has '24.10.2024 10:00', and .* no time"):
        denoiser.transform(long)


@pytest.mark.parametrize("odd", [str, lambda item: item + 0.5])
def test_ids_of_another_type_are_refused_in_lists_too(denoiser, served, odd):
    lists = [[odd(item) for item in row] for row in served["item_ids"]]
    with pytest.raises(DataError, match="type"):
        denoiser.transform(lists, policy="rate", eta=0.1, action="replace")
    with pytest.raises(DataError, match="type"):
        denoiser.transform(pl.DataFrame({"item_ids": lists}), policy="rate", eta=0.1, action="replace")


def test_replacing_keeps_lengths_and_downweighting_keeps_items(denoiser, served):
    replaced = denoiser.transform(served, policy="rate", eta=0.1, action="replace")
    assert replaced["item_ids"].map(len).equals(served["item_ids"].map(len))
    changed = [list(a) != list(b) for a, b in zip(replaced["item_ids"], served["item_ids"], strict=True)]
    assert 5 < sum(changed) < len(served)
    weighted = denoiser.transform(served, policy="rate", eta=0.1, action="downweight")
    assert [list(row) for row in weighted["item_ids"]] == [list(row) for row in served["item_ids"]]
    assert weighted["weights"].map(len).equals(served["item_ids"].map(len))


@pytest.mark.parametrize("action", ["drop", "mixed"])
def test_windows_stay_however_short_they_get(action, denoiser, tiny_demo):
    """As lists do: pairs of which one item is dropped, and what had fewer than two items before."""
    rows = [[i, i + 30] for i in range(20)] + [[7], [], [1, 2, 3]]
    windows = Windows.from_lists(rows, window_ids=np.arange(len(rows)) * 2)
    got = denoiser.transform(windows, policy="probability", eta=0.0, action=action)
    lists = [tiny_demo.catalogue.ids.gather(row).to_list() for row in rows]
    expected = denoiser.transform(lists, policy="probability", eta=0.0, action=action)
    assert [tiny_demo.catalogue.ids.gather(got.row(i)).to_list() for i in range(len(got))] == expected
    assert got.window_ids.tolist() == windows.window_ids.tolist()
    assert (got.lengths < 2).sum() > 5
    assert denoiser.transform(windows.take(np.array([21, 21])), action=action).lengths.tolist() == [0, 0]


def test_by_probability_a_history_does_not_depend_on_others(denoiser, served):
    together = denoiser.transform(served["item_ids"].tolist(), "probability", 0.1, action="drop")
    alone = [denoiser.transform([history], "probability", 0.1, action="drop")[0] for history in served["item_ids"][:5]]
    assert [list(history) for history in together[:5]] == [list(history) for history in alone]


def test_nothing_to_score_is_nothing_to_change(denoiser):
    assert denoiser.transform([], action="drop") == []
    assert denoiser.transform([[], [1001]], action="replace") == [[], [1001]]


def test_training_data_are_corrected_out_of_fold(tiny_demo):
    """As fit and then score: users in training are scored by the model that did not see them."""
    windows = tiny_demo.splits["train"]
    frame = windows.to_frame(tiny_demo.catalogue)
    denoiser = Denoiser(CONFIG, items=tiny_demo.catalogue)
    got = denoiser.fit_transform(frame, policy="rate", eta=0.1, action="drop")
    again = Denoiser(CONFIG).fit(windows, tiny_demo.catalogue)
    flagged = again.decide(again.score(windows), "rate", 0.1)
    assert frame["item_ids"].list.len().sum() - got["item_ids"].list.len().sum() == len(flagged)
    assert got.drop("item_ids").equals(frame.drop("item_ids"))


class Popular(BaseEstimator):
    """A recommender that counts items, and remembers what it was shown."""

    def fit(self, X, y=None):
        self.counts_ = X["item_id"].value_counts()
        return self

    def predict(self, X):
        self.shown_ = X
        return [self.counts_.index[0]] * len(X)


def test_a_pipeline_learns_from_a_log_and_serves(tiny_demo):
    newest = tiny_demo.splits["train"].to_frame(tiny_demo.catalogue).unique("user_id", keep="last", maintain_order=True)
    log = newest.explode("item_ids", "noise_mask").rename({"item_ids": "item_id"}).drop("timestamp").to_pandas()
    pipeline = Pipeline([("denoise", Denoiser(CONFIG, items=tiny_demo.catalogue)), ("recommend", Popular())])
    pipeline.set_params(denoise__correct__action="drop", denoise__decide__eta=0.2)
    pipeline.fit(log)
    left = pipeline["recommend"].counts_.sum()
    assert left == len(log) - round(0.2 * len(log))
    pipeline.predict(log.head(40))
    assert len(pipeline["recommend"].shown_) == 32
    assert list(pipeline["recommend"].shown_.columns) == list(log.columns)


def test_parameters_are_read_set_and_cloned(denoiser, tiny_demo):
    params = denoiser.get_params()
    assert params["config"] is CONFIG
    assert params["decide__eta"] == 0.1
    assert params["seed"] == 0
    copy = clone(Denoiser(CONFIG, items=tiny_demo.catalogue.to_frame())).set_params(decide__eta=0.3, seed=4)
    assert (copy.config.decide.eta, copy.config.seed, copy.config.train) == (0.3, 4, CONFIG.train)
    assert not copy.__sklearn_is_fitted__()
    assert denoiser.__sklearn_is_fitted__()
    with pytest.raises(ConfigError, match="no parameter 'threshold'"):
        copy.set_params(threshold=0.3)
    with pytest.raises(ConfigError, match="set_params"):
        copy.set_params(decide__eta=3)


def test_without_items_nothing_is_learned():
    with pytest.raises(DataError, match="no items to learn from"):
        Denoiser(CONFIG).fit([[1, 2]])
