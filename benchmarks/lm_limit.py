"""Scoring with a language model beside its limit: a plain forward pass over as many tokens, packed without padding.

    taskset -c 1 python benchmarks/lm_limit.py --data DATA/toys --out benchmarks/results/lm-limit

Needed tokens are those of the prompts and of the trees behind them; the instruction, which all prompts begin with,
counts once. The limit computes as many tokens in rows of the mean length: causal attention of transformers (sdpa)
without a mask, and next-token logits for as many of them as a readout reads. Both take turns on one thread and count
CPU time, so other work on the machine matters little. Weights are random: time does not depend on what they say.

Prompts are those of test histories, with the tokenizer of SmolLM2 or that of the embedded model. A few of about the
median length are measured, as scoring reads histories of equal length together; padding is that of MANY of any length.
`--before` names the results.json of an earlier version of the package, measured in the same way. `--profile` tells
where the time of a readout goes. Takes about 5 CPU minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from llm4dsr.config import EMBEDDED, SMOLLM2, Config, ModelConfig, TrainConfig
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.denoise.score import score_windows
from llm4dsr.lm.collate import token_batches
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.passes import scoring_tokens_of
from llm4dsr.lm.prefix_tree import WindowTree
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.lm.shape import lm_shape

READOUTS = ("per_position", "likelihood", "title")
SHAPES: dict[str, dict[str, int]] = {
    EMBEDDED: {"hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 3, "num_attention_heads": 4},
    SMOLLM2: {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
              "num_key_value_heads": 3},
}  # fmt: skip
NAMES = {EMBEDDED: "embedded, 3 layers of 192", SMOLLM2: "SmolLM2-135M"}
WINDOWS = {EMBEDDED: 96, SMOLLM2: 8}  # measured: neighbors in length, as in the passes of a large run
MANY = 2048  # whose padding is told
MAX_TOKENS = 1024
SHOWN = 12  # operators of a profile


class Counted(NoiseLM):
    """Counts the tokens of its passes, padding included."""

    tokens = 0

    def states(self, embeds: torch.Tensor, **kwargs: Any) -> Any:
        """As it is, and count."""
        self.tokens += embeds.shape[0] * embeds.shape[1]
        return super().states(embeds, **kwargs)


@dataclass
class Work:
    """What a readout cannot do without."""

    sizes: list[int]  # tokens of each row, without the instruction
    head: int  # tokens of the instruction
    logits: int  # of so many tokens

    @property
    def tokens(self) -> int:
        """Tokens of all rows, and of the instruction once."""
        return sum(self.sizes) + self.head

    @property
    def width(self) -> int:
        """Tokens of a row, on average."""
        return round(float(np.mean(self.sizes)))

    def padding(self, budget: int) -> float:
        """Padding of all passes of scoring, relative to the tokens of rows."""
        rows = [size + self.head for size in self.sizes]
        groups = list(token_batches(rows, budget))
        return sum(len(group) * rows[group[0]] for group in groups) / sum(rows) - 1


def needed(builder: PromptBuilder, windows: Windows, readout: str) -> Work:
    """Count the tokens and logits of a readout."""
    rows = [windows.row(i) for i in range(len(windows))]
    logits = 0
    if readout == "likelihood":
        rows = [ordered for row in rows for ordered in (row, row[::-1])]
        rows += [[item] for item in np.unique(windows.items).tolist()]
        logits = sum(len(builder.titles[item]) for row in rows for item in row)
    sizes = [len(builder.prompt(row)) - len(builder.head) for row in rows]
    if readout == "title":
        nodes = [len(WindowTree.of([builder.titles[item] for item in set(row)]).tokens) for row in rows]
        sizes = [a + b for a, b in zip(sizes, nodes, strict=True)]
        logits = sum(nodes) + len(nodes)
    return Work(sizes, len(builder.head), logits)


@torch.inference_mode()
def packed(model: NoiseLM, work: Work, budget: int) -> None:
    """The limit: whole rows in passes of `budget` tokens, the last one shorter, and logits of a part of the tokens."""
    head, width = model.base.get_output_embeddings(), work.width
    left = work.tokens
    while left > 0:
        size = min(left, budget)
        ids = torch.ones(max(1, size // width), min(size, width), dtype=torch.long, device=model.device)
        states = model.base.base_model(input_ids=ids, use_cache=False).last_hidden_state
        head(states.flatten(0, 1)[: round(ids.numel() * work.logits / work.tokens)])
        left -= ids.numel()


def cpu_seconds(run: Callable[[], Any]) -> float:
    """CPU time of a call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def model_of(source: str, data: Dataset) -> Counted:
    """A model of random weights with the tokenizer of a source."""
    _, tokenizer = lm_shape(ModelConfig(source=source, item_input="title"), data.catalogue.titles, MAX_TOKENS)
    torch.manual_seed(0)
    lm = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, tie_word_embeddings=True, **SHAPES[source])
    )
    return Counted(lm, tokenizer).eval()


