"""The studies of noise, of the upper bound, of transfer and of the parts: each on the tiny demo, and by hand."""

import dataclasses
import math

import numpy as np
import polars as pl
import pytest

from llm4dsr.bench.datasets import BenchDataset, load_dataset
from llm4dsr.bench.studies import ablations, noise, transfer, upper_bound
from llm4dsr.bench.studies.detection import detection, gains
from llm4dsr.bench.studies.samples import budget, scores_of
from llm4dsr.bench.studies.study import Context, Found, smaller
from llm4dsr.config import Config, CorrectConfig, EvaluateConfig, ModelConfig
from llm4dsr.core.cache import PartCache
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.noise.kinds import KINDS
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError
from llm4dsr.evaluate.rows import DecisionTables, correct_split, oracle_split

CONFIG = smaller(dataclasses.replace(Config(), evaluate=EvaluateConfig(seeds=2), threads=1))
LETTERS = Catalogue(pl.Series(range(6)), ["Ant", "Bear", "Cat", "Dog", "Eel", "Fox"])


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """One folder for all: our run on the suite is made once."""
    dataset = load_dataset("demo", seed=CONFIG.seed, tiny=True)
    return Context(dataset, tmp_path_factory.mktemp("studies") / dataset.name, CONFIG, quick=True)


@pytest.fixture(scope="module")
def found(context: Context) -> dict[str, Found]:
    return {module.__name__.split(".")[-1]: module.study(context) for module in (noise, upper_bound, ablations)}


