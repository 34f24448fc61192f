"""LLaRA: prompts, scores and ranks of an untrained model. Training is tested in test_llara_training.py."""

import numpy as np
import pytest
import torch

from llm4dsr.data.windows import Windows
from llm4dsr.recommenders.llara import MAX_TOKENS, LLaRA

from .harness import TITLES, N, circle, untrained_llara


@torch.inference_mode()
def plain_score(model: LLaRA, history: list[int], row: int) -> float:
    """log P of one title after the history, from one plain forward pass over embeddings, without a tree."""
    prompt = model.prompt(history)
    ids = torch.tensor([prompt.ids + model.titles[row]], device=model.lm.device)
    embeds = model.lm.base.get_input_embeddings()(ids)
    for position, item in enumerate(prompt.slots):
        if item >= 0:
            embeds[0, position] = model.lm.projector(model.lm.items[item])
    steps = model.lm.lm(inputs_embeds=embeds).logits[0].log_softmax(-1)
    return sum(float(steps[len(prompt) - 1 + i, token]) for i, token in enumerate(model.titles[row]))


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_the_vector_of_an_item_in_the_history_affects_the_scores():
    model, history = untrained_llara(), Windows.from_lists([[0, 1, 2]])
    before = model.score(history)[0]
    model.lm.items[1] += 3.0
    assert np.abs(model.score(history)[0] - before).max() > 0.01
    model.lm.items[7] += 3.0  # an item that is not in the history
    after = model.score(history)[0]
    assert np.abs(model.score(history)[0] - after).max() == 0


def test_a_text_only_prompt_has_the_same_words_without_vectors():
    model = untrained_llara()
    hybrid, text = model.prompt([0, 3]), model.prompt([0, 3], hybrid=False)
    assert [t for t, slot in zip(hybrid.ids, hybrid.slots, strict=True) if slot < 0] == text.ids
    assert [slot for slot in hybrid.slots if slot >= 0] == [0, 3]
    assert set(text.slots) == {-1}
    decoded = model.lm.tokenizer.decode(text.ids, clean_up_tokenization_spaces=False)
    assert decoded == ('<s>These items were chosen by a user, oldest first: "Red Train", "Kite". The next item is "')


def test_only_the_newest_items_are_read():
    model = untrained_llara()  # its SASRec reads 5 items
    long, short = Windows.from_lists([[8, 9, 10, 0, 1, 2, 3, 4]]), Windows.from_lists([[0, 1, 2, 3, 4]])
    np.testing.assert_array_equal(model.score(long)[0], model.score(short)[0])
    wordy = untrained_llara([" ".join(str(1000 * row + k) for k in range(90)) for row in range(6)])
    assert {len(tokens) for tokens in wordy.titles} == {MAX_TOKENS // 4 + 1}  # the longest title, and its quote
    assert [slot for slot in wordy.prompt([0, 1, 2, 3, 4]).slots if slot >= 0] == [3, 4]
    assert len(wordy.prompt([0, 1, 2, 3, 4])) + max(map(len, wordy.titles)) <= MAX_TOKENS


# --- scores ----------------------------------------------------------------------------------------------------------


def test_scores_equal_those_of_each_title_alone():
    """Three histories of different lengths in one batch; "Red Train" is a prefix of another title."""
    model, histories = untrained_llara(), Windows.from_lists([[0, 1, 2, 3, 4], [5], [8, 9]])
    for w, scores in enumerate(model.score(histories)):
        expected = [plain_score(model, histories.row(w), row) for row in range(N)]
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-4)
        assert np.ptp(scores) > 1  # with equal scores, the test would show nothing


def test_other_histories_of_a_batch_have_no_effect():
    model = untrained_llara()
    together = model.score(Windows.from_lists([[0, 1, 2, 3, 4], [5], [8, 9, 10]]))
    for history, scores in zip([[0, 1, 2, 3, 4], [5], [8, 9, 10]], together, strict=True):
        np.testing.assert_allclose(model.score(Windows.from_lists([history]))[0], scores, atol=1e-4)


# --- ranks -----------------------------------------------------------------------------------------------------------


