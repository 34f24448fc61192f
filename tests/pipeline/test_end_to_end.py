"""The main job on the tiny demo: every stage writes its table, saved models score the same, targets stay."""

import shutil

import numpy as np
import polars as pl
import pytest

from llm4dsr import Config, Denoiser
from llm4dsr.data.demo import make_demo
from llm4dsr.denoise.decide import decide
from llm4dsr.errors import ConfigError, DataError, OutputError
from llm4dsr.evaluate.rate_selection import RATES, best_rate
from llm4dsr.metrics import auroc
from llm4dsr.pipeline import TRIED, Run

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


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a run that has come as far as its scores."""
    config = Config.from_dict({**TINY, "evaluate": {"recommender": {"epochs": 12, "hidden_size": 16}}})
    run = Run.create(tmp_path_factory.mktemp("scored") / "run", config)
    for stage in ("prepare", "train", "score"):
        run.make(stage, make_demo(size="tiny").data)
    return run.folder


@pytest.fixture
def scored(made, tmp_path):
    return Run(shutil.copytree(made, tmp_path / "run"))


def test_a_run_chooses_on_validation_how_much_it_corrects(scored):
    scored.decide()
    tried = pl.read_parquet(scored.path("decide") / TRIED)
    assert tried["correction_rate"].to_list() == list(RATES)
    best = tried.filter("chosen").row(0, named=True)
    assert tried["gain"].to_list() == pytest.approx((tried["valid_ndcg"] - tried["valid_ndcg"][0]).to_list())
    expected = scored.decided("rate", best["correction_rate"])
    for name, flagged in scored.decisions().items():
        assert flagged.equals(expected[name])
    scored.suggest()
    scored.evaluate()
    ranked = pl.read_parquet(scored.path("evaluate") / "results.parquet")
    rows = dict(zip(ranked["row"], ranked["valid_ndcg"], strict=True))
    assert rows["corrected (replace)"] == best["valid_ndcg"]  # the same windows, recommender and seed
    assert rows["original"] == tried["valid_ndcg"][0]


@pytest.mark.parametrize(
    ("tenth", "fifth", "chosen"),
    [
        (1, 1, 0.1),  # two that are alike: the smaller one
        (2, 1, 0.2),
        (3, 2, 0.2),  # ahead of none in as many windows, by less
        (3, 4, 0.0),  # none is ahead
    ],
)
def test_the_share_that_ranks_validation_best_is_chosen_by_hand(tenth, fifth, chosen):
    """Sixty windows of forty users: without correction the target is third in each; half of them change."""
    ranks = {0.0: 3, 0.05: 4, 0.1: tenth, 0.2: fifth}
    cells = pl.DataFrame(
        [{"row": str(share), "seed": seed, "valid_ranks": [rank, 3] * 30, "valid_users": [*range(40), *range(20)]}
         for seed in (0, 1) for share, rank in ranks.items()])  # fmt: skip
    tried = best_rate(cells.with_columns(valid_ndcg=pl.lit(0.5)))
    assert tried.filter("chosen")["correction_rate"].to_list() == [chosen]


def test_a_share_that_is_ahead_by_chance_is_not_chosen():
    """Ahead in five windows of a hundred, behind in four, by as much."""
    none = [1] * 4 + [30] * 96
    lucky = [30] * 4 + [1] * 5 + [30] * 91
    cells = pl.DataFrame({"row": ["0.0", "0.2"], "seed": 0, "valid_ndcg": [0.04, 0.05],
                          "valid_ranks": [none, lucky], "valid_users": [list(range(100))] * 2})  # fmt: skip
    tried = best_rate(cells)
    assert tried["gain"].to_list() == pytest.approx([0, 0.01])
    assert tried["lower_bound"][1] < -0.03
    assert tried.filter("chosen")["correction_rate"].to_list() == [0.0]


def test_windows_of_one_user_count_as_one():
    """Ten windows rank better: of ten users the rate is chosen, of a single user it is not."""
    cells = pl.DataFrame({"row": ["0.0", "0.2"], "seed": 0, "valid_ndcg": 0.5,
                          "valid_ranks": [[3] * 100, [1] * 10 + [3] * 90]})  # fmt: skip
    for users, chosen in (([*range(100)], 0.2), ([0] * 10 + [*range(1, 91)], 0.0)):
        tried = best_rate(cells.with_columns(valid_users=pl.Series([users] * 2)))
        assert tried.filter("chosen")["correction_rate"].to_list() == [chosen]


def test_of_two_shares_that_rank_alike_the_smaller_is_chosen(scored):
    """With a cap of 0 nothing is flagged, whatever the share."""
    scored.decide(cap=0)
    assert pl.read_parquet(scored.path("decide") / TRIED).filter("chosen")["correction_rate"].to_list() == [0.0]


def test_a_given_eta_is_a_probability_and_nothing_is_chosen(scored):
    scored.decide(eta=0.1)
    assert scored.decisions()["train"].equals(scored.decided("probability", 0.1)["train"])
    assert not (scored.path("decide") / TRIED).exists()


def test_validation_leaves_no_eta_to_be_given(scored):
    with pytest.raises(ConfigError, match="Leave --eta out"):
        scored.decide(policy="validation", eta=0.3)


def test_a_choice_that_was_stopped_goes_on(scored):
    shares_done = []

    def stop(done, total, doing):
        if doing == "suggest" and done == total:
            shares_done.append(total)
        if len(shares_done) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored.decide(stop)
    assert not scored.done("decide")
    kept = {path.name: path.stat().st_mtime_ns for path in scored.work("suggest").iterdir()}
    assert kept
    scored.decide()
    assert {path.name: path.stat().st_mtime_ns for path in scored.work("suggest").iterdir()}.items() >= kept.items()


def test_without_a_run_nothing_can_be_chosen_on_validation():
    scores = pl.DataFrame({"window_id": [0], "position": [0], "log_odds": [0.0], "noise_probability": [0.5]})
    with pytest.raises(ConfigError, match="only for runs"):
        Denoiser(Config()).decide(scores, "validation")


@pytest.mark.parametrize("items", ["title", "soft_token"])
@pytest.mark.parametrize("answer", ["title", "per_position"])
def test_saved_and_loaded_denoisers_score_the_same(tmp_path, items, answer):
    data = make_demo(size="tiny").data
    config = Config.from_dict(
        {
            **TINY,
            "model": {**TINY["model"], "item_input": items, "readout": answer},
            "train": {"epochs": 1, "samples": 40},
        }
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
