"""What benchmarks on finished runs share: validation histories with injected noise, intervals, and the command."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from llm4dsr import columns as c
from llm4dsr.core.arrays import BoolArray, FloatArray
from llm4dsr.core.cache import PartCache
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.ensemble import Ensemble
from llm4dsr.denoise.injected import ScoredWindows, with_context
from llm4dsr.pipeline import Run

DRAWS = 3  # of injected noise of each kind
Results = dict[str, Any]


def injected_sample(
    ensemble: Ensemble, data: Dataset, limit: int, rng: np.random.Generator
) -> tuple[Windows, ScoredWindows]:
    """At most so many validation histories, and how they are scored as they are and with injected noise."""
    histories, scored = with_context(data.splits[c.VALID].histories()), ScoredWindows()
    histories = histories.take(np.sort(np.random.default_rng(0).permutation(len(histories))[:limit]))
    scored.add(ensemble, histories, np.arange(len(histories)), DRAWS, rng, None, "", PartCache(None))
    return histories, scored


def gain_interval(
    metric: Callable[[FloatArray, BoolArray], float], truth: BoolArray, users: npt.NDArray[Any], before: FloatArray,
    after: FloatArray, samples: int = 1_000,
) -> list[float]:  # fmt: skip
    """The 95 % interval of what a metric gains from one score to another, from a bootstrap over users."""
    rng, order = np.random.default_rng(0), np.argsort(users, kind="stable")
    of_user = np.split(order, np.flatnonzero(np.diff(users[order])) + 1)
    gains = []
    for _ in range(samples):
        drawn = np.concatenate([of_user[i] for i in rng.integers(len(of_user), size=len(of_user))])
        gains.append(metric(after[drawn], truth[drawn]) - metric(before[drawn], truth[drawn]))
    return [float(v) for v in np.quantile(gains, [0.025, 0.975])]


def measure_runs(
    description: str | None, limit: int, measure: Callable[[Run, int, Results], Results],
    page: Callable[[Results], str], rows: Collection[str] = (),
) -> None:  # fmt: skip
    """Measure each run that the command line names and whose results are not there, or lack some of `rows`.

    `measure` gets what is there. The page is written after each run.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", required=True)
    parser.add_argument("--limit", type=int, default=limit, help="validation histories")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.json"
    found = json.loads(results.read_text())["runs"] if results.is_file() else {}
    for run in args.run:
        before = found.get(name := run.parent.name.rsplit("-", 1)[0], {})
        if not before or not set(rows) <= set(before["found"]):
            found[name] = measure(Run(run), args.limit, before)
        write_text(results, json.dumps({"versions": versions(), "runs": found}, indent=1))
        write_text(args.out / "README.md", page(found))