def test_ranks_equal_those_of_sorting_with_trees_of_any_size():
    model, windows = untrained_llara(), circle(20, 4)
    expected = [
        sorted(range(N), key=lambda row: -plain_score(model, windows.row(w)[:-1], row)).index(windows.row(w)[-1]) + 1
        for w in range(20)
    ]
    assert model.rank(windows.histories(), windows.targets()).tolist() == expected
    model._max_nodes, model._catalogue_trees = 8, []  # several trees for each history
    assert model.rank(windows.histories(), windows.targets()).tolist() == expected
    assert len(model._catalogue_trees) > 3
    assert len(set(expected)) > 4


def test_candidates_are_ranked_by_score_and_other_items_keep_their_rank():
    full, limited, windows = untrained_llara(), untrained_llara(candidates=5), circle(60, 5)
    histories, targets = windows.histories(), windows.targets()
    sasrec, ranks = limited.sasrec.rank(histories, targets), limited.rank(histories, targets)
    candidates = limited.candidates(histories)
    inside = sasrec <= 5
    assert 0 < inside.sum() < 60
    assert ranks[~inside].tolist() == sasrec[~inside].tolist()
    for w in np.flatnonzero(inside):
        assert len(candidates[w]) == 5
        scores = full.score(histories.take(np.array([w])))[0]
        order = sorted(candidates[w].tolist(), key=lambda row: -scores[row])
        assert order.index(targets[w]) + 1 == ranks[w]
    assert (ranks[inside] != sasrec[inside]).any()


def test_the_best_items_of_the_whole_catalogue_are_those_of_the_scores(monkeypatch):
    """However many histories are in memory at a time."""
    model, histories = untrained_llara(), circle(7, 4).histories()
    best = [np.argsort(-scores, kind="stable")[:5].tolist() for scores in model.score(histories)]
    ranks = model.rank(histories, np.arange(7) % N)
    monkeypatch.setattr("llm4dsr.recommenders.llara.HISTORIES", 3)
    assert model.recommend(histories, 5).tolist() == best
    assert model.rank(histories, np.arange(7) % N).tolist() == ranks.tolist()


def test_a_list_of_all_items_is_the_whole_catalogue():
    windows = circle(20, 6)
    expected = untrained_llara().rank(windows.histories(), windows.targets())
    for count in (N, 100):
        ranks = untrained_llara(candidates=count).rank(windows.histories(), windows.targets())
        assert (ranks == expected).all()


def test_items_with_the_same_title_tie():
    model = untrained_llara([*TITLES[:4], TITLES[2], TITLES[2]])  # rows 2, 4 and 5
    scores = model.score(Windows.from_lists([[0, 1]]))[0]
    assert scores[2] == scores[4] == scores[5]
    ranks = [int(model.rank(Windows.from_lists([[0, 1]]), np.array([row]))[0]) for row in range(6)]
    assert ranks[2] == ranks[4] == ranks[5] == 3 + sum(scores[row] > scores[2] for row in (0, 1, 3))


def test_sasrec_ties_at_the_limit_are_not_candidates():
    model = untrained_llara(candidates=3)
    torch.nn.init.constant_(model.sasrec.items.weight, 1.0)  # all items have the same score
    windows = circle(5, 7)
    assert [len(c) for c in model.candidates(windows.histories())] == [0] * 5
    assert (model.rank(windows.histories(), windows.targets()) == N).all()


@pytest.mark.parametrize("candidates", [0, 5, 100])
def test_an_empty_history_or_scores_of_nan_rank_last(candidates):
    model = untrained_llara(candidates=candidates)
    assert model.rank(Windows.from_lists([[]]), np.array([0])).tolist() == [N]
    assert model.rank(Windows.from_lists([[], [1, 2]]), np.array([0, 3]))[0] == N
    best = model.sasrec.rank(Windows.from_lists([[1, 2]] * N), np.arange(N)).argmin()
    torch.nn.init.constant_(model.lm.projector[2].bias, float("nan"))
    assert model.rank(Windows.from_lists([[1, 2]]), np.array([best])).tolist() == [min(candidates or N, N)]
