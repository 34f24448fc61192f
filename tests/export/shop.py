"""A log in a shop's own columns, made from the tiny demo, and a run on it that takes seconds."""

from dataclasses import replace
from pathlib import Path

import polars as pl

from llm4dsr.data.dataset import Dataset
from llm4dsr.data.prepare import PrepareOptions, prepare
from llm4dsr.data.sources import read_source
from llm4dsr.pipeline import STAGES, Run

from ..tiny_run import CONFIG

# The logistic function of log-odds: a model so small has calibrated probabilities of 0
UNCALIBRATED = replace(CONFIG, score=replace(CONFIG.score, calibration="off"))
COLUMNS = {"user_id": "visitor", "item_id": "sku", "timestamp": "when", "title": "name"}


def shop_log(data: Dataset) -> pl.DataFrame:
    """One row per interaction: `note` (with quotes and separators), visitor, when, sku, name, price."""
    frame = pl.concat(w.to_frame(data.catalogue) for w in data.splits.values()).sort("timestamp")
    newest = frame.unique("user_id", keep="last", maintain_order=True)
    log = newest.with_columns(place=pl.int_ranges(pl.col("item_ids").list.len())).explode("item_ids", "place")
    titles = data.catalogue.to_frame().select(item_ids="item_id", name="title")
    log = log.join(titles, on="item_ids", how="left", maintain_order="left")
    return log.with_row_index("n").select(
        note=pl.format('row {}, "as is"', "n"),
        visitor=pl.format("v{}", "user_id"),
        when=pl.col("timestamp") + 60 * pl.col("place"),
        sku=pl.format("s{}", "item_ids"),
        name="name",
        price=pl.col("n") % 7,
    ).sample(fraction=1.0, shuffle=True, seed=0)  # fmt: skip


def write_log(log: pl.DataFrame, folder: Path, name: str) -> Path:
    """Write the log in the format of its name, and the items beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    log.select("sku", "name").unique(maintain_order=True).write_parquet(folder / "items.parquet")
    path = folder / name
    if name.endswith(".parquet"):
        log.write_parquet(path)
    elif name.endswith(".jsonl"):
        log.write_ndjson(path)
    else:
        log.write_csv(path, separator="\t" if name.endswith(".tsv") else ",", line_terminator="\r\n")
    return path


def windows_of(log: Path, out: Path, **options) -> Path:
    """Prepare windows, as `llm4dsr data prepare` does."""
    prepare(read_source(log, None, COLUMNS), out, PrepareOptions(**options))
    return out


def run_of(windows: Path, folder: Path) -> Run:
    """Run the stages up to the correction, which drops."""
    run = Run.create(folder, UNCALIBRATED)
    for stage in STAGES[: STAGES.index("correct")]:
        run.make(stage, windows)
    run.correct("drop")
    return run
