"""readout: likelihood: how much more likely a title is among the others of its history than alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llm4dsr import Denoiser
from llm4dsr.config import Config, ModelConfig
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.score import score_windows
from llm4dsr.errors import ConfigError
from llm4dsr.lm.embedded import embedded_lm
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prompt import LIST, PromptBuilder
from llm4dsr.lm.title_lists import likelihood_ratios, title_log_probs
from llm4dsr.metrics import auroc

TITLES = ["Red Train", "Wooden Train Track", "Tea Pot", "Tea Cups for two", "Truck"]
MODEL = ModelConfig(item_input="title", readout="likelihood", hidden_size=32, layers=2, heads=2, vocabulary=330)
LISTS = [[0, 1, 4], [2, 3], [1, 0, 1, 2, 3], [4]]


@pytest.fixture(scope="module")
def model() -> NoiseLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lm, tokenizer = embedded_lm(TITLES, MODEL, 512, seed=0)
        for p in lm.parameters():  # the initial weights are small: all titles would be about as likely
            p.data.add_(0.2 * torch.randn_like(p))
    return NoiseLM(lm, tokenizer).eval()


@pytest.fixture(scope="module")
def builder(model) -> PromptBuilder:
    return PromptBuilder(model.tokenizer, TITLES, MODEL)


def by_forward(model: NoiseLM, before: list[int], title: list[int]) -> float:
    """log P(title | tokens before it), by the model's own class."""
    steps = model.lm(input_ids=torch.tensor([before + title])).logits[0].log_softmax(-1)
    return sum(float(steps[len(before) - 1 + i, token]) for i, token in enumerate(title))


def by_hand(model: NoiseLM, builder: PromptBuilder, items: list[int]) -> list[float]:
    """log P of each title given the list so far, word for word."""
    out, text = [], list(builder.head)
    for i, item in enumerate(items):
        text += (builder.separator if i else []) + builder.open
        out.append(by_forward(model, text, builder.titles[item]))
        text += builder.titles[item]
    return out


def all_of(groups) -> list[np.ndarray]:
    found = {i: values for group, rows in groups for i, values in zip(group, rows, strict=True)}
    return [found[i] for i in range(len(found))]


def test_the_prompt_is_a_plain_list(model, builder):
    row = builder.prompt([0, 2])
    assert model.tokenizer.decode(row.ids) == f'<s>{LIST}\nItems: "Red Train", "Tea Pot"'
    assert [row.ids[t] for t in row.read] == builder.close * 2  # a title ends where its quote is closed
    assert builder.training([0, 2], [1], [4]).ids == row.ids  # nothing is asked, so there is no answer to learn
    assert row.answer == len(builder.head)
    assert model.tokenizer.decode(builder.suggestion_prompt([0, 2, 4], 1).ids) == (
        f'<s>{LIST}\nItems: "Red Train", "Truck", "'
    )
    assert model.tokenizer.decode(builder.suggestion_prompt([0], 0).ids) == f'<s>{LIST}\nItems: "'


@torch.inference_mode()
def test_log_probabilities_are_those_of_the_models_own_class(model, builder):
    for budget in (10_000, 40):  # one pass, or one for each list
        found = all_of(title_log_probs(model, builder, LISTS, "fp32", budget))
        for items, values in zip(LISTS, found, strict=True):
            assert values == pytest.approx(by_hand(model, builder, items), abs=1e-3)


@torch.inference_mode()
def test_the_ratio_compares_a_title_in_its_list_with_the_title_alone(model, builder):
    found = all_of(likelihood_ratios(model, builder, Windows.from_lists(LISTS), "fp32", 10_000))
    for items, values in zip(LISTS, found, strict=True):
        ahead, behind = by_hand(model, builder, items), by_hand(model, builder, items[::-1])[::-1]
        alone = [by_hand(model, builder, [item])[0] for item in items]
        assert values == pytest.approx(2 * np.array(alone) - ahead - behind, abs=2e-3)
    assert found[3] == pytest.approx([0.0], abs=1e-3)  # a title alone is as likely as alone


def test_scores_do_not_depend_on_the_other_windows(model, builder):
    config, windows = Config(model=MODEL), Windows.from_lists(LISTS)
    at_once = score_windows(model, builder, windows, None, config)
    one_by_one = [score_windows(model, builder, windows.take(np.array([i])), None, config) for i in range(4)]
    np.testing.assert_allclose(at_once, np.concatenate(one_by_one), atol=1e-4)
    assert np.isnan(at_once[-1])  # the history of one item


def test_tuning_reads_each_history_in_random_order_without_noise(tiny_demo, monkeypatch):
    """Each prompt is a history with its own items, and not in their order."""
    seen: list[list[int]] = []
    training = PromptBuilder.training

    def kept(self, window, noisy, replacements, features=None):
        seen.append(list(window))
        assert noisy == []
        return training(self, window, noisy, replacements, features)

    monkeypatch.setattr(PromptBuilder, "training", kept)
    windows = tiny_demo.splits["train"].take(np.arange(64))
    config = Config.from_dict(
        {"train": {"epochs": 1, "folds": 1, "batch_windows": 64, "max_tokens": 1024}, "score": {"calibration": "off"}}
    )
    Denoiser(replace(config, model=replace(MODEL, pretrain_epochs=0))).fit(windows, tiny_demo.catalogue, windows)
    rows = [windows.row(i) for i in range(64)]
    assert sorted(map(sorted, seen)) == sorted(map(sorted, rows))
    assert sum(row in rows for row in seen) < 10


def test_it_finds_planted_noise_and_suggests_what_belongs(tiny_demo):
    """A model from nothing, tuned for seconds on 60 titles: no count, no vector, no injected noise."""
    model = {"item_input": "title", "readout": "likelihood", "hidden_size": 64, "layers": 1, "heads": 2}
    train = {"epochs": 10, "folds": 1, "batch_windows": 16, "learning_rate": 6e-3}
    config = Config.from_dict({
        "model": {**model, "pretrain_epochs": 0, "dropout": 0.0}, "train": train,
        "decide": {"policy": "rate", "eta": 0.05},
    })  # fmt: skip
    denoiser = Denoiser(config).fit(
        tiny_demo.splits["train"], tiny_demo.catalogue, tiny_demo.splits["valid"].histories()
    )
    test = tiny_demo.splits["test"].histories()
    scores = denoiser.score(test)
    assert auroc(scores["log_odds"].to_numpy(), test.truth()) > 0.75
    decisions = denoiser.decide(scores)
    suggested = denoiser.suggest(test, decisions)
    assert suggested["grounding"].to_list() == ["constrained"] * len(decisions)


def test_vectors_have_no_likelihood():
    with pytest.raises(ConfigError, match=r"likelihood reads titles\. Add item_input: title"):
        Config.from_dict({"model": {"readout": "likelihood"}})