@pytest.fixture(scope="module")
def to_itself(context: Context, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """Transfer from the suite to a folder that holds the very same windows."""
    folder = tmp_path_factory.mktemp("targets") / "same"
    context.dataset.data.write(folder)
    return transfer.study(dataclasses.replace(context, targets=[folder]))


def of_no_truth(data: Dataset) -> Dataset:
    bare = {n: dataclasses.replace(w, noise_mask=None, clean_items=None) for n, w in data.splits.items()}
    return Dataset(data.catalogue, bare)


def everywhere(windows: Windows) -> Dataset:
    return Dataset(LETTERS, dict.fromkeys(("train", "valid", "test"), windows))


# --- measures --------------------------------------------------------------------------------------------------------


def test_detection_by_hand():
    """Noise at 0 and 3 of four interactions; 0 and 1 are flagged. Three of the four (noisy, clean) pairs are in order;
    the fifth interaction is alone in its window and has no score."""
    windows = Windows.from_lists([[0, 1, 2, 3], [4]], noise_mask=np.array([1, 0, 0, 1, 0], dtype=bool))
    log_odds = np.array([3.0, 2.0, 0.0, 1.0, np.nan])
    flagged = np.array([1, 1, 0, 0, 0], dtype=bool)
    assert detection(log_odds, flagged, windows) == pytest.approx(
        {"noise": 0.5, "auroc": 0.75, "average_precision": (1 + 2 / 3) / 2, "flagged": 0.5, "precision": 0.5,
         "recall": 0.5, "false_flags": 0.5})  # fmt: skip


def test_without_noise_there_is_no_auroc_but_there_are_false_flags():
    windows = Windows.from_lists([[0, 1, 2, 3]], noise_mask=np.zeros(4, dtype=bool))
    measured = detection(np.zeros(4), np.array([True, False, False, False]), windows)
    assert math.isnan(measured["auroc"])
    assert measured["false_flags"] == 0.25


def test_gains_by_hand():
    """Ranks 1 and 3 give 1 and 1/2, a rank above 20 nothing. Seeds gain 0.25 and 0.75; each window gains 0.5."""
    ranks = {"none": [[1, 30], [30, 30]], "ours": [[1, 3], [1, 3]]}
    cells = pl.DataFrame(
        [{"row": row, "seed": seed, "ndcg": sum({1: 1.0, 3: 0.5, 30: 0.0}[r] for r in ranks[row][seed]) / 2,
          "hit_rate": 0.5, "valid_ndcg": 0.5, "ranks": ranks[row][seed],
          "users": [0, 1]}
         for seed in (0, 1) for row in ranks])  # fmt: skip
    none, ours = gains(cells, "none", 20).to_dicts()
    assert none["ndcg"] == pytest.approx(0.25)
    assert math.isnan(none["gain"])
    assert (ours["gain"], ours["gain_percent"]) == pytest.approx((0.5, 200.0))
    assert ours["half_width"] == pytest.approx(12.7062 * 0.25, rel=1e-4)  # t with one degree of freedom
    assert ours["p_seeds"] == pytest.approx(0.2952, abs=1e-4)  # t = 2: 1 - 2 / π · arctan 2
    assert (ours["user_half_width"], ours["p_users"]) == (0, 0)  # both gain the same: no doubt about the sign


# --- noise kinds and rates -------------------------------------------------------------------------------------------


def test_every_kind_is_measured_at_every_rate(found):
    table = found["noise"].tables["Detection on test"]
    assert table.select("kind", "rate").rows() == [(kind, rate) for kind in KINDS for rate in (0.1, 0.5)]
    seen = table.filter(pl.col("kind") != "deletion")
    assert seen["auroc"].is_between(0, 1).all()
    assert (seen.filter(pl.col("rate") == 0.5)["noise"].to_numpy() > 0.25).all()
    gone = table.filter(pl.col("kind") == "deletion")
    assert gone["noise"].to_list() == [0, 0]
    assert gone["auroc"].is_nan().all()
    assert gone["false_flags"].is_between(0, 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_of_0_leaves_the_windows_alone(context, kind):
    clean, _ = noise.without_noise(context.dataset.data)
    noisy = noise.with_noise(clean, kind, 0.0, seed=3)
    for name, windows in noisy.splits.items():
        assert windows.items.tolist() == clean.splits[name].items.tolist()
        assert not windows.noise_mask.any()


def test_noise_spares_the_targets_of_validation_and_test(context):
    clean, _ = noise.without_noise(context.dataset.data)
    noisy = noise.with_noise(clean, "uniform", 0.5, seed=3)
    for name in ("valid", "test"):
        assert noisy.splits[name].targets().tolist() == clean.splits[name].targets().tolist()
    assert noisy.splits["train"].targets().tolist() != clean.splits["train"].targets().tolist()


def test_windows_are_taken_from_before_their_noise_where_that_is_known(context):
    data = context.dataset.data
    clean, how = noise.without_noise(data)
    assert clean.splits["train"].items.tolist() == data.splits["train"].clean_items.tolist()
    assert "before" in how
    bare, how = noise.without_noise(of_no_truth(data))
    assert bare.splits["train"].items.tolist() == data.splits["train"].items.tolist()
    assert "whatever noise" in how


def test_scores_of_some_splits_are_those_of_all(context):
    """Test is scored with validation known, whether validation is scored or not; each choice is kept by itself."""
    data, cache = context.dataset.data, PartCache(context.folder / "scores")
    config = budget(CONFIG, epochs=1, folds=1)
    every, test = scores_of(data, config, cache), scores_of(data, config, cache, splits=("test",))
    assert list(every) == ["train", "valid", "test"]
    assert list(test) == ["test"]
    assert test["test"].equals(every["test"])
    assert len(list(cache.folder.iterdir())) == 2


# --- upper bound -----------------------------------------------------------------------------------------------------


def test_the_rows_of_the_upper_bound(found):
    detection_and_replacement, places, ours = found["upper_bound"].tables.values()
    assert detection_and_replacement["row"].to_list() == [
        "none", "oracle detection, oracle replacement", "oracle detection, our replacement", "oracle detection, drop",
        "our detection, oracle replacement", "our detection, our replacement", "our detection, drop"]  # fmt: skip
    assert places["row"].to_list() == ["none", *upper_bound.PLACES, "all of them"]
    assert ours["place"].to_list() == list(upper_bound.PLACES)
    assert detection_and_replacement["ndcg"].is_between(0, 1).all()
    assert ours.select(pl.col("noise", "flagged", "true_item").is_between(0, 1).all()).row(0) == (True, True, True)


def test_the_bound_is_the_oracle_and_ours_is_what_a_run_writes(context, found):
    data, tables = context.dataset.data, context.run().tables()
    rows = upper_bound.rows(data, tables, tables, CorrectConfig())
    for name, windows in data.splits.items():
        oracle = oracle_split(windows, data.catalogue, "replace", has_target=name != "train")
        assert rows[upper_bound.BOUND][name].items.tolist() == oracle.items.tolist()
        for row, action in ((upper_bound.OURS, "replace"), (upper_bound.OURS_DROP, "drop")):
            written = correct_split(name, windows, tables, data.catalogue, CorrectConfig(action))
            assert rows[row][name].items.tolist() == written.windows.items.tolist()


def test_oracle_replacement_after_our_detection_by_hand():
    """5 and the target 3 are noise, for 1 and 4. Flagged are the 5, rightly, and the 2, wrongly: the 2 stays, and the 3
    was not found."""
    windows = Windows.from_lists([[0, 5, 2, 3]], noise_mask=np.array([0, 1, 0, 1], dtype=bool),
                                 clean_items=np.array([0, 1, 2, 4]))  # fmt: skip
    flags = pl.DataFrame({"window_id": [0, 0], "position": [1, 2], "noise_probability": [0.9, 0.9],
                          "suggested_item_id": [3, 3], "suggested_title": ["Dog", "Dog"],
                          "generated_text": pl.Series([None, None], dtype=pl.String),
                          "grounding": ["exact", "exact"], "distance": [0.0, 0.0],
                          "suggestion_probability": [0.5, 0.5]})  # fmt: skip
    splits = ("train", "valid", "test")
    tables = DecisionTables(dict.fromkeys(splits, flags.select("window_id", "position", "noise_probability")),
                             dict.fromkeys(splits, flags.drop("noise_probability")))  # fmt: skip
    rows = upper_bound.rows(everywhere(windows), tables, tables, CorrectConfig())
    assert rows["our detection, oracle replacement"]["train"].items.tolist() == [0, 1, 2, 3]
    assert rows["our detection, our replacement"]["train"].items.tolist() == [0, 3, 3, 3]
    assert rows["our detection, drop"]["train"].items.tolist() == [0, 3]
    assert rows["oracle detection, oracle replacement"]["train"].items.tolist() == [0, 1, 2, 4]
    assert rows["oracle detection, oracle replacement"]["test"].items.tolist() == [0, 1, 2, 3]  # a target stays


def test_the_truth_in_one_place_alone():
    windows = Windows.from_lists([[0, 5, 2, 3]], noise_mask=np.array([0, 1, 0, 1], dtype=bool),
                                 clean_items=np.array([0, 1, 2, 4]))  # fmt: skip
    put_back = [upper_bound.restored(everywhere(windows), place) for place in upper_bound.PLACES]
    assert [splits["train"].items.tolist() for splits in put_back] == [[0, 5, 2, 4], [0, 1, 2, 3], [0, 5, 2, 3]]
    assert [splits["test"].items.tolist() for splits in put_back] == [[0, 5, 2, 3], [0, 5, 2, 3], [0, 1, 2, 3]]


def test_the_upper_bound_needs_the_truth(context):
    dataset = BenchDataset("bare", of_no_truth(context.dataset.data))
    with pytest.raises(DataError, match="llm4dsr noise"):
        upper_bound.study(dataclasses.replace(context, dataset=dataset))


# --- transfer --------------------------------------------------------------------------------------------------------


def test_a_model_in_a_domain_that_is_its_own_is_as_good_as_at_home(to_itself):
    table = to_itself.tables["Detection on test"]
    assert table["how"].to_list() == [transfer.HOME, transfer.AS_IS, transfer.ADAPTED, transfer.FEW_SCRATCH,
                                      transfer.ALL_SCRATCH]  # fmt: skip
    home, as_is = table.head(2).to_dicts()
    assert as_is["auroc"] == pytest.approx(home["auroc"], abs=1e-3)
    assert as_is["average_precision"] == pytest.approx(home["average_precision"], abs=1e-3)
    assert table["windows"].to_list() == [0, 0, 64, 64, 257]
    assert table["auroc"].is_between(0, 1).all()


def test_every_row_is_tuned_in_the_same_steps(context, monkeypatch):
    """Only how often and on how much differs; the configuration has steps of 256 windows, and four epochs."""
    tuned = {}

    def tune(model, builder, windows, catalogue, config, progress, how):
        tuned[how] = config.train

    monkeypatch.setattr(transfer, "tune", tune)
    at = transfer.domain(context.dataset.data, CONFIG)
    train = dataclasses.replace(CONFIG.train, batch_windows=256, samples=100)
    transfer.measure(at, at, dataclasses.replace(CONFIG, train=train), 64, None)
    assert {how: settings.epochs for how, settings in tuned.items()} == {
        transfer.HOME: 4, transfer.ADAPTED: 1, transfer.FEW_SCRATCH: 10, transfer.ALL_SCRATCH: 4}  # fmt: skip
    assert {(settings.batch_windows, settings.samples) for settings in tuned.values()} == {(64, 0)}


def test_without_a_target_the_demo_of_another_seed_is_one(context):
    made = transfer.study(context)
    assert made.tables["Detection on test"]["target"].unique().to_list() == ["demo of seed 1"]
    assert "--target" in made.notes[-1]


def test_users_that_are_tested_are_not_learned_from():
    windows = Windows.from_lists([[0, 1, 2], [1, 2, 3], [3, 4, 5]], user_ids=pl.Series(["ann", "bob", "cem"]))
    data = Dataset(
        LETTERS, {"train": windows, "valid": windows.take(np.array([2])), "test": windows.take(np.array([1]))}
    )
    made = transfer.domain(data, Config())
    assert made.train.user_ids.to_list() == ["ann", "cem"]
    assert made.cooccurrence.popularity.tolist() == [1, 1, 1, 1, 1, 1]  # of ann and cem; bob's are not counted


def test_a_target_needs_a_mask(context, tmp_path):
    of_no_truth(context.dataset.data).write(tmp_path / "bare")
    with pytest.raises(DataError, match="llm4dsr noise --data bare"):
        transfer.study(dataclasses.replace(context, targets=[tmp_path / "bare"]))


# --- ablations -------------------------------------------------------------------------------------------------------


def test_each_part_is_left_out_once(found):
    detected, ranked = found["ablations"].tables.values()
    variants = ["without tuning", "without stacking", "without co-occurrence and stacking"]
    parts = [*variants, "without uncertainty", "without calibration"]
    assert detected["row"].to_list() == ["the whole", *parts, "title model", "title model without pre-training"]
    assert ranked["row"].to_list() == ["none", "the whole", *parts, "without replacement (drop)"]
    assert detected["auroc"].is_between(0, 1).all()
    whole = detected.row(0, named=True)
    same_scores = detected.filter(pl.col("row").is_in(["without uncertainty", "without calibration"]))
    assert same_scores["auroc"].to_list() == [whole["auroc"]] * 2
    assert ranked["ndcg"].is_between(0, 1).all()


def test_a_verdict_is_a_flag_where_uncertainty_is_not_asked_for():
    """Of five interactions three have a verdict "yes"; calibrated, only the first would be more likely noise than
    not. The cap of two leaves out the least certain of them."""
    scores = pl.DataFrame({"window_id": [7] * 5, "position": range(5), "log_odds": [2.0, 0.5, 0.1, -0.1, -3.0],
                           "noise_probability": [0.6, 0.2, 0.1, 0.1, 0.0], "rank": [1, 2, 3, 4, 5]})  # fmt: skip
    config = dataclasses.replace(Config(), decide=dataclasses.replace(Config().decide, cap=2))
    for left_out in (ablations.answers, ablations.uncalibrated):
        assert left_out(scores, config, True)["position"].to_list() == [0, 1]
    titles = dataclasses.replace(Config(), model=ModelConfig(item_input="title", readout="title"))
    assert ablations.answers(scores, titles, True)["position"].to_list() == [0]


# --- pages -----------------------------------------------------------------------------------------------------------


def test_every_plot_has_labeled_axes(found, to_itself):
    figures = pytest.importorskip("matplotlib.figure")
    for made in (*found.values(), to_itself):
        figure = figures.Figure()
        made.plot(figure)
        for axes in figure.axes:
            assert axes.get_xlabel() or axes.get_ylabel()
            assert axes.has_data()
