"""What a pre-trained language model finds, before tuning and after, and what it adds to the default denoiser.

    python benchmarks/pretrained.py --data DATA/toys --run OUT/toys-15000/llm4dsr-0 --scratch DIR \\
      --out benchmarks/results/pretrained

SmolLM2-135M with the recipe `laptop` scores 600 test histories with known noise, each way in a process of its own:

- tuned on 0, 250, 1,000 and 4,000 windows, one epoch of LoRA each;
- `random`: the same shape with random weights, all tuned on 1,000 windows, as likelihood;
- `answers`: the published task (`readout: title`, one injected item in each window), tuned on 1,000 windows. One model,
  scored by the first token of each title and by whole titles.

`--run` is a default run on all windows, such as `llm4dsr bench` leaves. `embedded` cells fit the default denoiser on
the windows of so many users instead: a small site, whose counts say little.

What a model adds to another is measured by a logistic regression of both scores on the known noise, cross-validated by
user. So it is an upper bound: a denoiser has no labels to fit it to. Intervals are from 1,000 bootstrap samples of
users. The cascade asks the language model only for the histories in which the default denoiser is least certain.

Cells that are in `--scratch` are not made again, and rows of other cells stay as they are. `--dtype fp32` is for a CPU
without AMX. Times are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict

from llm4dsr import columns as c
from llm4dsr.config import Config
from llm4dsr.core.arrays import BoolArray, FloatArray, IntArray
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_text
from llm4dsr.core.memory import peak_memory_mb
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import Windows, align, limit_windows
from llm4dsr.denoise.build_model import build_model
from llm4dsr.denoise.score import score_windows
from llm4dsr.denoise.train import tune
from llm4dsr.denoiser import Denoiser
from llm4dsr.evaluate.train_and_evaluate import user_codes
from llm4dsr.metrics import auroc, average_precision
from on_runs import gain_interval

SHARES = (0.1, 0.25, 0.5, 1.0)  # of the histories that a cascade asks the language model for
LAPTOP = {"model": {"source": "smollm2"}, "train": {"epochs": 1}}
RANDOM: dict[str, Any] = {"model": {"tuning": "full"}}
ANSWERS: dict[str, Any] = {
    "model": {"readout": "title"},
    "task": {"replaced": 1, "none": 0.0, "popular": 0.0, "whole_prompt_loss": True},
    "train": {"small_loss_drop_rate": 0.0},
}
MODES = {"first-token": "first token", "whole-title": "whole title"}


def of_model(cell: str, data: Dataset, histories: Windows, dtype: str) -> dict[str, FloatArray]:
    """Scores of a language model, tuned as the cell says."""
    kind, windows = cell.split("-")[0], int(cell.split("-")[1])
    config = Config.from_dict(LAPTOP, base=Config.from_yaml("laptop"))
    config = Config.from_dict({"model": {"dtype": dtype}}, base=config)
    config = Config.from_dict({"random": RANDOM, "answers": ANSWERS}.get(kind, {}), base=config)
    config = Config.from_dict({"train": {"samples": max(1, windows)}}, base=config)
    train = data.splits[c.TRAIN]
    model, builder = build_model(config, data.catalogue, train, None, None, 0)
    if kind == "random":
        torch.manual_seed(0)
        model.lm.load_state_dict(type(model.lm)(model.lm.config).state_dict())
    if windows:
        tune(model, builder, train, data.catalogue, config)
    if kind != "answers":
        return {"": score_windows(model, builder, histories, data.catalogue, config)}
    modes = {name: Config.from_dict({"score": {"mode": mode}}, base=config) for mode, name in MODES.items()}
    return {name: score_windows(model, builder, histories, data.catalogue, how) for name, how in modes.items()}


def of_few_users(cell: str, data: Dataset, histories: Windows) -> dict[str, FloatArray]:
    """Scores of the default denoiser, fitted on the windows of so many users."""
    train = data.splits[c.TRAIN]
    codes = user_codes(train)
    chosen = np.random.default_rng(0).permutation(int(codes.max()) + 1)[: int(cell.split("-")[1])]
    some = train.take(np.flatnonzero(np.isin(codes, chosen)))
    denoiser = Denoiser(Config.from_dict({"threads": 1})).fit(some, data.catalogue)
    return {"": align(denoiser.score(histories), histories, c.LOG_ODDS)}


def make(cell: str, path: Path, windows: int, out: Path, dtype: str) -> None:
    """Write the scores of one cell, with what they cost."""
    torch.set_num_threads(1)
    data = read_data(path)
    histories = limit_windows(data.splits[c.TEST], windows, 0).histories()
    began = time.process_time()
    few = cell.startswith("embedded")
    scores = of_few_users(cell, data, histories) if few else of_model(cell, data, histories, dtype)
    cost: dict[str, Any] = {} if few else {"dtype": dtype}
    cost |= {"CPU minutes": round((time.process_time() - began) / 60, 1), "GiB": round(peak_memory_mb() / 1024, 1)}
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / f"{cell}.json", json.dumps(cost | {name: list(values) for name, values in scores.items()}))
    print(cell, cost, {name: quality(histories.truth(), values) for name, values in scores.items()}, flush=True)


def compare(path: Path, run: Path, windows: int, cells: list[str], scratch: Path) -> dict[str, Any]:
    """AUROC and AP of each cell, of the run's scores, and of both together."""
    data = read_data(path)
    histories = limit_windows(data.splits[c.TEST], windows, 0).histories()
    table = pl.read_parquet(run / "scores" / "test.parquet")
    default = align(table.filter(pl.col(c.WINDOW).is_in(histories.window_ids)), histories, c.LOG_ODDS)
    found, costs = dict[str, FloatArray](), dict[str, Any]()
    for cell in cells:
        kept = json.loads((scratch / f"{cell}.json").read_text())
        costs[cell] = {name: kept.pop(name) for name in ("dtype", "CPU minutes", "GiB") if name in kept}
        found |= {f"{cell} {name}".strip(): np.array(values) for name, values in kept.items()}
    scored = np.isfinite(np.column_stack([default, *found.values()])).all(axis=1)
    truth, users, owners = histories.truth()[scored], user_codes(histories)[histories.owners][scored], histories.owners
    default, found, owners = default[scored], {name: s[scored] for name, s in found.items()}, owners[scored]
    models = [name for name in found if not name.startswith("embedded")]
    out: dict[str, Any] = {"histories": len(histories), "interactions": len(truth), "costs": costs,
           "alone": {"default": quality(truth, default)} | {name: quality(truth, s) for name, s in found.items()},
           "together": {name: together(default, found[name], truth, users) for name in models},
           "few users": {f"{few} + {models[0]}": together(found[few], found[models[0]], truth, users)
                         for few in found if few.startswith("embedded")}}  # fmt: skip
    if not models:
        return out
    best = max(models, key=lambda name: out["together"][name]["AP"][1])
    return out | {"cascade": cascade(default, found[best], truth, users, owners), "cascade of": best}


