"""Read the exports with RecTools: `Dataset.construct`, and EASE and item-kNN, whose models read weights.

python benchmarks/outside/check_rectools.py X
"""

import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
from implicit.nearest_neighbours import CosineRecommender
from rectools.dataset import Dataset
from rectools.models import EASEModel, ImplicitItemKNNWrapperModel


def main() -> None:
    """Fit both models on training interactions, and print what was read."""
    print("rectools", metadata.version("rectools"), "numpy", np.__version__)
    out, tables, found = Path(sys.argv[1]), {}, {}
    for name in ("drop", "soft"):
        tables[name] = pd.read_parquet(out / name / "rectools" / "interactions.parquet")
        table = tables[name][tables[name]["split"] == "train"].drop(columns="split")
        dataset = Dataset.construct(table)
        matrix = dataset.get_user_item_matrix(include_weights=True)
        for model in (EASEModel(), ImplicitItemKNNWrapperModel(CosineRecommender(K=20))):
            model.fit(dataset)
            shown = model.recommend(users=table["user_id"].unique()[:200], dataset=dataset, k=10, filter_viewed=True)
            found[name, type(model).__name__] = shown
        print(f"{name}: {len(table)} interactions, {matrix.shape[0]} users, {matrix.shape[1]} items, weights "
              f"{matrix.data.min():.3f} to {matrix.data.max():.3f}; {len(shown)} rows recommended")  # fmt: skip
    table = tables["soft"][tables["soft"]["split"] == "train"].drop(columns="split")
    plain = Dataset.construct(table.assign(weight=1.0))
    model = ImplicitItemKNNWrapperModel(CosineRecommender(K=20)).fit(plain)
    without = model.recommend(users=table["user_id"].unique()[:200], dataset=plain, k=10, filter_viewed=True)
    kept = found["soft", "ImplicitItemKNNWrapperModel"].merge(without, on=["user_id", "item_id"])
    print(f"item-kNN: {len(kept)} of {len(without)} recommendations are the same without weights")


if __name__ == "__main__":
    main()
