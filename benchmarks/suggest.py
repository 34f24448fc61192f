"""Suggesting beside what the hardware can do: titles decoded in the catalogue, and items ranked by vectors.

    taskset -c 1 python benchmarks/suggest.py decode --data DATA/toys --out benchmarks/results/suggest
    taskset -c 1 python benchmarks/suggest.py rank --data DATA/toys --out benchmarks/results/suggest
    taskset -c 1 python benchmarks/suggest.py states --data DATA/toys --out benchmarks/results/suggest

All use one thread and count CPU time, the least of several repeats, so that other work on the machine matters little.
Weights are random: time does not depend on what they say. DATA/toys holds items.parquet and train.parquet.

`decode` continues prompts freely and inside the tree of the catalogue: of Toys, and of a million titles whose halves
are from two of its titles each. `rank` suggests for flags of Toys, then for catalogues of random vectors. `states`
suggests for the same flags with the states that scoring keeps, and without.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm4dsr.config import Config, ModelConfig
from llm4dsr.core.arrays import BoolArray
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.core.memory import resident_memory
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import Windows
from llm4dsr.denoise import best_items
from llm4dsr.denoise.best_items import ItemRanker
from llm4dsr.denoise.build_model import build_model
from llm4dsr.denoise.predictions import Predictions
from llm4dsr.denoise.ranking import RankingWeights
from llm4dsr.denoise.score import score_windows
from llm4dsr.denoise.suggest import FLAGS, Suggestions, suggest
from llm4dsr.features.collaborative import SIZES, CollaborativeVectors
from llm4dsr.features.cooccurrence import CooccurrenceCounts
from llm4dsr.features.pair_counts import pair_keys
from llm4dsr.features.title_vectors import title_vectors
from llm4dsr.lm import CatalogueTree, decode_in_catalogue
from llm4dsr.lm.collate import collate
from llm4dsr.lm.decode import decode_freely, next_states
from llm4dsr.lm.embedded import embedded_lm
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.lm.tokens import Tokens

TEXT = ModelConfig(item_input="title", readout="title", vocabulary=4000)
SHAPES = {  # of Llama; the second is that of SmolLM2-135M
    "tiny": dict(vocab_size=4096, hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4),
    "SmolLM2-135M": dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3),
}  # fmt: skip
PROMPTS, LENGTH, EXCLUDED = 16, 128, 10
MILLION = 1_000_000
REPEATS = 3  # of each way
WINDOWS, SECOND = 2048, 0.2  # windows of Toys, and how many of them have a second flag
WEIGHTS = RankingWeights(14.0, 0.7, 2.7, 0.5)  # about those that are fitted on Toys


Timer = Callable[[Callable[[], Any], int], float]  # (a call, repeats) → seconds


def cpu_seconds(run: Callable[[], Any], repeats: int) -> float:
    """The least CPU time of several repeats."""
    out = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        out.append(time.process_time() - start)
    return min(out)


def gemm_speed() -> float:
    """Floating-point operations per CPU second of a large matrix product, in billions."""
    x = torch.randn(1024, 1024)
    return 2 * 1024**3 / cpu_seconds(lambda: x @ x, 20) / 1e9


# --- titles ----------------------------------------------------------------------------------------------------------


class Counted(NoiseLM):
    """Counts how often next tokens are asked for."""

    asked = 0

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """As it is, and count."""
        self.asked += 1
        return super().logits(hidden)


def tokenized(data: Dataset, many: int) -> tuple[list[list[int]], list[list[int]], Any]:
    """(the titles of a catalogue as tokens, so many that join halves of two of them, the tokenizer)."""
    titles = data.catalogue.titles
    _, tokenizer = embedded_lm(titles, TEXT, 512, seed=0)
    (close,) = tokenizer('"', add_special_tokens=False).input_ids
    own = [[*ids, close] for ids in tokenizer(titles, add_special_tokens=False).input_ids]
    pairs = np.random.default_rng(0).integers(0, len(own), (many, 2)).tolist()
    return own, [own[a][: len(own[a]) // 2] + own[b][len(own[b]) // 2 :] for a, b in pairs], tokenizer


def decode(data: Dataset) -> dict[str, Any]:
    """Milliseconds of each new token of a batch, free and constrained; what the trees cost."""
    of_toys, of_million, tokenizer = tokenized(data, MILLION)
    out: dict[str, Any] = {"trees": {}, "ms per token of a batch": {}}
    trees = {}
    for some in (of_toys, of_million):
        before, start = resident_memory(), time.process_time()
        tree = CatalogueTree(some)
        trees[f"{len(some):,}"] = tree
        arrays = (tree.tokens, tree.children, tree.leaves, tree.first, tree.order)
        out["trees"][f"{len(some):,}"] = {
            "CPU seconds": round(time.process_time() - start, 2), "nodes": len(tree.tokens),
            "titles": len(tree.order), "tokens of a title": round(sum(map(len, some)) / len(some), 1),
            "MB of arrays": round(sum(a.nbytes for a in arrays) / 1e6, 1),
            "MB more in the process": round((resident_memory() - before) / 1e6),
        }  # fmt: skip
        print(out["trees"], flush=True)
    for name, shape in SHAPES.items():
        torch.manual_seed(0)
        lm = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=512, tie_word_embeddings=True))
        found = steps(Counted(lm, tokenizer).eval(), trees, repeats=20 if name == "tiny" else 3)
        out["ms per token of a batch"][name] = found
        print(name, found, flush=True)
    return out


def steps(
    model: Counted, trees: dict[str, CatalogueTree], repeats: int, seconds: Timer = cpu_seconds, count: int = PROMPTS
) -> dict[str, Any]:
    """Milliseconds of each new token of `count` prompts, less the pass over the prompts, and beside free decoding."""
    rng = np.random.default_rng(0)
    prompts = [Tokens(row, [-1] * LENGTH) for row in rng.integers(0, len(model.tokenizer), (count, LENGTH)).tolist()]
    with torch.inference_mode():
        first = [seconds(lambda: next(next_states(model, prompts)), 1) for _ in range(repeats)]
    found: dict[str, Any] = {}
    for size, tree in trees.items():
        rows = rng.integers(0, len(tree.titles), (count, EXCLUDED)).tolist()
        model.asked = 0
        decode_in_catalogue(model, prompts, tree, rows)
        tokens, inside, free = model.asked, [], []
        for _ in range(repeats):  # in turn, so that both meet the same load of the machine; as many tokens
            inside.append(seconds(lambda tree=tree, rows=rows: decode_in_catalogue(model, prompts, tree, rows), 1))
            free.append(seconds(lambda tokens=tokens: decode_freely(model, prompts, [-1], tokens), 1))
        ms = [1000 * (min(took) - min(first)) / max(1, tokens - 1) for took in (inside, free)]
        found[size] = {"tokens": tokens, "ms": round(ms[0], 3), "ms free": round(ms[1], 3)}
        found[size]["times free"] = round(ms[0] / ms[1], 2) if ms[1] else None
    return found


# --- vectors ---------------------------------------------------------------------------------------------------------


def untuned(data: Dataset, windows: Windows, config: Config) -> tuple[NoiseLM, PromptBuilder]:
    """The embedded model and its prompts, with title vectors from some windows and the counts of training."""
    counts = CooccurrenceCounts.fit(data.splits["train"], len(data.catalogue), 0)
    vectors = title_vectors(data.catalogue.titles, windows, config.model.title_vectors, config.model.vector_size, 0)
    return build_model(config, data.catalogue, windows, vectors, counts, 0)


def to_suggest(data: Dataset, config: Config) -> tuple[NoiseLM, PromptBuilder, Windows, BoolArray]:
    """A model and its prompts, windows of Toys, and their flags: one in each window, in some a second."""
    windows = data.splits["train"]
    windows = windows.take(np.arange(min(WINDOWS, len(windows))))
    model, builder = untuned(data, windows, config)
    model.eval()
    rng = np.random.default_rng(0)
    flagged = windows.positions == rng.integers(0, windows.lengths)[windows.owners]  # one in each window
    flagged |= windows.positions == np.where(rng.random(len(windows)) < SECOND, 0, -1)[windows.owners]
    return model, builder, windows, flagged


def states(data: Dataset) -> dict[str, Any]:
    """Flags per CPU second with the states that scoring keeps, with a second pass, and as it was before (a second pass,
    and large blocks of items); in turn, so that all meet the same load of the machine."""
    config = Config()
    model, builder, windows, flagged = to_suggest(data, config)
    scored = np.empty((len(windows.items), config.model.hidden_size), np.float32)
    score_windows(model, builder, windows, data.catalogue, config, states=scored)
    flags, block = int(flagged.sum()), best_items.CPU_BLOCK
    ways = {"before": (best_items.BLOCK, None), "second pass": (block, None), "kept": (block, scored[flagged])}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, Suggestions] = {}
    for _ in range(REPEATS):
        for name, (best_items.CPU_BLOCK, given) in ways.items():
            start = time.process_time()
            found[name] = suggest(model, builder, windows, flagged, data.catalogue, config, WEIGHTS, states=given)
            seconds[name].append(time.process_time() - start)
    before, kept = found["before"], found["kept"]
    return {
        "items": len(data.catalogue), "windows": len(windows), "flags": flags,
        "flags per CPU second": {name: [round(flags / s) for s in times] for name, times in seconds.items()},
        "items that differ": int((kept.items != before.items).sum()),
        "largest difference of a probability": float(np.abs(kept.probability - before.probability).max()),
    }  # fmt: skip


def rank(data: Dataset) -> dict[str, Any]:
    """Flags of Toys per CPU second, and where the time goes; then catalogues of more items."""
    config = Config()
    model, builder, windows, flagged = to_suggest(data, config)
    flags, vectors = int(flagged.sum()), model.vectors
    assert vectors is not None

    def passes() -> None:
        for start in range(0, len(windows), 256):
            prompts = builder.prompts(windows.take(np.arange(start, min(start + 256, len(windows)))))
            with torch.inference_mode():
                model.hidden(collate(prompts, model.device))

    tokens = sum(len(prompt) for prompt in builder.prompts(windows))
    layers = sum(p.numel() for name, p in model.base.named_parameters() if "layers" in name)
    flop = {"model": 2 * layers * tokens, "items": 2 * (vectors.shape[1] + max(SIZES)) * len(vectors) * flags}
    speed = gemm_speed()

    def made(with_config: Config) -> float:
        return cpu_seconds(lambda: suggest(model, builder, windows, flagged, data.catalogue, with_config, WEIGHTS), 4)

    whole, half, alone = made(config), made(Config.from_dict({"model": {"dtype": "bf16"}})), cpu_seconds(passes, 4)
    out: dict[str, Any] = {
        "toys": {
            "items": len(data.catalogue), "windows": len(windows), "flags": flags,
            "MFLOP per flag": {name: round(count / flags / 1e6, 1) for name, count in flop.items()},
            "flags per CPU second of matrix products alone": round(1e9 * speed * flags / sum(flop.values())),
            "of matrix products of items alone": round(1e9 * speed * flags / flop["items"]),
            "flags per CPU second": round(flags / whole),
            "flags per CPU second, with dtype: bf16": round(flags / half),
            "flags per CPU second, without prompts and passes of the model": round(flags / (whole - alone)),
        }
    }  # fmt: skip
    print(out, flush=True)
    out["more items"] = {f"{n:,}": ranked(n, vectors.shape[1]) for n in (len(data.catalogue), 100_000, MILLION)}
    return out


def ranked(n_items: int, width: int, device: str = "cpu", timer: Timer = cpu_seconds) -> dict[str, float]:
    """Milliseconds of one flag, among so many items of random vectors with ten neighbors each."""
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, n_items, (2, 5 * n_items))
    pairs = np.unique(pair_keys(left[left != right], right[left != right]))
    vectors = CollaborativeVectors(rng.random((1, n_items, max(SIZES)), np.float32), np.empty(0, np.uint64))
    vectors.vectors[:] -= 0.5
    counts = CooccurrenceCounts(
        pairs, rng.integers(1, 9, len(pairs)), rng.integers(1, 99, n_items), np.empty(0, np.uint64), vectors
    )
    histories = Windows.from_lists(rng.integers(0, n_items, (FLAGS, 10)).tolist())
    model = torch.nn.Module()
    model.register_buffer("vectors", torch.rand(n_items, width).sub_(0.5).to(device))
    ranker = ItemRanker(model, counts, Unnamed(n_items), WEIGHTS)  # type: ignore[arg-type]
    query = torch.nn.functional.normalize(torch.randn(FLAGS, width), dim=-1).to(device)
    predictions = Predictions(np.arange(FLAGS), query, histories, np.ones(len(histories.items), dtype=bool))
    before = resident_memory()
    seconds = timer(lambda: ranker.best(predictions, histories, np.arange(FLAGS), 2), 2)
    found = {
        "ms": round(1000 * seconds / FLAGS, 3),
        "GFLOP per CPU second": round(2 * (width + max(SIZES)) * n_items * FLAGS / seconds / 1e9, 1),
        "MB more in the process": round((resident_memory() - before) / 1e6),
    }
    print(n_items, found, flush=True)
    return found


class Unnamed:
    """A catalogue of different titles that nothing reads."""

    def __init__(self, size: int) -> None:
        self.canonical = np.arange(size)

    def __len__(self) -> int:
        return len(self.canonical)


def processor() -> str:
    """The name of the CPU, as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


def main() -> None:
    """Measure, and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["decode", "rank", "states"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = read_data(args.data)
    found = {"decode": decode, "rank": rank, "states": states}[args.part](data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    found |= {"GFLOP per CPU second of a matrix product": round(gemm_speed(), 1), "peak MB": peak}
    found |= {
        "machine": f"one of {os.cpu_count()} cores of an {processor()}, shared with other work",
        "versions": versions(),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / f"{args.part}.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
