"""LLaRA on titles whose right order is known: 12 items in a circle, each followed by the next one."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from llm4dsr.config import Config, EvaluateConfig, LLaRAConfig, ModelConfig, RecommenderConfig
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError, ModelError
from llm4dsr.evaluate.train_and_evaluate import train_and_evaluate
from llm4dsr.metrics import hit_rate
from llm4dsr.recommenders import fit
from llm4dsr.recommenders.llara import MAX_TOKENS, LLaRA
from llm4dsr.recommenders.llara_training import _losses, language_model, tune
from llm4dsr.recommenders.sasrec import SASRec
from llm4dsr.recommenders.training import Trained

torch.set_num_threads(1)

TITLES = ["Red Train", "Red Train Track", "Blue Boat", "Kite", "Doll House", "Doll", "Chess", "Yo-Yo", "Ünï ☕",
          "Wooden Blocks", "Puzzle", "Drum"]  # fmt: skip
N = len(TITLES)
MODEL = ModelConfig(
    item_input="title", readout="title", hidden_size=32, layers=2, heads=2, vocabulary=300, pretrain_epochs=1
)
SMALL = LLaRAConfig(model=MODEL, epochs=3, batch_windows=16, learning_rate=1e-2, candidates=0, samples=0)
SASREC = RecommenderConfig(
    hidden_size=16, blocks=1, history=5, learning_rate=1e-2, batch_size=64, negatives=8, epochs=2
)


def catalogue(titles: Sequence[str] = TITLES) -> Catalogue:
    return Catalogue(pl.Series("item_id", range(len(titles))), list(titles))


def circle(size: int, seed: int, step: int = 1) -> Windows:
    """Windows of 3 to 6 items, i -> i + step (mod 12)."""
    rng = np.random.default_rng(seed)
    return Windows.from_lists([(rng.integers(N) + step * np.arange(rng.integers(3, 7))) % N for _ in range(size)])


def untrained(titles: Sequence[str] = TITLES, **changes: object) -> LLaRA:
    """Weights are made larger, as a fresh model finds all titles of a length about equally likely."""
    items, config = catalogue(titles), replace(SMALL, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sasrec = SASRec(len(titles), SASREC).eval()
        lm = language_model(items, sasrec.item_vectors.detach(), config, 0)
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(4)
    return LLaRA(lm.eval(), sasrec, items, config)


@torch.inference_mode()
def alone(model: LLaRA, history: list[int], row: int) -> float:
    """log P of one title after the history, from one plain forward over the embeddings of a text without a tree."""
    prompt = model.prompt(history)
    ids = torch.tensor([prompt.ids + model.titles[row]], device=model.lm.device)
    embeds = model.lm.base.get_input_embeddings()(ids)
    for place, item in enumerate(prompt.slots):
        if item >= 0:
            embeds[0, place] = model.lm.projector(model.lm.items[item])
    steps = model.lm.lm(inputs_embeds=embeds).logits[0].log_softmax(-1)
    return sum(float(steps[len(prompt) - 1 + i, token]) for i, token in enumerate(model.titles[row]))


@pytest.fixture(scope="module")
def learned() -> Trained:
    """The SASRec has learned nothing but vectors that tell items apart: all that is right is the language model's."""
    idle = replace(SASREC, learning_rate=1e-5)
    return fit("llara", circle(500, 1), circle(60, 2), catalogue(), idle, 0, llara=replace(SMALL, epochs=4))


# --- learning --------------------------------------------------------------------------------------------------------


def test_learns_to_rank_the_next_title_first(learned):
    test = circle(100, 3)
    assert hit_rate(learned.model.rank(test.histories(), test.targets()), 1) > 0.95
    assert hit_rate(learned.model.sasrec.rank(test.histories(), test.targets()), 1) < 0.3
    assert learned.best_epoch == max(e for e, value in enumerate(learned.curve) if value == max(learned.curve))


