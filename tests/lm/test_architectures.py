"""Any decoder of transformers: what is read from it is what its own class computes, and every stage works with it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertLMHeadModel, PreTrainedTokenizerFast

from llm4dsr import Config, Denoiser
from llm4dsr.config import ModelConfig
from llm4dsr.data.windows import limit_windows
from llm4dsr.errors import ConfigError, ModelError
from llm4dsr.lm import CatalogueTree, decode_in_catalogue
from llm4dsr.lm.attention import layer_windows
from llm4dsr.lm.collate import collate
from llm4dsr.lm.load import add_lora
from llm4dsr.lm.model import NoiseLM, noise_logits, read_states
from llm4dsr.lm.prefix_tree import WindowTree, check_scores, sequence_log_probs
from llm4dsr.lm.prompt import INSTRUCTION, PromptBuilder

from .architectures import KINDS, MORE, WINDOW, byte_level, make_checkpoint, make_lm

torch.set_num_threads(1)
TITLES = ["Red Train", "Red Train Track", "Red Truck", "Blue Boat", "Ünïcode ☕ 🚂", "The 'Quoted' One's", "Red", "7"]
TITLE = ModelConfig(item_input="title", readout="title")
PER_POSITION = ModelConfig(item_input="title", readout="per_position")
ALL = [*KINDS, *MORE]
WITH_TEMPLATE = ["qwen3", "gemma3", "phi3", "llama3"]  # the tokenizers of other bases have none, as on the hub


def model_of(name: str, config: ModelConfig = TITLE) -> tuple[NoiseLM, PromptBuilder]:
    lm, tokenizer = make_lm(name, TITLES)
    return NoiseLM(lm, tokenizer).eval(), PromptBuilder(tokenizer, TITLES, config)


@torch.inference_mode()
def brute_force(model: NoiseLM, prompt: list[int], title: list[int]) -> float:
    """log P of a title after a prompt, from a plain forward of the model's own class."""
    logits = model.lm(input_ids=torch.tensor([prompt + title])).logits[0].float().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(title))


# --- exact -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_one_pass_over_all_titles_equals_one_forward_per_title(name):
    """Two windows of different lengths in one batch. Sliding windows are shorter than prompts, and than some titles."""
    model, builder = model_of(name)
    windows = [[0, 1, 2, 3, 4, 5, 6, 7], [2, 6, 4]]
    prompts = [builder.prompt(w) for w in windows]
    assert min(map(len, prompts)) > WINDOW
    trees = [WindowTree.of([builder.titles[row] for row in w]) for w in windows]
    with torch.inference_mode():
        prefix = model.read_prefix(builder.head)
    behind = sequence_log_probs(model, prompts, trees, prefix=prefix)  # the instruction read once
    for window, prompt, *found in zip(windows, prompts, sequence_log_probs(model, prompts, trees), behind, strict=True):
        expected = [brute_force(model, prompt.ids, builder.titles[row]) for row in window]
        for scores in found:
            assert scores == pytest.approx(expected, abs=1e-4)
        assert max(expected) - min(expected) > 1
    check_scores(model, builder)


