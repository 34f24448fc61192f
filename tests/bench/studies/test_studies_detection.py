"""The studies of task, uncertainty, grounding, threshold and cost, on the tiny demo in their quick form."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import polars as pl
import pytest

from llm4dsr import columns as c
from llm4dsr.bench.datasets import BenchDataset, load_dataset
from llm4dsr.bench.studies import cost, grounding, task, threshold, uncertainty
from llm4dsr.bench.studies.detection import detection, known_noise
from llm4dsr.bench.studies.study import Context, Found, markdown, smaller
from llm4dsr.config import Config, DecideConfig, ScoreConfig
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import Windows, align
from llm4dsr.errors import DataError
from llm4dsr.evaluate.rows import compared_rows
from llm4dsr.features.cooccurrence import CooccurrenceCounts

ETA = 0.1  # so small a model is rarely as sure as 0.5


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """One run for all studies. A thread, so that recommenders are trained here and not in processes of their own."""
    config = smaller(Config(threads=1, decide=DecideConfig(eta=ETA), score=ScoreConfig(stacking=False)))
    config = dataclasses.replace(config, evaluate=dataclasses.replace(config.evaluate, seeds=1))
    return Context(load_dataset("demo", tiny=True), tmp_path_factory.mktemp("bench"), config, quick=True)


def without_masks(context: Context) -> Context:
    splits = {
        name: dataclasses.replace(windows, noise_mask=None, clean_items=None)
        for name, windows in context.dataset.data.splits.items()
    }
    return dataclasses.replace(
        context, dataset=BenchDataset("unmarked", Dataset(context.dataset.data.catalogue, splits))
    )


def row(table: pl.DataFrame, **where: object) -> dict[str, object]:
    found = table.filter(*(pl.col(name) == value for name, value in where.items()))
    assert len(found) == 1
    return found.row(0, named=True)


def drawn(found: Found) -> list[str]:
    """The labels of the axes, once the plot is drawn."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    found.plot(figure)
    return [label for ax in figure.axes for label in (ax.get_xlabel(), ax.get_ylabel())]


# -- truth ------------------------------------------------------------------------------------------------------------


def test_windows_that_know_their_noise_are_judged_as_they_are(tiny_demo: Dataset) -> None:
    test = tiny_demo.splits[c.TEST]
    assert known_noise(test, tiny_demo.catalogue, seed=0) is test


def test_others_get_noise_in_their_histories_and_know_what_stood_there(tiny_demo: Dataset) -> None:
    train = tiny_demo.splits[c.TRAIN]
    bare = dataclasses.replace(train, noise_mask=None, clean_items=None)
    noisy = known_noise(bare, tiny_demo.catalogue, seed=0)
    assert noisy.noise_mask is not None
    assert (noisy.clean_items == train.items).all()
    assert ((noisy.items != train.items) == noisy.noise_mask).all()
    assert (noisy.targets() == train.targets()).all()
    assert 0.07 < noisy.noise_mask.sum() / (train.lengths - 1).sum() < 0.13  # a tenth of 2,555 interactions


# -- task -------------------------------------------------------------------------------------------------------------


def test_task_shows_detection_untuned_tuned_a_little_and_tuned_in_full(context: Context) -> None:
    found = task.study(context)
    table = found.tables["Detection"]
    assert table["tuning"].to_list() == ["zero-shot", "64 windows once", "full"]
    assert table["steps"].to_list() == [0, 2, 16]  # 64 windows are two steps; four epochs of 128 are four each
    assert table["auroc"].is_between(0, 1).all()
    zero = row(table, tuning="zero-shot")
    assert zero["auroc, least"] <= zero["auroc"] <= zero["auroc, most"]
    assert any("--config" in note for note in found.notes)
    assert drawn(found) == ["optimizer steps", "AUROC", "optimizer steps", "average precision"]


def test_full_tuning_is_measured_as_the_run_scored_it(context: Context) -> None:
    """The untuned models are measured in the same way; this one has a file to compare with."""
    test = context.dataset.data.splits[c.TEST]
    scores = pl.read_parquet(context.run().path("score") / "test.parquet")
    of_run = detection(align(scores, test, c.LOG_ODDS), None, test)
    line = row(task.study(context).tables["Detection"], tuning="full")
    assert line["auroc"] == pytest.approx(of_run["auroc"], abs=1e-6)


# -- uncertainty ------------------------------------------------------------------------------------------------------


