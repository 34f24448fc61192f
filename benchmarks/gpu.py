"""What a GPU brings, in one script of bounded time for a GPU that is lent for minutes.

    python benchmarks/gpu.py --data DATA/toys --price 4 --out benchmarks/results/gpu
    python benchmarks/gpu.py --page --price 4 --out benchmarks/results/gpu
    python benchmarks/gpu.py --tiny --out /tmp/gpu

The parts run in the order of PARTS, the most wanted first. Each has a limit of time, and a JSON file in OUT that is
written anew after each of its measurements, so what is cut off loses nothing else. All end within `--seconds`.
`--page` reads these files and makes README.md, with costs at another `--price` if given. `--tiny` runs every part with
tiny shapes, on a CPU too; its figures mean nothing.

Large models have random weights: time and memory do not depend on what weights say. Their tokenizer is the embedded
one, fitted to the titles. Without `--data`, titles and histories are those of the demo shop.

The limit of scoring is a plain, packed forward pass over as many tokens (lm_limit.py). "Told" is what the estimate of a
run says (pipeline/estimate.py), "used" the peak of what torch allocated.
"""

from __future__ import annotations

import argparse
import json
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from gpu_page import page, prices
from gpu_parts import Bench, Rows, embedded, matmul, quantized, scoring, small, suggesting, tuning
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.data.demo import make_demo
from llm4dsr.data.read import read_data
from llm4dsr.errors import first_line


def costs(bench: Bench) -> Rows:
    """Hours and money, from the speeds that were measured."""
    yield from prices(bench.given.out, bench.given.price)


PARTS: dict[str, tuple[Callable[[Bench], Rows], int]] = {  # with the most seconds of each
    "matmul": (matmul, 30),
    "score-8b": (partial(scoring, name="8b"), 120),
    "tune-8b": (partial(tuning, name="8b"), 120),
    "suggest": (suggesting, 90),
    "score-1b": (partial(scoring, name="1b"), 45),
    "tune-1b": (partial(tuning, name="1b"), 45),
    "score-135m": (partial(scoring, name="135m"), 30),
    "tune-135m": (partial(tuning, name="135m"), 30),
    "embedded": (embedded, 70),
    "quantized": (quantized, 45),
    "costs": (costs, 10),
}


def measure(rows: Rows, file: Path, limit: float) -> None:
    """Write the rows of a part as they come; after `limit` seconds, or if it fails, say so and keep what is there."""

    def cut(*_: Any) -> None:
        raise TimeoutError(f"cut off after {limit:.3g} s")

    found: dict[str, Any] = {"versions": versions(), "rows": []}
    started, before = time.monotonic(), signal.signal(signal.SIGALRM, cut)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        for row in rows:
            found["rows"].append(row)
            write_text(file, json.dumps(found, indent=1) + "\n")
            print(file.stem, json.dumps(row), flush=True)
    except Exception as error:  # the next parts are measured anyway
        found["stopped"] = f"{type(error).__name__}: {first_line(error)}"
        print(file.stem, found["stopped"], flush=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    found["seconds"] = round(time.monotonic() - started, 1)
    write_text(file, json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Measure, and write a JSON file for each part and README.md."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", help="windows, as every command takes them; default: the demo shop")
    options.add_argument("--out", type=Path, help="a folder for the results")
    options.add_argument("--parts", default=",".join(PARTS), help="some of them, with commas")
    options.add_argument("--seconds", type=float, default=570, help="of all parts")
    options.add_argument("--price", type=float, default=4.0, help="of an hour of the device, in any currency")
    options.add_argument("--tiny", action="store_true", help="tiny shapes, also on a CPU")
    options.add_argument("--page", action="store_true", help="make README.md again from the files in OUT")
    options.add_argument("--core", action="store_true", help=argparse.SUPPRESS)  # print `small`, on this device
    given = options.parse_args()
    data = read_data(given.data) if given.data else make_demo(size="tiny" if given.tiny else "full").data
    bench = Bench(data, given)
    if given.core:
        print(json.dumps(small(bench)))
        return
    if given.out is None:
        options.error("--out is needed.")
    if bench.device != "cuda" and not given.tiny and not given.page:
        options.error("No GPU is here. --tiny runs all parts on a CPU.")
    given.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + given.seconds
    for name in ["costs"] if given.page else given.parts.split(","):
        part, limit = PARTS[name]
        left = end - time.monotonic()
        if left > 1:
            bench.forget()
            measure(part(bench), given.out / f"{name}.json", left if given.tiny else min(limit, left))
    write_text(given.out / "README.md", page(given.out, list(PARTS)))


if __name__ == "__main__":
    main()
