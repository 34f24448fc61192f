"""Tuning and scoring of the embedded model, on one core and on all, beside the matrix products in them.

    python benchmarks/embedded.py --data DATA/toys --out benchmarks/results/embedded

Default options. One model is tuned for one epoch on training windows, and scores test histories; its co-occurrence
features are part of both, title vectors and counts are not. Stacking is measured as it follows scoring. Each round
measures one core, then all; figures are medians of wall time over rounds. Before the first, everything has run once.

The limit is the time of the model's matrix products alone: 2 operations for each weight of its layers and each token,
three times as many in tuning, at the speed of one large product on as many cores. `--limit` takes fewer windows.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from llm4dsr.config import Config
from llm4dsr.core.device import available_cpus
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import limit_windows
from llm4dsr.denoise.score import score_windows
from llm4dsr.denoise.stacking import evidence
from llm4dsr.denoise.train import tune
from suggest import untuned

WINDOWS, ROUNDS = 6_000, 5
SIDE = 2048  # of the matrices whose product shows the speed of the cores
AIMS = {"tuning": 1500, "scoring": 2500}  # windows a second on two cores


def timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(data: Dataset, limit: int, rounds: int) -> dict[str, Any]:
    """Seconds of all rounds, and what they did."""
    config = Config()
    once = replace(config, train=replace(config.train, epochs=1, samples=0))
    train = limit_windows(data.splits["train"], limit, 0)
    histories = limit_windows(data.splits["test"], limit, 0).histories()
    model, builder = untuned(data, train, config)
    counts, vectors = builder.cooccurrence, model.vectors
    assert counts is not None
    assert vectors is not None
    titles = vectors.numpy()
    log_odds = score_windows(model, builder, histories, data.catalogue, config)
    matrix = torch.randn(SIDE, SIDE)
    jobs: dict[str, Callable[[], Any]] = {
        "tuning": lambda: tune(model, builder, train, data.catalogue, once),
        "scoring": lambda: score_windows(model, builder, histories, data.catalogue, config),
        "stacking": lambda: evidence(histories, log_odds, counts, titles),
        "product": lambda: matrix @ matrix,
    }
    cores = sorted({1, available_cpus()})
    found: dict[str, Any] = {str(n): {name: [] for name in jobs} for n in cores}
    for run in jobs.values():
        run()
    for _ in range(rounds):
        for n in cores:
            torch.set_num_threads(n)
            for name, run in jobs.items():
                found[str(n)][name].append(timed(run))
                print(n, name, f"{found[str(n)][name][-1]:.3f} s", flush=True)
    layers = sum(p.numel() for name, p in model.base.named_parameters() if ".layers." in name)
    tokens = {"tuning": train, "scoring": histories}
    return {
        "windows": {"tuning": len(train), "scoring": len(histories), "stacking": len(histories)},
        "tokens of a window": {
            name: float(np.mean([len(p) for p in builder.prompts(some.take(np.arange(min(len(some), 256))))]))
            for name, some in tokens.items()
        },
        "weights of the layers": layers,
        "seconds": found,
    }


def page(found: dict[str, Any]) -> str:
    """The table."""
    lines = ["| cores | | windows a second | matrix products alone | share of that | aim |", "|---" * 6 + "|"]
    for cores, seconds in found["seconds"].items():
        speed = 2 * SIDE**3 / median(seconds["product"])
        for name in ("tuning", "scoring", "stacking"):
            rate = found["windows"][name] / median(seconds[name])
            cells = [f"{rate:,.0f}", "", "", ""]
            if name in AIMS:
                work = 2 * found["weights of the layers"] * found["tokens of a window"][name]
                most = speed / (work * (3 if name == "tuning" else 1))
                cells[1:3] = f"{most:,.0f}", f"{rate / most:.0%}"
                cells[3] = f"{AIMS[name]:,}" if cores == "2" else ""
            lines.append(f"| {cores} | {name} | " + " | ".join(cells) + " |")
    table = "\n".join(lines)
    of = found["tokens of a window"]
    return f"""# Speed of the embedded model

    {found["command"]}

Toys, default options: {found["weights of the layers"]:,} weights in the layers, {of["tuning"]:.0f} tokens a window in
tuning and {of["scoring"]:.0f} in scoring. Machine: {found["machine"]}. [results.json](results.json) has every round.

{table}

*Stacking* follows scoring. A default run tunes three models, each five times; newer users are scored by all three.
Where all cores give less than one core times their number, a process for each would be faster than a thread for each;
runs use threads today.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=WINDOWS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--machine", required=True, help="in words, and what else it did")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = measure(read_data(given.data), given.limit, given.rounds)
    command = "python benchmarks/embedded.py --data DATA/toys --out benchmarks/results/embedded"
    found |= {"machine": given.machine, "command": command, "versions": versions()}
    write_text(given.out / "results.json", json.dumps(found, indent=1) + "\n")
    write_text(given.out / "README.md", page(found))
    print(page(found))


if __name__ == "__main__":
    main()
