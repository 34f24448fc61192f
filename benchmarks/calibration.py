"""Does the stated precision hold? The same denoiser and options on several datasets and kinds of noise.

    python benchmarks/calibration.py --data DIR [DIR …] --out benchmarks/results/calibration

Each DIR is clean, or knows what stood there before its noise; it is named by its folder. Noise of each kind is
injected into 10 % of the interactions, once per user. Each cell tunes a denoiser of the default options on these
windows, maps each split to probabilities as a run does, and flags what is more likely noise than not. Finished cells
are kept in OUT.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import polars as pl

from llm4dsr import columns as c
from llm4dsr.bench.studies.noise import with_noise, without_noise
from llm4dsr.bench.studies.samples import sample
from llm4dsr.cli.terminal import bar, set_up
from llm4dsr.config import Config
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import Windows
from llm4dsr.denoiser import Denoiser
from llm4dsr.evaluate.detection import detection_metrics

WINDOWS = (5_000, 2_000, 2_000)  # of train, valid and test
RATE, ETA = 0.1, 0.5
KINDS = ("uniform", "popularity", "near-miss", "burst")
SHOWN = ("auroc", "average_precision", "noise", "flagged", "precision", "stated_precision", "stated_low", "stated_high",
         "ece")  # fmt: skip


def measure(clean: Dataset, kind: str, config: Config, progress: Any) -> dict[str, Any]:
    """Tune on noisy windows, and measure valid and test as a run scores them."""
    started, data = time.perf_counter(), with_noise(clean, kind, RATE, config.seed)
    denoiser = Denoiser(config).fit(data.splits[c.TRAIN], data.catalogue, data.splits[c.VALID].histories(), progress)
    out: dict[str, Any] = {"noise_rate": [denoiser.calibrator.rate_low, denoiser.calibrator.rate_high]}
    for name in (c.VALID, c.TEST):
        windows, earlier = data.splits[name], data.splits[c.VALID] if name == c.TEST else None
        scores, _ = denoiser.score_and_map(windows, progress, has_target=True, recalibrate=True, earlier=earlier)
        flagged = denoiser.decide(scores, "probability", ETA, is_train=False)
        found = detection_metrics(scores, flagged, windows)
        out[name] = {key: round(float(found[key]), 4) for key in SHOWN}
        out[name] |= {"flags": len(flagged), "likely": [round(p, 4) for p in likely_precision(flagged, windows, found)]}
    return out | {"seconds": round(time.perf_counter() - started, 1)}


def likely_precision(flagged: pl.DataFrame, windows: Windows, found: dict[str, float]) -> tuple[float, float]:
    """Return the 95 % interval of the precision (Wilson), for as many flags as independent users would have."""
    if flagged.is_empty():
        return 0.0, 1.0
    users = pl.DataFrame({c.WINDOW: windows.window_ids, c.USER: windows.user_ids})
    of_user = flagged.join(users, on=c.WINDOW, how="left")[c.USER].value_counts()["count"].to_numpy().astype(float)
    n, p, z = of_user.sum() ** 2 / (of_user**2).sum(), found["precision"], 1.96
    middle, half = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)


def table(cells: list[dict[str, Any]]) -> str:
    """One line for each dataset and kind, of its test histories."""
    head = ["dataset", "noise", "AUROC", "AP", "noise rate", "stated rate", "holds", "flags", "precision",
            "stated precision", "holds", "ECE"]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for cell in cells:
        t, (low, high) = cell[c.TEST], cell["noise_rate"]
        is_near = t["stated_low"] <= t["likely"][1] and t["likely"][0] <= t["stated_high"]
        is_inside = t["flags"] and t["stated_low"] <= t["precision"] <= t["stated_high"]
        holds = "yes" if is_inside else "within error" if is_near else "no"
        lines.append([
            cell["dataset"], cell["kind"], f"{t['auroc']:.3f}", f"{t['average_precision']:.3f}",
            f"{t['noise']:.1%}", f"{low:.1%} to {high:.1%}",
            "yes" if low <= t["noise"] <= high else "no", f"{t['flags']:,}",
            f"{t['precision']:.0%} ({t['likely'][0]:.0%} to {t['likely'][1]:.0%})" if t["flags"] else "–",
            f"{t['stated_precision']:.0%} ({t['stated_low']:.0%} to {t['stated_high']:.0%})" if t["flags"] else "–",
            holds if t["flags"] else "–", f"{t['ece']:.3f}",
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Fill the cells that are missing; the page is written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given, config = parser.parse_args(), Config()
    set_up()
    cells = []
    for folder in given.data:
        clean, origin = without_noise(read_data(folder))
        clean = sample(clean, *WINDOWS, config.seed)
        for kind in KINDS:
            path = given.out / f"{folder.name}-{kind}.json"
            if not path.is_file():
                with bar() as progress:
                    cell = measure(clean, kind, config, progress)
                sizes = {name: len(w) for name, w in clean.splits.items()}
                about = {"dataset": folder.name, "kind": kind, "origin": origin, "windows": sizes}
                write_text(path, json.dumps(about | cell | {"seed": config.seed, "versions": versions()}, indent=1))
            cells.append(json.loads(path.read_text(encoding="utf-8")))
            page = (Path(__file__).parent / "calibration.md").read_text(encoding="utf-8")
            write_text(given.out / "README.md", page.replace("TABLE", table(cells)))
    print(pl.DataFrame([{"dataset": x["dataset"], "kind": x["kind"], **x[c.TEST]} for x in cells]))


if __name__ == "__main__":
    main()