def measure(data: Dataset, source: str, rounds: int, profiled: str | None) -> dict[str, Any]:
    """All readouts of one shape, each beside its limit."""
    model, out = model_of(source, data), dict[str, Any]()
    many = limit_windows(data.splits["test"], MANY, 0).histories()
    for readout in READOUTS if profiled is None else (profiled,):
        settings = ModelConfig(source=source, item_input="title", readout=readout)  # type: ignore[arg-type]
        config = Config(model=settings, train=TrainConfig(max_tokens=MAX_TOKENS))
        builder = PromptBuilder(model.tokenizer, data.catalogue.titles, settings, MAX_TOKENS)
        lengths = [len(prompt) for prompt in builder.prompts(many)]
        half, count = len(many) // 2, WINDOWS[source] // 2
        windows = many.take(np.sort(np.argsort(lengths, kind="stable")[half - count : half + count]))
        work, budget = needed(builder, windows, readout), scoring_tokens_of(model, config)

        def ours(some: Windows, builder: PromptBuilder = builder, config: Config = config) -> None:
            score_windows(model, builder, some, data.catalogue, config)

        if profiled is not None:
            with profile(activities=[ProfilerActivity.CPU]) as found:
                ours(windows)
            print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=SHOWN, max_name_column_width=40))
            continue
        ours(windows.take(np.arange(2)))
        times: dict[str, list[float]] = {"ours": [], "packed": []}
        for _ in range(rounds):
            model.tokens = 0
            times["ours"].append(cpu_seconds(partial(ours, windows)))
            times["packed"].append(cpu_seconds(partial(packed, model, work, budget)))
        spent = {name: statistics.median(of) for name, of in times.items()}
        out[readout] = {
            "windows": len(windows), "needed tokens": work.tokens, "tokens whose logits are read": work.logits,
            "computed tokens": model.tokens, "tokens of a pass": budget, "CPU seconds": times,
            "padding in many": needed(builder, many, readout).padding(budget),
            "needed tokens per second": work.tokens / spent["ours"],
            "tokens per second, packed": work.tokens / spent["packed"],
            "of the packed pass": statistics.median(b / a for a, b in zip(*times.values(), strict=True)),
        }  # fmt: skip
        print(source, readout, out[readout], flush=True)
    return out


def page(found: dict[str, Any], before: dict[str, Any] | None) -> str:
    """The table of all shapes and readouts."""
    lines = []
    for source, readouts in found.items():
        for readout, row in readouts.items():
            earlier = f"{before[source][readout]['of the packed pass']:.2f}" if before else ""
            speeds = f"{row['needed tokens per second']:,.0f} | {row['tokens per second, packed']:,.0f}"
            cells = f"{speeds} | {row['padding in many']:.1%} | {earlier} | {row['of the packed pass']:.2f}"
            lines.append(f"| {NAMES[source]} | `{readout}` | {cells} |")
    return f"""# Scoring with a language model, beside a plain forward pass

    taskset -c 1 python benchmarks/lm_limit.py --data DATA/toys --out benchmarks/results/lm-limit

Toys, fp32, one thread of an Intel Xeon (AVX-512) that was shared with other work; CPU time, medians of alternating
rounds. *Packed* is a plain causal pass of transformers over as many tokens without padding, with as many next-token
logits. *Needed* tokens count the instruction once. *Padding* is that of 2,048 histories of any length, relative to
their tokens. The last columns divide needed tokens per second by those of the packed pass; 1 is the limit.
[results.json](results.json) has every round.

| shape | readout | needed tokens/s | packed tokens/s | padding | ratio before | ratio |
|---|---|---|---|---|---|---|
{chr(10).join(lines)}

- Single rounds differ by a tenth. The code of `per_position` is the same before and now, so its two ratios show how far
  to trust the others.
- Matrix products take 83 % of the time of `likelihood` with SmolLM2, attention 5 %, log-sum-exp 2 % (`--profile`). With
  the embedded model these are 61, 7 and 11 %.
- Nothing here was measured on a GPU, nor at 1 or 8 billion parameters; `benchmarks/gpu.py` measures that.
"""


def main() -> None:
    """Measure, and write results.json and README.md."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", required=True, help="windows, as every command takes them")
    options.add_argument("--out", type=Path, help="a folder for results.json and README.md")
    options.add_argument("--shapes", default=",".join(SHAPES))
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--before", type=Path, help="results.json of an earlier version")
    options.add_argument("--profile", choices=READOUTS, help="print where the time of a readout goes, and nothing else")
    given = options.parse_args()
    torch.set_num_threads(1)
    data = read_data(given.data)
    found = {source: measure(data, source, given.rounds, given.profile) for source in given.shapes.split(",")}
    if given.profile or given.out is None:
        return
    before = json.loads(given.before.read_text()) if given.before else None
    given.out.mkdir(parents=True, exist_ok=True)
    result = {"versions": versions(), "now": found, "before": before and before["now"]}
    write_text(given.out / "results.json", json.dumps(result, indent=1) + "\n")
    write_text(given.out / "README.md", page(found, result["before"]))


if __name__ == "__main__":
    main()