def test_the_seed_decides_and_nothing_else_is_disturbed():
    quick = replace(SMALL, epochs=1, samples=30, validation=10)

    def score(seed: int) -> np.ndarray:
        done = fit("llara", circle(60, 1), circle(20, 2), catalogue(), replace(SASREC, epochs=1), seed, llara=quick)
        return done.model.score(Windows.from_lists([[0, 1, 2]]))[0]

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = score(0)
    assert torch.equal(torch.rand(3), expected)
    assert (first == score(0)).all()
    assert not np.allclose(first, score(1))


def test_progress_counts_the_epochs_of_both():
    seen: list[tuple[int, int, str]] = []
    quick = replace(SMALL, epochs=2, samples=20)
    fit("llara", circle(40, 1), circle(10, 2), catalogue(), SASREC, 0, lambda *m: seen.append(m), llara=quick)
    assert [m[:2] for m in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [m[2].split(":")[0] for m in seen] == ["SASRec", "SASRec", "LLaRA", "LLaRA"]
    assert "NDCG@20" in seen[-1][2]


def test_prompts_become_mixed_while_it_learns(monkeypatch):
    drawn: list[bool] = []
    example = LLaRA.example

    def watched(self: LLaRA, windows: Windows, w: int, mixed: bool, whole: bool):
        drawn.append(mixed)
        return example(self, windows, w, mixed, whole)

    monkeypatch.setattr(LLaRA, "example", watched)
    list(tune(untrained(epochs=4), circle(100, 1), 0))
    shares = np.array(drawn).reshape(4, 100).mean(1)  # expected: 1/8, 3/8, 5/8, 7/8
    np.testing.assert_allclose(shares, [0.125, 0.375, 0.625, 0.875], atol=0.12)


@pytest.mark.parametrize("weight", [1.0, 0.25, 0.0])
def test_the_loss_of_an_answer_is_its_weight_times_what_is_scored(weight):
    model, windows = untrained(), Windows.from_lists([[0, 1, 2], [8, 5]], weights=np.array([[1, 1, weight], [1, 1, 1]]))
    first, second = (float(scores[row]) for scores, row in zip(model.score(windows.histories()), (2, 5), strict=True))
    loss = _losses(model.lm, [model.example(windows, w, mixed=True, whole=False) for w in range(2)]).sum()
    assert float(loss.detach()) == pytest.approx(-weight * first - second, rel=1e-5)


def test_which_tokens_are_learned():
    windows = Windows.from_lists([[3, 6, 11]], weights=np.array([[0.5, 0.25, 1.0]]))
    model = untrained()
    tokens, weights = model.example(windows, 0, mixed=True, whole=False)
    assert [tokens.ids[t] for t in np.flatnonzero(np.isfinite(weights))] == model.titles[11]
    assert tokens.ids[: tokens.answer] == model.prompt([3, 6]).ids
    tokens, weights = model.example(windows, 0, mixed=True, whole=True)
    read = [[tokens.ids[t] for t in np.flatnonzero(weights == w)] for w in (0.5, 0.25, 1.0)]
    assert read == [model.titles[3], model.titles[6], model.titles[11]]


# --- scoring ---------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_each_title_alone():
    """Three histories of different lengths in one batch; "Red Train" is the beginning of another title."""
    model, histories = untrained(), Windows.from_lists([[0, 1, 2, 3, 4], [5], [8, 9]])
    for w, scores in enumerate(model.score(histories)):
        expected = [alone(model, histories.row(w), row) for row in range(N)]
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-4)
        assert np.ptp(scores) > 1  # they do differ, or the test would show nothing


def test_ranks_are_those_of_sorting_and_trees_may_be_small():
    model, windows = untrained(), circle(20, 4)
    expected = [
        sorted(range(N), key=lambda row: -alone(model, windows.row(w)[:-1], row)).index(windows.row(w)[-1]) + 1
        for w in range(20)
    ]
    assert model.rank(windows.histories(), windows.targets()).tolist() == expected
    model._nodes, model._all = 8, []  # several trees for each history
    assert model.rank(windows.histories(), windows.targets()).tolist() == expected
    assert len(model._all) > 3
    assert len(set(expected)) > 4


