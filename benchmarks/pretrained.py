"""What a pre-trained language model knows of noise before any tuning, and what that adds to the default denoiser.

    python benchmarks/pretrained.py --data DATA/toys --run OUT/toys-15000/llm4dsr-0 --out benchmarks/results/pretrained

SmolLM2-135M reads the titles of a history as a plain list, once in order and once reversed. For each item it gives
log P(title | the titles before it in the list) - log P(title alone). That takes two passes for a history.
`--run` is a run on the same windows, such as `llm4dsr bench` leaves; its test scores are compared.

What the ratios add is measured by a logistic regression on the known noise, cross-validated by user. So it is an upper
bound: a denoiser has no labels to fit it to. Intervals are from 1,000 bootstrap samples of users.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict

from llm4dsr import columns as c
from llm4dsr.config import Config
from llm4dsr.core.arrays import FloatArray, IntArray
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import Windows, align, limit_windows
from llm4dsr.evaluate.train_and_evaluate import user_codes
from llm4dsr.lm.load import load_lm
from llm4dsr.metrics import auroc, average_precision

HEAD = "Items that one person chose, oldest first:\n"
LONGEST = 24  # tokens of a title that are read
ROWS = 16  # lists in a pass
SAMPLES = 1_000

RATIOS = {
    "in order": lambda ahead, behind: -ahead,
    "reversed": lambda ahead, behind: -behind,
    "sum of both": lambda ahead, behind: -(ahead + behind),
    "larger of both": lambda ahead, behind: -np.maximum(ahead, behind),
}


class TitleLists:
    """Log-likelihoods of titles in lists, by a model as it was published."""

    def __init__(self, titles: list[str]) -> None:
        model = Config.from_dict({"model": {"source": "smollm2", "item_input": "title", "dtype": "bf16"}}).model
        self.lm, tokenizer = load_lm(model.source, model)

        def tokens(text: str) -> list[int]:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])

        self.head = ([] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]) + tokens(HEAD)
        self.bullet, self.titles, self.tokens = tokens("-"), titles, tokens

    def log_likelihoods(self, lists: list[list[int]]) -> list[list[float]]:
        """Of each title of each list of items, given what precedes it; the sum over its tokens."""
        out = list[list[float]]()
        for start in range(0, len(lists), ROWS):
            out += self._of_pass(lists[start : start + ROWS])
        return out

    @torch.inference_mode()
    def _of_pass(self, lists: list[list[int]]) -> list[list[float]]:
        rows, spans = list[list[int]](), list[list[tuple[int, int]]]()
        for items in lists:
            row, where = list(self.head), []
            for item in items:
                row += self.bullet
                title = self.tokens(f" {self.titles[item]}\n")[:LONGEST]
                where.append((len(row), len(row) + len(title)))
                row += title
            rows.append(row)
            spans.append(where)
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        with torch.autocast("cpu", torch.bfloat16):
            states = self.lm.model(input_ids=ids).last_hidden_state  # causal, so padding behind a row does not matter
            out = []
            for i, where in enumerate(spans):
                at = [t for begin, end in where for t in range(begin, end)]
                known = (
                    self.lm.lm_head(states[i, [t - 1 for t in at]]).float().log_softmax(-1)[range(len(at)), ids[i, at]]
                )
                out.append([float(part.sum()) for part in known.split([end - begin for begin, end in where])])
        return out


def ratios(model: TitleLists, histories: Windows) -> tuple[FloatArray, FloatArray]:
    """[n] log-likelihood ratios of the titles in order, and reversed."""
    items = sorted(set(histories.items.tolist()))
    alone = dict(zip(items, (found[0] for found in model.log_likelihoods([[i] for i in items])), strict=True))
    lists = [histories.row(i) for i in range(len(histories))]
    ahead = model.log_likelihoods(lists)
    behind = model.log_likelihoods([row[::-1] for row in lists])
    base = np.array([alone[i] for i in histories.items.tolist()])
    return np.concatenate(ahead) - base, np.concatenate([found[::-1] for found in behind]) - base


def compare(data: Path, run: Path, windows: int) -> dict[str, Any]:
    """AUROC and AP of the ratios, of the run's scores, and of both together."""
    torch.set_num_threads(1)
    dataset = read_data(data)
    histories = limit_windows(dataset.splits[c.TEST], windows, 0).histories()
    started = time.process_time()
    ahead, behind = ratios(TitleLists(dataset.catalogue.titles), histories)
    seconds = time.process_time() - started
    scores = pl.read_parquet(run / "scores" / "test.parquet")
    known = align(scores.filter(pl.col(c.WINDOW).is_in(histories.window_ids)), histories, c.LOG_ODDS)
    scored = np.isfinite(known)
    truth, users = histories.truth()[scored], user_codes(histories)[histories.owners][scored]
    ahead, behind, known = ahead[scored], behind[scored], known[scored]
    more = np.column_stack([known, ahead, behind, np.maximum(ahead, behind)])
    alone, both = fitted(known[:, None], truth, users), fitted(more, truth, users)
    low, high = gain_interval(truth, users, alone, both)
    return {
        "histories": len(histories), "interactions": len(truth),
        "seconds a history": round(seconds / len(histories), 3),
        "ratios": {name: quality(truth, of(ahead, behind)) for name, of in RATIOS.items()},
        "denoiser": quality(truth, alone), "denoiser + ratios": quality(truth, both),
        "gain in AP": [low, high],
    }  # fmt: skip


