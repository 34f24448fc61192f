"""Prefix trees: the one pass gives what a forward per title would give."""

import numpy as np
import polars as pl
import pytest
import torch

from llm4dsr.config import Config, ModelConfig
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.score import score_windows
from llm4dsr.lm.embedded import embedded_lm
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prefix_tree import WindowTree, sequence_log_probs
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.metrics import tie_rate

torch.set_num_threads(1)

TITLES = [
    "Red Train",
    "Red Train Track",  # the title above is a prefix of it
    "Red Truck",
    "Blue Boat",
    "Ünïcode ☕ 🚂 שלום",
    "The 'Quoted' One's",
    "Red",
    "7",
]
TEXT = ModelConfig(item_input="title", readout="title", hidden_size=32, layers=2, heads=2, vocabulary=330)


def language_model(titles: list[str] = TITLES) -> tuple[NoiseLM, PromptBuilder]:
    lm, tokenizer = embedded_lm(titles, TEXT, 512, seed=0)
    with torch.no_grad():  # a fresh model is nearly uniform; larger weights make the probabilities differ
        for parameter in lm.parameters():
            parameter.mul_(5)
    return NoiseLM(lm, tokenizer).eval(), PromptBuilder(tokenizer, titles, TEXT)


MODEL, BUILDER = language_model()


@torch.inference_mode()
def one_forward(prompt: list[int], sequence: list[int]) -> list[float]:
    """log P of each token of the sequence after the prompt, read from one plain forward of transformers."""
    logits = MODEL.lm(torch.tensor([prompt + sequence], device=MODEL.device)).logits[0].log_softmax(-1)
    return [float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(sequence)]


def test_a_window_without_items_has_no_scores():
    trees = [WindowTree.of([]), WindowTree.of([BUILDER.titles[0]])]
    scores = sequence_log_probs(MODEL, [BUILDER.prompt([0]), BUILDER.prompt([0])], trees)
    assert [len(s) for s in scores] == [0, 1]


def test_whole_title_scores_equal_one_forward_per_title():
    """Two windows of different lengths in one batch, so that padding is there too."""
    windows = [[0, 1, 2, 3, 4, 5, 6, 7], [2, 6, 0]]
    prompts = [BUILDER.prompt(w) for w in windows]
    trees = [WindowTree.of([BUILDER.titles[row] for row in w]) for w in windows]
    for window, prompt, scores in zip(windows, prompts, sequence_log_probs(MODEL, prompts, trees), strict=True):
        expected = [sum(one_forward(prompt.ids, BUILDER.titles[row])) for row in window]
        assert scores == pytest.approx(expected, abs=1e-5 * max(map(abs, expected)))
        assert max(scores) - min(scores) > 1  # the scores do differ, or the test would show nothing


def test_first_token_scores_are_those_of_the_first_token():
    window = [0, 2, 3, 5]
    prompt, tree = BUILDER.prompt(window), WindowTree.of([BUILDER.titles[row] for row in window])
    (scores,) = sequence_log_probs(MODEL, [prompt], [tree], first_token=True)
    assert scores == pytest.approx([one_forward(prompt.ids, BUILDER.titles[row])[0] for row in window], abs=1e-4)
    assert scores[0] == scores[1]  # both begin with "Red"
    assert scores[0] != scores[2]


def test_the_tree_shares_what_titles_share():
    """1 2 9, 1 2 3 9 and 1 4 9: inner nodes 1, 1 2, 1 2 3 and 1 4; 9 closes a title and is never an inner node."""
    tree = WindowTree.of([[1, 2, 9], [1, 2, 3, 9], [1, 4, 9]])
    assert tree.tokens == [1, 2, 3, 4]
    assert tree.parents == [-1, 0, 1, 0]
    assert tree.depths == [0, 1, 2, 1]
    assert tree.paths == [[(-1, 1), (0, 2), (1, 9)], [(-1, 1), (0, 2), (1, 3), (2, 9)], [(-1, 1), (0, 4), (3, 9)]]


def test_a_sequence_that_is_a_prefix_of_another_needs_no_closing_token():
    prompt, sequences = BUILDER.prompt([0, 3]), [[20, 21], [20], [20, 21, 22]]
    (scores,) = sequence_log_probs(MODEL, [prompt], [WindowTree.of(sequences)])
    assert scores == pytest.approx([sum(one_forward(prompt.ids, s)) for s in sequences], rel=1e-5)


def scored(titles: list[str], mode: str) -> np.ndarray:
    """Log-odds of one window that holds an item of each title, in order."""
    catalogue = Catalogue(pl.Series("item_id", range(len(titles))), titles)
    config = Config.from_dict({"model": {"item_input": "title", "readout": "title"}, "score": {"mode": mode}})
    builder = PromptBuilder(MODEL.tokenizer, titles, TEXT)
    window = Windows.from_lists([list(range(len(titles)))])
    return score_windows(MODEL, builder, window, catalogue, config)


@pytest.mark.parametrize("mode", ["whole-title", "first-token"])
def test_items_with_one_title_tie_and_share_its_probability(mode):
    """P of a position = softmax over the window's titles, halved where two items carry the title."""
    titles = ["Red Train", "Blue Boat", "Red Train", "7"]
    log_odds = scored(titles, mode)
    assert log_odds[0] == log_odds[2]

    prompt = BUILDER.prompt([0, 3, 0, 7])
    steps = [one_forward(prompt.ids, BUILDER.titles[row]) for row in (0, 3, 7)]
    totals = np.array([sum(s) if mode == "whole-title" else s[0] for s in steps])
    p = np.exp(totals) / np.exp(totals).sum()
    each = np.array([p[0] / 2, p[1], p[0] / 2, p[2]])
    np.testing.assert_allclose(1 / (1 + np.exp(-log_odds)), each, atol=1e-5)
    assert each.sum() == pytest.approx(1)


def test_whole_titles_do_not_tie_where_first_tokens_do():
    titles = ["Red Train", "Red Truck", "Red Train Track", "Blue Boat"]
    one_window = np.zeros(len(titles), dtype=int)
    assert tie_rate(scored(titles, "first-token"), one_window) == 3 / 4  # the three that begin with "Red"
    assert tie_rate(scored(titles, "whole-title"), one_window) == 0


@pytest.mark.parametrize("mode", ["whole-title", "first-token"])
def test_a_single_item_has_no_score(mode):
    """Its title is the only answer, so its log-odds would be extreme and mean nothing."""
    assert np.isnan(scored(["Red Train"], mode)).tolist() == [True]


def test_long_titles_that_are_cut_to_the_same_tokens_share_their_probability_as_one_title_does():
    """The model sees the same prompt, so the scores are the same."""
    begin = "a very long title of a thing that nobody reads to its end " * 4
    titles = [f"{begin}{end}" for end in ("red", "blue", "green")] + ["Blue Boat"]
    lm, tokenizer = embedded_lm(titles, TEXT, 128, seed=0)
    builder, catalogue = PromptBuilder(tokenizer, titles, TEXT, 128), Catalogue(pl.Series(["a", "b", "c", "d"]), titles)
    assert builder.titles[0] == builder.titles[1] == builder.titles[2]
    config, model = Config(model=TEXT), NoiseLM(lm, tokenizer).eval()
    cut, one = (
        score_windows(model, builder, Windows.from_lists([rows]), catalogue, config)
        for rows in ([0, 1, 2, 3], [0, 0, 0, 3])
    )
    np.testing.assert_allclose(cut, one)
