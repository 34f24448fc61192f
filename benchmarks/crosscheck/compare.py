"""Compare the ranks of both libraries by our NDCG@20 and HR@20, add the row to results.json, print it for the README.

    python benchmarks/crosscheck/compare.py --name "SASRec, last" --ours ours.npz --theirs theirs.npz

Both sides are taken at their best epoch by validation NDCG@20, by the same rule to stop. Test windows are paired, so
the interval of the difference leaves out how hard a window is; what another seed would change is not in it. The best
mean validation NDCG@20 of three epochs in a row is told too: there is less luck in it than in a single epoch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from llm4dsr.intervals import paired_difference
from llm4dsr.metrics import hit_rate, ndcg, ndcg_of_each

RESULTS = Path(__file__).parent / "results.json"
K = 20
MEASURES = ("test_ndcg", "test_hit_rate", "valid_ndcg", "plateau")
ROW = 3  # epochs whose validation NDCG@20 is averaged


def until_stopped(curve: list[float], patience: int) -> list[float]:
    """The part of a curve that our rule to stop would have seen."""
    for done in range(1, len(curve) + 1):
        if done - 1 - int(np.argmax(curve[:done])) >= patience:
            return curve[:done]
    return curve


def compare(ours: list[Path], theirs: list[Path]) -> dict[str, Any]:
    rule = np.load(ours[0])
    sides: dict[str, dict[str, Any]] = {}
    by_window = []
    for side, files in (("ours", ours), ("theirs", theirs)):
        runs, each = [], []
        for file in files:
            found = np.load(file)
            valid, test = found["valid"], found["test"]
            if side == "theirs":  # [epochs, W]: all epochs were kept
                curve = until_stopped([ndcg(r, K) for r in valid[: int(rule["epochs"])]], int(rule["patience"]))
                valid, test = valid[np.argmax(curve)], test[np.argmax(curve)]
            else:
                curve = found["curve"].tolist()
            runs.append({
                "test_ndcg": ndcg(test, K), "test_hit_rate": hit_rate(test, K), "valid_ndcg": ndcg(valid, K),
                "plateau": float(np.convolve(curve, np.full(ROW, 1 / ROW), "valid").max()),
                "best_epoch": int(np.argmax(curve)) + 1, "epochs": len(curve),
                "seconds": round(float(found["seconds"])), "valid_curve": [round(value, 5) for value in curve],
            })  # fmt: skip
            each.append(ndcg_of_each(test, K))
        by_window.append(np.mean(each, axis=0))
        mean = {key: float(np.mean([run[key] for run in runs])) for key in MEASURES}
        sides[side] = {**mean, "runs": runs}
    difference, half, p = paired_difference(by_window[0], by_window[1])
    relative = {key: sides["ours"][key] / sides["theirs"][key] - 1 for key in MEASURES}
    sides["difference"] = {"test_ndcg": difference, "half_width": half, "p": p, "relative": relative}
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True)
    parser.add_argument("--ours", type=Path, nargs="+", required=True, help="one file for each seed")
    parser.add_argument("--theirs", type=Path, nargs="+", required=True)
    args = parser.parse_args()
    found = compare(args.ours, args.theirs)
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[args.name] = found
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    ours, theirs, gap = found["ours"], found["theirs"], found["difference"]
    epochs = " / ".join(", ".join(str(run["best_epoch"]) for run in side["runs"]) for side in (ours, theirs))
    cells = [args.name, epochs]
    for key in ("plateau", "valid_ndcg", "test_ndcg"):
        cells.append(f"{ours[key]:.4f} / {theirs[key]:.4f} ({gap['relative'][key]:+.1%})")
    cells.append(f"{gap['test_ndcg']:+.4f} ± {gap['half_width']:.4f}")
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