def quality(truth: Any, scores: FloatArray) -> tuple[float, float]:
    """(AUROC, AP)."""
    return round(auroc(scores, truth), 4), round(average_precision(scores, truth), 4)


def fitted(features: FloatArray, truth: Any, users: IntArray) -> FloatArray:
    """Log-odds of a logistic regression that has not seen the user."""
    features = (features - features.mean(0)) / features.std(0)
    folds = GroupKFold(10)
    return np.asarray(
        cross_val_predict(LogisticRegression(), features, truth, groups=users, cv=folds, method="decision_function")
    )


def gain_interval(truth: Any, users: IntArray, alone: FloatArray, both: FloatArray) -> tuple[float, float]:
    """95 % interval of the gain in AP, over users."""
    rng = np.random.default_rng(0)
    of_user = [np.flatnonzero(users == user) for user in np.unique(users)]
    gains = []
    for _ in range(SAMPLES):
        at = np.concatenate([of_user[i] for i in rng.integers(0, len(of_user), len(of_user))])
        gains.append(average_precision(both[at], truth[at]) - average_precision(alone[at], truth[at]))
    low, high = np.percentile(gains, [2.5, 97.5])
    return round(float(low), 4), round(float(high), 4)


def page(found: dict[str, Any]) -> str:
    """The table of all datasets."""

    def row(name: str, cells: list[tuple[float, float]]) -> str:
        return f"| {name} | " + " | ".join(f"{auroc:.3f} / {ap:.3f}" for auroc, ap in cells) + " |"

    datasets = list(found.values())
    lines = [
        "| AUROC / AP of noise | " + " | ".join(found) + " |",
        "|---|" + "---|" * len(found),
        *(row(f"likelihood ratio, {name}", [d["ratios"][name] for d in datasets]) for name in RATIOS),
        row("default denoiser", [d["denoiser"] for d in datasets]),
        row("default denoiser + ratios", [d["denoiser + ratios"] for d in datasets]),
        "| 95 % interval of what the ratios add to AP | "
        + " | ".join(f"{low:+.3f} to {high:+.3f}" for low, high in (d["gain in AP"] for d in datasets)) + " |",
        "| CPU seconds a history, one core | " + " | ".join(f"{d['seconds a history']:.2f}" for d in datasets) + " |",
        "| test histories | " + " | ".join(f"{d['histories']:,}" for d in datasets) + " |",
    ]  # fmt: skip
    table = "\n".join(lines)
    return f"""# What a pre-trained model knows before tuning

    python benchmarks/pretrained.py --data DATA/NAME --run OUT/NAME-15000/llm4dsr-0 --out benchmarks/results/pretrained

SmolLM2-135M-Instruct, not tuned, in bf16. It reads the titles of a history as a list, in order and reversed. The ratio
is log P(title | titles before it) - log P(title alone). 10 % of the interactions are uniform noise. The denoiser is
seed 0 of [RESULTS.md](../../RESULTS.md).

{table}

What the ratios add is fitted to the known noise, cross-validated by user. A denoiser without labels would get less.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=600)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    results = given.out / "results.json"
    known = json.loads(results.read_text())["datasets"] if results.exists() else {}
    known[given.data.name] = compare(given.data, given.run, given.windows)
    write_text(results, json.dumps({"datasets": known, "versions": versions()}, indent=1))
    write_text(given.out / "README.md", page(known))
    print(page(known))


if __name__ == "__main__":
    main()
