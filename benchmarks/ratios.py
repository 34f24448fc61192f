"""One table of what was measured beside its limit or its former self, and of what was aimed at.

    python benchmarks/ratios.py --out benchmarks/results/ratios

Reads the results of the other benchmarks, and measures nothing. Each row is from one run on one machine, which its page
names.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from llm4dsr.core.io import write_text

RESULTS = Path(__file__).parent / "results"
Row = tuple[str, str, str, str, str]  # what, measured, beside it, ratio, aim
MODELS = {"embedded": "embedded shape", "smollm2": "SmolLM2-135M", "tiny": "Llama, 2 layers of 128"}


def read(name: str) -> Any:
    """Results of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def scoring() -> Iterator[Row]:
    """Scoring with a language model, beside a packed pass."""
    for shape, readouts in read("lm-limit/results")["now"].items():
        for readout, found in readouts.items():
            yield (
                f"scoring, {MODELS[shape]}, `{readout}`: tokens a second", f"{found['needed tokens per second']:,.0f}",
                f"{found['tokens per second, packed']:,.0f} in a packed forward pass",
                f"{found['of the packed pass']:.2f}", "0.85",
            )  # fmt: skip


def laptop() -> Iterator[Row]:
    """A pre-trained model on one core, beside the plain way."""
    found = read("lm-laptop/results")
    for what in ("tuning", "scoring"):
        before = found["fp32"]["s a window"][f"{what} before"]
        for dtype in ("fp32", "bf16"):
            now = found[dtype]["s a window"][what]
            yield (f"{what} with SmolLM2, {dtype}: seconds a window", f"{now:.2f}", f"{before:.2f} the plain way",
                   f"{before / now:.1f}", "2")  # fmt: skip
    for dtype in ("fp32", "bf16"):
        used, told = (found[dtype][key]["tuning"] for key in ("peak memory, GiB", "told beforehand, GiB"))
        yield (f"tuning SmolLM2, {dtype}: GiB told beforehand", f"{told:.1f}", f"{used:.1f} used", f"{told / used:.2f}",
               "0.8 to 1.2")  # fmt: skip


def suggesting() -> Iterator[Row]:
    """Suggesting, beside free decoding, fewer items, and a second pass."""
    for model, sizes in read("suggest/decode")["ms per token of a batch"].items():
        for titles, found in sizes.items():
            yield (f"a token in the tree of {titles} titles, {MODELS.get(model, model)}: ms of 16 prompts",
                   f"{found['ms']:.1f}", f"{found['ms free']:.1f} free", f"{found['times free']:.2f}",
                   "at most 1.2")  # fmt: skip
    ranked = read("suggest/rank")["more items"]
    few, many = ranked["11,758"]["ms"], ranked["1,000,000"]["ms"]
    yield ("a flag's ranking of 1,000,000 items: ms", f"{many:.1f}", f"{few:.2f} of 11,758 items", f"{many / few:.0f}",
           "at most 2")  # fmt: skip
    flags = {way: median(found) for way, found in read("suggest/states")["flags per CPU second"].items()}
    yield ("vector suggestions: flags a CPU second", f"{flags['kept']:,.0f}", f"{flags['before']:,.0f} before",
           f"{flags['kept'] / flags['before']:.1f}", "2,500 flags")  # fmt: skip


def size() -> Iterator[Row]:
    """Memory and time at more rows, and more workers."""
    found = read("counts/results")
    before, after = (found[when]["3000000"]["count"]["peak"] / 2**20 for when in ("before", "after"))
    yield (
        "counting 3,000,000 interactions: MiB",
        f"{after:,.0f}",
        f"{before:,.0f} before",
        f"{after / before:.2f}",
        "",
    )
    for model, sizes in read("apply/results")["models"].items():
        few, many = min(sizes, key=int), max(sizes, key=int)
        memory = {n: sizes[n]["peak_memory_mb"] for n in (few, many)}
        yield (f"`apply` on {int(many):,} histories, model *{model}*: MiB", f"{memory[many]:,}",
               f"{memory[few]:,} with {int(few):,}", f"{memory[many] / memory[few]:.2f}", "0.95 to 1.05")  # fmt: skip
    seconds = {row["workers"]: row["seconds"] for row in read("ray/results")["results"]}
    yield ("Ray, scoring with two workers: seconds", f"{seconds[2]:.0f}", f"{seconds[1]:.0f} with one",
           f"{seconds[1] / seconds[2]:.2f}", "1.7")  # fmt: skip


def page() -> str:
    """All rows."""
    lines = ["| | measured | beside it | ratio | aim |", "|---" * 5 + "|"]
    lines += ["| " + " | ".join(row) + " |" for rows in (scoring, laptop, suggesting, size) for row in rows()]
    table = "\n".join(lines)
    return f"""# Ratios

    python benchmarks/ratios.py --out benchmarks/results/ratios

Each ratio is from one run on one machine. Machines, commands and noise are on the pages:
[scoring](../lm-limit/README.md), [SmolLM2](../lm-laptop/README.md), [suggesting](../suggest/README.md),
[counts](../counts/README.md), [`apply`](../apply/README.md), [Ray](../ray/README.md). The embedded model has [its
own](../embedded/README.md).

{table}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    write_text(out / "README.md", page())
    print(page())


if __name__ == "__main__":
    main()
