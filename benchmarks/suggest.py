"""Suggesting beside what the hardware can do: titles decoded in the catalogue, and items ranked by vectors.

    taskset -c 1 python benchmarks/suggest.py decode --data DATA/toys --out benchmarks/results/suggest
    taskset -c 1 python benchmarks/suggest.py rank --data DATA/toys --out benchmarks/results/suggest

Both use one thread and count CPU time, the least of several repeats, so that other work on the machine matters little.
Weights are random: time does not depend on what they say. DATA/toys holds items.parquet and train.parquet.

`decode` continues prompts freely and inside the tree of the catalogue: of Toys, and of a million titles whose halves
are from two of its titles each. `rank` suggests for flags of Toys, then for catalogues of random vectors.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llm4dsr.config import ModelConfig
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.core.memory import resident_memory
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.read import read_data
from llm4dsr.lm import CatalogueTree, decode_in_catalogue
from llm4dsr.lm.decode import decode_freely, next_states
from llm4dsr.lm.embedded import embedded_lm
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.tokens import Tokens

TEXT = ModelConfig(item_input="title", readout="title", vocabulary=4000)
SHAPES = {  # of Llama; the second is that of SmolLM2-135M
    "tiny": dict(vocab_size=4096, hidden_size=128, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4),
    "SmolLM2-135M": dict(vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3),
}  # fmt: skip
PROMPTS, LENGTH, EXCLUDED, STEPS = 16, 128, 10, 16
MILLION = 1_000_000


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


def decode(data: Dataset) -> dict[str, Any]:
    """Milliseconds of each new token of a batch, free and constrained; what the trees cost."""
    titles = data.catalogue.titles
    _, tokenizer = embedded_lm(titles, TEXT, 512, seed=0)
    (close,) = tokenizer('"', add_special_tokens=False).input_ids
    of_toys = [[*ids, close] for ids in tokenizer(titles, add_special_tokens=False).input_ids]
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, len(of_toys), (MILLION, 2)).tolist()
    of_million = [of_toys[a][: len(of_toys[a]) // 2] + of_toys[b][len(of_toys[b]) // 2 :] for a, b in pairs]
    out: dict[str, Any] = {"trees": {}, "ms per token of a batch": {}}
    trees = {}
    for some in (of_toys, of_million):
        before, start = resident_memory(), time.process_time()
        tree = CatalogueTree(some)
        trees[f"{len(some):,}"] = tree
        arrays = (tree.tokens, tree.children, tree.leaves, tree.first, tree.order)
        out["trees"][f"{len(some):,}"] = {
            "CPU seconds": round(time.process_time() - start, 2), "nodes": len(tree.tokens),
            "titles": len(tree.order), "MB of arrays": round(sum(a.nbytes for a in arrays) / 1e6, 1),
            "MB more in the process": round((resident_memory() - before) / 1e6),
        }  # fmt: skip
        print(out["trees"], flush=True)
    for name, shape in SHAPES.items():
        torch.manual_seed(0)
        lm = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=512, tie_word_embeddings=True))
        found = steps(Counted(lm, tokenizer).eval(), trees, repeats=15 if name == "tiny" else 3)
        out["ms per token of a batch"][name] = found
        print(name, found, flush=True)
    return out


def steps(model: Counted, trees: dict[str, CatalogueTree], repeats: int) -> dict[str, Any]:
    """Milliseconds of each new token, less the pass over the prompts, and beside free decoding."""
    rng = np.random.default_rng(0)
    prompts = [Tokens(row, [-1] * LENGTH) for row in rng.integers(0, 4000, (PROMPTS, LENGTH)).tolist()]
    ways = {"free": lambda: decode_freely(model, prompts, [-1], STEPS)}
    for size, tree in trees.items():
        rows = rng.integers(0, len(tree.titles), (PROMPTS, EXCLUDED)).tolist()
        ways[size] = lambda tree=tree, rows=rows: decode_in_catalogue(model, prompts, tree, rows)
    with torch.inference_mode():
        first = cpu_seconds(lambda: next(next_states(model, prompts)), repeats)
    found: dict[str, Any] = {}
    for way, run in ways.items():
        model.asked = 0
        seconds = cpu_seconds(run, repeats)
        tokens = model.asked // repeats
        found[way] = {"ms": round(1000 * (seconds - first) / (tokens - 1), 3), "tokens": tokens}
        found[way]["times free"] = round(found[way]["ms"] / found["free"]["ms"], 2)
    return found


def main() -> None:
    """Measure, and write a JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["decode", "rank"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = read_data(args.data)
    found = {"decode": decode, "rank": decode}[args.part](data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    found |= {"GFLOP per CPU second of a matrix product": round(gemm_speed(), 1), "peak MB": peak}
    found |= {"machine": platform.processor(), "versions": versions()}
    args.out.mkdir(parents=True, exist_ok=True)
    write_text(args.out / f"{args.part}.json", json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
