"""Rows that differ in their data alone, and a summary that can be checked by hand."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from llm4dsr.bench.tables import _hit_gain
from llm4dsr.config import CorrectConfig, EvaluateConfig, RecommenderConfig
from llm4dsr.core.arrays import PAD
from llm4dsr.core.device import max_workers
from llm4dsr.data.demo import make_demo
from llm4dsr.data.windows import Windows
from llm4dsr.evaluate.result_table import result_table
from llm4dsr.evaluate.rows import DecisionTables, compared_rows, correct_split
from llm4dsr.evaluate.summary import Difference, summarize
from llm4dsr.evaluate.train_and_evaluate import shared_options, train_and_evaluate, user_codes
from llm4dsr.metrics import ndcg
from llm4dsr.recommenders import NAMES, SEEDLESS

DATA = make_demo(size="tiny").data
QUICK = EvaluateConfig(seeds=2, recommender=RecommenderConfig(hidden_size=16, blocks=1, epochs=2, negatives=32))


def known_noise(name: str) -> pl.DataFrame:
    """The decisions of a detector that knows: as its stage would have written them."""
    windows = DATA.splits[name]
    judged = windows if name == "train" else windows.histories()
    rows, positions = judged.owners[judged.noise_mask], judged.positions[judged.noise_mask]
    return pl.DataFrame(
        {"window_id": judged.window_ids[rows], "position": positions, "noise_probability": np.ones(len(rows))}
    )


TABLES = DecisionTables({name: known_noise(name) for name in DATA.splits}, {})


@pytest.fixture(scope="module")
def rows():
    return compared_rows(DATA.splits, TABLES, DATA.catalogue, ("drop",), CorrectConfig())


def test_there_is_a_row_for_each_action_and_for_each_oracle(rows):
    assert list(rows) == ["original", "corrected (drop)", "oracle (drop)", "oracle (restore)"]


def test_a_detector_that_knows_is_the_oracle(rows):
    for name in DATA.splits:
        ours, oracle = (rows[row][name] for row in ("corrected (drop)", "oracle (drop)"))
        same = np.isin(ours.window_ids, oracle.window_ids)
        assert ours.take(np.flatnonzero(same)).items.tolist() == oracle.items.tolist()


def test_all_rows_are_tested_on_the_same_targets(rows):
    for splits in rows.values():
        for name in ("valid", "test"):
            assert splits[name].targets().tolist() == DATA.splits[name].targets().tolist()


def test_training_targets_are_kept_on_request():
    made = correct_split(
        "train", DATA.splits["train"], TABLES, DATA.catalogue, CorrectConfig("drop", train_targets=False)
    )
    kept = made.windows
    before = DATA.splits["train"].take(np.flatnonzero(np.isin(DATA.splits["train"].window_ids, kept.window_ids)))
    assert kept.targets().tolist() == before.targets().tolist()


def test_the_numbers_do_not_depend_on_how_many_train_at_a_time(rows):
    threads, tables, seen = torch.get_num_threads(), [], []
    two = {name: rows[name] for name in ("original", "oracle (restore)")}
    try:
        for workers in (1, 2):
            torch.set_num_threads(workers)
            tables.append(train_and_evaluate(two, DATA.catalogue, QUICK, 5, lambda *a: seen.append(a)))
            assert torch.get_num_threads() == workers
    finally:
        torch.set_num_threads(threads)
    assert tables[0].drop("seconds").equals(tables[1].drop("seconds"))
    assert tables[0].select("row", "seed").rows() == [
        ("original", 5), ("oracle (restore)", 5), ("original", 6), ("oracle (restore)", 6)]  # fmt: skip
    for column, name in (("users", "test"), ("valid_users", "valid")):
        users = DATA.splits[name].user_ids
        codes = np.stack(tables[0][column].to_list())
        assert codes.shape == (4, len(users))
        assert (codes == codes[0]).all()
        pairs = set(zip(users.to_list(), codes[0].tolist(), strict=True))
        assert len(pairs) == users.n_unique() == len(set(codes[0].tolist()))
    assert seen[-1][:2] == (8, 8)  # two rows, two seeds, two epochs


@pytest.mark.parametrize("backbone", SEEDLESS)
def test_a_recommender_without_a_seed_is_trained_once(rows, backbone):
    two, seen = {name: rows[name] for name in ("original", "oracle (restore)")}, []
    config = replace(QUICK, backbone=backbone)
    found = train_and_evaluate(two, DATA.catalogue, config, 5, lambda *a: seen.append(a))
    assert found.select("row", "seed", "epochs").rows() == [("original", 5, 1), ("oracle (restore)", 5, 1)]
    assert found["ndcg"].is_between(0.05, 1).all()
    assert found["ndcg"].n_unique() == 2
    assert seen[-1][:2] == (2, 2)  # two rows
    text = result_table(summarize(found, 20), {}, NAMES[backbone], 20, 0)
    assert f"{NAMES[backbone]} on test, no seed" in text
    rows_shown = [line.split(" | ") for line in text.splitlines() if line.startswith(("| original", "| oracle"))]
    assert len(rows_shown) == 2
    assert not any("±" in mean for cells in rows_shown for mean in cells[1:3])  # only gains have one, over users
    assert "p = " not in text


def test_a_recommender_shares_the_options_that_it_reads():
    """Other options do not change its recipe, so finished cells are kept."""

    def recipe(backbone: str, **options: object) -> list[object]:
        section = replace(QUICK.neighborhood, **options) if options else QUICK.neighborhood
        return shared_options(replace(QUICK, backbone=backbone, neighborhood=section))

    reads = {"itemknn": {"decay", "neighbors", "shrink"}, "ease": {"decay", "ridge"}, "sasrec": set()}
    for backbone, options in reads.items():
        changes = {"decay": 0.5, "neighbors": 9, "shrink": 3.0, "ridge": 1.0}
        assert {o for o, v in changes.items() if recipe(backbone, **{o: v}) != recipe(backbone)} == options
    for backbone in SEEDLESS:
        other = replace(QUICK, backbone=backbone, recommender=RecommenderConfig(), seeds=1)
        assert shared_options(other) == recipe(backbone)
        assert shared_options(replace(other, k=3)) != recipe(backbone)


@pytest.mark.parametrize(("gib", "large", "at_once"), [(80, False, 6), (9, False, 4), (1, False, 1), (80, True, 1)])
def test_workers_on_a_gpu_are_limited_by_its_memory(gib, large, at_once, monkeypatch):
    """2 GiB for each small model, one for each of eight cores, six to do; a large model has the GPU to itself."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (gib * 2**30, 2 * gib * 2**30))
    assert max_workers(6, large) == at_once