@pytest.mark.parametrize("name", ALL)
def test_decoding_takes_the_most_probable_token_that_leads_to_a_title(name):
    model, builder = model_of(name)
    titles = builder.titles[: len(TITLES)]
    prompts = [builder.suggestion_prompt(w, 0) for w in ([0, 3], [4, 5, 6, 2, 1, 7])]
    for prompt, row in zip(prompts, decode_in_catalogue(model, prompts, CatalogueTree(titles)), strict=True):
        written = titles[row]
        for i, token in enumerate(written):
            options = sorted({t[i] for t in titles if t[:i] == written[:i] and len(t) > i})
            with torch.inference_mode():
                logits = model.lm(input_ids=torch.tensor([prompt.ids + written[:i]])).logits[0, -1]
            assert logits[token] == pytest.approx(float(logits[options].max()), abs=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_noise_logits_are_the_next_token_logits_of_no_and_yes(name):
    model, builder = model_of(name, PER_POSITION)
    rows = [builder.prompt(w) for w in ([0, 1, 2, 3, 4, 5, 6, 7], [2, 6])]
    with torch.inference_mode():
        got = noise_logits(model, builder, read_states(model.hidden(collate(rows, model.device)), rows))
        plain = [model.lm(input_ids=torch.tensor([row.ids])).logits[0, row.read][:, [builder.no, builder.yes]]
                 for row in rows]  # fmt: skip
    torch.testing.assert_close(got, torch.cat(plain), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ALL)
def test_a_shared_prefix_changes_no_state(name):
    """Twenty rows behind an instruction, computed once for all of them or before, and each row alone."""
    model, builder = model_of(name, PER_POSITION)
    rows = [builder.prompt([i % 8, (i * 3 + 1) % 8, *range(i % 4)]) for i in range(20)]
    batch = collate(rows, model.device)
    assert batch.shared >= len(builder.head)
    with torch.inference_mode():
        prefix = model.read_prefix(builder.head)
        assert (prefix is None) == (layer_windows(model.base) is None)
        for states in (model.hidden(batch), model.hidden(batch, prefix), model.hidden(batch, prefix)):
            for row, state in zip(rows, states, strict=True):
                alone = model.hidden(collate([row], model.device))[0]
                torch.testing.assert_close(state[: len(row)], alone, atol=1e-4, rtol=0)


# --- every stage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "form",
    [
        {"item_input": "title", "readout": "title", "tuning": "lora"},
        {"item_input": "title", "readout": "per_position", "tuning": "full", "chat_template": True},
        {"item_input": "title", "readout": "likelihood", "tuning": "lora"},
        {"item_input": "soft_token", "readout": "per_position", "tuning": "lora", "vector_size": 8},
    ],
    ids=lambda form: f"{form['item_input']}-{form['readout']}-{form['tuning']}",
)
def test_it_is_tuned_saved_loaded_and_suggests(tmp_path: Path, tiny_demo, name: str, form: dict):
    source = make_checkpoint(name, tiny_demo.catalogue.titles, tmp_path / "base")
    model = {"source": str(source), **form}
    if name not in WITH_TEMPLATE:
        model.pop("chat_template", None)
    train = {"folds": 1, "epochs": 1, "samples": 12, "batch_windows": 6, "learning_rate": 0.01}
    config = Config.from_dict({"threads": 1, "model": model, "train": train, "score": {"calibration_draws": 1}})
    valid = limit_windows(tiny_demo.splits["valid"].histories(), 6, 0)
    denoiser = Denoiser(config).fit(tiny_demo.splits["train"], tiny_demo.catalogue, valid)
    denoiser.save_pretrained(tmp_path / "model")

    histories = limit_windows(tiny_demo.splits["test"].histories(), 6, 0)
    scores, loaded = denoiser.score(histories), Denoiser.from_pretrained(tmp_path / "model")
    assert scores["log_odds"].is_finite().all()
    np.testing.assert_allclose(loaded.score(histories)["log_odds"], scores["log_odds"], atol=1e-4)
    flagged = denoiser.decide(scores, "rate", 0.05)
    assert loaded.suggest(histories, flagged)["suggested_item_id"].null_count() == 0


# --- tokenizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "chat"), [*((name, False) for name in KINDS), *((name, True) for name in WITH_TEMPLATE)]
)
def test_the_scored_prompt_is_how_the_training_text_begins(name, chat):
    tokenizer = KINDS[name][2](TITLES)
    for config in (TITLE, PER_POSITION):
        b = PromptBuilder(tokenizer, TITLES, replace(config, chat_template=chat))
        for position in range(3):
            scored, trained = b.prompt([0, 4, 7]), b.training([0, 4, 7], [position], [3])
            asked = b.suggestion_prompt([0, 4, 7], position)
            assert trained.ids[: len(scored)] == scored.ids
            assert trained.ids[: len(asked)] == asked.ids
            assert trained.ids[len(asked) :] == b.titles[3]
            assert trained.read == scored.read


