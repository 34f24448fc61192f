"""The main job on the tiny demo: every stage writes its table, saved models score the same, targets stay."""

import itertools
import shutil

import numpy as np
import polars as pl
import pytest

from llm4dsr import Config, Denoiser
from llm4dsr import columns as c
from llm4dsr.config import NeighborhoodConfig
from llm4dsr.data.demo import make_demo
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.decide import decide
from llm4dsr.errors import ConfigError, DataError, OutputError
from llm4dsr.evaluate.judges import judge
from llm4dsr.evaluate.rate_selection import IMPUTED, NO_CORRECTION, Candidate, best_candidate, candidates
from llm4dsr.metrics import auroc
from llm4dsr.pipeline import STAGES, TRIED, Run
from llm4dsr.recommenders.ease import EASE
from llm4dsr.recommenders.item_knn import ItemKNN
from llm4dsr.recommenders.neighborhood import fit_neighborhood

from ..lm.test_model_sources import make_checkpoint

TINY = {"model": {"hidden_size": 32, "layers": 1, "vector_size": 32}, "train": {"epochs": 2},
        "evaluate": {"recommender": {"epochs": 2}}, "threads": 1}  # fmt: skip


def test_the_published_recipe_runs_with_a_small_model(llm4dsr, tiny_demo, tmp_path):
    """First tokens, percentile, free generation and grounding; without CUDA, weights are not quantized."""
    model = make_checkpoint(tmp_path / "model", tiny_demo.catalogue.titles)
    tiny_demo.write(tmp_path / "data")
    given = ("-c", "paper", "-m", model, "-d", tmp_path / "data", "-o", tmp_path / "run", "--limit", 12)
    code, printed = llm4dsr("prepare", *given)
    assert code == 0, printed
    assert "model.load_in: 8bit of the recipe" in " ".join(printed.split())
    config = Run(tmp_path / "run").config
    assert (config.model.load_in, config.model.dtype, config.score.mode) == ("full", "bf16", "first-token")
    short = {"train": {"epochs": 2}, "suggest": {"max_new_tokens": 6}, "evaluate": {"backbone": "itemknn"}}
    run = Run.create(tmp_path / "short", Config.from_dict(short, base=config))
    for stage in STAGES:
        run.make(stage, tiny_demo)
    suggested = pl.concat(pl.read_parquet(run.path("suggest") / f"{name}.parquet") for name in c.SPLITS)
    assert set(suggested["grounding"]) <= set(c.GROUNDINGS)
    assert suggested["generated_text"].null_count() < len(suggested)  # written freely, then grounded
    assert "| corrected (replace)" in (run.path("evaluate") / "results.md").read_text()


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


def test_a_run_chooses_rate_and_action_on_validation(scored):
    scored.decide()
    tried = pl.read_parquet(scored.path("decide") / TRIED)
    noise = scored.card()["stages"]["train"]["noise_rate_estimate"]
    assert tried.select("correction_rate", "action", "histories").rows() == [
        (t.rate, t.action, t.histories) for t in candidates("denoise", noise)
    ]
    assert tried["correction_rate"].max() <= noise + 0.001  # no more is changed than is estimated to be noise
    best = tried.filter("chosen").row(0, named=True)
    assert tried["gain"].to_list() == pytest.approx((tried["valid_ndcg"] - tried["valid_ndcg"][0]).to_list())
    expected = scored.decided("rate", best["correction_rate"])
    for name, flagged in scored.decisions().items():
        assert flagged.equals(expected[name])
    scored.suggest()
    scored.correct()
    wanted = "replace" if best["action"] == "keep" else best["action"]
    assert (scored.correction.action, scored.correction.histories) == (wanted, best["histories"])
    scored.evaluate()
    ranked = pl.read_parquet(scored.path("evaluate") / "results.parquet")
    assert f"corrected ({wanted}{'' if best['histories'] else ', training alone'})" in ranked["row"]


def test_imputing_replaces_up_to_half_of_all_interactions(scored):
    scored.decide(goal="impute")
    tried = pl.read_parquet(scored.path("decide") / TRIED)
    assert tried["correction_rate"].to_list() == [0.0, *(rate for rate in IMPUTED for _ in range(2))]
    assert set(tried["action"]) == {"keep", "replace"}


