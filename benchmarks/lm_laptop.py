"""What a small pre-trained language model costs on one core: tuning and scoring, as they are and as they were.

    python benchmarks/lm_laptop.py --data DATA/toys --out benchmarks/results/lm-laptop

The model is SmolLM2-135M with the recipe `laptop` and `readout: per_position`. "Before" is the plain way: peft's
layers, passes of 2,048 padded tokens, and the instruction read again in every window. Both ways take turns on the same
windows. Times are CPU seconds of one thread, so other work on the machine counts little. Peak memory is that of the
process. Needs Linux, and 9 GB for the way before. Takes 5 CPU minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from llm4dsr.config import Config
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.core.memory import peak_memory_mb, resident_memory, return_memory
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.denoise.build_model import build_model
from llm4dsr.denoise.score import score_windows
from llm4dsr.denoise.train import tune
from llm4dsr.lm.collate import collate, token_batches
from llm4dsr.lm.model import NoiseLM, noise_logits, read_states
from llm4dsr.lm.passes import pass_tokens
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.lm.shape import LMShape
from llm4dsr.pipeline.estimate import model_bytes, scoring_bytes, tuning_bytes
from llm4dsr.pipeline.sizes import Sizes

COMPARED = 8  # windows whose loss curves are compared: two epochs of steps of four windows
BEFORE_TOKENS = 2048  # of a pass before; the recipe has 4096, for which 16 GB are too little
DTYPES = ("fp32", "bf16")


def as_before() -> AbstractContextManager[Any]:
    """Turn off what tuning does at a lower cost."""
    stack = ExitStack()
    stack.enter_context(patch("llm4dsr.denoise.train.fused_lora", lambda lm: nullcontext()))
    stack.enter_context(patch("llm4dsr.denoise.train.pass_tokens_of", lambda model, config: BEFORE_TOKENS))
    stack.enter_context(patch("llm4dsr.lm.model.MIN_SAVED", float("inf")))
    return stack


@torch.inference_mode()
def score_before(model: NoiseLM, builder: PromptBuilder, windows: Windows) -> np.ndarray:
    """Whole padded prompts, through all layers with their adapters."""
    rows, out = builder.prompts(windows), np.empty(len(windows.items))
    model.eval()
    for group in token_batches([len(row) for row in rows], BEFORE_TOKENS):
        some = [rows[i] for i in group]
        batch = collate(some, model.device)
        hidden = model.states(model.embed(batch.ids, batch.slots), use_cache=False).last_hidden_state
        no, yes = noise_logits(model, builder, read_states(hidden, some)).unbind(-1)
        values = np.split((yes - no).numpy(), np.cumsum([len(row.read) for row in some])[:-1])
        for i, odds in zip(group, values, strict=True):
            out[windows.offsets[i] : windows.offsets[i + 1]] = odds
    return out


def tuned(model: NoiseLM, builder: PromptBuilder, some: Windows, data: Dataset, config: Config) -> list[float]:
    """Tune from the weights as they are, and restore them; the mean loss of each epoch."""
    kept = [p.detach().clone() for p in model.trainable()]
    curve = tune(model, builder, some, data.catalogue, config)
    with torch.no_grad():
        for p, value in zip(model.trainable(), kept, strict=True):
            p.copy_(value)
    return curve


def tuned_before(*args: Any) -> list[float]:
    with as_before():
        return tuned(*args)


def measured(run: Callable[[], Any]) -> tuple[float, float, Any]:
    """(CPU seconds, peak memory in GiB, result)."""
    return_memory()  # what an earlier part has freed
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    started = time.process_time()
    result = run()
    return time.process_time() - started, peak_memory_mb() / 1024, result


def compare(data: Dataset, dtype: str, count: int, rounds: int) -> dict[str, Any]:
    """Tune and score windows with weights of one precision; in fp32 also the way before, in turns."""
    torch.set_num_threads(1)
    options = {"model": {"source": "smollm2", "readout": "per_position", "dtype": dtype}, "train": {"epochs": 1}}
    config = Config.from_dict(options, base=Config.from_yaml("laptop"))
    windows = limit_windows(data.splits["train"], count, 0)
    started = time.process_time()
    model, builder = build_model(config, data.catalogue, windows, None, None, 0)
    loaded = time.process_time() - started
    torch.manual_seed(0)
    with torch.no_grad():  # an adapter that does something, as after tuning
        for p in model.trainable():
            p.normal_(std=0.01)
    score_windows(model, builder, windows.take(np.arange(2)), data.catalogue, config)
    rest, given = resident_memory() / 2**30, (model, builder, windows, data, config)
    ways: dict[str, Callable[[], Any]] = {
        "tuning": lambda: tuned(*given),
        "scoring": lambda: score_windows(model, builder, windows, data.catalogue, config),
    }
    if dtype == "fp32":
        ways["scoring before"] = lambda: score_before(model, builder, windows)
        ways["tuning before"] = lambda: tuned_before(*given)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks, results = dict.fromkeys(ways, float("inf")), dict[str, Any]()
    for _ in range(rounds):
        for name, run in ways.items():
            took, peak, results[name] = measured(run)
            seconds[name].append(took / count)
            peaks[name] = min(peaks[name], peak)
            print(name, f"{took / count:.3f} s a window, {peak:.2f} GiB", file=sys.stderr, flush=True)
    shape = LMShape.of(model.base, config.model)
    tokens = float(np.mean([len(row) for row in builder.prompts(windows)]))
    title_tokens = float(np.mean([len(builder.titles[i]) for i in np.unique(windows.items)]))
    sizes = Sizes.of(data, config, tokens, title_tokens)
    out = {
        "windows": count, "tokens of a prompt": tokens, "tokens of the instruction": len(builder.head),
        "tokens of a pass": pass_tokens(shape, config, False), "loading, s": loaded, "memory at rest, GiB": rest,
        "s a window": {name: statistics.median(found) for name, found in seconds.items()}, "rounds": seconds,
        "peak memory, GiB": peaks,
        "told beforehand, GiB": {
            "scoring": rest + scoring_bytes(shape, config, sizes) / 2**30,
            "tuning": rest + (tuning_bytes(shape, config, sizes) - model_bytes(shape, config)) / 2**30,
        },
        "scores": results["scoring"].tolist(),
    }  # fmt: skip
    if dtype == "fp32":
        now, before = results["scoring"], results["scoring before"]
        out["largest difference of scores from before"] = float(np.abs(now - before).max())
        out["mean loss of each epoch"] = loss_curves(*given)
    return out


def loss_curves(
    model: NoiseLM, builder: PromptBuilder, windows: Windows, data: Dataset, config: Config
) -> dict[str, list[float]]:
    """Both ways without dropout, so that they are the same function."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    short = replace(config, train=replace(config.train, batch_windows=4, epochs=2))
    given = (model, builder, windows.take(np.arange(COMPARED)), data, short)
    return {"now": tuned(*given), "before": tuned_before(*given)}