@pytest.mark.parametrize("name", KINDS)
def test_joined_pieces_are_the_text(name):
    """No tokenizer adds a space before a piece, nor drops one."""
    tokenizer = KINDS[name][2](TITLES)
    b = PromptBuilder(tokenizer, TITLES, PER_POSITION)
    text = tokenizer.decode(b.training([0, 4, 5], [1], [3]).ids, skip_special_tokens=True)
    assert text == (
        f'{INSTRUCTION}\nItems: A "Red Train", B "Ünïcode ☕ 🚂", C "The \'Quoted\' One\'s"\nNoise Items: A B C'
        '\nSuggested Replacements: B "Blue Boat"'
    )
    assert len(b.markers) == 26
    assert b.yes != b.no


@pytest.mark.parametrize(
    ("name", "begin", "turn"),
    [
        ("qwen3", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"),
        ("gemma3", "<s><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n"),
        ("phi3", "<|user|> \n", "<|end|> \n<|assistant|> \n"),  # as transformers tokenizes this template, too
        ("llama3", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_a_chat_template_wraps_the_items(name, begin, turn):
    tokenizer = KINDS[name][2](TITLES)
    b = PromptBuilder(tokenizer, TITLES, replace(TITLE, chat_template=True))
    text = tokenizer.decode(b.training([0, 3], [1], [7]).ids)
    assert text == (
        f'{begin}{INSTRUCTION}\nItems: "Red Train", "Blue Boat"{turn}Noise Items: "Blue Boat"'
        '\nSuggested Replacements: "7"'
    )
    assert b.hash != PromptBuilder(tokenizer, TITLES, TITLE).hash


def test_a_template_that_always_thinks_is_cut_before_the_thought():
    tokenizer = byte_level(TITLES, template="Q: {{ messages[0].content }}\nA: <think>\n")
    b = PromptBuilder(tokenizer, TITLES, replace(TITLE, chat_template=True))
    assert "think" not in tokenizer.decode(b.training([0, 3], [1], [7]).ids)


def test_a_template_that_shows_the_date_gives_the_same_prompt_every_day():
    tokenizer = byte_level(TITLES, template="{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}\n")
    b = PromptBuilder(tokenizer, TITLES, replace(TITLE, chat_template=True))
    assert tokenizer.decode(b.prompt([0]).ids).startswith("26 Jul 2024 ")


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}", "nothing of it", "{{ 1 / 0 }}", "{% if %}"])
def test_without_a_chat_template_that_works_there_is_a_message(template):
    tokenizer = byte_level(TITLES, template=template)
    with pytest.raises(ModelError, match=r"no chat template that can be used: .* Use model.chat_template: false"):
        PromptBuilder(tokenizer, TITLES, replace(TITLE, chat_template=True))


def test_only_as_many_letters_are_needed_as_a_window_has_items():
    merges = [("Ġ", letter) for letter in "ABCDEFGHIJKLMNOPyn"]
    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    raw = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    b = PromptBuilder(tokenizer, TITLES, PER_POSITION)
    assert len(b.markers) == 16
    b.prompt([6] * 16)
    with pytest.raises(ConfigError, match=r"has 17 items; .* go up to 16 with this tokenizer"):
        b.prompt([6] * 17)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bloom", "mamba"])
def test_items_cannot_see_each_other_without_a_mask(name):
    lm, tokenizer = make_lm(name, TITLES)
    assert layer_windows(lm) is None
    with pytest.raises(ModelError, match=r"takes no attention mask from outside.* model.attention: causal"):
        NoiseLM(lm, tokenizer, np.ones((8, 4), np.float32), bidirectional=True)


def test_a_model_that_sees_what_follows_is_refused():
    tokenizer = byte_level(TITLES)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    lm = BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), initializer_range=1.0, **sizes)).eval()
    with pytest.raises(ModelError, match=r"BertLMHeadModel computes other probabilities .* Use another model"):
        check_scores(NoiseLM(lm, tokenizer), PromptBuilder(tokenizer, TITLES, TITLE))


@pytest.mark.parametrize("name", KINDS)
def test_all_linear_layers_but_the_output_get_an_adapter(name):
    lm = add_lora(make_lm(name, TITLES)[0], ModelConfig(tuning="lora"))
    adapted = {n.rsplit(".", 1)[-1] for n, m in lm.named_modules() if hasattr(m, "lora_A")}
    assert len(adapted) >= 3
    assert not adapted & {"lm_head", "embed_out", "wte", "embed_tokens"}
