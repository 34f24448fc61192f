"""Training of LLaRA on data whose correct ranking is known (harness.py)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llm4dsr.config import Config, EvaluateConfig, LLaRAConfig
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError, ModelError
from llm4dsr.evaluate.train_and_evaluate import train_and_evaluate
from llm4dsr.metrics import hit_rate
from llm4dsr.recommenders import fit
from llm4dsr.recommenders.llara import LLaRA
from llm4dsr.recommenders.llara_training import _losses, tune
from llm4dsr.recommenders.training import Trained

from .harness import LLARA, MODEL, SASREC, catalogue, circle, untrained_llara


@pytest.fixture(scope="module")
def trained() -> Trained:
    """The SASRec barely learns, so its vectors only distinguish items. The order is learned by the language model."""
    idle = replace(SASREC, learning_rate=1e-5)
    return fit("llara", circle(500, 1), circle(60, 2), catalogue(), idle, 0, llara=replace(LLARA, epochs=4))


# --- what is learned -------------------------------------------------------------------------------------------------


def test_learns_to_rank_the_next_title_first(trained):
    test = circle(100, 3)
    assert hit_rate(trained.model.rank(test.histories(), test.targets()), 1) > 0.95
    assert hit_rate(trained.model.sasrec.rank(test.histories(), test.targets()), 1) < 0.3
    assert trained.best_epoch == max(e for e, value in enumerate(trained.curve) if value == max(trained.curve))


@pytest.mark.parametrize("weight", [1.0, 0.25, 0.0])
def test_the_loss_of_an_answer_is_its_weight_times_its_score(weight):
    weights = np.array([1, 1, weight, 1, 1])
    model, windows = untrained_llara(), Windows.from_lists([[0, 1, 2], [8, 5]], weights=weights)
    first, second = (float(scores[row]) for scores, row in zip(model.score(windows.histories()), (2, 5), strict=True))
    loss = _losses(model.lm, [model.example(windows, w, hybrid=True, all_titles=False) for w in range(2)]).sum()
    assert float(loss.detach()) == pytest.approx(-weight * first - second, rel=1e-5)


def test_only_the_tokens_of_learned_titles_have_a_loss():
    windows = Windows.from_lists([[3, 6, 11]], weights=np.array([0.5, 0.25, 1.0]))
    model = untrained_llara()
    tokens, weights = model.example(windows, 0, hybrid=True, all_titles=False)
    assert [tokens.ids[t] for t in np.flatnonzero(np.isfinite(weights))] == model.titles[11]
    assert tokens.ids[: tokens.answer] == model.prompt([3, 6]).ids
    tokens, weights = model.example(windows, 0, hybrid=True, all_titles=True)
    learned = [[tokens.ids[t] for t in np.flatnonzero(weights == w)] for w in (0.5, 0.25, 1.0)]
    assert learned == [model.titles[3], model.titles[6], model.titles[11]]


def test_prompts_become_hybrid_during_training(monkeypatch):
    drawn: list[bool] = []
    example = LLaRA.example

    def recorded(self: LLaRA, windows: Windows, w: int, hybrid: bool, all_titles: bool):
        drawn.append(hybrid)
        return example(self, windows, w, hybrid, all_titles)

    monkeypatch.setattr(LLaRA, "example", recorded)
    list(tune(untrained_llara(epochs=4), circle(100, 1), 0))
    rates = np.array(drawn).reshape(4, 100).mean(1)  # expected: 1/8, 3/8, 5/8, 7/8
    np.testing.assert_allclose(rates, [0.125, 0.375, 0.625, 0.875], atol=0.12)


def test_windows_of_one_item_are_skipped():
    single, mixed = Windows.from_lists([[1], [2]]), Windows.from_lists([[1], [2, 3], [4, 5, 6]])
    trained = fit("llara", mixed, mixed, catalogue(), SASREC, 0, llara=replace(LLARA, epochs=1))
    assert len(trained.curve) == 1
    with pytest.raises(DataError, match="training"):
        fit("llara", single, mixed, catalogue(), SASREC, 0, llara=LLARA)


# --- seeds, progress and errors --------------------------------------------------------------------------------------


def test_the_seed_determines_the_model_and_the_random_state_is_restored():
    quick = replace(LLARA, epochs=1, samples=30, validation=10)

    def score(seed: int) -> np.ndarray:
        trained = fit("llara", circle(60, 1), circle(20, 2), catalogue(), replace(SASREC, epochs=1), seed, llara=quick)
        return trained.model.score(Windows.from_lists([[0, 1, 2]]))[0]

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = score(0)
    assert torch.equal(torch.rand(3), expected)
    assert (first == score(0)).all()
    assert not np.allclose(first, score(1))


def test_progress_counts_the_epochs_of_both_models():
    seen: list[tuple[int, int, str]] = []
    quick = replace(LLARA, epochs=2, samples=20)
    fit("llara", circle(40, 1), circle(10, 2), catalogue(), SASREC, 0, lambda *m: seen.append(m), llara=quick)
    assert [m[:2] for m in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [m[2].split(":")[0] for m in seen] == ["SASRec", "SASRec", "LLaRA", "LLaRA"]
    assert "NDCG@20" in seen[-1][2]


def test_a_loss_that_is_not_finite_is_reported():
    with pytest.raises(ModelError, match="learning_rate"):
        list(tune(untrained_llara(learning_rate=1e30, epochs=2), circle(64, 1), 0))


# --- options ---------------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_tuned_by_lora(tmp_path: Path):
    """A small Llama from disk: its weights stay, the adapter and the projector learn."""
    start = untrained_llara()
    start.lm.lm.save_pretrained(tmp_path)
    start.lm.tokenizer.save_pretrained(tmp_path)
    model = replace(MODEL, source=str(tmp_path), tuning="lora")
    config = replace(LLARA, model=model, epochs=1, samples=40)
    trained = fit("llara", circle(40, 1), circle(10, 2), catalogue(), SASREC, 0, llara=config)
    base = trained.model.lm.base.state_dict()
    for name, weight in start.lm.lm.state_dict().items():
        assert any(
            torch.equal(weight, base[k]) for k in (name, name.replace("_proj.", "_proj.base_layer.")) if k in base
        )
    assert all(p.any() for name, p in trained.model.lm.named_parameters() if "lora_B" in name)
    assert np.isfinite(trained.model.score(Windows.from_lists([[0, 1]]))[0]).all()


def test_a_recipe_changes_one_option_and_keeps_the_others():
    config = Config.from_dict({"evaluate": {"llara": {"model": {"layers": 3}, "candidates": 50}}}).evaluate.llara
    assert config == replace(LLaRAConfig(), candidates=50, model=replace(LLaRAConfig().model, layers=3))


def test_only_llara_is_trained_again_when_its_options_change(tmp_path, tiny_demo):
    """The cache key of a trained recommender has the options of LLaRA only if LLaRA is the backbone."""
    some = {name: windows.take(np.arange(30)) for name, windows in tiny_demo.splits.items()}
    quick = EvaluateConfig(recommender=replace(SASREC, epochs=1), llara=replace(LLARA, epochs=1, candidates=5))
    other = replace(quick, llara=replace(quick.llara, candidates=6))

    def cached(config: EvaluateConfig, backbone: str) -> int:
        folder, config = tmp_path / backbone, replace(config, backbone=backbone)
        results = train_and_evaluate(
            {"original": some}, tiny_demo.catalogue, config, 0, lambda *m: seen.append(m), folder
        )
        assert len(results["ranks"][0]) == 30
        assert results["valid_ndcg"][0] > 0
        return len(list(folder.iterdir()))

    seen: list[tuple[int, int, str]] = []
    assert [cached(c, "llara") for c in (quick, other, quick)] == [1, 2, 2]
    assert [cached(c, "sasrec") for c in (quick, other)] == [1, 1]
    assert all(done <= total for done, total, _ in seen)
