"""From user sequences (one row a user, lists of items) to an interaction log that every command takes.

    python benchmarks/sequences.py --items FILE --sequences FILE [FILE …] --out DIR
    llm4dsr noise --data DIR --out DIR-noisy
    llm4dsr study transfer --dataset toys --target DIR-noisy

The files are Parquet: `item_id, title`, and `user_id, item_ids` with `timestamps` if known. Where there are no times,
users come one after another in the order of the files, so that a split by time puts other users into test.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.io import write_parquet

TIMES = "timestamps"


def to_log(sequences: pl.DataFrame) -> pl.DataFrame:
    """One row an interaction: user_id, item_id, timestamp. The order of each list is kept."""
    if TIMES not in sequences.columns:
        begins = sequences[c.ITEMS].list.len().cum_sum() - sequences[c.ITEMS].list.len()
        times = [
            list(range(begin, begin + len(items))) for begin, items in zip(begins, sequences[c.ITEMS], strict=True)
        ]
        sequences = sequences.with_columns(pl.Series(TIMES, times))
    log = sequences.select(c.USER, c.ITEMS, TIMES).explode(c.ITEMS, TIMES)
    return log.rename({c.ITEMS: c.ITEM, TIMES: c.TIME})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=Path, required=True)
    parser.add_argument("--sequences", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    given = parser.parse_args()
    log = to_log(pl.concat([pl.read_parquet(path) for path in given.sequences]))
    write_parquet(pl.read_parquet(given.items).select(c.ITEM, c.TITLE), given.out / f"{c.ITEMS_FILE}.parquet")
    write_parquet(log, given.out / f"{c.LOG_FILE}.parquet")
    print(f"{log[c.USER].n_unique():,} users, {len(log):,} interactions in {given.out}")


if __name__ == "__main__":
    main()
