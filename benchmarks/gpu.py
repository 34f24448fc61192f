"""What a GPU brings: our stages and the recommenders beside one CPU core, and language models of the size that the
literature uses.

    python benchmarks/gpu.py --data DATA/toys --out benchmarks/results/gpu

The large models have random weights: time and memory do not depend on what weights say. Their tokenizer is the embedded
one, fitted to the titles, so that prompts are about as long as a pre-trained model's. Takes 80 seconds on an H200.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm4dsr.config import Config, ModelConfig, TrainConfig
from llm4dsr.core.device import pick_device
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.denoise.build_model import build_model
from llm4dsr.denoise.score import score_windows
from llm4dsr.denoise.train import tune
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.features.title_vectors import title_vectors
from llm4dsr.lm.collate import collate, token_batches
from llm4dsr.lm.embedded import embedded_lm
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.lm.tokens import Tokens
from llm4dsr.recommenders import fit

HERE = Path(__file__).parent
TUNED, SCORED, ASKED, ONE_BY_ONE = 5_000, 2_000, 512, 64  # windows of each measurement
RECIPES = {"sasrec": "bench.yaml", "bert4rec": "bench-bert4rec.yaml", "gru4rec": "bench-gru4rec.yaml"}
SHAPES = {  # of Llama 3
    "1 billion": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8 billion": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
}
MILLION = 1_000_000


def small(data: Dataset) -> dict[str, float]:
    """Seconds of each part, on the GPU or else one core, less what a first call sets up."""
    torch.set_num_threads(1)
    config, windows = Config(), limit_windows(data.splits["train"], TUNED, 0)
    model_settings = config.model
    vectors = title_vectors(data.catalogue.titles, windows, model_settings.title_vectors, model_settings.vector_size, 0)
    cooccurrence = CooccurrenceCounts.fit(data.splits["train"], len(data.catalogue), 0)
    model, builder = build_model(config, data.catalogue, windows, vectors, cooccurrence, 0)
    once = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=1))
    histories = limit_windows(data.splits["test"], SCORED, 0).histories()

    def tuned(some: Windows) -> None:
        tune(model, builder, some, data.catalogue, once)

    def scored(some: Windows) -> None:
        score_windows(model, builder, some, data.catalogue, config)

    few = np.arange(256)
    out = {
        f"tune the denoiser on {TUNED:,} windows once": timed(tuned, windows.take(few), windows),
        f"score {SCORED:,} histories": timed(scored, histories.take(few), histories),
    }
    for name, recipe in RECIPES.items():
        settings = dataclasses.replace(Config.from_yaml(HERE / recipe).evaluate.recommender, epochs=1)

        def train(some: Windows, name: str = name, settings: Any = settings) -> None:
            fit(name, some, data.splits["valid"], data.catalogue, settings, 0)

        out[f"{name}, one epoch and validation"] = timed(train, windows.take(few), data.splits["train"])
    return out


def timed(run: Callable[[Windows], None], few: Windows, windows: Windows) -> float:
    run(few)
    started = time.perf_counter()
    run(windows)
    return time.perf_counter() - started


def on_one_core(data: str) -> subprocess.Popen[bytes]:
    """`small` in a process that sees no GPU; it writes its answer to standard output."""
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([sys.executable, __file__, "--data", data], env=hidden, stdout=subprocess.PIPE)


def large(data: Dataset) -> list[dict[str, Any]]:
    """Windows per second of language models in bf16 that read titles as text; one line for each way to ask."""
    titles, lines = data.catalogue.titles, []
    tokenizer = embedded_lm(
        titles, ModelConfig(item_input="title", readout="title", hidden_size=64, layers=1), 1024, 0
    )[1]
    histories = limit_windows(data.splits["test"], ASKED, 0).histories()
    for name, shape in SHAPES.items():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        lm = random_llama(len(tokenizer), shape)
        model = NoiseLM(lm, tokenizer).eval()
        for answer in ("per_position", "title"):
            settings = ModelConfig(item_input="title", readout=answer, dtype="bf16")  # type: ignore[arg-type]
            config = Config(model=settings, train=TrainConfig(batch_tokens=32_768, max_tokens=1024))
            builder = PromptBuilder(tokenizer, titles, settings, 1024)

            def ask(some: Windows, builder: Any = builder, config: Config = config, model: NoiseLM = model) -> None:
                score_windows(model, builder, some, data.catalogue, config)

            how = "verdicts, one pass" if answer == "per_position" else "whole titles, one pass"
            lines.append(line(name, how, len(histories), timed(ask, histories.take(np.arange(32)), histories)))
        some = histories.take(np.arange(ONE_BY_ONE))
        each = timed(lambda w, m=model, b=builder: one_by_one(m, b, w), some.take(np.arange(4)), some)
        lines.append(line(name, "whole titles, a pass for each", len(some), each))
        lines[-1]["tokens of a prompt"] = float(np.mean([len(p) for p in builder.prompts(some)]))
        for made in lines[-3:]:
            made["parameters"] = sum(p.numel() for p in lm.parameters())
            made["peak GB"] = torch.cuda.max_memory_allocated() / 1e9
        del lm, model
    return lines


def random_llama(vocabulary: int, shape: dict[str, int]) -> LlamaForCausalLM:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return LlamaForCausalLM(
                LlamaConfig(vocab_size=vocabulary, num_attention_heads=32, num_key_value_heads=8,
                            max_position_embeddings=2048, tie_word_embeddings=True, **shape)
            )  # fmt: skip
    finally:
        torch.set_default_dtype(before)


@torch.inference_mode()
def one_by_one(model: NoiseLM, builder: PromptBuilder, windows: Windows) -> None:
    """The obvious way to log P of whole titles: the prompt is read again for each title of the window."""
    rows: list[tuple[Tokens, int]] = []
    for w, prompt in enumerate(builder.prompts(windows)):
        for item in windows.row(w):
            row = Tokens(list(prompt.ids), list(prompt.slots))
            row.add(builder.titles[item])
            rows.append((row, len(prompt)))
    for group in token_batches([len(row) for row, _ in rows], 32_768):
        batch = collate([rows[i][0] for i in group], model.device)
        log_probs = model.logits(model.hidden(batch)[:, :-1]).log_softmax(-1)
        chosen = log_probs.gather(2, batch.ids[:, 1:, None]).squeeze(2).cpu().numpy()
        for values, i in zip(chosen, group, strict=True):
            values[rows[i][1] - 1 : len(rows[i][0]) - 1].sum()


def line(model: str, how: str, windows: int, seconds: float) -> dict[str, Any]:
    speed = windows / seconds
    hours = MILLION / speed / 3600
    return {"model": model, "asked for": how, "windows": windows, "windows per second": speed,
            "GPU-hours for a million": hours}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", required=True, help="windows, as every command takes them")
    options.add_argument("--out", type=Path, help="a folder for results.json; without it the small parts are printed")
    given = options.parse_args()
    data = read_data(given.data)
    if given.out is None:
        print(json.dumps(small(data)))
        return
    if pick_device() != "cuda":
        sys.exit("No GPU is here.")
    with on_one_core(given.data) as other:
        on_gpu, models = small(data), large(data)
        on_cpu = json.loads(other.communicate()[0])
    parts = [{"part": part, "GPU s": s, "one core s": on_cpu[part], "ratio": on_cpu[part] / s}
             for part, s in on_gpu.items()]  # fmt: skip
    given.out.mkdir(parents=True, exist_ok=True)
    result = {"versions": versions(), "parts": parts, "language models": models}
    write_text(given.out / "results.json", json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
