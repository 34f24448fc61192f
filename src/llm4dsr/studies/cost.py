"""Study 9: what judging costs: windows per second, memory, a million histories, and one history online."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import platform
import re
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import torch

from llm4dsr import columns as c
from llm4dsr.catalogue import Windows
from llm4dsr.config import ModelConfig
from llm4dsr.data import limit_windows
from llm4dsr.denoiser import Denoiser
from llm4dsr.pipeline import origin, peak_memory_mb
from llm4dsr.shards import versions
from llm4dsr.studies.study import Context, Found

QUESTION = "What does judging cost, in time, memory and money?"
DOLLARS_PER_CORE_HOUR = 0.05  # an assumption: about what clouds ask for a shared CPU core; nothing is measured here
MILLION = 1_000_000
OURS = "llm4dsr"
SIZES = ((96, 2), (192, 3), (384, 6))  # width and layers of embedded models, smallest first
QUICK_SIZES = ((32, 1),)
WINDOWS, CALLS = 2_000, 300  # histories judged at once, and one by one
QUICK_WINDOWS, QUICK_CALLS = 33, 10
TUNED_ON = 2_000  # windows that an untuned model takes its title vectors and company from


def study(context: Context) -> Found:
    """Time and memory from the cards of the benchmark, and measured anew, on one core, for embedded models."""
    context.run()
    whole = pl.DataFrame([_ours(context), *_peers(context)])
    measured = pl.concat(_measured(context))
    once = measured.select("model", "parameters", "windows", *_columns(measured["windows per second"], 1, "peak MB"))
    online = measured.select("model", "calls", "median ms", "p95 ms")
    tables = {
        "All that a run does": whole,
        "Scoring alone, on one core": once,
        "One history online, on one core": online,
    }
    notes = [
        f"Dollars are arithmetic, at an assumed {DOLLARS_PER_CORE_HOUR} $ per core-hour; core-hours are seconds times "
        "threads. All is wall-clock time: other work on the machine makes it longer.",
        "The first table is from the cards that runs left: fitting once, then judging all windows of the suite. Ours "
        "judges self-made noise, too, to make its probabilities anew for each split, and suggests; peers only score. "
        "Work that was stopped and went on counts from where it went on. Memory is that of the whole process, fitting "
        "included.",
        f"The other tables: {once['windows'][0]:,} test histories at once, then {online['calls'][0]:,} one by one, "
        "each model in a fresh process that loads it and only scores, without calibrating anew. "
        f"{OURS} is the tuned denoiser of the run, all of its folds; the others are single untuned models, whose time "
        "does not depend on their weights.",
        f"Online, a user that was in training is judged by one fold, anyone else by all of them ({OURS}).",
    ]
    if len(whole) == 1:
        notes.append("No peers were there; `llm4dsr bench` with the same --out makes their cards.")
    return Found(tables, partial(_plot, whole, once), notes)


def of_a_million(windows_per_second: float, threads: int) -> dict[str, float]:
    """Minutes, core-hours and dollars for a million histories."""
    hours = MILLION / windows_per_second / 3600
    core_hours = hours * threads
    return {"minutes for a million": 60 * hours, "core-hours": core_hours, "$": core_hours * DOLLARS_PER_CORE_HOUR}


def _columns(speed: pl.Series, threads: int, *others: str) -> list[Any]:
    costs = pl.DataFrame([of_a_million(s, threads) for s in speed])
    return [speed, *others, *costs.get_columns()]


def _whole_line(name: str, context: Context, fit: float, judge: float, memory: float, threads: int) -> dict[str, Any]:
    windows = sum(len(w) for w in context.suite.data.splits.values())
    speed = windows / judge
    return {"denoiser": name, "threads": threads, "windows": windows, "fit s": fit, "judge s": judge,
            "windows per second": speed, "peak MB": memory, **of_a_million(speed, threads)}  # fmt: skip


def _ours(context: Context) -> dict[str, Any]:
    card = context.run().card()
    stages = card["stages"]
    judge = sum(stages[stage]["seconds"] for stage in ("score", "decide", "suggest"))
    memory = max(stages[stage]["peak_memory_mb"] for stage in ("train", "score", "suggest"))
    threads = card["config"]["threads"] or os.cpu_count() or 1
    return _whole_line(OURS, context, stages["train"]["seconds"], max(judge, 0.1), memory, threads)


def _peers(context: Context) -> list[dict[str, Any]]:
    lines = []
    for path in sorted((context.folder / "peers").glob("*/card.json")):
        card = json.loads(path.read_text(encoding="utf-8"))
        lines.append(
            _whole_line(path.parent.name, context, card["fit_seconds"], card["score_seconds"], card["memory_mb"], 1)
        )
    return lines


def _measured(context: Context) -> list[pl.DataFrame]:
    """One row for each model: parameters, windows per second, peak memory, latency."""
    data, quick, shards = context.suite.data, context.quick, context.shards("cost")
    windows = limit_windows(data.splits[c.TEST], QUICK_WINDOWS if quick else WINDOWS, context.config.seed).histories()
    calls = QUICK_CALLS if quick else CALLS
    key = (versions(), platform.node(), origin(data), context.config, len(windows), calls)
    train = context.run().path("train")
    out = [shards.table((*key, OURS), partial(_in_fresh_process, OURS, train, windows, calls))]
    sizes = QUICK_SIZES if quick else SIZES
    for done, (width, layers) in enumerate(sizes):
        if context.progress:
            context.progress(done, len(sizes), "embedded models")
        name = f"embedded, width {width}, {layers} layer(s)"
        make = partial(_of_size, context, name, width, layers, windows, calls)
        out.append(shards.table((*key, name), make))
    return out


def _of_size(context: Context, name: str, width: int, layers: int, windows: Windows, calls: int) -> pl.DataFrame:
    data, given = context.suite.data, context.config
    config = dataclasses.replace(
        given,
        model=ModelConfig(hidden_size=width, layers=layers),
        train=dataclasses.replace(given.train, epochs=0, folds=1),
        score=dataclasses.replace(given.score, calibration="off"),
    )
    some = limit_windows(data.splits[c.TRAIN], TUNED_ON, given.seed)
    with TemporaryDirectory() as folder:
        Denoiser(config).fit(some, data.catalogue, data.splits[c.VALID].histories()).save_pretrained(folder)
        return _in_fresh_process(name, Path(folder), windows, calls)


def _in_fresh_process(name: str, folder: Path, windows: Windows, calls: int) -> pl.DataFrame:
    """`_judge` where nothing else has used memory before."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        line = pool.submit(_judge, folder, windows, calls).result()
    return pl.DataFrame({"model": name, **line})


