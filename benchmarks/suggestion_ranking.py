"""How much popularity may count in the ranking of suggestions: catalogue coverage against the gain of a recommender.

    python benchmarks/suggestion_ranking.py --run RUN [RUN …] --out benchmarks/results/suggestion-ranking

RUN is a run such as `llm4dsr bench` leaves. The most suspicious 10 % of the training interactions are replaced.
Suggestions are the best items by the fitted evidence (cosine, co-occurrence, collaborative cosine) and a weight of
popularity: the fitted one, which ranks by probability; none, which is the default; and negative ones, which push
popular items down. Item-kNN and EASE learn from the windows. A weight should be chosen on validation.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from llm4dsr import columns as c
from llm4dsr import metrics
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.denoise.ranking import RankingWeights
from llm4dsr.denoiser import Denoiser
from llm4dsr.evaluate.rows import ORIGINAL, DecisionTables, correct_split
from llm4dsr.evaluate.train_and_evaluate import train_and_evaluate
from llm4dsr.pipeline import Run

RATE, K = 0.1, 20
WEIGHTS = ("fitted", 0.0, -0.25, -0.5, -1.0)


@dataclass
class Weighted(RankingWeights):
    """Weights that order suggestions by the popularity weight they have, positive or not."""

    def by_evidence(self, popularity: float = 0.0) -> RankingWeights:
        return self


def measure(folder: Path) -> dict[str, Any]:
    """Correct the training windows in each way, and rank validation and test."""
    run = Run(folder)
    data, config = run.data(), run.config
    flagged = run.decided("rate", RATE)[c.TRAIN]
    splits, spread, weights = {ORIGINAL: data.splits}, {}, {}
    denoiser, how = Denoiser.from_pretrained(run.verified("train")), replace(config.correct, action="replace")
    given = asdict(denoiser.ranking_weights)
    for weight in WEIGHTS:
        weights[str(weight)] = given if weight == "fitted" else given | {"popularity": weight}
        denoiser.ranking_weights = Weighted(**weights[str(weight)])
        suggestions = denoiser.suggest(data.splits[c.TRAIN], flagged)
        tables = DecisionTables({c.TRAIN: flagged}, {c.TRAIN: suggestions})
        changed = correct_split(c.TRAIN, data.splits[c.TRAIN], tables, data.catalogue, how).windows
        splits[str(weight)] = data.splits | {c.TRAIN: changed}
        items = data.catalogue.index(suggestions[c.SUGGESTED].drop_nulls())
        counts = np.sort(np.bincount(items, minlength=len(data.catalogue)))[::-1]
        spread[str(weight)] = {"suggestions": len(items), "distinct": int((counts > 0).sum()),
                               "top 20": round(counts[:20].sum() / len(items), 4),
                               "gini": round(metrics.gini(items, len(data.catalogue)), 4)}  # fmt: skip
    ranked = {}
    for backbone in ("itemknn", "ease"):
        settings = replace(config.evaluate, backbone=backbone, k=K)
        with TemporaryDirectory() as cells:
            found = train_and_evaluate(splits, data.catalogue, settings, config.seed, None, Path(cells))
        ranked[backbone] = {line["row"]: {name: round(line[name], 5) for name in ("valid_ndcg", "ndcg", "coverage")}
                            for line in found.iter_rows(named=True)}  # fmt: skip
    return {"weights": weights, "suggestions": spread, "ranking": ranked}


def page(found: dict[str, dict[str, Any]]) -> str:
    """A table for each run."""
    parts = [
        "# Popularity in the ranking of suggestions\n\n"
        "    python benchmarks/suggestion_ranking.py --run RUN [RUN …] --out benchmarks/results/suggestion-ranking\n\n"
        "The most suspicious 10 % of the training interactions are replaced by the best items of the fitted\n"
        "evidence plus *weight* · log(1 + users). The fitted weight ranks by probability; 0 is the default.\n"
        "*Distinct*, *top 20* and *Gini* are of the suggestions, *coverage* of what is recommended to test histories.\n"
        "NDCG@20 on validation / test; histories are as they were."
    ]
    for name, run in found.items():
        head = ("weight", "distinct", "top 20", "Gini", "item-kNN", "coverage", "EASE", "coverage")
        rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for weight in (ORIGINAL, *run["suggestions"]):
            spread = run["suggestions"].get(weight)
            cells = ["original" if spread is None else named(weight, run["weights"][weight]["popularity"])]
            cells += (
                [f"{spread['distinct']:,}", f"{spread['top 20']:.1%}", f"{spread['gini']:.3f}"] if spread else [""] * 3
            )
            for backbone in ("itemknn", "ease"):
                line = run["ranking"][backbone][weight]
                cells += [f"{line['valid_ndcg']:.4f} / {line['ndcg']:.4f}", f"{line['coverage']:.1%}"]
            rows.append(f"| {' | '.join(cells)} |")
        parts.append(f"## {name}\n\n" + "\n".join(rows))
    return "\n\n".join(parts) + "\n"


def named(weight: str, popularity: float) -> str:
    return f"{popularity:+.2f} (fitted)" if weight == "fitted" else f"{popularity:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = {f"{folder.parent.name}, {folder.name}": measure(folder) for folder in given.run}
    write_text(given.out / "results.json", json.dumps({"runs": found, "versions": versions()}, indent=1))
    write_text(given.out / "README.md", page(found))
    print(page(found))


if __name__ == "__main__":
    main()
