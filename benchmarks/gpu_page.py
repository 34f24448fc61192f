"""The page of gpu.py: a table for each part, and what a million and a hundred million histories cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COUNTS = {"a million": 10**6, "a hundred million": 10**8}
TITLES = {
    "matmul": "Matrix products", "score-8b": "Scoring, 8 B shape", "tune-8b": "Tuning with LoRA, 8 B shape",
    "suggest": "Suggesting", "score-1b": "Scoring, 1 B shape", "tune-1b": "Tuning with LoRA, 1 B shape",
    "score-135m": "Scoring, 135 M shape", "tune-135m": "Tuning with LoRA, 135 M shape",
    "embedded": "The embedded model and recommenders, beside one core", "quantized": "8 and 4 bits, 1 B shape",
    "costs": "Hours and money",
}  # fmt: skip


def prices(folder: Path, price: float) -> Iterator[dict[str, Any]]:
    """Hours and money of scoring and of tuning, from the speeds in a folder and the price of an hour."""
    for file in [*sorted(folder.glob("score-*.json")), *sorted(folder.glob("tune-*.json"))]:
        for row in json.loads(file.read_text())["rows"]:
            doing = file.stem.split("-")[0] + (", checkpointed" if row.get("gradient checkpointing") else "")
            out = {
                "model": row["model"],
                "doing": doing,
                "readout": row["readout"],
                "tokens of a pass": row["tokens of a pass"],
            }
            for name, count in COUNTS.items():
                hours = count / row["windows/s"] / 3600
                out |= {f"hours for {name}": hours, f"money for {name}": hours * price}
            yield out | {"price of an hour": price}


def page(folder: Path, parts: list[str]) -> str:
    """All parts that were measured, in their order."""
    found = {
        part: json.loads((folder / f"{part}.json").read_text()) for part in parts if (folder / f"{part}.json").is_file()
    }
    used = next(iter(found.values()))["versions"] if found else {}
    lines = [
        f"# {used.get('gpu', 'No GPU')}", "", "    python benchmarks/gpu.py --data DATA/toys --price 4 --out "
        "benchmarks/results/gpu", "",
        f"One run; torch {used.get('torch')}, transformers {used.get('transformers')}. Large models have random "
        "weights. "
        "*Of the packed pass*: needed tokens a second, divided by those of a plain forward pass over as many tokens. "
        "*Of the peak*: floating-point operations a second, divided by those of the fastest product. Each part has a "
        "JSON file with every digit.",
    ]  # fmt: skip
    for part, of in found.items():
        rows = of["rows"]
        if part == "embedded":  # times of the GPU alone come first, and again beside those of a core
            rows = [row for row in rows if "ratio" in row] or rows
        columns = list(dict.fromkeys(key for row in rows for key in row))
        lines += ["", f"## {TITLES[part]}", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += ["| " + " | ".join(_cell(row.get(column)) for column in columns) + " |" for row in rows]
        if "stopped" in of:
            lines += ["", f"Incomplete: {of['stopped']}."]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