def test_corrected_training_windows_can_stand_beside_original_histories(scored):
    """What is flagged in histories is listed, with the action keep. The decision is on the run card."""
    scored.decide(policy="rate", eta=0.1)
    scored.correct("drop", histories=False)
    facts = scored.card()["stages"]["correct"]
    assert (facts["action"], facts["histories"]) == ("drop", False)
    for name in ("valid", "test"):
        written = pl.read_parquet(scored.path("correct") / f"{name}.parquet")
        assert written["item_ids"].equals(pl.read_parquet(scored.path("prepare") / f"{name}.parquet")["item_ids"])
        edits = pl.read_parquet(scored.path("correct") / f"{name}_edits.parquet")
        assert len(edits) == len(scored.decisions()[name]) > 0
        assert set(edits["action"]) == {"keep"}
        assert edits["kept_item_id"].equals(edits["item_id"].alias("kept_item_id"))
    assert set(pl.read_parquet(scored.path("correct") / "train_edits.parquet")["action"]) == {"drop"}
    scored.evaluate()
    ranked = pl.read_parquet(scored.path("evaluate") / "results.parquet")
    assert "corrected (drop, training alone)" in ranked["row"]


def test_histories_that_may_not_be_corrected_are_not_tried(made, tmp_path):
    folder = shutil.copytree(made, tmp_path / "run")
    run = Run(folder, Config.from_dict(Run(folder).config.to_dict() | {"correct": {"histories": False}}))
    run.decide()
    tried = pl.read_parquet(run.path("decide") / TRIED)
    assert not tried.filter(pl.col("action") != "keep")["histories"].any()
    assert not run.correction.histories


def test_one_fit_judges_histories_of_both_kinds_as_two_fits_would():
    """A row whose training windows are those of another row gets its own validation ranks."""
    data = make_demo(size="tiny").data
    cut = data.splits["train"].take(np.arange(200))
    valid = data.splits["valid"]
    shorter = Windows.from_lists([valid.row(w)[-3:] for w in range(len(valid))], user_ids=valid.user_ids)
    compared = {
        "original": data.splits,
        "cut": {**data.splits, "train": cut},
        "cut, shorter": {**data.splits, "train": cut, "valid": shorter},
    }
    config = NeighborhoodConfig(ridge=5.0)
    for kind, found in zip((ItemKNN, EASE), judge(compared, len(data.catalogue), config), strict=True):
        for name, splits in compared.items():
            alone = fit_neighborhood(kind, splits["train"], splits["valid"], len(data.catalogue), config)
            ranks = found.filter(row=name)["valid_ranks"][0].to_list()
            assert ranks == alone.valid_ranks.tolist(), (kind, name)
    assert found["valid_ranks"][1].to_list() != found["valid_ranks"][2].to_list()


def test_an_unknown_goal_is_refused(scored):
    with pytest.raises(ConfigError, match="expected one of denoise, impute"):
        scored.decide(goal="clean")


def cells(**ranks: list[int]) -> pl.DataFrame:
    """A recommender's rows: each candidate's ranks of the targets of forty users."""
    size = len(next(iter(ranks.values())))
    rows = [{"row": name.replace("_", " "), "seed": 0, "valid_ranks": r, "valid_users": [*range(size)]}
            for name, r in ranks.items()]  # fmt: skip
    return pl.DataFrame(rows)


TRIED_HERE = [NO_CORRECTION, Candidate(1, "drop"), Candidate(1, "replace")]


@pytest.mark.parametrize(
    ("drop", "replace", "chosen"),
    [
        (1, 1, "drop"),  # two that are alike: the first
        (2, 1, "replace"),
        (3, 4, "keep"),  # neither is ahead
    ],
)
def test_the_candidate_that_ranks_validation_best_by_hand(drop, replace, chosen):
    """Without correction the target is third in each of sixty windows; half of them change."""
    judged = cells(original=[3] * 60, drop_1=[drop, 3] * 30, replace_1=[replace, 3] * 30)
    tried = best_candidate([judged], TRIED_HERE)
    assert tried.filter("chosen")["action"].to_list() == [chosen]


def test_the_judges_are_averaged():
    """Item-kNN gains by dropping what EASE loses twice."""
    knn = cells(original=[3] * 60, drop_1=[1, 3] * 30, replace_1=[2, 3] * 30)
    ease = cells(original=[1] * 60, drop_1=[9, 1] * 30, replace_1=[1, 1] * 30)
    tried = best_candidate([knn, ease], TRIED_HERE)
    assert tried.filter("chosen")["action"].to_list() == ["replace"]
    gain = (1 / np.log2(3) - 1 / np.log2(4)) / 2 / 2  # from third to second in half of the windows, for one of two
    assert tried["gain"][2] == pytest.approx(gain)


