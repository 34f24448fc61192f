"""Tuning: a step does not depend on its passes, tuning resumes exactly, and each fold has a seed."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from llm4dsr.config import Config
from llm4dsr.core.hashing import derived_seed
from llm4dsr.denoise.build_model import build_model
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.denoise.train import next_token_loss, tune
from llm4dsr.lm.collate import collate
from llm4dsr.lm.model import MIN_SAVED

from ..lm.test_model_sources import make_checkpoint

EPOCHS, STEPS = 3, 3  # of one model


def config(**train) -> Config:
    return Config.from_dict({
        "model": {"hidden_size": 16, "layers": 1, "heads": 2, "vector_size": 16, "dropout": 0.0},
        "train": {"epochs": EPOCHS, "folds": 1, "batch_windows": 50, "small_loss_drop_rate": 0.3, **train},
    })  # fmt: skip


def tuned(data, work=None, progress=None, seed=0, **train) -> tuple[list[torch.Tensor], list[float]]:
    """(weights of all folds, loss curve) on 150 windows."""
    windows = data.splits["train"].take(np.arange(50 * STEPS))
    ensemble, curve = Ensemble.fit(windows, data.catalogue, replace(config(**train), seed=seed), progress, work)
    return [p.detach().clone() for model in ensemble.models for p in model.trainable()], curve


def test_a_step_does_not_depend_on_its_passes(tiny_demo, monkeypatch):
    """150 tokens: about ten passes a step.

    A limit of each pass would leave out other interactions. Originals of the pass alone would be fewer candidates for a
    suggestion than those of the step; with five random ones, they are not candidates anyway.
    """
    monkeypatch.setattr("llm4dsr.denoise.train.NEGATIVES", 5)
    weights, curve = tuned(tiny_demo)
    small, small_curve = tuned(tiny_demo, batch_tokens=150)
    assert small_curve == pytest.approx(curve, rel=1e-4)
    for a, b in zip(weights, small, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize("readout", ["likelihood", "title"])
def test_logits_may_be_computed_one_part_after_another(readout, tiny_demo, monkeypatch):
    """Forty tokens at a time: the same loss and the same gradients, those of tied embeddings too."""
    titles = {"item_input": "title", "readout": readout, "cooccurrence": False, "pretrain_epochs": 0}
    given = Config.from_dict({"model": titles, "train": {"batch_windows": 20}}, base=config())
    windows = tiny_demo.splits["train"].take(np.arange(20))
    model, builder = build_model(given, tiny_demo.catalogue, windows, None, None, 0)
    rows = builder.prompts(windows)
    batch = collate(rows, model.device)
    spans = [(i, t) for i, row in enumerate(rows) for t in range(1, len(row))]

    def computed() -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        loss = next_token_loss(model, model.hidden(batch), batch.ids, spans)
        loss.backward()
        return float(loss.detach()), [p.grad.clone() for p in model.trainable() if p.grad is not None]

    whole, gradients = computed()
    monkeypatch.setattr("llm4dsr.lm.passes.LOGITS", 40 * model.base.config.vocab_size)
    parts, others = computed()
    assert parts == pytest.approx(whole, rel=1e-5)
    assert len(gradients) == len(others) > 5
    for a, b in zip(gradients, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_layers_that_are_computed_again_have_the_same_gradients(tiny_demo):
    """As in tuning of quantized models. Layers then take no cache, so the instruction is read in each prompt."""
    titles = {"item_input": "title", "readout": "likelihood", "cooccurrence": False, "pretrain_epochs": 0}
    given = Config.from_dict({"model": titles}, base=config())
    windows = tiny_demo.splits["train"].take(np.arange(20))
    model, builder = build_model(given, tiny_demo.catalogue, windows, None, None, 0)
    rows = builder.prompts(windows)
    batch = collate(rows, model.device)
    assert batch.shared * (len(rows) - 1) >= MIN_SAVED  # else it is read in each prompt anyway
    spans = [(i, t) for i, row in enumerate(rows) for t in range(row.answer, len(row))]
    model.train()

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        next_token_loss(model, model.hidden(batch), batch.ids, spans).backward()
        return [p.grad.clone() for p in model.trainable() if p.grad is not None]

    kept = gradients()
    model.base.gradient_checkpointing_enable()
    assert len(kept) > 5
    for a, b in zip(kept, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_prompts_of_a_checkpoint_are_padded_to_a_few_widths_on_a_cpu(tiny_demo, tmp_path, monkeypatch):
    """New shapes of matrix products keep memory. Padding does not change the loss."""
    source = str(make_checkpoint(tmp_path, tiny_demo.catalogue.titles))
    given = Config.from_dict(
        {"model": {"source": source, "item_input": "title", "readout": "likelihood", "tuning": "full"},
         "train": {"epochs": 1, "batch_tokens": 300}}, base=config()
    )  # fmt: skip
    windows = tiny_demo.splits["train"].take(np.arange(100))

    def run(multiple: int) -> tuple[set[int], list[float]]:
        widths: set[int] = set()

        def hidden(self, tokens, *rest):
            widths.add(tokens.ids.shape[1])
            return as_it_is(self, tokens, *rest)

        monkeypatch.setattr("llm4dsr.lm.passes.CPU_WIDTHS", multiple)
        model, builder = build_model(given, tiny_demo.catalogue, windows, None, None, 0)
        as_it_is = type(model).hidden
        with monkeypatch.context() as patched:
            patched.setattr(type(model), "hidden", hidden)
            return widths, tune(model, builder, windows, tiny_demo.catalogue, given)

    (exact, curve), (padded, same) = run(1), run(32)
    assert all(width % 32 == 0 for width in padded)
    assert len(padded) < len(exact)
    assert same == pytest.approx(curve, rel=1e-5)


def test_large_losses_are_left_out_from_the_second_epoch_on(tiny_demo):
    (_, without), (_, with_drop) = tuned(tiny_demo, small_loss_drop_rate=0.0), tuned(tiny_demo)
    assert with_drop[0] == without[0]
    assert with_drop[1] < 0.95 * without[1]


@pytest.mark.parametrize("stop", [4, 5, 7])
def test_an_interrupted_tuning_resumes_exactly(tiny_demo, tmp_path, monkeypatch, stop):
    """Also in the middle of the second epoch, where the limit is that of the step before the interruption."""
    monkeypatch.setattr("llm4dsr.denoise.train.CHECKPOINT_SECONDS", 0.0)

    def interrupt(done: int, total: int, doing: str) -> None:
        if doing.startswith("tune") and done == stop:
            raise KeyboardInterrupt

    weights, curve = tuned(tiny_demo)
    with pytest.raises(KeyboardInterrupt):
        tuned(tiny_demo, tmp_path, interrupt)
    resumed, again = tuned(tiny_demo, tmp_path)
    assert again == curve
    assert all(torch.equal(a, b) for a, b in zip(weights, resumed, strict=True))


def test_without_warm_up_the_first_step_has_the_full_rate(tiny_demo):
    """warmup_steps: 0 is the same as 1: no step has a lower rate."""
    (none, curve), (one, same) = (tuned(tiny_demo, warmup_steps=steps) for steps in (0, 1))
    assert curve == same
    assert all(torch.equal(a, b) for a, b in zip(none, one, strict=True))


def test_no_two_folds_of_any_seeds_start_alike(tiny_demo):
    """Fold f of seed s used to start with the weights of fold f - 1 of seed s + 1."""
    starts = []
    for seed in (0, 1, 2):
        weights, _ = tuned(tiny_demo, seed=seed, epochs=0, folds=3)
        size = len(weights) // 3
        starts += [torch.cat([p.flatten() for p in weights[i * size : (i + 1) * size]]) for i in range(3)]
    assert len(starts) == 9
    assert not any(torch.equal(a, b) for a, b in combinations(starts, 2))
    seeds = {derived_seed(seed, fold) for seed in range(300) for fold in range(10)}
    assert len(seeds) == 3000