def test_candidates_are_in_the_order_of_the_whole_and_others_keep_their_rank():
    whole, some, windows = untrained(), untrained(candidates=5), circle(60, 5)
    histories, targets = windows.histories(), windows.targets()
    sasrec, ranks = some.sasrec.rank(histories, targets), some.rank(histories, targets)
    shortlists = some.candidates(histories)
    inside = sasrec <= 5
    assert 0 < inside.sum() < 60
    assert ranks[~inside].tolist() == sasrec[~inside].tolist()
    for w in np.flatnonzero(inside):
        assert len(shortlists[w]) == 5
        scores = whole.score(histories.take(np.array([w])))[0]
        order = sorted(shortlists[w].tolist(), key=lambda row: -scores[row])
        assert order.index(targets[w]) + 1 == ranks[w]
    assert (ranks[inside] != sasrec[inside]).any()


def test_as_many_candidates_as_items_are_the_whole_catalogue():
    windows = circle(20, 6)
    expected = untrained().rank(windows.histories(), windows.targets())
    for count in (N, 100):
        assert (untrained(candidates=count).rank(windows.histories(), windows.targets()) == expected).all()


def test_items_of_one_title_count_against_each_other():
    model = untrained([*TITLES[:4], TITLES[2], TITLES[2]])  # rows 2, 4 and 5
    scores = model.score(Windows.from_lists([[0, 1]]))[0]
    assert scores[2] == scores[4] == scores[5]
    ranks = [int(model.rank(Windows.from_lists([[0, 1]]), np.array([row]))[0]) for row in range(6)]
    assert ranks[2] == ranks[4] == ranks[5] == 3 + sum(scores[row] > scores[2] for row in (0, 1, 3))


def test_sasrec_ties_at_the_limit_are_no_candidates():
    model = untrained(candidates=3)
    torch.nn.init.constant_(model.sasrec.items.weight, 1.0)  # all items score the same
    windows = circle(5, 7)
    assert [len(c) for c in model.candidates(windows.histories())] == [0] * 5
    assert (model.rank(windows.histories(), windows.targets()) == N).all()


@pytest.mark.parametrize("candidates", [0, 5, 100])
def test_an_empty_history_or_a_broken_model_ranks_last(candidates):
    model = untrained(candidates=candidates)
    assert model.rank(Windows.from_lists([[]]), np.array([0])).tolist() == [N]
    assert model.rank(Windows.from_lists([[], [1, 2]]), np.array([0, 3]))[0] == N
    best = model.sasrec.rank(Windows.from_lists([[1, 2]] * N), np.arange(N)).argmin()
    torch.nn.init.constant_(model.lm.projector[2].bias, float("nan"))
    assert model.rank(Windows.from_lists([[1, 2]]), np.array([best])).tolist() == [min(candidates or N, N)]


# --- what is read ----------------------------------------------------------------------------------------------------


def test_the_vector_of_an_item_matters():
    model, history = untrained(), Windows.from_lists([[0, 1, 2]])
    before = model.score(history)[0]
    model.lm.items[1] += 3.0
    assert np.abs(model.score(history)[0] - before).max() > 0.01
    model.lm.items[7] += 3.0  # an item that is not in the history
    after = model.score(history)[0]
    assert np.abs(model.score(history)[0] - after).max() == 0


def test_a_prompt_of_text_alone_has_the_same_words_and_no_vectors():
    model = untrained()
    mixed, text = model.prompt([0, 3]), model.prompt([0, 3], mixed=False)
    assert [t for t, slot in zip(mixed.ids, mixed.slots, strict=True) if slot < 0] == text.ids
    assert [slot for slot in mixed.slots if slot >= 0] == [0, 3]
    assert set(text.slots) == {-1}
    said = model.lm.tokenizer.decode(text.ids, clean_up_tokenization_spaces=False)
    assert said == ('<s>These items were chosen by a user, oldest first: "Red Train", "Kite". The next item is "')


def test_other_histories_of_a_batch_change_nothing():
    model = untrained()
    together = model.score(Windows.from_lists([[0, 1, 2, 3, 4], [5], [8, 9, 10]]))
    for history, scores in zip([[0, 1, 2, 3, 4], [5], [8, 9, 10]], together, strict=True):
        np.testing.assert_allclose(model.score(Windows.from_lists([history]))[0], scores, atol=1e-4)


