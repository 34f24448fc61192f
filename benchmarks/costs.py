"""What a default run costs at sizes from ten thousand to a billion interactions.

    python benchmarks/costs.py --data WINDOWS --interactions N --machine WORDS --out benchmarks/results/costs

Computed by the formulas of the estimate that begins each run (`pipeline/estimate.py`, `pipeline/probe.py`), with speeds
that are measured on WINDOWS, prepared windows of some ten thousand interactions such as those of benchmarks/scale.py,
on one core. The log of each size has ten interactions a user, and one item for fifty interactions, at most a million.
Beside it stands what benchmarks/scale.py measured. Takes a few minutes.

- Judges: EASE is left out where its matrices would take more than EASE_BYTES, as a run does on such a machine.
- GPU: tuning and scoring are divided by the ratios of benchmarks/results/gpu.
- Cluster: scoring is divided by its cores; all else is counted as done by one of them, and all are paid for.
- A sample: a run on a million interactions, then `llm4dsr apply` on all histories, at the speed of benchmarks/apply.py.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm4dsr.config import Config
from llm4dsr.core.arrays import IntArray
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.core.memory import resident_memory
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.read import read_data
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.lm.shape import lm_shape
from llm4dsr.pipeline.estimate import needs
from llm4dsr.pipeline.preflight import KEPT, duration, readable
from llm4dsr.pipeline.probe import measure, neighborhood_seconds, seconds
from llm4dsr.pipeline.sizes import Sizes, distinct_pairs
from llm4dsr.recommenders.ease import memory_needed

SIZES = [10**power for power in range(4, 10)]
STAGES = ("train", "score", "decide", "suggest")
MOST_ITEMS = 1_000_000
EASE_BYTES = 16 * 2**30
SAMPLE = 1_000_000  # interactions
CORES = 64  # of the cluster
PRICE_CORE, PRICE_GPU = 0.05, 4.0  # dollars an hour; of a core, and of a machine with one GPU
RESULTS = Path(__file__).parent / "results"


def scaled(of: Sizes, frequencies: IntArray, interactions: int, before: int) -> Sizes:
    """Sizes of a log of so many interactions, from one of `before` and how often each of its items occurs."""
    f, items = interactions / before, min(MOST_ITEMS, interactions // 50)
    like_them = np.sort(frequencies)[np.arange(items) * len(frequencies) // items]
    return replace(
        of, items=items, characters=round(of.characters * items / of.items), owned=round(of.owned * f),
        pairs=round(distinct_pairs(like_them, of.owned * f)),
        windows={name: round(count * f) for name, count in of.windows.items()},
        interactions={name: round(count * f) for name, count in of.interactions.items()},
    )  # fmt: skip


def measured_sizes(data: Dataset, config: Config) -> Sizes:
    """Sizes of the windows at hand."""
    _, tokenizer = lm_shape(config.model, data.catalogue.titles, config.train.max_tokens)
    builder = PromptBuilder(tokenizer, data.catalogue.titles, config.model, config.train.max_tokens)
    some = [len(builder.prompt(data.splits["train"].row(i))) for i in range(256)]
    return Sizes.of(data, config, sum(some) / len(some), 0.0)


def costs(data: Dataset, before: int) -> Iterator[dict[str, Any]]:
    """What each size costs."""
    torch.set_num_threads(1)
    config = replace(Config(), threads=1)
    at_hand, windows = measured_sizes(data, config), data.splits["train"]
    frequencies = np.bincount(windows.items, minlength=len(data.catalogue))
    shape, _ = lm_shape(config.model, data.catalogue.titles, config.train.max_tokens)
    rows = json.loads((RESULTS / "gpu/embedded.json").read_text())["rows"]
    gpu = {row["part"].split()[0]: row["ratio"] for row in rows if "ratio" in row}
    known = json.loads((RESULTS / "scale/results.json").read_text())["sizes"]
    applied = json.loads((RESULTS / "apply/results.json").read_text())["models"]["default"]
    most = max(applied, key=int)
    history = applied[most]["cpu_seconds"] / int(most)
    sample = np.nan
    for count in SIZES:
        sizes = scaled(at_hand, frequencies, count, before)
        with_ease = memory_needed(sizes.items) <= EASE_BYTES
        speeds = measure(data, config, sizes, list(STAGES))
        if not with_ease:
            speeds = replace(speeds, judged=neighborhood_seconds("itemknn", data, config, sizes))
        took = {name: found for name, found in seconds(speeds, sizes, config, 1).items() if name in STAGES}
        found = needs(sizes, shape, config, {"itemknn": 1, "ease": int(with_ease), "evaluate": 0}, 0, False)
        folds = config.train.folds
        fitted = min(config.train.samples, sizes.windows["train"] * (folds - 1) / folds)
        tuned, total, scoring = folds * config.train.epochs * fitted * speeds.tuned, sum(took.values()), took["score"]
        measured = known.get(str(count))
        sample = total if count == SAMPLE else sample
        yield {
            "interactions": count, "windows": sizes.all_windows, "items": sizes.items, "EASE": with_ease,
            "core seconds": {name: round(found, 1) for name, found in took.items()},
            "with a GPU": round(total - tuned - scoring + tuned / gpu["tune"] + scoring / gpu["score"], 1),
            "on a cluster": round(total - scoring + scoring / CORES, 1),
            "sample and apply": None if count <= SAMPLE else [round(sample, 1), round(count / 10 * history, 1)],
            "speeds": asdict(speeds),
            "memory": max(found[name].memory for name in STAGES) + resident_memory() + KEPT,
            "disk": sum(found[name].disk for name in ("prepare", *STAGES, "correct")),
            "measured": measured and {
                "core seconds": sum(measured[name]["cpu_seconds"] for name in STAGES),
                "memory": 2**20 * max(measured[name]["peak_memory_mb"] for name in STAGES),
            },
        }  # fmt: skip


def page(found: list[dict[str, Any]], machine: str) -> str:
    """The tables of all sizes."""
    lines = [
        f"| interactions | windows | items | one core | with a GPU | cluster of {CORES} cores | memory | disk |",
        "|---" * 8 + "|",
    ]
    samples = [f"| interactions | one core | {CORES} cores | dollars |", "|---" * 4 + "|"]
    steps = ["| interactions | `tune` | `score` | `flag` | `features` | `judges` |", "|---" * 6 + "|"]
    for one in found:
        of, gpu, cluster = one["core seconds"], one["with a GPU"], one["on a cluster"]
        total = sum(of.values())
        cells = [
            f"{one['interactions']:,}", f"{one['windows']:,}", f"{one['items']:,}", priced(total, PRICE_CORE),
            priced(gpu, PRICE_GPU), priced(cluster, CORES * PRICE_CORE), readable(one["memory"]), readable(one["disk"]),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
        if told := one["measured"]:
            cells = [priced(told["core seconds"], PRICE_CORE), "", "", readable(told["memory"]), ""]
            lines.append("| *measured* | | | " + " | ".join(cells) + " |")
        if one["sample and apply"]:
            fitted, applied = one["sample and apply"]
            cells = [
                duration(fitted + applied),
                duration(fitted + applied / CORES),
                money(fitted + applied, PRICE_CORE),
            ]
            samples.append(f"| {one['interactions']:,} | " + " | ".join(cells) + " |")
        took = one["speeds"]
        ease = "" if one["EASE"] else " (without EASE)"
        cells = [
            f"{1000 * took['tuned']:.2g} ms", f"{1000 * took['scored']:.2g} ms", f"{1000 * took['suggested']:.2g} ms",
            duration(took["features"]), duration(took["judged"]) + ease,
        ]  # fmt: skip
        steps.append(f"| {one['interactions']:,} | " + " | ".join(cells) + " |")
    whole, parts, speeds = "\n".join(lines), "\n".join(samples), "\n".join(steps)
    return f"""# What a default run costs

    python benchmarks/costs.py --data WINDOWS --interactions N --machine WORDS --out benchmarks/results/costs