def test_reliability_by_hand() -> None:
    probability, noise = np.array([0.02, 0.06, 0.95, 1.0]), np.array([False, True, True, True])
    assert uncertainty.reliability(probability, noise).rows() == [
        (0.0, 0.1, 2, pytest.approx(0.04), 0.5),
        (0.9, 1.0, 2, pytest.approx(0.975), 1.0),
    ]


def test_uncertainty_compares_three_ways_to_ask_on_the_same_windows(context: Context) -> None:
    found = uncertainty.study(context)
    table = found.tables["Agreement"]
    ways = ["noise logit at each position", "whole title", "first token"]
    for split in (c.VALID, c.TEST):
        lines = table.filter(pl.col("split") == split)
        assert lines["readout"].to_list() == ["this configuration, all windows", "this configuration", *ways]
        assert lines["interactions"][1:].n_unique() == 1
    for name in ("AUROC", "average precision", "ECE", "ties", "mean probability"):
        assert table[name].is_between(0, 1).all()
    assert table["Spearman"].drop_nans().is_between(-1, 1).all()
    first, whole = (row(table, **{"readout": way, "split": c.TEST}) for way in ways[:0:-1])
    assert first["ties"] > whole["ties"]  # titles of one brand begin alike
    assert drawn(found)[0] == "noise probability, mean of a bin"


def test_uncertainty_needs_to_know_the_noise(context: Context) -> None:
    with pytest.raises(DataError, match="llm4dsr noise"):
        uncertainty.study(without_masks(context))


# -- grounding --------------------------------------------------------------------------------------------------------


def test_nearness_by_hand() -> None:
    """Four items, two with one title; two clusters. The original is item 0 at both places."""
    catalogue = Catalogue(pl.Series([10, 11, 12, 13]), ["red kite", "blue kite", "red kite", "teapot"])
    vectors = np.array([[1, 0], [0.6, 0.8], [1, 0], [0, 1]], dtype=np.float32)
    line = grounding.nearness(
        "some", np.array([2, 1, -1, 3]), np.array([0, 0]), catalogue, vectors, np.array([0, 0, 0, 1])
    )
    assert line["equal"] == 1 / 4  # item 2 has the title of item 0; where nothing was suggested nothing is equal
    assert line["same cluster"] == 2 / 4
    assert line["similarity"] == pytest.approx((1 + 0.6 + 0) / 3)
    # Two draws at each of two places: (1 + 0) / 2 and (0 + 0) / 2 equal; their spread is 0.25
    assert line["equal ±"] == pytest.approx(1.96 * 0.25 / math.sqrt(2))


def test_random_items_are_those_that_the_window_does_not_hold() -> None:
    catalogue = Catalogue(pl.Series([10, 11, 12, 13]), ["red kite", "blue kite", "red kite", "teapot"])
    windows = Windows.from_lists([[0, 1], [0, 1, 3]])
    found = grounding.drawn(windows, np.array([0, 1]), catalogue, np.ones(4), seed=0).reshape(-1, 2)
    assert (found[:, 0] == 3).all()  # item 2 has the title of item 0
    assert (found[:, 1] == -1).all()


def test_clusters_hold_what_is_alike() -> None:
    """Twelve items in two heaps: k-means with 12 // 6 clusters cannot but find them."""
    vectors = np.repeat(np.eye(2, dtype=np.float32), 6, axis=0)
    cluster = grounding.clusters(vectors, seed=0)
    assert cluster[:6].tolist() == [cluster[0]] * 6
    assert cluster[6:].tolist() == [1 - cluster[0]] * 6


def test_grounding_compares_ways_to_suggest_with_chance(context: Context) -> None:
    found = grounding.study(context)
    written, near = found.tables.values()
    assert set(written["suggested by"]) == {"nearest vector", "title, constrained", "title, free"}
    assert written["positions"].to_list() == [16] * 3  # the known noise of the test histories
    constrained = row(written, **{"suggested by": "title, constrained"})
    assert constrained["written titles that exist"] == 1
    assert constrained["similarity, mean"] == pytest.approx(1, abs=1e-5)
    assert {"random item", "random by popularity"} < set(near["suggested"])
    oracle, noisy = row(near, suggested="the original itself"), row(near, suggested="the noisy item itself")
    assert (oracle["equal"], oracle["same cluster"]) == (1, 1)
    assert oracle["similarity"] == pytest.approx(1, abs=1e-5)
    assert noisy["equal"] == 0
    assert (near["same cluster"] >= near["equal"]).all()
    assert drawn(found)[0] == "fraction of suggestions: is the original"