def test_the_summary_by_hand():
    results = pl.DataFrame(
        {"row": ["original", "corrected (drop)", "oracle (restore)"] * 2, "seed": [0, 0, 0, 1, 1, 1],
         "ndcg": [0.10, 0.12, 0.20, 0.10, 0.13, 0.20], "hit_rate": [0.2, 0.2, 0.4, 0.2, 0.2, 0.4],
         "ranks": [[1, 30, 30]] * 6}
    )  # fmt: skip
    original, ours, oracle = summarize(results, 20).to_dicts()
    assert np.isnan(ours["ndcg_gain_half_width"])  # users are unknown
    assert ours["ndcg"] == pytest.approx(0.125)
    assert ours["ndcg_half_width"] == pytest.approx(12.7062 * 0.005, rel=1e-4)  # t with one degree of freedom · s / √2
    assert ours["ndcg_gain_percent"] == pytest.approx(25)
    assert ours["oracle_gain_fraction"] == pytest.approx(0.25)
    assert oracle["hit_rate_gain_percent"] == pytest.approx(100)
    assert np.isnan(original["ndcg_p"])
    assert 0.05 < ours["ndcg_p"] < 0.2  # differences 0.02 and 0.03: t = 5, one degree of freedom, p = 0.126


def test_a_gain_over_nothing_has_no_percentage():
    results = pl.DataFrame([{"row": row, "seed": 0, "ndcg": ndcg, "hit_rate": 1.0, "ranks": [rank], "users": [0]}
                            for row, ndcg, rank in (("original", 0.0, 60), ("corrected (drop)", 0.5, 3))])  # fmt: skip
    original, ours = summarize(results, 20).to_dicts()
    assert np.isnan([original["ndcg_gain_percent"], ours["ndcg_gain_percent"], ours["ndcg_gain_half_width"]]).all()
    assert ours["hit_rate_gain_percent"] == 0
    assert "| corrected (drop) | 0.5000 | 1.0000 | – | +0.0" in result_table(
        summarize(results, 20), {}, "SASRec", 20, 1
    )
    pair = [results.filter(row=row) for row in ("corrected (drop)", "original")]
    assert _hit_gain(*pair) == "+0.0 %"
    assert _hit_gain(pair[0], pair[1].with_columns(hit_rate=0.0)) == "–"
    found = Difference.between(*pair, 20)
    assert found.gain == 0.5
    assert np.isnan(found.gain_percent)


