"""How fast models judge, how much memory they take, and how long one history waits."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

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
from llm4dsr.studies.study import Context

OURS = "llm4dsr"
SIZES = ((96, 2), (192, 3), (384, 6))  # width and layers of embedded models, smallest first
QUICK_SIZES = ((32, 1),)
WINDOWS, CALLS = 2_000, 300  # histories judged at once, and one by one
QUICK_WINDOWS, QUICK_CALLS = 33, 10
TUNED_ON = 2_000  # windows that an untuned model takes its title vectors and company from


def speeds(context: Context) -> pl.DataFrame:
    """The tuned denoiser of the run and untuned embedded models of some sizes, each on one core. One row for each:
    model, parameters, windows (test histories that were scored at once), windows per second, peak MB, calls (histories
    that were judged one by one), median ms and p95 ms to score one, and to correct one: score, decide, suggest."""
    data, quick, shards = context.suite.data, context.quick, context.shards("cost")
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

        out = [shards.table((*key, OURS), partial(judged, OURS, context.run().path("train")))]
        sizes = QUICK_SIZES if quick else SIZES
        for done, (width, layers) in enumerate(sizes):
            if context.progress:
                context.progress(done, len(sizes), "embedded models")
            name = f"embedded, width {width}, {layers} layer(s)"
            out.append(shards.table((*key, name), partial(of_size, name, width, layers)))
    return pl.concat(out)


def _untuned(context: Context, width: int, layers: int) -> Denoiser:
    """A single embedded model of this size, as it is before tuning."""
    data, given = context.suite.data, context.config
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