def test_grounding_makes_noise_where_none_is_known(context: Context) -> None:
    found = grounding.study(without_masks(context))
    assert any("does not know its noise" in note for note in found.notes)
    assert row(found.tables["Similarity to the original"], suggested="the original itself")["equal"] == 1


# -- threshold --------------------------------------------------------------------------------------------------------


def test_threshold_sweeps_from_everything_to_nothing(context: Context) -> None:
    found = threshold.study(context)
    sweep = found.tables["Sweep"]
    assert sweep["split"].unique(maintain_order=True).to_list() == list(c.SPLITS)
    for split in c.SPLITS:
        lines = sweep.filter(pl.col("split") == split).sort("η")
        assert lines["η"][0] == 0
        assert lines["η"][-1] == 1
        assert (lines["recall"].diff().drop_nulls() <= 0).all()
        assert (lines["flagged"].diff().drop_nulls() <= 0).all()
        assert lines["flagged"][-1] == 0
        assert math.isnan(lines["precision"][-1])
        expected = lines["expected precision"].drop_nans()
        assert (expected.diff().drop_nulls() >= 0).all()
    windows = context.dataset.data.splits[c.TRAIN]
    everything = 3 * len(windows) / windows.lengths.sum()  # at most three of a window are flagged
    assert row(sweep, split=c.TRAIN, η=0.0)["flagged"] == pytest.approx(everything)
    assert drawn(found) == ["η", "on test histories", "η", "NDCG@20 on test"]


def test_flags_at_an_eta_are_those_of_the_run_with_that_eta(context: Context) -> None:
    sweep = threshold.study(context).tables["Sweep"]
    decisions = context.run().decisions()
    assert len(decisions[c.TRAIN]) > 0
    for split, flagged in decisions.items():
        scores = pl.read_parquet(context.run().path("score") / f"{split}.parquet")
        assert row(sweep, split=split, η=ETA)["flagged"] == pytest.approx(len(flagged) / len(scores))


def test_histories_at_an_eta_are_those_that_the_run_would_write(context: Context) -> None:
    """So the benchmark and this study share their recommenders at the η of the configuration."""
    run, data = context.run(), context.dataset.data
    how = run.config.correct
    ours = compared_rows(data.splits, run.tables(), data.catalogue, ("replace", "drop"), how)
    for action, splits in threshold.corrected_at(run, context, "probability", ETA).items():
        for split, windows in splits.items():
            assert (windows.items == ours[f"corrected ({action})"][split].items).all()
        assert not np.array_equal(splits[c.TRAIN].items, data.splits[c.TRAIN].items)


def test_flags_by_chance_are_as_many_and_others(context: Context) -> None:
    run, items = context.run(), context.dataset.data.splits[c.TRAIN].present.sum()
    sure, chance = (run.decided("rate", 0.2, scores=s)[c.TRAIN] for s in (None, threshold.by_chance(run)))
    assert len(sure) == len(chance) == pytest.approx(0.2 * items, abs=1)
    assert len(sure.join(chance, on=[c.WINDOW, c.POSITION])) < 0.5 * len(sure)


def test_popular_items_take_the_places_of_suggestions(context: Context) -> None:
    run, data = context.run(), context.dataset.data
    ours = context.suggested(run, run.decided("rate", 0.2))
    popular = threshold.popular_instead(ours, data, seed=0)
    assert popular.decisions is ours.decisions
    for split, suggested in popular.suggestions.items():
        assert suggested.select(c.WINDOW, c.POSITION).equals(ours.suggestions[split].select(c.WINDOW, c.POSITION))
        assert (suggested[c.SUGGESTED] != ours.suggestions[split][c.SUGGESTED]).mean() > 0.5
    users = CooccurrenceCounts.of(data.splits[c.TRAIN], len(data.catalogue)).popularity
    drawn_users = users[data.catalogue.index(popular.suggestions[c.TRAIN][c.SUGGESTED].to_list())]
    assert drawn_users.mean() > users.mean()  # an item that twice as many have is drawn twice as often
    windows = {int(w): set(data.splits[c.TRAIN].row(i)) for i, w in enumerate(data.splits[c.TRAIN].window_ids)}
    for window, item in popular.suggestions[c.TRAIN].select(c.WINDOW, c.SUGGESTED).iter_rows():
        assert int(data.catalogue.index([item])[0]) not in windows[window]


