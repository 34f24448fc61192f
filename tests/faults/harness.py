"""Runs one stage in a process of its own that ends itself, without a chance to tidy up, at a chosen moment."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from llm4dsr import Config
from llm4dsr.data.demo import make_demo
from llm4dsr.errors import LLM4DSRError
from llm4dsr.pipeline import FOLDERS, STAGES, WORK, Run

CONFIG = Config.from_dict(
    {
        "threads": 1,
        "model": {"hidden_size": 16, "layers": 1, "vector_size": 16},
        "train": {"epochs": 2, "folds": 2, "batch_windows": 32},
        "score": {"calibration_draws": 1},
        "decide": {"policy": "rate", "eta": 0.1},
        "evaluate": {"recommender": {"hidden_size": 8, "blocks": 1, "epochs": 2}},
    }
)
LONG = ("train", "score", "suggest", "evaluate")
KEPT = "kept"  # beside the run that nobody disturbed: its finished parts before it suggests
# Processes are forked from one that has all imported and has computed nothing: a second each, instead of seven.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "llm4dsr.pipeline",
        "llm4dsr.data.demo",
        "llm4dsr.cli.main",
        "peft",
        "sklearn.isotonic",
        "transformers.models.llama.modeling_llama",
    ]
)


def make_run(folder: Path) -> Run:
    run = Run.begin(folder, CONFIG, demo())
    run.prepare(demo())
    return run


def demo() -> Any:
    return make_demo(size="tiny").data


def run_stage(folder: Path, stage: str, moment: int, how: int, limits: dict[int, int], counted: Path | None,
              again: bool) -> None:  # fmt: skip
    """What the child does. It sends itself the signal `how` at the given moment: the n-th report of progress or change
    of a file (before it takes effect)."""
    import llm4dsr.denoise.ensemble
    import llm4dsr.denoise.train

    llm4dsr.denoise.train.CHECKPOINT_SECONDS, llm4dsr.denoise.ensemble.CHUNK = (
        0.0,
        32,
    )  # shards as small as the data are
    run = Run.begin(folder, CONFIG, demo()) if stage == "prepare" else Run(folder)
    for which, most in limits.items():
        resource.setrlimit(which, (most, resource.RLIM_INFINITY))
    if resource.RLIMIT_FSIZE in limits:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error instead of the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where tests keep what is said in a file, that has a size too
    moments = Moments(moment, how)
    try:
        if stage in LONG:
            getattr(run, stage)(moments)
        elif stage == "prepare":
            run.prepare(demo())
        else:
            getattr(run, stage)(overwrite=again)
    except LLM4DSRError as error:
        for which in limits:
            resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    if counted:
        counted.write_text(str(moments.seen))


class Moments:
    """Counts reports of progress and changes of files, and at one of them sends this process a signal."""

    def __init__(self, moment: int, how: int) -> None:
        self.moment, self.how, self.seen = moment, how, 0
        sys.addaudithook(self._audit)

    def __call__(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.moment:
            os.kill(os.getpid(), self.how)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir"):
            self()


def run_command(arguments: list[str], moment: int, how: int) -> None:
    """The same by the command line."""
    import llm4dsr.denoise.train
    from llm4dsr.cli.main import main

    llm4dsr.denoise.train.CHECKPOINT_SECONDS = 0.0
    Moments(moment, how)
    sys.argv = ["llm4dsr", *arguments]
    main()


def by_command(arguments: list[str], moment: int = 0, how: int = signal.SIGKILL) -> int:
    process = PROCESSES.Process(target=run_command, args=(arguments, moment, how))
    process.start()
    return _exit_code(process)


def start(folder: Path, stage: str, moment: int = 0, how: int = signal.SIGKILL,
          limits: dict[int, int] | None = None, counted: Path | None = None, again: bool = False) -> Any:  # fmt: skip
    process = PROCESSES.Process(target=run_stage, args=(folder, stage, moment, how, limits or {}, counted, again))
    process.start()
    return process


def in_child(folder: Path, stage: str, moment: int = 0, how: int = signal.SIGKILL,
             limits: dict[int, int] | None = None, counted: Path | None = None,
             again: bool = False) -> int:  # fmt: skip
    """The exit code of a process that runs the stage; negative: the signal that ended it."""
    return _exit_code(start(folder, stage, moment, how, limits, counted, again))


def _exit_code(process: Any) -> int:
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise AssertionError("the stage hangs")
    code: int = process.exitcode
    return code


def before(stage: str, calm: Path, folder: Path) -> Path:
    """A copy of the run as it was before the stage."""
    shutil.copytree(calm, folder)
    for later in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(folder / FOLDERS[later])
    if stage == "suggest":
        shutil.copytree(calm.parent / KEPT, folder / WORK, dirs_exist_ok=True)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """A hash of every file below a folder."""
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in sorted(folder.rglob("*")) if p.is_file()}  # fmt: skip
