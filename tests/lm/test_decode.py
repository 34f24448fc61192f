"""Decoding cannot leave the catalogue, and is greedy inside it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm4dsr.errors import DataError
from llm4dsr.lm import CatalogueTree, decode_in_catalogue
from llm4dsr.lm.decode import decode_freely
from llm4dsr.lm.prompt import PromptBuilder
from tests.lm.test_prefix_tree import BUILDER, MODEL, TEXT, TITLES

TOKENS = BUILDER.titles[: len(TITLES)]


def greedy(prompt: list[int], titles: list[list[int]]) -> list[int]:
    """Written token by token, each by a plain forward of transformers."""
    written: list[int] = []
    while written not in titles:
        options = {t[len(written)] for t in titles if t[: len(written)] == written}
        with torch.inference_mode():
            logits = MODEL.lm(torch.tensor([prompt + written], device=MODEL.device)).logits[0, -1]
        written.append(max(options, key=lambda token: float(logits[token])))
    return written


@settings(max_examples=30, deadline=None)
@given(
    titles=st.lists(st.sampled_from(["Red", "Red Train", "Red Truck", "7", "ü ☕", "Track"]), min_size=1, max_size=8),
    data=st.data(),
)
def test_a_title_is_written_that_is_not_excluded(titles, data):
    """For any catalogue, with repeated titles or not, and any excluded rows but all."""
    canonical = [titles.index(t) for t in titles]
    builder = PromptBuilder(MODEL.tokenizer, titles, TEXT)
    tree = CatalogueTree(builder.titles[: len(titles)], canonical)
    stays = data.draw(st.sampled_from(sorted(set(titles))))
    excluded = data.draw(st.lists(st.sampled_from(range(len(titles)))))
    excluded = [row for row in excluded if titles[row] != stays]
    everything_else = [row for row in range(len(titles)) if titles[row] != stays]

    prompts = [builder.prompt([0]), builder.prompt([0, len(titles) - 1])]  # of different lengths
    free, forced = decode_in_catalogue(MODEL, prompts, tree, [excluded, everything_else]).tolist()
    assert free == canonical[free]
    assert titles[free] not in {titles[e] for e in excluded}
    left = [builder.titles[row] for row in range(len(titles)) if titles[row] not in {titles[e] for e in excluded}]
    assert builder.titles[free] == greedy(prompts[0].ids, left)
    assert titles[forced] == stays  # all titles but one are excluded


def test_nothing_is_written_where_all_titles_are_excluded():
    tree, prompt = CatalogueTree(TOKENS[:3], [0, 1, 2]), BUILDER.prompt([0, 1])
    nothing, last, either = decode_in_catalogue(MODEL, [prompt] * 3, tree, [[0, 1, 2], [0, 1], [0]]).tolist()
    assert nothing == -1
    assert last == 2
    assert TOKENS[either] == greedy(prompt.ids, TOKENS[1:3])


def test_a_batch_changes_nothing():
    tree = CatalogueTree(TOKENS)
    prompts = [BUILDER.suggestion_prompt(w, 0) for w in ([0, 3], [4, 5, 6, 2, 1], [7, 3, 2])]
    together = decode_in_catalogue(MODEL, prompts, tree)
    for prompt, row in zip(prompts, together, strict=True):
        assert TOKENS[row] == greedy(prompt.ids, TOKENS)
        assert decode_in_catalogue(MODEL, [prompt], tree).tolist() == [row]


def test_a_model_of_transformers_and_token_ids_will_do():
    prompt = BUILDER.suggestion_prompt([0, 3], 0)
    ours = decode_in_catalogue(MODEL, [prompt], CatalogueTree(TOKENS))
    theirs = decode_in_catalogue(MODEL.lm, [np.array(prompt.ids)], CatalogueTree([np.array(t) for t in TOKENS]))
    assert ours.tolist() == theirs.tolist()


def test_the_order_of_a_catalogue_changes_nothing():
    order = np.random.default_rng(0).permutation(len(TITLES))
    prompt = BUILDER.suggestion_prompt([4, 5, 6, 2, 1], 0)
    (row,) = decode_in_catalogue(MODEL, [prompt], CatalogueTree(TOKENS))
    (there,) = decode_in_catalogue(MODEL, [prompt], CatalogueTree([TOKENS[i] for i in order]))
    assert order[there] == row


def test_free_decoding_is_plain_greedy_and_ends_at_the_limit():
    """Prompts of different lengths in one batch: their padding must not be seen."""
    prompts = [BUILDER.suggestion_prompt(w, 1) for w in ([0, 3], [0, 1, 2, 3, 4, 5, 6, 7], [6, 7, 2], [4, 5])]
    for prompt, written in zip(prompts, decode_freely(MODEL, prompts, BUILDER.close, 8), strict=True):
        tokens = list(prompt.ids)
        for token in written:
            with torch.inference_mode():
                assert token == int(MODEL.lm(torch.tensor([tokens], device=MODEL.device)).logits[0, -1].argmax())
            tokens.append(token)
        assert len(written) == 8 or written[-1:] == BUILDER.close or written[-1] == MODEL.tokenizer.eos_token_id


# --- the tree as arrays ----------------------------------------------------------------------------------------------


def test_nodes_are_numbered_level_by_level():
    """1 2 9, 1 4 9 and 3 9: the root, then 1 and 3, then 1 2, 1 4 and 3 9, then 1 2 9 and 1 4 9."""
    tree = CatalogueTree([[3, 9], [1, 4, 9], [1, 2, 9]])
    assert tree.tokens.tolist()[1:] == [1, 3, 2, 4, 9, 9, 9]
    assert tree.children.tolist() == [1, 3, 5, 6, 7, 8, 8, 8, 8]
    assert tree.leaves.tolist() == [3, 2, 1, 1, 1, 1, 1, 1]
    assert tree.order.tolist() == [2, 1, 0]
    titles = tree.places([0, 2])
    assert [tree.above(titles, depth).tolist() for depth in range(4)] == [[0, 0], [1, 2], [3, 5], [6, -1]]


@given(st.lists(st.lists(st.integers(0, 3), max_size=4).map(lambda t: [*t, 9]), min_size=1, max_size=12), st.data())
def test_the_arrays_hold_the_titles_and_nothing_else(titles, data):
    tree = CatalogueTree(titles)
    for row, title in enumerate(titles):
        assert tree.row(title) == titles.index(title)
        path = [int(tree.above(tree.places([row]), depth)[0]) for depth in range(len(title) + 1)]
        assert tree.tokens[path[1:]].tolist() == title
        for depth, node in enumerate(path):
            below = {tuple(t) for t in titles if t[:depth] == title[:depth]}
            assert tree.leaves[node] == len(below)
            found = tree.order[tree.first[node] :][: len(below)]
            assert {tuple(titles[r]) for r in found.tolist()} == below
    excluded = data.draw(st.lists(st.sampled_from(range(len(titles)))))
    left = {tuple(t) for t in titles} - {tuple(titles[r]) for r in excluded}
    last = tree.last(0, tree.places(excluded))
    assert (tuple(titles[last]) in left) if left else last == -1
    assert len(tree.tokens) == 1 + len({tuple(t[: i + 1]) for t in titles for i in range(len(t))})


def test_titles_that_a_tokenizer_cannot_tell_apart_are_one():
    """Rows 0 and 1 have the same tokens: excluding one excludes the other, or an excluded title could be written."""
    tree = CatalogueTree([[5, 9], [5, 9], [5, 6, 9]], [0, 1, 2])
    assert tree.row([5, 9]) == 0
    assert tree.last(0, tree.places([0])) == tree.last(0, tree.places([1])) == 2
    assert tree.last(0, tree.places([1, 2])) == -1


def test_only_whole_titles_are_rows():
    tree = CatalogueTree([[1, 9], [1, 2, 9], [1, 9]], [0, 1, 0])
    assert [tree.row(t) for t in ([1, 9], [1, 2, 9], [1], [2], [1, 9, 9], [])] == [0, 1, -1, -1, -1, -1]


def test_a_title_without_tokens_is_refused():
    with pytest.raises(DataError, match="Title 1 has no tokens"):
        CatalogueTree([[1, 9], []])