def test_ranking_by_the_users_of_targets_by_hand() -> None:
    """Thirty users have items 0 and 1, none 2 and 3."""
    many = Windows.from_lists([[0, 1]] * 30, user_ids=pl.Series(range(30)))
    test = Windows.from_lists([[1, 0], [0, 2], [0, 3]])
    data = Dataset(Catalogue(pl.Series(range(4)), list("abcd")), {c.TRAIN: many, c.VALID: test, c.TEST: test})
    cells = pl.DataFrame({"row": ["original", "original"], "seed": [0, 1], "ranks": [[1, 3, 30], [30, 3, 3]]})
    counted, ranked = threshold.by_popularity(cells, data, 20).to_dicts()
    assert counted == {"row": "test windows", "up to 5 users": 2, "6 to 20": 0, "more than 20": 1}
    assert ranked["more than 20"] == 0.5  # ranks 1 and 30: NDCG 1 and 0
    assert ranked["up to 5 users"] == pytest.approx((0.5 + 0 + 0.5 + 0.5) / 4)
    assert math.isnan(ranked["6 to 20"])


def test_a_correction_rate_is_ranked_beside_its_controls(context: Context) -> None:
    tables = threshold.study(context).tables
    shown = ["original", "20%, the most suspicious", "20%, at random",
             "20%, the most suspicious, popular items instead"]  # fmt: skip
    ranked = tables["Ranking by correction rate"]
    assert ranked["row"].to_list() == shown
    tried = tables["What validation chooses"]
    assert tried["correction_rate"].to_list() == [0.0, 0.2]
    assert tried["chosen"].sum() == 1
    assert tried["valid_ndcg"].to_list() == ranked["valid_ndcg"][:2].to_list()  # the same recommenders
    assert tables["Ranking by the target's users in training"]["row"].to_list() == ["test windows", *shown]


def test_ranking_is_that_of_the_original_where_nothing_is_flagged(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No calibrated probability is 1."""
    monkeypatch.setattr(threshold, "QUICK_RANKED", (ETA, 1.0))
    ranking = threshold.study(context).tables["Ranking at some η"]
    assert ranking["row"].to_list()[0] == "original"
    assert set(ranking["action"].drop_nulls()) == {"replace", "drop"}
    for action in ("replace", "drop"):
        assert row(ranking, η=1.0, action=action)["ndcg"] == ranking["ndcg"][0]
        assert row(ranking, η=ETA, action=action)["ndcg"] != ranking["ndcg"][0]


# -- cost -------------------------------------------------------------------------------------------------------------


def test_a_million_histories_by_hand() -> None:
    """500 a second: 2,000 s, which are 33 1/3 minutes and, on two cores, 1.11 core-hours of 5 cents."""
    costs = cost.of_a_million(500, threads=2)
    assert costs["minutes for a million"] == pytest.approx(100 / 3)
    assert costs["core-hours"] == pytest.approx(10 / 9)
    assert costs["$"] == pytest.approx(10 / 9 * cost.DOLLARS_PER_CORE_HOUR)


def test_cost_is_read_from_cards_and_measured(context: Context) -> None:
    folder = context.folder / "baselines" / "popularity"
    folder.mkdir(parents=True)
    card = {"fit_seconds": 1.5, "score_seconds": 2.0, "memory_mb": 321}
    (folder / "card.json").write_text(json.dumps(card))
    found = cost.study(context)
    whole, once, online = found.tables.values()
    assert whole["denoiser"].to_list() == ["llm4dsr", "popularity"]
    baseline = row(whole, denoiser="popularity")
    assert baseline["windows per second"] == (257 + 32 + 33) / 2.0
    assert (baseline["fit s"], baseline["peak MB"]) == (1.5, 321)
    assert once["model"].to_list() == ["llm4dsr", "embedded, width 32, 1 layer(s)"]
    assert (once["windows per second"] > 0).all()
    assert (once["peak MB"] > 50).all()
    for call in ("score", "correct"):
        assert (online[f"{call}, median ms"] <= online[f"{call}, p95 ms"]).all()
    assert any("0.05 $ per core-hour" in note for note in found.notes)
    assert drawn(found)[0] == "core-hours for a million histories (log scale)"
    assert "popularity" in markdown(whole)
