"""Runs one stage in a process of its own that ends itself, without a chance to tidy up, at a chosen moment."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from llm4dsr import Config
from llm4dsr.demo import make_demo
from llm4dsr.pipeline import Run

CONFIG = Config.from_dict(
    {
        "threads": 1,
        "model": {"hidden_size": 16, "layers": 1, "vector_size": 16},
        "train": {"epochs": 2, "folds": 2, "batch_windows": 32},
        "score": {"calibration_draws": 1},
        "decide": {"policy": "rate", "eta": 0.1},
        "evaluate": {"sasrec": {"hidden_size": 8, "blocks": 1, "epochs": 2}},
    }
)
LONG = ("train", "score", "suggest", "evaluate")
# Processes are forked from one that has all imported and has computed nothing: a second each, instead of seven.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    ["llm4dsr.pipeline", "llm4dsr.demo", "peft", "sklearn.isotonic", "transformers.models.llama.modeling_llama"]
)


def make_run(folder: Path) -> Run:
    run = Run.begin(folder, CONFIG, demo())
    run.prepare(demo())
    return run


def demo() -> Any:
    return make_demo(size="tiny").data


def run_stage(folder: Path, stage: str, moment: int, how: int, limits: dict[int, int], counted: Path | None) -> None:
    """What the child does. It sends itself the signal `how` at the given moment: the n-th report of progress or change
    of a file (before it takes effect)."""
    import llm4dsr.ensemble
    import llm4dsr.tune

    llm4dsr.tune.CHECKPOINT_SECONDS, llm4dsr.ensemble.CHUNK = 0.0, 32  # shards as small as the data are
    seen = 0

    def pass_moment(*_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == moment:
            os.kill(os.getpid(), how)

    def audit(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            pass_moment()

    run = Run(folder)
    for which, most in limits.items():
        resource.setrlimit(which, (most, most))
    sys.addaudithook(audit)
    if stage in LONG:
        getattr(run, stage)(pass_moment)
    else:
        getattr(run, stage)()
    if counted:
        counted.write_text(str(seen))


def in_child(folder: Path, stage: str, moment: int = 0, how: int = signal.SIGKILL,
             limits: dict[int, int] | None = None, counted: Path | None = None) -> int:  # fmt: skip
    """The exit code of a process that runs the stage; negative: the signal that ended it."""
    process = PROCESSES.Process(target=run_stage, args=(folder, stage, moment, how, limits or {}, counted))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "the stage hangs"
    return process.exitcode


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}  # fmt: skip
