"""`llm4dsr apply` on files of growing size: memory, and histories a second.

    python benchmarks/apply.py --model RUN --scratch DIR --histories 100000 1000000 --out benchmarks/results/apply

The file repeats the histories of the run's training and test windows, each copy with other users. Each size runs in a
new process on one thread; peak memory is its largest resident set (Linux). `--name` names the model in the
table. With `--eta 0`, each history gets as many flags as it may have. A size that is in the results is not measured
again, and an interrupted one goes on with the part that is missing; its seconds are then those of the last call.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from llm4dsr import columns as c
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.core.manifest import read_sealed
from llm4dsr.pipeline import Run
from llm4dsr.pipeline.histories_file import CARD
from scale import measured

GROUP = 20_000  # rows of a row group


def make_file(run: Run, rows: int, path: Path) -> None:
    """Write a file of so many histories."""
    data = run.data()
    tables = (data.splits[name].histories().to_frame(data.catalogue) for name in (c.TRAIN, c.TEST))
    some = pl.concat([table.select(c.USER, c.ITEMS) for table in tables])
    written, copy, writer = 0, 0, None
    part = path.with_suffix(".part")
    while written < rows:
        users = pl.format("{}-{}", pl.lit(copy), pl.col(c.USER)).alias(c.USER)
        table = some.head(rows - written).with_columns(users).to_arrow()
        writer = writer or pq.ParquetWriter(part, table.schema)
        writer.write_table(table, row_group_size=GROUP)
        written, copy = written + len(table), copy + 1
    assert writer is not None
    writer.close()
    part.rename(path)


def page(found: dict[str, dict[str, dict[str, float]]], command: str) -> str:
    """The table of all models and sizes."""
    lines = ["| model | histories | flagged | CPU seconds | histories a CPU second | peak memory |", "|---" * 6 + "|"]
    for model, sizes in found.items():
        for size in sorted(sizes, key=int):
            told = sizes[size]
            lines.append(
                f"| {model} | {int(size):,} | {told['flagged']:,} | {told['cpu_seconds']:,.0f} | "
                f"{int(size) / told['cpu_seconds']:,.0f} | {told['peak_memory_mb']:,} MiB |"
            )
    table = "\n".join(lines)
    return f"""# Files of growing size

    {command}

`llm4dsr apply` with 20,000 rows a part, one thread, shared with other work. CPU seconds hold the start of
the process and reading the model. The file repeats histories, with other users in each copy.

{table}

- *tiny* flags as many interactions as it may in each history (η = 0), the default model those with a probability of at
  least 0.5.
- All users are new, so each history is scored by the three models of the default. Users in training are scored by one.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a run folder")
    parser.add_argument("--name", default="default")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--histories", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--eta", type=float, default=0.5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    results = given.out / "results.json"
    known = json.loads(results.read_text())["models"] if results.exists() else {}
    given.scratch.mkdir(parents=True, exist_ok=True)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # as many threads as there are cores
    for rows in given.histories:
        if str(rows) in known.setdefault(given.name, {}):
            continue
        file, out = given.scratch / f"{given.name}-{rows}.parquet", given.scratch / f"{given.name}-{rows}"
        if not file.exists():
            make_file(Run(given.model), rows, file)
        command = ["apply", given.model, "-d", file, "-o", out, "--eta", given.eta, "-a", "replace", "--rows", GROUP]
        told = measured([sys.executable, "-m", "llm4dsr", *map(str, command)])
        known[given.name][str(rows)] = told | {"flagged": read_sealed(out / CARD)["result"]["flagged"]}
        command_line = "python benchmarks/apply.py --model RUN --scratch DIR --out benchmarks/results/apply"
        write_text(results, json.dumps({"models": known, "versions": versions()}, indent=1))
        write_text(given.out / "README.md", page(known, command_line))
        print(page(known, command_line))
        shutil.rmtree(out)
        file.unlink()


if __name__ == "__main__":
    main()
