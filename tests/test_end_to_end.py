"""The main job on the tiny demo: every stage writes its table, saved models score the same, targets stay."""

import numpy as np
import polars as pl
import pytest

from llm4dsr import Config, Denoiser
from llm4dsr.decide import decide
from llm4dsr.demo import make_demo
from llm4dsr.errors import DataError, OutputError
from llm4dsr.metrics import auroc
from llm4dsr.pipeline import Run

TINY = {"model": {"hidden_size": 32, "layers": 1, "vector_size": 32}, "train": {"epochs": 2},
        "evaluate": {"recommender": {"epochs": 2}}, "threads": 2}  # fmt: skip


def test_a_run_goes_through_all_stages(tmp_path):
    run = Run.create(tmp_path / "run", Config.from_dict(TINY))
    data = make_demo(size="tiny").data
    run.prepare(data)
    run.train()
    run.score()
    run.decide(policy="rate", eta=0.1)
    run.suggest()
    run.correct()
    assert "NDCG@20" in run.evaluate()
    before, after = run.data().splits["test"], pl.read_parquet(run.path("correct") / "test.parquet")
    assert after["item_ids"].list.last().to_list() == data.catalogue.ids.gather(before.targets()).to_list()
    edits = pl.read_parquet(run.path("correct") / "train_edits.parquet")
    assert len(edits) > 0
    assert (edits["suggested_item_id"] != edits["item_id"]).all()
    with pytest.raises(OutputError, match="exists already"):
        run.train()


@pytest.mark.parametrize("items", ["text", "vector"])
@pytest.mark.parametrize("answer", ["title", "position"])
def test_saved_and_loaded_denoisers_score_the_same(tmp_path, items, answer):
    data = make_demo(size="tiny").data
    config = Config.from_dict(
        {**TINY, "model": {**TINY["model"], "items": items, "answer": answer}, "train": {"epochs": 1, "samples": 40}}
    )
    denoiser = Denoiser(config).fit(data.splits["train"], data.catalogue, data.splits["valid"].histories())
    denoiser.save_pretrained(tmp_path / "model")
    histories = data.splits["test"].histories()
    scores = denoiser.score(histories)
    again = Denoiser.from_pretrained(tmp_path / "model").score(histories)
    np.testing.assert_allclose(scores["log_odds"], again["log_odds"], atol=1e-5)
    assert scores["noise_probability"].is_between(0, 1).all()
    suggested = denoiser.suggest(histories, denoiser.decide(scores, "rate", 0.1))
    assert suggested["suggested_item_id"].null_count() == 0


def test_percentile_flags_what_is_above_the_quantile():
    log_odds = np.array([[0.0, 1.0, 2.0], [3.0, -1.0, np.nan]])
    flagged = decide(log_odds, 1 / (1 + np.exp(-log_odds)), "percentile", 0.6, cap=1)
    assert flagged.tolist() == [[False, False, True], [True, False, False]]


def test_auroc_by_hand():
    assert auroc([0.9, 0.8, 0.1], [1, 0, 0]) == 1.0


def test_unknown_items_are_named():
    data = make_demo(size="tiny").data
    with pytest.raises(DataError, match="not in the items table"):
        data.catalogue.index([-5])
