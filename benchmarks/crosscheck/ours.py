"""Train our recommender on the exported windows with full softmax; keep the ranks of the model at its best epoch.

    python benchmarks/crosscheck/ours.py --data FOLDER --model sasrec --supervise last --epochs 40 --out ours.npz

All else is as in `RecommenderConfig`. One thread.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl
import torch

from llm4dsr import columns as c
from llm4dsr.config import RecommenderConfig
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.recommenders import BACKBONES, fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what export.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="an .npz file")
    parser.add_argument("--model", choices=sorted(BACKBONES), required=True)
    parser.add_argument("--supervise", choices=("all", "last"), default="all")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--patience", type=int, default=4, help="epochs without a better one after which it ends")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)

    ids = pl.read_parquet(args.data / "items.parquet")[c.ITEM]
    catalogue = Catalogue(ids, ids.cast(pl.String).to_list())  # titles play no part here
    train, valid, test = (
        Windows.from_lists(pl.read_parquet(args.data / f"{name}.parquet")["items"].to_list()) for name in c.SPLITS
    )
    config = RecommenderConfig(
        loss="full", supervise=args.supervise, epochs=args.epochs, patience=args.patience, dropout=args.dropout,
        learning_rate=args.learning_rate,
    )  # fmt: skip

    def show(done: int, most: int, message: str) -> None:
        print(f"epoch {done} of {most}: {message}", flush=True)

    trained = fit(args.model, train, valid, catalogue, config, args.seed, show)
    ranks = {name: trained.model.rank(w.histories(), w.targets()) for name, w in (("valid", valid), ("test", test))}
    rule = {"epochs": args.epochs, "patience": args.patience}
    np.savez(args.out, **ranks, **rule, curve=trained.curve, seconds=trained.seconds)


if __name__ == "__main__":
    main()