def test_gains_over_users_by_hand():
    """Of windows of users 0, 0, 1, 2 the first three rise from the third to the first rank: gains ½, ½, ½, 0.

    Mean ⅜; sums less the mean ¼, ⅛, -⅜; error √(3 / 2) · √(7 / 32) / 4 = 0.1432; t = 4.3027 with 2 degrees of freedom.
    """
    t, ranks = 0.375 / 0.143205, {"original": [3, 3, 3, 3], "corrected (drop)": [1, 1, 1, 3]}
    for seeds in (1, 2):
        results = pl.DataFrame(
            [{"row": row, "seed": seed, "ndcg": {1: 0.875, 3: 0.5}[of[0]], "hit_rate": 1.0, "ranks": of,
              "users": [5, 5, 7, 6]} for row, of in ranks.items() for seed in range(seeds)])  # fmt: skip
        original, ours = summarize(results, 20).to_dicts()
        assert ours["ndcg_gain_percent"] == pytest.approx(75)
        assert ours["ndcg_gain_half_width"] == pytest.approx(100 * 4.302653 * 0.143205 / 0.5, rel=1e-5)
        assert ours["hit_rate_gain_half_width"] == 0
        assert np.isnan(original["ndcg_gain_half_width"])
        found = Difference.between(*(results.filter(row=row) for row in ("corrected (drop)", "original")), 20)
        assert found.user_half_width_percent == pytest.approx(ours["ndcg_gain_half_width"])
        assert found.p_users == pytest.approx(1 - t / (t**2 + 2) ** 0.5, rel=1e-5)
        text = result_table(summarize(results, 20), {}, "SASRec", 20, seeds)
        assert "| corrected (drop) | 0.8750" in text
        assert "+75.0 ± 123.2 %" in text


def test_users_are_those_of_the_windows():
    windows = DATA.splits["test"].take(np.arange(4))
    named = replace(windows, user_ids=pl.Series(["b", "a", None, "b"]))
    codes = user_codes(named).tolist()
    assert codes[0] == codes[3]
    assert len(set(codes)) == 3
    unknown = replace(windows, user_ids=pl.Series([None] * 4, dtype=pl.String))
    assert len(set(user_codes(unknown).tolist())) == 4  # who knows


def test_the_oracle_that_restores_drops_what_was_inserted():
    """Of 0 [5] 2 and the target 3, the 5 was inserted; in 0 [5] 2 [6] it was, and 1 stood where 2 is; 6 is a target."""
    windows = Windows.from_lists(
        [[0, 5, 2, 3], [0, 5, 2, 6]],
        noise_mask=np.array([0, 1, 0, 0, 0, 1, 1, 0], dtype=bool),
        clean_items=np.array([0, PAD, 2, 3, 0, PAD, 1, 6]),
    )
    splits = dict.fromkeys(("train", "valid", "test"), windows)
    rows = compared_rows(splits, TABLES, DATA.catalogue, (), CorrectConfig())
    for name in splits:
        assert rows["oracle (restore)"][name].items.tolist() == [0, 2, 3, 0, 1, 6]
        assert rows["oracle (drop)"][name].items.tolist() == [0, 2, 3, 0, 6]


@pytest.mark.parametrize(("train_targets", "dropped", "restored"),
                         [(True, [0, 2], [0, 1, 2, 4]), (False, [0, 2, 3], [0, 1, 2, 3])])  # fmt: skip
def test_the_oracles_keep_training_targets_on_request(train_targets, dropped, restored):
    """5 and the target 3 are noise, for 1 and 4."""
    windows = Windows.from_lists([[0, 5, 2, 3]], noise_mask=np.array([0, 1, 0, 1], dtype=bool),
                                 clean_items=np.array([0, 1, 2, 4]))  # fmt: skip
    splits = dict.fromkeys(("train", "valid", "test"), windows)
    rows = compared_rows(splits, TABLES, DATA.catalogue, (), CorrectConfig(train_targets=train_targets))
    assert rows["oracle (drop)"]["train"].row(0) == dropped
    assert rows["oracle (restore)"]["train"].row(0) == restored
    assert rows["oracle (drop)"]["test"].row(0) == [0, 2, 3]
    assert rows["oracle (restore)"]["test"].row(0) == [0, 1, 2, 3]


def test_evaluating_alone_leaves_the_threads_as_they_were():
    """One job is trained in this process, on one thread."""
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        once = EvaluateConfig(seeds=1, recommender=QUICK.recommender)
        train_and_evaluate({"original": DATA.splits}, DATA.catalogue, once, 0)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


def test_equal_runs_say_nothing_about_other_runs():
    """A denoiser that corrects nothing gives the same windows with each seed: p over seeds would be 0."""
    ranks = {"ours": [[1, 2, 30]] * 3, "other": [[1, 3, 30]]}
    rows = {
        name: pl.DataFrame({
            "denoiser_seed": range(len(found)), "seed": 0, "ndcg": [ndcg(np.array(r), 20) for r in found],
            "ranks": found, "users": [[0, 1, 2]] * len(found),
        })
        for name, found in ranks.items()
    }  # fmt: skip
    found = Difference.between(rows["ours"], rows["other"], 20)
    assert found.gain == pytest.approx((1 / np.log2(3) - 1 / 2) / 3)
    assert np.isnan(found.p_seeds)
    assert 0 < found.p_users < 1
