"""Scores of continuations are exact, whatever their order and company."""

import numpy as np
import pytest
import torch
import transformers

from llm4dsr.errors import DataError, ModelError
from llm4dsr.lm import continuations as module
from llm4dsr.lm import score_continuations
from tests.lm.test_prefix_tree import BUILDER, MODEL, TITLES, one_forward

PROMPT = BUILDER.prompt([0, 3, 5]).ids
TOKENS = BUILDER.titles[: len(TITLES)]
EXPECTED = [sum(one_forward(PROMPT, title)) for title in TOKENS]


def test_scores_equal_one_forward_for_each():
    scores = score_continuations(MODEL.lm, PROMPT, TOKENS)
    np.testing.assert_allclose(scores, EXPECTED, rtol=1e-5)
    assert scores.max() - scores.min() > 1


def test_order_repeats_and_company_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    order = [*rng.permutation(len(TITLES)), 2, 2]
    for most in (1, 5, 1000):  # nodes in a pass: one title each, a few, or all
        monkeypatch.setattr(module, "NODES", most)
        np.testing.assert_allclose(
            score_continuations(MODEL, PROMPT, [TOKENS[i] for i in order]), np.array(EXPECTED)[order], rtol=1e-5
        )


def test_beginnings_of_others_are_scored_too():
    title = TOKENS[1]
    steps = np.cumsum(one_forward(PROMPT, title))
    scores = score_continuations(MODEL, PROMPT, [title[:end] for end in range(1, len(title) + 1)])
    np.testing.assert_allclose(scores, steps, rtol=1e-5)


def test_all_tokens_together_have_probability_one():
    vocabulary = MODEL.lm.get_output_embeddings().weight.shape[0]
    scores = score_continuations(MODEL, PROMPT, [[token] for token in range(vocabulary)])
    assert np.exp(scores).sum() == pytest.approx(1, abs=1e-5)


def test_none_asked_none_scored():
    assert score_continuations(MODEL, PROMPT, []).shape == (0,)


def test_a_model_that_sees_what_follows_is_refused():
    assert score_continuations(MODEL, PROMPT, TOKENS[:1]).shape == (1,)
    MODEL.bidirectional = True
    try:
        with pytest.raises(ModelError, match="bidirectional"):
            score_continuations(MODEL, PROMPT, TOKENS)
    finally:
        MODEL.bidirectional = False


@pytest.mark.parametrize("family", ["BertLMHeadModel", "ModernBertDecoderForCausalLM"])
def test_a_model_with_layers_before_its_output_is_refused(family):
    """A part of their head stands between the last state and the output layer."""
    model = getattr(transformers, family)
    sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}  # fmt: skip
    config = model.config_class(**sizes, intermediate_size=16, **({"is_decoder": True} if family[:4] == "Bert" else {}))
    torch.manual_seed(0)
    with pytest.raises(ModelError, match=f"{family} computes other probabilities"):
        score_continuations(model(config).eval(), [1, 2, 3], [[4, 5]])


def test_what_has_no_tokens_is_refused():
    with pytest.raises(DataError, match="Continuation 1 has no tokens"):
        score_continuations(MODEL, PROMPT, [[1], []])
    with pytest.raises(DataError, match="prompt has no tokens"):
        score_continuations(MODEL, torch.tensor([]), [[1]])
