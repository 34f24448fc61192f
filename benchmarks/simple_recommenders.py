"""Item-kNN and EASE on original windows, beside the recommenders of the benchmark. Neither has a seed.

    python benchmarks/simple_recommenders.py --data DIR

Both learn from the training windows alone, rank the whole catalogue, and weight a history item by 0.8 per step back.
Prints one JSON object: NDCG@20 and HR@20 on test.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
from scipy import sparse

from llm4dsr import columns as c
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import Windows
from llm4dsr.metrics import hit_rate, ndcg

DECAY = 0.8  # weight of a history item per step back
RIDGE = 200.0  # regularization λ of EASE (Steck, 2019, arXiv 1905.03375)
ROWS = 512  # windows ranked at once


def user_items(windows: Windows, n_items: int) -> sparse.csr_matrix:
    """[users, N] 1 where a user has the item in any window."""
    users = np.unique(windows.user_ids.to_numpy(), return_inverse=True)[1]
    rows = np.broadcast_to(users[:, None], windows.items.shape)[windows.present]
    matrix = sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, windows.items[windows.present])))
    matrix.resize((users.max() + 1, n_items))
    matrix.data[:] = 1
    return matrix


def item_knn(matrix: sparse.csr_matrix) -> np.ndarray:
    """[N, N] cosine of the users of two items, 0 on the diagonal."""
    pairs = (matrix.T @ matrix).toarray()
    norm = np.sqrt(np.maximum(np.diag(pairs), 1))
    np.fill_diagonal(pairs, 0)
    return pairs / norm[:, None] / norm[None, :]


def ease(matrix: sparse.csr_matrix) -> np.ndarray:
    """[N, N] weights of the closed form of EASE, 0 on the diagonal."""
    gram = (matrix.T @ matrix).toarray()
    gram[np.diag_indices_from(gram)] += RIDGE
    inverse = np.linalg.inv(gram)
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return np.asarray(weights)


def ranks(weights: np.ndarray, histories: Windows, targets: np.ndarray) -> np.ndarray:
    """[W] rank of each target, 1 = best; items of equal score share the worst of their ranks."""
    out = np.empty(len(histories), np.int64)
    back = histories.lengths[:, None] - 1 - np.arange(histories.items.shape[1])
    weight = np.where(histories.present, DECAY**back, 0.0)
    for start in range(0, len(histories), ROWS):
        part = slice(start, start + ROWS)
        rows, at = np.nonzero(histories.present[part])
        where = (rows, histories.items[part][rows, at])
        shape = (len(targets[part]), len(weights))
        scores = sparse.csr_matrix((weight[part][rows, at], where), shape=shape) @ weights
        own = scores[np.arange(len(scores)), targets[part]]
        out[part] = (scores >= own[:, None]).sum(axis=1)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="windows of llm4dsr data prepare, or a path prefix")
    data = read_data(parser.parse_args().data)
    matrix = user_items(data.splits[c.TRAIN], len(data.catalogue))
    test = data.splits[c.TEST]
    found = {}
    for name, fit in (("item-kNN", item_knn), ("EASE", ease)):
        rank = ranks(fit(matrix), test.histories(), test.targets())
        found[name] = {"ndcg@20": round(ndcg(rank, 20), 4), "hr@20": round(hit_rate(rank, 20), 4)}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
