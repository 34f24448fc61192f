"""Study 9: what scoring costs: windows per second, memory, a million histories, and one history online."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch

from llm4dsr import columns as c
from llm4dsr.bench.denoised import BASELINE_FOLDER
from llm4dsr.bench.studies.study import Context, Found
from llm4dsr.config import ModelConfig
from llm4dsr.core.hashing import versions
from llm4dsr.core.memory import peak_memory_mb
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.denoiser import Denoiser
from llm4dsr.pipeline import origin

OURS = "llm4dsr"
SIZES = ((96, 2), (192, 3), (384, 6))  # width and layers of embedded models, smallest first
QUICK_SIZES = ((32, 1),)
WINDOWS, CALLS = 2_000, 300  # histories judged at once, and one by one
QUICK_WINDOWS, QUICK_CALLS = 33, 10
TUNED_ON = 2_000  # windows that an untuned model takes its title vectors and co-occurrence from


def speeds(context: Context) -> pl.DataFrame:
    """Measure the tuned denoiser of the run, and untuned embedded models of some sizes, each on one core.

    Returns
    -------
    DataFrame
        One row per model: parameters; windows (test histories scored at once) and windows per second; peak MB; calls
        (histories scored one by one), and the median and p95 of the ms to score one, and to correct one.
    """
    data, quick, cache = context.dataset.data, context.quick, context.cache("cost")
    windows = limit_windows(data.splits[c.TEST], QUICK_WINDOWS if quick else WINDOWS, context.config.seed).histories()
    calls = QUICK_CALLS if quick else CALLS
    key = (versions(), "score and correct", platform.node(), origin(data), context.config, len(windows), calls)
    # A fresh process for each model has only that model's memory; a quick look saves the time to start it
    fresh = None if quick else 1
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=fresh) as pool:

        def judged(name: str, folder: Path) -> pl.DataFrame:
            return pl.DataFrame({"model": name, **pool.submit(_judge, folder, windows, calls).result()})

        def of_size(name: str, width: int, layers: int) -> pl.DataFrame:
            with TemporaryDirectory() as folder:
                _untuned(context, width, layers).save_pretrained(folder)
                return judged(name, Path(folder))

        out = [cache.table((*key, OURS), partial(judged, OURS, context.run().path("train")))]
        sizes = QUICK_SIZES if quick else SIZES
        for done, (width, layers) in enumerate(sizes):
            if context.progress:
                context.progress(done, len(sizes), "embedded models")
            name = f"embedded, width {width}, {layers} layer(s)"
            out.append(cache.table((*key, name), partial(of_size, name, width, layers)))
    return pl.concat(out)


def _untuned(context: Context, width: int, layers: int) -> Denoiser:
    """A single embedded model of this size, before tuning."""
    data, given = context.dataset.data, context.config
    config = dataclasses.replace(
        given,
        model=ModelConfig(hidden_size=width, layers=layers),
        train=dataclasses.replace(given.train, epochs=0, folds=1),
        score=dataclasses.replace(given.score, calibration="off"),
    )
    some = limit_windows(data.splits[c.TRAIN], TUNED_ON, given.seed)
    return Denoiser(config).fit(some, data.catalogue, data.splits[c.VALID].histories())


def _judge(folder: Path, windows: Windows, calls: int) -> dict[str, float]:
    torch.set_num_threads(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # one core, also where there is a GPU (for that see benchmarks/gpu.py)
    denoiser = Denoiser.from_pretrained(folder)
    denoiser.score(windows.take(np.arange(min(10, len(windows)))))  # what is set up by the first call is no one's time
    started = time.perf_counter()
    denoiser.score(windows)
    seconds = time.perf_counter() - started
    scored, corrected = (_latencies(call, windows, calls) for call in (denoiser.score, denoiser.correct))
    return {
        "parameters": sum(p.numel() for model in denoiser.ensemble.models for p in model.parameters()),
        "windows": len(windows),
        "windows per second": len(windows) / seconds,
        "peak MB": peak_memory_mb(),
        "calls": calls,
        "score, median ms": float(np.median(scored)),
        "score, p95 ms": float(np.quantile(scored, 0.95)),
        "correct, median ms": float(np.median(corrected)),
        "correct, p95 ms": float(np.quantile(corrected, 0.95)),
    }


def _latencies(call: Callable[[Windows], object], windows: Windows, calls: int) -> list[float]:
    """Milliseconds of each call with one history."""
    call(windows.take(np.array([0])))  # what is set up by the first call is no one's time
    out = []
    for i in range(calls):
        one = windows.take(np.array([i % len(windows)]))
        started = time.perf_counter()
        call(one)
        out.append(1000 * (time.perf_counter() - started))
    return out


QUESTION = "What does scoring cost, in time, memory and money?"
DOLLARS_PER_CORE_HOUR = 0.05  # an assumption: about what clouds ask for a shared CPU core; nothing is measured here
MILLION = 1_000_000


def study(context: Context) -> Found:
    """Time and memory from the cards of the benchmark, and measured on one core for embedded models."""
    context.run()
    whole = pl.DataFrame([_ours(context), *_baselines(context)])
    measured = speeds(context)
    once = measured.select("model", "parameters", "windows", *_columns(measured["windows per second"], 1, "peak MB"))
    online = measured.select("model", "calls", *(n for n in measured.columns if n.endswith(" ms")))
    tables = {
        "All that a run does": whole,
        "Scoring alone, on one core": once,
        "One history online, on one core": online,
    }
    notes = [
        f"Dollars are arithmetic, at an assumed {DOLLARS_PER_CORE_HOUR} $ per core-hour; core-hours are seconds times "
        "threads. All times are wall-clock; other work on the machine makes them longer.",
        "The first table is from the cards that runs left: fitting once, then scoring all windows of the dataset. Ours "
        "also scores injected noise, to calibrate each split, and suggests; baselines only score. Resumed work counts "
        "from where it resumed. Memory is that of the whole process, fitting included.",
        f"The other tables: {once['windows'][0]:,} test histories at once, then {online['calls'][0]:,} one by one, "
        "each model in a fresh process that loads it. Nothing is recalibrated. "
        f"{OURS} is the tuned denoiser of the run with all folds; the others are single untuned models, whose time "
        "does not depend on their weights.",
        "To correct is to score, decide with the configured η, and suggest for what is flagged. Untuned models flag at "
        "random, so their time is approximate.",
        f"Online, a user in training is scored by one fold, others by all ({OURS}).",
    ]
    if len(whole) == 1:
        notes.append("No baselines were there; `llm4dsr bench` with the same --out makes their cards.")
    return Found(tables, partial(_plot, whole, once), notes)


def of_a_million(windows_per_second: float, threads: int) -> dict[str, float]:
    """Return minutes, core-hours and dollars for a million histories."""
    hours = MILLION / windows_per_second / 3600
    core_hours = hours * threads
    return {"minutes for a million": 60 * hours, "core-hours": core_hours, "$": core_hours * DOLLARS_PER_CORE_HOUR}


def _columns(speed: pl.Series, threads: int, *others: str) -> list[Any]:
    costs = pl.DataFrame([of_a_million(s, threads) for s in speed])
    return [speed, *others, *costs.get_columns()]


def _whole_line(name: str, context: Context, fit: float, judge: float, memory: float, threads: int) -> dict[str, Any]:
    windows = sum(len(w) for w in context.dataset.data.splits.values())
    speed = windows / judge
    return {"denoiser": name, "threads": threads, "windows": windows, "fit s": fit, "score s": judge,
            "windows per second": speed, "peak MB": memory, **of_a_million(speed, threads)}  # fmt: skip


def _ours(context: Context) -> dict[str, Any]:
    card = context.run().card()
    stages = card["stages"]
    judge = sum(stages[stage]["seconds"] for stage in ("score", "decide", "suggest"))
    memory = max(stages[stage]["peak_memory_mb"] for stage in ("train", "score", "suggest"))
    threads = card["config"]["threads"] or os.cpu_count() or 1
    return _whole_line(OURS, context, stages["train"]["seconds"], max(judge, 0.1), memory, threads)


def _baselines(context: Context) -> list[dict[str, Any]]:
    lines = []
    for path in sorted((context.folder / BASELINE_FOLDER).glob("*/card.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        lines.append(
            _whole_line(path.parent.name, context, card["fit_seconds"], card["score_seconds"], card["memory_mb"], 1)
        )
    return lines


def _plot(whole: pl.DataFrame, once: pl.DataFrame, figure: Any) -> None:
    ax = figure.subplots()
    for table, name, label in ((once, "model", "scoring alone, one core"), (whole, "denoiser", "all of a run")):
        names = [f"{n} " if table is once else n for n in table[name].reverse()]  # ours is in both
        ax.plot(table["core-hours"].reverse().to_list(), names, "o", label=label)
    ax.set_xscale("log")
    ax.set_xlabel("core-hours for a million histories (log scale)")
    ax.grid(axis="y", linestyle=":")
    ax.legend()