def test_a_candidate_that_is_ahead_by_chance_is_not_chosen():
    """Ahead in five windows of a hundred, behind in four, by as much."""
    none, lucky = [1] * 4 + [30] * 96, [30] * 4 + [1] * 5 + [30] * 91
    tried = best_candidate([cells(original=none, drop_1=lucky)], TRIED_HERE[:2])
    assert tried["gain"].to_list() == pytest.approx([0, 0.01])
    assert tried["lower_bound"][1] < -0.03
    assert tried.filter("chosen")["action"].to_list() == ["keep"]


def test_windows_of_one_user_count_as_one():
    """Ten windows rank better: of ten users the candidate is chosen, of a single user it is not."""
    judged = cells(original=[3] * 100, drop_1=[1] * 10 + [3] * 90)
    for users, chosen in (([*range(100)], "drop"), ([0] * 10 + [*range(1, 91)], "keep")):
        tried = best_candidate([judged.with_columns(valid_users=pl.Series([users] * 2))], TRIED_HERE[:2])
        assert tried.filter("chosen")["action"].to_list() == [chosen]


def test_nothing_is_chosen_where_nothing_may_be_flagged(scored):
    scored.decide(cap=0)
    assert pl.read_parquet(scored.path("decide") / TRIED).filter("chosen")["action"].to_list() == ["keep"]


def test_labels_narrow_the_probabilities_and_remove_later_stages(scored):
    scored.decide(policy="probability", eta=0.3)
    before = scored.scores()["train"]
    suspicious = before.sort("log_odds", descending=True).head(100)
    labels = suspicious.select("window_id", "position", split=pl.lit("train"), is_noise=pl.lit(1))
    low, high = scored.calibrate(labels)
    after = scored.scores()["train"]
    assert not scored.done("decide")
    assert after.drop(c.PROBABILITIES).equals(before.drop(c.PROBABILITIES))
    assert (after["noise_probability_low"] <= after["noise_probability"] + 1e-12).all()
    assert (after["noise_probability"] <= after["noise_probability_high"] + 1e-12).all()
    top = after.filter(pl.col("log_odds") >= suspicious["log_odds"].min())["noise_probability"].mean()
    assert top > before.filter(pl.col("log_odds") >= suspicious["log_odds"].min())["noise_probability"].mean()
    assert scored.card()["stages"]["score"]["noise_rate_interval"] == [low, high]


def test_a_given_eta_is_a_probability_and_nothing_is_chosen(scored):
    scored.decide(eta=0.1)
    assert scored.decisions()["train"].equals(scored.decided("probability", 0.1)["train"])
    assert not (scored.path("decide") / TRIED).exists()


def test_validation_with_an_eta_is_refused(scored):
    with pytest.raises(ConfigError, match="Leave --eta out"):
        scored.decide(policy="validation", eta=0.3)


def test_an_interrupted_choice_is_resumed(scored):
    finished = []

    def stop(done, total, doing):
        if doing == "suggest" and done == total:
            finished.append(total)
        if len(finished) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scored.decide(stop, goal="impute")
    assert not scored.done("decide")
    kept = {path.name: path.stat().st_mtime_ns for path in scored.work("suggest").iterdir()}
    assert kept
    scored.decide(goal="impute")
    assert {path.name: path.stat().st_mtime_ns for path in scored.work("suggest").iterdir()}.items() >= kept.items()


def test_without_a_run_nothing_can_be_chosen_on_validation():
    scores = pl.DataFrame({"window_id": [0], "position": [0], "log_odds": [0.0], "noise_probability": [0.5]})
    with pytest.raises(ConfigError, match="only for runs"):
        Denoiser(Config()).decide(scores, "validation")


@pytest.mark.parametrize(
    ("items", "answer"),
    [*itertools.product(["title", "soft_token"], ["title", "per_position"]), ("title", "likelihood")],
)
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
    owners, log_odds = np.array([0, 0, 0, 1, 1]), np.array([0.0, 1.0, 2.0, 3.0, -1.0])
    flagged = decide(owners, log_odds, 1 / (1 + np.exp(-log_odds)), "percentile", 0.6, cap=1)
    assert flagged.tolist() == [False, False, True, True, False]


def test_auroc_by_hand():
    assert auroc([0.9, 0.8, 0.1], [1, 0, 0]) == 1.0


def test_unknown_items_are_named():
    data = make_demo(size="tiny").data
    with pytest.raises(DataError, match="not in the items table"):
        data.catalogue.index([-5])