def merged(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What is known of a dataset, with the rows of new cells. The cascade is that of the first comparison."""
    if not before:
        return now
    rows = {part: before[part] | now[part] for part in ("costs", "alone", "together", "few users")}
    rows["alone"]["default"] = before["alone"]["default"]
    return before | rows


def together(alone: FloatArray, more: FloatArray, truth: BoolArray, users: IntArray) -> dict[str, Any]:
    """AUROC and AP of one score and of both, and the interval of what is gained in AP."""
    both = fitted(np.column_stack([alone, more]), truth, users)
    first = fitted(alone[:, None], truth, users)
    pairs = [quality(truth, first), quality(truth, both)]
    gain = gain_interval(average_precision, truth, users, first, both)
    return {"AUROC": [auroc for auroc, _ in pairs], "AP": [ap for _, ap in pairs],
            "gain in AP": [round(v, 4) for v in gain]}  # fmt: skip


def cascade(
    alone: FloatArray, more: FloatArray, truth: BoolArray, users: IntArray, owners: IntArray
) -> list[dict[str, float]]:
    """AP where only the least certain histories get the second score."""
    first, both = fitted(alone[:, None], truth, users), fitted(np.column_stack([alone, more]), truth, users)
    certainty = np.full(int(owners.max()) + 1, np.inf)
    np.minimum.at(certainty, owners, np.abs(first))  # smallest where one interaction is near even odds
    places = np.unique(owners)
    places = places[np.argsort(certainty[places], kind="stable")]
    rows = [{"share": 0.0, "AP": quality(truth, first)[1]}]
    for share in SHARES:
        chosen = np.isin(owners, places[: round(share * len(places))])
        rows.append({"share": share, "AP": quality(truth, np.where(chosen, both, first))[1]})
    return rows


def quality(truth: BoolArray, scores: FloatArray) -> tuple[float, float]:
    """(AUROC, AP)."""
    known = np.isfinite(scores)
    return round(auroc(scores[known], truth[known]), 4), round(average_precision(scores[known], truth[known]), 4)


def fitted(features: FloatArray, truth: BoolArray, users: IntArray) -> FloatArray:
    """Log-odds of a logistic regression that has not seen the user."""
    features = (features - features.mean(0)) / features.std(0)
    folds = GroupKFold(10)
    return np.asarray(
        cross_val_predict(LogisticRegression(), features, truth, groups=users, cv=folds, method="decision_function")
    )


def named(cell: str) -> str:
    """What a cell is called in the tables."""
    kind, rest = cell.split("-", 1)
    size, _, mode = rest.partition(" ")
    if kind == "embedded":
        return f"default, fitted on {int(size):,} users"
    what = {"likelihood": "SmolLM2, likelihood", "random": "random weights of the same shape, likelihood",
            "answers": f"SmolLM2, published answers, {mode}"}[kind]  # fmt: skip
    return f"{what}, {f'tuned on {int(size):,} windows' if int(size) else 'not tuned'}"


def page(found: dict[str, Any]) -> str:
    """The tables of all datasets."""
    parts = [
        "# What a pre-trained language model finds, and what it adds\n\n"
        "    python benchmarks/pretrained.py --data DATA/NAME --run OUT/NAME-15000/llm4dsr-0 --scratch DIR \\\n"
        "      --out benchmarks/results/pretrained\n\n"
        "SmolLM2-135M-Instruct in bf16 or fp32, recipe `laptop`, one epoch of LoRA (random weights: all are tuned). "
        "Toys has 10 %\nuniform noise, MovieLens small 7 %. *default* is seed 0 of [RESULTS.md](../../RESULTS.md), of "
        "all users. "
        "Both scores together are fitted to the known\nnoise, cross-validated by user: an upper bound, as a denoiser "
        "has no labels. Intervals are 95 % over users. CPU minutes, of one thread\nbeside other work, are those of "
        "loading, tuning and scoring."
    ]
    for name, data in found.items():
        area, ap = data["alone"]["default"]
        rows = ["| | AUROC / AP | with the default: AP | gain in AP | CPU minutes |", "|---" * 5 + "|"]
        rows.append(f"| default | {area:.3f} / {ap:.3f} | | | |")
        for cell, (area, ap) in list(data["alone"].items())[1:]:
            both, cost = data["together"].get(cell), data["costs"][cell.split(" ")[0]]
            gain = f"{both['AP'][1]:.3f} | {signed(both['gain in AP'])}" if both else "|"
            minutes = " ".join(str(cost[key]) for key in ("CPU minutes", "dtype") if key in cost)
            rows.append(f"| {named(cell)} | {area:.3f} / {ap:.3f} | {gain} | {minutes} |")
        parts.append(f"## {name}, {data['histories']} test histories\n\n" + "\n".join(rows))
        if data["few users"]:
            rows = ["| | default alone: AUROC / AP | both together | gain in AP |", "|---" * 4 + "|"]
            for pair, both in data["few users"].items():
                few, model = pair.split(" + ")
                cells = [f"{area:.3f} / {ap:.3f}" for area, ap in zip(both["AUROC"], both["AP"], strict=True)]
                rows.append(f"| {named(few)} + {named(model)} | {' | '.join(cells)} | {signed(both['gain in AP'])} |")
            parts.append("A default denoiser of few users, with the language model:\n\n" + "\n".join(rows))
        asked = ", ".join(f"{step['share']:.0%}: {step['AP']:.3f}" for step in data["cascade"])
        parts.append(
            f"A cascade, which asks *{named(data['cascade of'])}* only for the histories in which the default is least "
            f"certain; AP by the share that is asked: {asked}."
        )
    return "\n\n".join(parts) + "\n"


def signed(interval: list[float]) -> str:
    low, high = interval
    return f"{low:+.3f} to {high:+.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=600)
    parser.add_argument("--cells", default="likelihood-0,embedded-100,embedded-300,embedded-1000,likelihood-250,"
                        "likelihood-1000,random-1000,answers-1000,likelihood-4000")  # fmt: skip
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "fp32"), help="of the language model")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    scratch, cells = given.scratch / given.data.name, given.cells.split(",")
    for cell in cells:
        if not (scratch / f"{cell}.json").exists():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                process.submit(make, cell, given.data, given.windows, scratch, given.dtype).result()
    results = given.out / "results.json"
    known = json.loads(results.read_text())["datasets"] if results.exists() else {}
    known[given.data.name] = merged(
        known.get(given.data.name, {}), compare(given.data, given.run, given.windows, cells, scratch)
    )
    write_text(results, json.dumps({"datasets": known, "versions": versions()}, indent=1))
    write_text(given.out / "README.md", page(known))


if __name__ == "__main__":
    main()