def in_own_process(given: argparse.Namespace, dtype: str) -> dict[str, Any]:
    """`compare` in a new process, whose memory holds nothing else."""
    command = [sys.executable, __file__, "--data", given.data, "--dtype", dtype, "--windows", str(given.windows),
               "--rounds", str(given.rounds)]  # fmt: skip
    out: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return out


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", required=True, help="windows, as every command takes them")
    options.add_argument("--out", type=Path, help="a folder for results.json")
    options.add_argument("--dtype", choices=DTYPES, help="measure this precision alone, and print it")
    options.add_argument("--windows", type=int, default=16)
    options.add_argument("--rounds", type=int, default=2)
    given = options.parse_args()
    if given.dtype:
        print(json.dumps(compare(read_data(given.data), given.dtype, given.windows, given.rounds)))
        return
    found = {dtype: in_own_process(given, dtype) for dtype in DTYPES}
    exact, half = (np.array(found[dtype].pop("scores")) for dtype in DTYPES)
    found["bf16"]["differences of scores from fp32"] = {
        "mean": float(np.abs(half - exact).mean()), "largest": float(np.abs(half - exact).max()),
        "standard deviation of scores": float(exact.std()),
    }  # fmt: skip
    text = json.dumps({"versions": versions(), **found}, indent=1)
    print(text)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        write_text(given.out / "results.json", text)


if __name__ == "__main__":
    main()