Computed, with speeds measured on one core of {machine}; rows *measured* are [whole runs](../scale/README.md) on the
machine that their page names.
Assumptions are in the benchmark's docstring. Evaluation is not among the stages. Dollars are at {PRICE_CORE:.2f} an
hour for a core and {PRICE_GPU:.2f} for a machine with a GPU.

{whole}

The same, with a run on {SAMPLE:,} interactions and `llm4dsr apply` on all histories:

{parts}

## The formula

    train  = features + 3 models × 5 epochs × min(12,000, 2/3 of training windows) × tune
             + (validation windows × 3 × 7 + 3 × min(training windows, 20,000)) × score
    score  = (training windows + 3 × those of validation and test + injected ones) × score
    decide = (sum of the rates tried) × interactions × flag + corrections tried × judges

Injected ones are 2 × min(3 × windows, 20,000) of each split, by as many models as the others. `pipeline/probe.py` holds
it in full. What it multiplies:

{speeds}
"""


def priced(seconds: float, price: float) -> str:
    """A time and its price."""
    return f"{duration(seconds)}, {money(seconds, price)}"


def money(seconds: float, price: float) -> str:
    """Dollars at a price an hour."""
    dollars = seconds / 3600 * price
    return f"${dollars:,.0f}" if dollars >= 10 else f"${dollars:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--interactions", type=int, required=True, help="of the log that WINDOWS were made from")
    parser.add_argument("--machine", required=True, help="in words")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = list(costs(read_data(given.data), given.interactions))
    facts = {"sizes": found, "machine": given.machine, "versions": versions()}
    write_text(given.out / "results.json", json.dumps(facts, indent=1))
    write_text(given.out / "README.md", page(found, given.machine))
    print(page(found, given.machine))


if __name__ == "__main__":
    main()
