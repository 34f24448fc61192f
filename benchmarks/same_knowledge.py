"""What else item-item co-occurrence can do for a recommender, beside correcting its training data.

    python benchmarks/same_knowledge.py --data DATA/toys --out runs/bench --results benchmarks/results/same-knowledge

Our suggestions follow co-occurrence and titles. So a gain may come from handing a recommender that knowledge, in
whatever way. Compared on test, with the corrections of the runs that `llm4dsr bench` left in `--out`:

- replaced, added: 10 % of the interactions of training windows are replaced by our suggestions, or the suggestions are
  put behind them and nothing is removed; at the positions that we flag, and at random ones. The part that is gained by
  removing is the difference.
- smoothed: item-kNN whose similarities S become S + a S², as by a random walk of two steps. Rows of
  S² have unit length before its diagonal is removed.
- blended: scores of two recommenders, each with mean 0 and deviation 1 over the catalogue, added with weights that sum
  to 1. SASRec gets item-kNN's knowledge so without any correction.

Weights and `a` are chosen on validation. Item-kNN and EASE have no seed. SASRec has as many as the denoiser, and the
correction of its row the denoiser's seed of the same number. Three seeds take about 20 CPU minutes for Toys.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from sklearn.preprocessing import normalize

from llm4dsr import columns as c
from llm4dsr.bench.datasets import load_dataset
from llm4dsr.bench.denoised import BASELINE_FOLDER, baseline_scores
from llm4dsr.bench.ours import DEFAULT, SUGGESTIONS, OurRun, run_name
from llm4dsr.config import Config
from llm4dsr.core.arrays import BoolArray, FloatArray, IntArray
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.windows import Windows, align
from llm4dsr.denoise.correct import correct
from llm4dsr.denoise.suggest import Suggestions
from llm4dsr.evaluate.rows import Splits
from llm4dsr.evaluate.train_and_evaluate import user_codes
from llm4dsr.intervals import clustered_difference
from llm4dsr.metrics import ndcg, ndcg_of_each
from llm4dsr.pipeline import Run
from llm4dsr.recommenders import NEIGHBORHOODS, fit
from llm4dsr.recommenders.neighborhood import Neighborhood, user_matrix

K = 20
RATE = 0.1
WALKS = (0.0, 0.03, 0.1, 0.3, 1.0)  # a
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the second recommender in a blend
Scored = npt.NDArray[np.float32]  # [W, n_items]


def all_scores(model: Any, histories: Windows, n_items: int) -> Scored:
    """Scores of the whole catalogue, with mean 0 and deviation 1 for each history."""
    out = np.empty((len(histories), n_items), dtype=np.float32)

    def read(part: slice, scores: Any) -> None:
        if isinstance(scores, torch.Tensor):
            scores = scores.cpu().numpy()
        out[part] = scores.toarray() if sparse.issparse(scores) else scores

    model.read_scores(histories, read)
    out -= out.mean(axis=1, keepdims=True)
    out /= np.maximum(out.std(axis=1, keepdims=True), 1e-12)
    return out


def ranks_of(scores: Scored, targets: IntArray) -> IntArray:
    """Ranks of the targets; ties count against them, up to rounding."""
    own = scores[np.arange(len(targets)), targets][:, None] - np.float32(1e-5)
    return np.asarray(scores.shape[1] - np.count_nonzero(scores < own, axis=1))


def blended(first: dict[str, Scored], second: dict[str, Scored], splits: Splits) -> tuple[IntArray, float]:
    """Test ranks of the blend that is best on validation, and the weight of the second."""
    targets = splits[c.VALID].targets()
    found = [ndcg(ranks_of((1 - w) * first[c.VALID] + w * second[c.VALID], targets), K) for w in WEIGHTS]
    w = WEIGHTS[int(np.argmax(found))]
    return ranks_of((1 - w) * first[c.TEST] + w * second[c.TEST], splits[c.TEST].targets()), w


def scored(model: Any, splits: Splits, n_items: int) -> dict[str, Scored]:
    """Scores for validation and test."""
    return {name: all_scores(model, splits[name].histories(), n_items) for name in (c.VALID, c.TEST)}


def fitted(kind: str, train: Windows, n_items: int) -> Neighborhood:
    """Item-kNN or EASE with the default options."""
    return NEIGHBORHOODS[kind](user_matrix(train, n_items), Config().evaluate.neighborhood)


def smoothed(train: Windows, splits: Splits, n_items: int) -> tuple[IntArray, float]:
    """Test ranks of item-kNN after a walk of two steps, and its a."""
    model = fitted("itemknn", train, n_items)
    one = model.weights
    two = normalize(one @ one, axis=1)
    two.setdiag(0)

    def ranks(a: float, split: str) -> IntArray:
        model.weights = (one + a * two).tocsr()
        return model.rank(splits[split].histories(), splits[split].targets())

    a = max(WALKS, key=lambda a: ndcg(ranks(a, c.VALID), K))
    return ranks(a, c.TEST), a


def inserted(windows: Windows, at: IntArray, items: IntArray) -> Windows:
    """Windows with items put behind the interactions `at`."""
    order = np.argsort(np.concatenate([np.arange(len(windows.items)), at + 0.5]), kind="stable")
    lengths = windows.lengths + np.bincount(windows.owners[at], minlength=len(windows))
    more = np.concatenate([windows.items, items])[order]
    return Windows(more, lengths, windows.window_ids, windows.user_ids, windows.timestamps)


def suggested(ours: OurRun, scores: Any) -> tuple[IntArray, Suggestions, BoolArray]:
    """Interactions of training windows that are flagged at RATE by these scores, suggestions, and a mask of them."""
    windows, catalogue = ours.data.splits[c.TRAIN], ours.data.catalogue
    tables = ours.tables(RATE, scores)
    flagged: BoolArray = align(tables.decisions[c.TRAIN], windows, None)
    table = tables.suggestions[c.TRAIN].drop_nulls(c.SUGGESTED)
    rows = catalogue.index(table[c.SUGGESTED], "the suggestions")
    items = np.full(len(windows.items), -1)
    known = align(table.with_columns(row=rows), windows, "row")
    items[np.isfinite(known)] = known[np.isfinite(known)].astype(np.int64)
    found = Suggestions.none(windows.owners[flagged], windows.positions[flagged])
    found.items = items[flagged]
    return np.flatnonzero(flagged & (items >= 0)), found, flagged


def corrections(ours: OurRun, random: Any) -> dict[str, Windows]:
    """Training windows of each row."""
    windows, catalogue, out = ours.data.splits[c.TRAIN], ours.data.catalogue, dict[str, Windows]()
    for where, scores in (("our flags", ours.scores), ("random positions", random)):
        at, found, flagged = suggested(ours, scores)
        certain = np.ones(len(windows.items))
        out[f"replaced, {where}"] = correct(windows, flagged, certain, found, catalogue, "replace", False).windows
        out[f"added, {where}"] = inserted(windows, at, found.items[found.items >= 0])
    return out


def measure(data: Dataset, folder: Path, config: Config, seeds: int) -> dict[str, Any]:
    """NDCG@20 of each row and recommender, with gains over the same recommender on the windows as they are."""
    splits, n_items = data.splits, len(data.catalogue)
    targets, users = splits[c.TEST].targets(), user_codes(splits[c.TEST])
    rows: dict[str, dict[str, list[FloatArray]]] = {}
    chosen: dict[str, list[float]] = {}

    def add(recommender: str, row: str, ranks: IntArray, choice: float | None = None) -> None:
        rows.setdefault(recommender, {}).setdefault(row, []).append(ndcg_of_each(ranks, K))
        if choice is not None:
            chosen.setdefault(f"{recommender}, {row}", []).append(choice)
        print(recommender, row, round(ndcg(ranks, K), 4), choice, flush=True)

    known, random = dict[str, dict[str, Scored]](), baseline_scores(folder / BASELINE_FOLDER / "random")
    for kind, name in (("itemknn", "item-kNN"), ("ease", "EASE")):
        known[kind] = scored(fitted(kind, splits[c.TRAIN], n_items), splits, n_items)
        add(name, "original", ranks_of(known[kind][c.TEST], targets))
    add("item-kNN", "smoothed", *smoothed(splits[c.TRAIN], splits, n_items))
    add("item-kNN", "blended with EASE", *blended(known["itemknn"], known["ease"], splits))
    add("EASE", "blended with item-kNN", *blended(known["ease"], known["itemknn"], splits))
    for seed in range(seeds):
        ours = OurRun(Run(folder / run_name(seed)), data, config, folder / SUGGESTIONS, None)
        torch.set_num_threads(1)  # opening a run sets as many as there are cores
        for row, train in corrections(ours, random).items():
            for kind, name in (("itemknn", "item-kNN"), ("ease", "EASE")):
                add(name, row, fitted(kind, train, n_items).rank(splits[c.TEST].histories(), targets))
        corrected = ours.splits(DEFAULT)
        neighbors = scored(fitted("itemknn", corrected[c.TRAIN], n_items), corrected, n_items)
        for row, of, by in (("original", splits, known["itemknn"]), ("default correction", corrected, neighbors)):
            options = config.evaluate.recommender
            model = fit("sasrec", of[c.TRAIN], of[c.VALID], data.catalogue, options, seed).model
            own = scored(model, of, n_items)
            add("SASRec", row, ranks_of(own[c.TEST], targets))
            add("SASRec", f"{row}, blended with item-kNN", *blended(own, by, of))
    return {
        "rows": {
            recommender: {row: gain(found, of_it["original"], users) for row, found in of_it.items()}
            for recommender, of_it in rows.items()
        },
        "chosen": chosen,
        "test windows": len(targets),
    }


def gain(found: list[FloatArray], original: list[FloatArray], users: IntArray) -> dict[str, float]:
    """Mean NDCG@20, and the gain over the original in percent with half of its interval over users."""
    own, base = np.mean(found, axis=0), np.mean(original, axis=0)
    mean, half, p = clustered_difference(own, base, users)
    percent = 100 / base.mean()
    return {"ndcg": float(own.mean()), "gain": mean * percent, "half": half * percent, "p": p, "seeds": len(found)}


def page(found: dict[str, Any]) -> str:
    """Tables of all datasets."""
    parts = []
    for dataset, of in found.items():
        parts.append(
            f"## {dataset}\n\n| recommender | row | NDCG@20 | gain | p (users) | seeds |\n|---|---|---|---|---|---|"
        )
        for recommender, rows in of["rows"].items():
            for row, told in rows.items():
                change = "" if row == "original" else f"{told['gain']:+.1f} ± {told['half']:.1f} %"
                p = "" if row == "original" else f"{told['p']:.3f}"
                parts.append(f"| {recommender} | {row} | {told['ndcg']:.4f} | {change} | {p} | {told['seeds']} |")
        picks = "; ".join(f"{name} {', '.join(f'{v:g}' for v in values)}" for name, values in of["chosen"].items())
        parts.append(f"\nChosen on validation (a of the walk, weight of the second in a blend): {picks}.\n")
    tables = "\n".join(parts)
    return f"""# The same knowledge, in other ways

    python benchmarks/same_knowledge.py --data DATA/NAME --out runs/bench --results benchmarks/results/same-knowledge

15,000 sampled training windows with injected noise (Toys 10 %, MovieLens small 6 %), the runs of
[RESULTS.md](../../RESULTS.md). *Replaced* and *added* change 10 % of the interactions of training windows alone.
What the rows are is in the benchmark's docstring.
± is half of a 95 % interval over test users.

{tables}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--limit", type=int, default=15_000)
    parser.add_argument("--seeds", type=int, default=3, help="of the denoiser and of SASRec")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    given = parser.parse_args()
    config = Config.from_yaml(Path(__file__).parent / "bench.yaml")
    dataset = load_dataset(given.data, limit=given.limit)
    path = given.results / "results.json"
    known = json.loads(path.read_text())["datasets"] if path.exists() else {}
    known[dataset.name] = measure(dataset.data, given.out / dataset.name, config, given.seeds)
    write_text(path, json.dumps({"datasets": known, "versions": versions()}, indent=1))
    write_text(given.results / "README.md", page(known))
    print(page(known))


if __name__ == "__main__":
    main()
