"""Gains of the corrected rows of outside.py over the original windows, as outside.json and as a table for the README.

    python benchmarks/crosscheck/gains.py --name toys --data FOLDER --cells cells.json

Test windows are paired, and the intervals allow for windows of one user. Ranks of several seeds are averaged by window
first, so what another seed would change is only partly in the intervals.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4dsr.intervals import clustered_difference
from llm4dsr.metrics import ndcg_of_each

RESULTS = Path(__file__).parent / "outside.json"
K = 20
ORIGINAL = "original"
CORRECTED, CONTROL = "replace-20", "random-20"  # suggestions at flagged and at random interactions
ORDER = [
    ORIGINAL, "default", "drop-5", "drop-10", "replace-5", "replace-10", CORRECTED, CONTROL, "oracle-drop",
    "oracle-restore",
]  # fmt: skip
HISTORIES = {"corrected": "ranks", "as they are": "ranks_on_original"}  # test histories
MEASURES = {"ndcg": ndcg_of_each, "hit_rate": lambda ranks, k: (ranks <= k).astype(float)}


Cells = dict[str, dict[str, Any]]  # of one model and row, by seed; a model without seeds has one, ""


def of_rows(cells: dict[str, Any]) -> dict[str, dict[str, Cells]]:
    """Model → row → cells. Of the options tried on the original, only the best by validation is kept."""
    out: dict[str, dict[str, Cells]] = defaultdict(lambda: defaultdict(dict))
    for key, cell in cells.items():
        row, model, seed = key.split("/")
        seed = "" if "option" in cell else seed
        kept = out[model][row].get(seed)
        if kept is None or cell["valid_ndcg"] > kept["valid_ndcg"]:
            out[model][row][seed] = cell
    return out


def line(model: str, row: str, row_cells: Cells, base_cells: Cells, users: list[int]) -> dict[str, Any]:
    """Measures of a row, and its gain over another, by the seeds that both have."""
    seeds = [seed for seed in row_cells if seed in base_cells]
    cells, base = ([of[seed] for seed in seeds] for of in (row_cells, base_cells))
    out: dict[str, Any] = {"model": model, "row": row, "seeds": len(cells)}
    out |= {key: cells[0][key] for key in ("option", "settings") if key in cells[0]}
    out["known_items"] = cells[0]["known_items"]
    out["valid_ndcg"] = [round(cell["valid_ndcg"], 5) for cell in cells]
    out |= {"curves": [cell["curve"] for cell in cells]} if "curve" in cells[0] else {}
    for histories, ranks in HISTORIES.items():
        found = {}
        for name, measure in MEASURES.items():
            values, before = (np.mean([measure(np.array(c[ranks]), K) for c in of], axis=0) for of in (cells, base))
            gain, half, p = clustered_difference(values, before, users)
            found[name] = {"test": values.mean(), "gain": gain, "half_width": half, "p": p}
        out[histories] = {n: {k: round(float(v), 5) for k, v in of.items()} for n, of in found.items()}
    return out


def table(lines: list[dict[str, Any]], measure: str, histories: str = "corrected") -> str:
    models = list(dict.fromkeys(of["model"] for of in lines))
    by = {(of["row"], of["model"]): of[histories][measure] for of in lines}
    out = ["| row | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    for row in sorted({of["row"] for of in lines}, key=ORDER.index):
        shown = []
        for model in models:
            of = by.get((row, model))
            gain = f" ({of['gain']:+.4f} ± {of['half_width']:.4f})" if of and row != ORIGINAL else ""
            shown.append(f"{of['test']:.4f}{gain}" if of else "–")
        out.append(f"| {row} | " + " | ".join(shown) + " |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the dataset")
    parser.add_argument("--data", type=Path, required=True, help="what corrected.py wrote")
    parser.add_argument("--cells", type=Path, nargs="+", required=True, help="what outside.py wrote")
    args = parser.parse_args()
    users = pl.read_parquet(args.data / ORIGINAL / "test.parquet")["user"].to_list()
    cells = {key: cell for file in args.cells for key, cell in json.loads(file.read_text(encoding="utf-8")).items()}
    models = of_rows(cells)
    lines = [line(m, row, found, models[m][ORIGINAL], users) for m in models for row, found in models[m].items()]
    over_random = [
        line(f"{m}, {CORRECTED} over {CONTROL}", CORRECTED, models[m][CORRECTED], models[m][CONTROL], users)
        for m in models
        if CONTROL in models[m]
    ]
    found = {file.parent.name: json.loads(file.read_text()) for file in sorted(args.data.glob("*/detection.json"))}
    detection = {row: of for row, of in found.items() if of}
    result = {
        "windows": len(users),
        "users": len(set(users)),
        "detection": detection,
        "results": lines,
        "over_random": over_random,
    }
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    RESULTS.write_text(json.dumps(known | {args.name: result}, indent=1) + "\n", encoding="utf-8")
    for histories in HISTORIES:
        for measure in MEASURES:
            print(f"\n{measure}, test histories {histories}\n\n{table(lines, measure, histories)}")
            for of in over_random:
                gain = of[histories][measure]
                print(f"{of['model']}: {gain['gain']:+.4f} ± {gain['half_width']:.4f}, p {gain['p']:.3f}")


if __name__ == "__main__":
    main()
