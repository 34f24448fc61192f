"""Train recommenders of RecTools on the rows of corrected.py, in RecTools' own environment; keep the ranks.

    python benchmarks/crosscheck/outside.py --data FOLDER --cells cells.json --models knn ease

Each training window is one user. All items of a row's training windows are ranked, items of the history too. A target
that the model does not know, or that is not among the first 20, counts as a miss. Each cell (row, model, seed) is kept
in cells.json once it is done; the same command resumes. One thread.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, NearestNeighboursScorer, TFIDFRecommender
from rectools import Columns
from rectools.dataset import Dataset, IdMap, Interactions
from rectools.models import EASEModel, HSTUModel, ImplicitItemKNNWrapperModel, SASRecModel
from rectools.models.base import ModelBase
from rectools.models.nn.transformers.base import TransformerModelBase
from rectools.models.nn.transformers.ligr import LiGRLayers
from scipy.linalg.lapack import spotrf, spotri
from theirs import BEYOND, K, interactions, trainer

ROWS = (
    "original", "default", "drop-5", "drop-10", "replace-5", "replace-10", "replace-20", "random-20", "oracle-drop",
    "oracle-restore",
)  # fmt: skip
KINDS = {"cosine": CosineRecommender, "tfidf": TFIDFRecommender, "bm25": BM25Recommender}
Rows = list[list[int]]


class ItemKNN(ImplicitItemKNNWrapperModel):
    """The library's, but no item is its own neighbor: that neighbor fills the first 20 with the history itself."""

    def _fit(self, dataset: Dataset) -> None:
        super()._fit(dataset)
        self.model.similarity.setdiag(0)
        self.model.similarity.eliminate_zeros()
        self.model.scorer = NearestNeighboursScorer(self.model.similarity)


class EASE(EASEModel):
    """The library's weights, by Cholesky in float32, read as published: X · B.

    RecTools 0.19.0 inverts without use of symmetry, and ranks by X · Bᵀ, though B is not symmetric.
    """

    def _fit(self, dataset: Dataset) -> None:
        x = dataset.get_user_item_matrix(include_weights=True).astype(np.float32)
        gram = (x.T @ x).toarray(order="F")
        gram[np.diag_indices_from(gram)] += self.regularization
        factor, failed = spotrf(gram, lower=1, overwrite_a=1)
        inverse, failed_too = spotri(factor, lower=1, overwrite_c=1)
        assert failed == failed_too == 0
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        self.weight = np.ascontiguousarray(inverse / -np.diag(inverse))
        np.fill_diagonal(self.weight, 0.0)

    def _recommend_u2i(self, user_ids: np.ndarray, dataset: Dataset, k: int, *_: object) -> tuple[np.ndarray, ...]:
        histories = dataset.get_user_item_matrix(include_weights=True)
        histories.resize(histories.shape[0], len(self.weight))  # the library ends it at the last item that occurs
        best, scores = [], []
        for start in range(0, len(user_ids), 500):
            of = histories[user_ids[start : start + 500]] @ self.weight  # [B, N]
            best.append(np.argsort(-of, axis=1, kind="stable")[:, :k])
            scores.append(np.take_along_axis(of, best[-1], axis=1))
        return np.repeat(user_ids, k), np.concatenate(best).ravel(), np.concatenate(scores).ravel()


def read(folder: Path) -> dict[str, Rows]:
    return {
        n: [list(row) for row in pd.read_parquet(folder / f"{n}.parquet")["items"]] for n in ("train", "valid", "test")
    }


def ranks(model: ModelBase, trained_on: Dataset, rows: Rows, targets: list[int]) -> np.ndarray:
    """[W] rank of each target after its history, 1 = best; histories lose the items that the model does not know."""
    known = trained_on.item_id_map
    table = interactions([row[:-1] for row in rows])
    table = table[table[Columns.Item].isin(known.external_ids)]
    users = table[Columns.User].unique()
    if isinstance(model, TransformerModelBase):
        histories = Dataset.construct(table)
    else:  # matrices of users and items, whose columns must be those of training
        ids = IdMap.from_values(users)
        histories = Dataset(ids, known, Interactions.from_raw(table, ids, known))
    found = model.recommend(users=users, dataset=histories, k=K, filter_viewed=False)
    hits = found[found[Columns.Item].to_numpy() == np.array(targets)[found[Columns.User].to_numpy()]]
    out = np.full(len(rows), BEYOND)
    out[hits[Columns.User].to_numpy()] = hits[Columns.Rank].to_numpy()
    return out


def ndcg(found: np.ndarray) -> float:
    return float(np.where(found <= K, 1 / np.log2(found + 1), 0.0).mean())