def test_the_newest_items_count():
    model = untrained()  # its SASRec reads 5 items
    long, short = Windows.from_lists([[8, 9, 10, 0, 1, 2, 3, 4]]), Windows.from_lists([[0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(model.score(long)[0], model.score(short)[0])
    wordy = untrained([" ".join(str(1000 * row + k) for k in range(90)) for row in range(6)])
    assert {len(tokens) for tokens in wordy.titles} == {MAX_TOKENS // 4 + 1}  # the longest that a title may be
    assert [slot for slot in wordy.prompt([0, 1, 2, 3, 4]).slots if slot >= 0] == [3, 4]
    assert len(wordy.prompt([0, 1, 2, 3, 4])) + max(map(len, wordy.titles)) <= MAX_TOKENS


# --- settings --------------------------------------------------------------------------------------------------------


def test_a_recipe_changes_one_option_and_leaves_the_others():
    config = Config.from_dict({"evaluate": {"llara": {"model": {"layers": 3}, "candidates": 50}}}).evaluate.llara
    assert config == replace(LLaRAConfig(), candidates=50, model=replace(LLaRAConfig().model, layers=3))


def test_a_comparison_finds_what_is_done_by_the_options_of_the_backbone_alone(tmp_path, tiny_demo):
    """llara's options name its finished recommenders, and no other backbone's."""
    some = {name: windows.take(np.arange(30)) for name, windows in tiny_demo.splits.items()}
    quick = EvaluateConfig(recommender=replace(SASREC, epochs=1), llara=replace(SMALL, epochs=1, candidates=5))
    other = replace(quick, llara=replace(quick.llara, candidates=6))

    def finished(config: EvaluateConfig, backbone: str) -> int:
        folder, config = tmp_path / backbone, replace(config, backbone=backbone)
        results = train_and_evaluate(
            {"original": some}, tiny_demo.catalogue, config, 0, lambda *m: seen.append(m), folder
        )
        assert len(results["ranks"][0]) == 30
        assert results["valid_ndcg"][0] > 0
        return len(list(folder.iterdir()))

    seen: list[tuple[int, int, str]] = []
    assert [finished(c, "llara") for c in (quick, other, quick)] == [1, 2, 2]
    assert [finished(c, "sasrec") for c in (quick, other)] == [1, 1]
    assert all(done <= total for done, total, _ in seen)


def test_a_loss_that_is_no_number_is_told():
    with pytest.raises(ModelError, match="learning_rate"):
        list(tune(untrained(learning_rate=1e30, epochs=2), circle(64, 1), 0))


def test_windows_without_a_history_teach_nothing():
    single, mixed = Windows.from_lists([[1], [2]]), Windows.from_lists([[1], [2, 3], [4, 5, 6]])
    done = fit("llara", mixed, mixed, catalogue(), SASREC, 0, llara=replace(SMALL, epochs=1))
    assert len(done.curve) == 1
    with pytest.raises(DataError, match="training"):
        fit("llara", single, mixed, catalogue(), SASREC, 0, llara=SMALL)


def test_a_checkpoint_is_tuned_by_lora(tmp_path: Path):
    """A small Llama from disk: its own weights stay, the adapter and the projector learn."""
    start = untrained()
    start.lm.lm.save_pretrained(tmp_path)
    start.lm.tokenizer.save_pretrained(tmp_path)
    model = replace(MODEL, source=str(tmp_path), tuning="lora")
    config = replace(SMALL, model=model, epochs=1, samples=40)
    done = fit("llara", circle(40, 1), circle(10, 2), catalogue(), SASREC, 0, llara=config)
    base = done.model.lm.base.state_dict()
    for name, weight in start.lm.lm.state_dict().items():
        assert any(
            torch.equal(weight, base[k]) for k in (name, name.replace("_proj.", "_proj.base_layer.")) if k in base
        )
    assert all(p.any() for name, p in done.model.lm.named_parameters() if "lora_B" in name)
    assert np.isfinite(done.model.score(Windows.from_lists([[0, 1]]))[0]).all()
