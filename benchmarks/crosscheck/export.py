"""Write clean windows as plain Parquet, which the other library's environment can read without llm4dsr.

    python benchmarks/crosscheck/export.py --data DATA/toys --out FOLDER

train, valid and test.parquet have one column, `items`: a list of item numbers for each window, oldest first, the last
is the target. items.parquet says which item has which number. Only items of training windows have one, as the other
library knows no others: those leave the histories of valid and test, and a window with such a target is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import PAD, IntArray
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError


def clean_rows(windows: Windows) -> list[IntArray]:
    """What users took in truth: `clean_item_ids`, or `item_ids` where these are all there is."""
    items = windows.items if windows.clean_items is None else windows.clean_items
    if (items[windows.present] == PAD).any():
        raise DataError("Items were inserted into these windows; the clean ones are shorter and are not told here.")
    return [row[:length] for row, length in zip(items, windows.lengths, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a data folder, or its prefix: DATA/toys")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=0, help="so many windows of each split, for a quick look; 0 = all")
    args = parser.parse_args()
    data = read_data(args.data)
    rows = {name: clean_rows(windows)[: args.limit or None] for name, windows in data.splits.items()}
    known = np.unique(np.concatenate(rows[c.TRAIN]))
    number = np.full(len(data.catalogue), PAD)
    number[known] = np.arange(len(known))

    args.out.mkdir(parents=True, exist_ok=True)
    ids = data.catalogue.ids.gather(known)
    pl.DataFrame({c.ITEM: ids, "number": np.arange(len(known))}).write_parquet(args.out / "items.parquet")
    print(f"items: {len(known)} of {len(number)}")
    for name in c.SPLITS:
        numbered = [number[row] for row in rows[name]]
        kept = [row[row != PAD].tolist() for row in numbered if row[-1] != PAD]
        kept = [row for row in kept if len(row) > 1]
        pl.DataFrame({"items": pl.Series(kept, dtype=pl.List(pl.Int64))}).write_parquet(args.out / f"{name}.parquet")
        print(f"{name}: {len(kept)} of {len(rows[name])} windows")


if __name__ == "__main__":
    main()