def _judge(folder: Path, windows: Windows, calls: int) -> dict[str, float]:
    torch.set_num_threads(1)
    denoiser = Denoiser.from_pretrained(folder)
    denoiser.score(windows.take(np.arange(min(10, len(windows)))))  # what is set up by the first call is no one's time
    started = time.perf_counter()
    denoiser.score(windows)
    seconds = time.perf_counter() - started
    latencies = []
    for i in range(calls):
        one = windows.take(np.array([i % len(windows)]))
        started = time.perf_counter()
        denoiser.score(one)
        latencies.append(1000 * (time.perf_counter() - started))
    return {
        "parameters": sum(p.numel() for model in denoiser.ensemble.models for p in model.parameters()),
        "windows": len(windows),
        "windows per second": len(windows) / seconds,
        "peak MB": _own_peak_mb(),
        "calls": calls,
        "median ms": float(np.median(latencies)),
        "p95 ms": float(np.quantile(latencies, 0.95)),
    }


def _own_peak_mb() -> int:
    """Of this process alone: on Linux, ru_maxrss holds that of the process that started it, too."""
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.M)):
        return int(found[1]) // 1024
    return peak_memory_mb()


def _plot(whole: pl.DataFrame, once: pl.DataFrame, figure: Any) -> None:
    ax = figure.subplots()
    for table, name, label in ((once, "model", "scoring alone, one core"), (whole, "denoiser", "all of a run")):
        names = [f"{n} " if table is once else n for n in table[name].reverse()]  # ours is in both
        ax.plot(table["core-hours"].reverse().to_list(), names, "o", label=label)
    ax.set_xscale("log")
    ax.set_xlabel("core-hours for a million histories (log scale)")
    ax.grid(axis="y", linestyle=":")
    ax.legend()
