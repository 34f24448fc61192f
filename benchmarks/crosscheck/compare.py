"""Compare the ranks of both libraries by our NDCG@20 and HR@20, add the row to results.json, print it for the README.

    python benchmarks/crosscheck/compare.py --name "SASRec, last" --ours ours.npz --theirs theirs.npz

Both sides are taken at their best epoch by validation NDCG@20. Test windows are paired, so the interval of the
difference leaves out how hard a window is; what another seed would change is not in it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from llm4dsr.metrics import hit_rate, ndcg, paired_difference

RESULTS = Path(__file__).parent / "results.json"
K = 20


def gains(ranks: np.ndarray) -> np.ndarray:
    """[W] what each window adds to NDCG@20."""
    return np.array([ndcg([rank], K) for rank in ranks])


def compare(ours: list[Path], theirs: list[Path]) -> dict[str, Any]:
    sides: dict[str, dict[str, Any]] = {}
    by_window = []
    for side, files in (("ours", ours), ("theirs", theirs)):
        runs, each = [], []
        for file in files:
            found = np.load(file)
            valid, test = found["valid"], found["test"]
            if valid.ndim == 2:  # [epochs, W]: the other library keeps all of them
                curve = [ndcg(ranks, K) for ranks in valid]
                best = int(np.argmax(curve))
                valid, test = valid[best], test[best]
            else:
                curve, best = found["curve"].tolist(), int(found["best_epoch"])
            runs.append({
                "test_ndcg": ndcg(test, K), "test_hit_rate": hit_rate(test, K), "valid_ndcg": ndcg(valid, K),
                "best_epoch": best + 1, "epochs": len(curve), "seconds": round(float(found["seconds"])),
                "valid_curve": [round(value, 5) for value in curve],
            })  # fmt: skip
            each.append(gains(test))
        by_window.append(np.mean(each, axis=0))
        mean = {key: float(np.mean([run[key] for run in runs])) for key in ("test_ndcg", "test_hit_rate", "valid_ndcg")}
        sides[side] = {**mean, "runs": runs}
    difference, half, p = paired_difference(by_window[0], by_window[1])
    sides["difference"] = {
        "test_ndcg": difference, "half_width": half, "p": p, "relative": difference / sides["theirs"]["test_ndcg"],
        "relative_valid": sides["ours"]["valid_ndcg"] / sides["theirs"]["valid_ndcg"] - 1,
    }  # fmt: skip
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
    valid = f"{ours['valid_ndcg']:.4f} / {theirs['valid_ndcg']:.4f} ({gap['relative_valid']:+.1%})"
    test = f"{ours['test_ndcg']:.4f} / {theirs['test_ndcg']:.4f} ({gap['relative']:+.1%})"
    interval = f"{gap['test_ndcg']:+.4f} ± {gap['half_width']:.4f}"
    print(f"| {args.name} | {epochs} of {ours['runs'][0]['epochs']} | {valid} | {test} | {interval} |")


if __name__ == "__main__":
    main()
