"""Make a shop's log of the demo, correct it, and export it in every format, for the scripts beside this one.

    python benchmarks/outside/export.py --out X

The log has columns of its own. The denoiser is a small one, since what is checked is that the files are read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from llm4dsr.config import Config
from llm4dsr.data.demo import make_demo
from llm4dsr.data.prepare import prepare
from llm4dsr.data.sources import read_source
from llm4dsr.export import ExportOptions, export_run
from llm4dsr.export.export import FORMATS
from llm4dsr.pipeline import STAGES, Run

COLUMNS = {"user_id": "visitor", "item_id": "sku", "timestamp": "when", "title": "name"}
SMALL = {"model": {"hidden_size": 32, "layers": 1, "vector_size": 32}, "train": {"epochs": 2, "folds": 2},
         "decide": {"policy": "rate", "eta": 0.1}, "correct": {"action": "drop"}, "threads": 1}  # fmt: skip


def write_log(folder: Path) -> None:
    """Write the demo's newest window of each user as a log, and the items beside it."""
    data = make_demo(seed=0).data
    frame = pl.concat(w.to_frame(data.catalogue) for w in data.splits.values()).sort("timestamp")
    newest = frame.unique("user_id", keep="last", maintain_order=True)
    log = newest.with_columns(place=pl.int_ranges(pl.col("item_ids").list.len())).explode("item_ids", "place")
    log = log.select(
        visitor=pl.format("v{}", "user_id"), sku=pl.format("s{}", "item_ids"),
        when=pl.col("timestamp") + 60 * pl.col("place"),
    )  # fmt: skip
    items = data.catalogue.to_frame().select(sku=pl.format("s{}", "item_id"), name="title")
    folder.mkdir(parents=True)
    log.write_csv(folder / "interactions.csv")
    items.write_csv(folder / "items.csv")


def main() -> None:
    """Write OUT/drop/FORMAT and OUT/soft/FORMAT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out
    write_log(out / "logs")
    prepare(read_source(out / "logs", None, COLUMNS), out / "windows")
    run = Run.create(out / "run", Config.from_dict(SMALL))
    for stage in STAGES[: STAGES.index("evaluate")]:
        run.make(stage, out / "windows")
    for form in FORMATS:
        for name, options in (("drop", ExportOptions()), ("soft", ExportOptions(soft=True))):
            print(form, name, export_run(run, form, out / name / form, options))


if __name__ == "__main__":
    main()
