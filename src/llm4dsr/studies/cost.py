"""Study 9: what judging costs: windows per second, memory, a million histories, and one history online."""

from __future__ import annotations

import json
import os
from functools import partial
from typing import Any

import polars as pl

from llm4dsr.studies.speed import OURS, speeds
from llm4dsr.studies.study import Context, Found

QUESTION = "What does judging cost, in time, memory and money?"
DOLLARS_PER_CORE_HOUR = 0.05  # an assumption: about what clouds ask for a shared CPU core; nothing is measured here
MILLION = 1_000_000


def study(context: Context) -> Found:
    """Time and memory from the cards of the benchmark, and measured anew, on one core, for embedded models."""
    context.run()
    whole = pl.DataFrame([_ours(context), *_peers(context)])
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
        "threads. All is wall-clock time: other work on the machine makes it longer.",
        "The first table is from the cards that runs left: fitting once, then judging all windows of the suite. Ours "
        "judges self-made noise, too, to make its probabilities anew for each split, and suggests; peers only score. "
        "Work that was stopped and went on counts from where it went on. Memory is that of the whole process, fitting "
        "included.",
        f"The other tables: {once['windows'][0]:,} test histories at once, then {online['calls'][0]:,} one by one, "
        "each model in a fresh process that loads it. Nothing is calibrated anew. "
        f"{OURS} is the tuned denoiser of the run, all of its folds; the others are single untuned models, whose time "
        "does not depend on their weights.",
        "To correct is to score, to decide with η as configured and to suggest for what is flagged. Untuned models are "
        "not calibrated and flag at random, so that theirs is no more than about the time it takes.",
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


def _plot(whole: pl.DataFrame, once: pl.DataFrame, figure: Any) -> None:
    ax = figure.subplots()
    for table, name, label in ((once, "model", "scoring alone, one core"), (whole, "denoiser", "all of a run")):
        names = [f"{n} " if table is once else n for n in table[name].reverse()]  # ours is in both
        ax.plot(table["core-hours"].reverse().to_list(), names, "o", label=label)
    ax.set_xscale("log")
    ax.set_xlabel("core-hours for a million histories (log scale)")
    ax.grid(axis="y", linestyle=":")
    ax.legend()