def measured(model: ModelBase, dataset: Dataset, row: dict[str, Rows], original: dict[str, Rows]) -> dict[str, Any]:
    """Ranks on the row's own histories, and on the histories as they are."""
    targets = [of[-1] for of in original["test"]]
    return {
        "known_items": int(dataset.item_id_map.size),
        "valid_ndcg": ndcg(ranks(model, dataset, row["valid"], [of[-1] for of in original["valid"]])),
        "ranks": ranks(model, dataset, row["test"], targets).tolist(),
        "ranks_on_original": ranks(model, dataset, original["test"], targets).tolist(),
    }


def knn(option: tuple[str, int]) -> ModelBase:
    return ItemKNN(KINDS[option[0]](K=option[1] + 1, num_threads=1))  # one more: itself


def ease(option: float) -> ModelBase:
    return EASE(regularization=option)


OPTIONS: dict[str, list[Any]] = {
    "knn": [(kind, k) for kind in KINDS for k in (20, 100)],
    "ease": [500.0],  # the library's default
}
MAKERS: dict[str, Callable[[Any], ModelBase]] = {"knn": knn, "ease": ease}


def seedless(name: str, option: Any, row: dict[str, Rows], original: dict[str, Rows]) -> dict[str, Any]:
    dataset = Dataset.construct(interactions(row["train"]))
    model = MAKERS[name](option).fit(dataset)
    return {"option": option, **measured(model, dataset, row, original)}


def transformer(name: str, learning_rate: float) -> TransformerModelBase:
    common = dict(
        n_factors=64, n_blocks=2, n_heads=2, session_max_len=10, batch_size=128, lr=learning_rate, dropout_rate=0.2,
        loss="sampled_softmax", n_negatives=64, use_key_padding_mask=True, get_trainer_func=trainer,
    )  # fmt: skip
    if name == "esasrec":  # the parts of eSASRec: shifted sequence, LiGR layers, sampled softmax
        return SASRecModel(transformer_layers_type=LiGRLayers, **common)
    if name == "sasrec":
        return SASRecModel(**common)
    del common["use_key_padding_mask"]
    return HSTUModel(relative_time_attention=False, **common)


def trained(
    name: str, seed: int, epochs: int, learning_rate: float, row: dict[str, Rows], original: dict[str, Rows]
) -> dict[str, Any]:
    """Train so many epochs at most, until validation has not risen for two; keep the ranks of the best."""
    pl.seed_everything(seed)
    dataset = Dataset.construct(interactions([of for of in row["train"] if len(of) > 1]))
    model, curve, best = transformer(name, learning_rate), [], {}
    targets = [of[-1] for of in original["valid"]]
    for epoch in range(epochs):
        model.fit_partial(dataset, min_epochs=1, max_epochs=1)
        curve.append(ndcg(ranks(model, dataset, row["valid"], targets)))
        print(f"  epoch {epoch + 1}: {curve[-1]:.4f}", flush=True)
        if curve[-1] == max(curve):
            best = measured(model, dataset, row, original)
        if epoch - int(np.argmax(curve)) >= 2:
            break
    settings = {"epochs": epochs, "learning_rate": learning_rate}
    return {"settings": settings, "curve": [round(v, 5) for v in curve], **best}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what corrected.py wrote")
    parser.add_argument("--cells", type=Path, required=True, help="a JSON file of finished cells")
    parser.add_argument("--models", nargs="+", choices=("knn", "ease", "esasrec", "sasrec", "hstu"), required=True)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of transformers")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")

    cells = json.loads(args.cells.read_text()) if args.cells.is_file() else {}
    original = read(args.data / "original")

    def cell(key: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if key not in cells:
            started = time.perf_counter()
            cells[key] = make() | {"seconds": round(time.perf_counter() - started, 1)}
            part = args.cells.with_suffix(".part")
            part.write_text(json.dumps(cells))
            part.replace(args.cells)
            test = ndcg(np.array(cells[key]["ranks"]))
            print(
                f"{key}: valid {cells[key]['valid_ndcg']:.4f}, test {test:.4f}, {cells[key]['seconds']} s", flush=True
            )
        settings = cells[key].get("settings")
        if settings not in (None, {"epochs": args.epochs, "learning_rate": args.learning_rate}):
            raise SystemExit(f"{key} of {args.cells} was trained with {settings}. Choose another --cells.")
        return cells[key]

    for name in args.models:
        if name in MAKERS:
            # Options are chosen on the original windows, for all rows: a favor to the original, if any
            tried = {
                o: cell(f"original/{name}/{o}", partial(seedless, name, o, original, original)) for o in OPTIONS[name]
            }
            best = max(tried, key=lambda o: tried[o]["valid_ndcg"])
            runs = {best: partial(seedless, name, best)}
        else:
            runs = {s: partial(trained, name, s, args.epochs, args.learning_rate) for s in args.seeds}
        for row in args.rows:
            for part, run in runs.items():
                cell(f"{row}/{name}/{part}", partial(run, read(args.data / row), original))


if __name__ == "__main__":
    main()
