"""Several processes, started by a launcher, tune one model together: the same steps as one process."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from filelock import FileLock

from llm4dsr import Config
from llm4dsr import columns as c
from llm4dsr.core.lock import LOCK
from llm4dsr.errors import ConfigError
from llm4dsr.pipeline import Run
from tests.tiny_run import CONFIG

# No dropout, which each process draws anew
WITHOUT_DROPOUT = Config.from_dict(
    {"model": {"dropout": 0.0}, "train": {"epochs": 2, "batch_windows": 64}}, base=CONFIG
)
TITLES = Config.from_dict(
    {"model": {"item_input": "title", "readout": "title", "cooccurrence": False}, "train": {"folds": 1}},
    base=WITHOUT_DROPOUT,
)
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
# As for two GPUs; where there are none, the processes work on the CPU
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port"]  # fmt: skip


# Printed by each process when it ends: the threads that still carry messages between processes
THREADS_LEFT = """
import atexit, os
def left():
    names = [open(f"/proc/self/task/{thread}/comm").read() for thread in os.listdir("/proc/self/task")]
    print("threads left:", sum("gloo" in name for name in names), flush=True)
atexit.register(left)
"""


def prepared(folder: Path, data, config: Config) -> Run:
    run = Run.create(folder, config)
    run.prepare(data)
    return run


def launch(run: Run, launcher: Sequence[str] = TORCHRUN, first_lines: str = "") -> subprocess.Popen[str]:
    """Start `train` in two processes. The lines are run first, in each of them."""
    port = str(20_000 + os.getpid() % 20_000)
    script = run.folder.with_suffix(".py")
    script.write_text(f"{first_lines}\nfrom llm4dsr.cli.main import main\nmain()\n")
    command = [sys.executable, *launcher, port, str(script), "train", "-r", str(run.folder)]
    return subprocess.Popen(
        [*command, "--skip-estimate"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, start_new_session=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for the end, and return what was shown."""
    try:
        shown = process.communicate(timeout=300)[0]
    finally:
        stop(process)
    return shown


def stop(process: subprocess.Popen[str]) -> None:
    """Kill the launcher. Its processes end by themselves."""
    if process.poll() is None:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_demo) -> Run:
    """A run whose model one process tuned."""
    run = prepared(tmp_path_factory.mktemp("alone") / "run", tiny_demo, WITHOUT_DROPOUT)
    run.train()
    return run


@pytest.fixture(scope="module")
def together(tmp_path_factory, tiny_demo) -> Run:
    """The same run, tuned by two."""
    run = prepared(tmp_path_factory.mktemp("together") / "run", tiny_demo, WITHOUT_DROPOUT)
    process = launch(run)
    shown = finish(process)
    assert process.returncode == 0, shown
    return run


def test_two_processes_have_the_loss_curve_of_one(alone: Run, together: Run) -> None:
    """The same windows, noise and global batch: sums in another order, so equal up to rounding."""
    assert [run.facts("train")["processes"] for run in (alone, together)] == [1, 2]
    one, two = alone.facts("train")["loss"], together.facts("train")["loss"]
    assert len(one) == 4  # two folds, two epochs each
    np.testing.assert_allclose(two, one, rtol=1e-4)


def test_a_model_tuned_by_two_processes_gives_the_scores_of_one(alone: Run, together: Run) -> None:
    for run in (alone, together):
        run.score()
    one, two = (pl.concat(run.scores().values())[c.LOG_ODDS].to_numpy() for run in (alone, together))
    assert np.corrcoef(one, two)[0, 1] > 0.999


def test_titles_are_tuned_together_too(tmp_path: Path, tiny_demo) -> None:
    """An embedded model of text: pre-training on titles, then title answers.

    A thread between processes that outlives the tuning may abort a process that ends.
    """
    one, two = (prepared(tmp_path / name, tiny_demo, TITLES) for name in ("one", "two"))
    one.train()
    process = launch(two, ACCELERATE, THREADS_LEFT if sys.platform == "linux" else "")
    shown = finish(process)
    assert process.returncode == 0, shown
    if sys.platform == "linux":
        assert shown.count("threads left:") == shown.count("threads left: 0") == 2, shown
    assert two.facts("train")["processes"] == 2
    np.testing.assert_allclose(two.facts("train")["loss"], one.facts("train")["loss"], rtol=1e-3)


def test_processes_killed_in_the_middle_resume_to_the_same_model(tmp_path: Path, tiny_demo) -> None:
    """With dropout: a resumed step draws what the step would have drawn."""
    config = Config.from_dict({"model": {"dropout": 0.1}, "train": {"epochs": 6}}, base=WITHOUT_DROPOUT)
    whole, killed = (prepared(tmp_path / name, tiny_demo, config) for name in ("whole", "killed"))
    often = "import llm4dsr.denoise.train as t; t.CHECKPOINT_SECONDS = 0.0"
    process = launch(killed, first_lines=f"{often}\nimport time; t.sum_gradients = "
                     "lambda p, add=t.sum_gradients: (time.sleep(0.2), add(p))")  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(killed.work("train").glob("fold_*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    assert process.poll() is None, process.communicate()[0]
    stop(process)
    FileLock(killed.folder / LOCK).acquire(timeout=60).lock.release()  # its processes have ended too
    assert not killed.done("train")
    assert list(killed.work("train").glob("fold_*.safetensors")), "a checkpoint to resume from"
    for run in (killed, whole):
        process = launch(run, first_lines=often)
        shown = finish(process)
        assert process.returncode == 0, shown
    files = [sorted(p.relative_to(run.path("train")) for p in run.path("train").rglob("*.safetensors"))
             for run in (whole, killed)]  # fmt: skip
    assert files[0] == files[1] != []
    for name in files[0]:
        assert (whole.path("train") / name).read_bytes() == (killed.path("train") / name).read_bytes(), name


def test_processes_with_different_inputs_stop_with_a_message(tmp_path: Path, tiny_demo) -> None:
    run = prepared(tmp_path / "run", tiny_demo, WITHOUT_DROPOUT)
    other_versions = (
        "import os, llm4dsr.denoise.ensemble as e\n"
        "e.versions = lambda given=e.versions: given() | {'rank': os.environ['RANK']}"
    )
    process = launch(run, first_lines=other_versions)
    shown = finish(process)
    assert process.returncode != 0
    assert "differ in their windows, options, labels or versions" in " ".join(shown.split()), shown
    assert not run.done("train")


def test_out_of_memory_in_one_process_halves_the_passes_of_all(tmp_path: Path, tiny_demo, alone: Run) -> None:
    run = prepared(tmp_path / "run", tiny_demo, WITHOUT_DROPOUT)
    fails_once = (
        "import os, torch, llm4dsr.denoise.train as t\n"
        "left = [os.environ['RANK'] == '1']\n"
        "def losses(*given, all=t._losses):\n"
        "    yield from all(*given)\n"
        "    if left and left.pop():\n"
        "        raise torch.OutOfMemoryError('out of memory')\n"
        "t._losses = losses"
    )
    process = launch(run, first_lines=fails_once)
    shown = finish(process)
    assert process.returncode == 0, shown
    assert "Out of memory" in shown
    np.testing.assert_allclose(run.facts("train")["loss"], alone.facts("train")["loss"], rtol=1e-4)


def test_other_verbs_are_refused_under_a_launcher(llm4dsr, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, shown = llm4dsr("score", "--run", tmp_path)
    assert code == ConfigError.exit_code
    assert "only `llm4dsr train` is shared by several" in " ".join(shown.split())


def test_the_module_is_the_command_line() -> None:
    shown = subprocess.run([sys.executable, "-m", "llm4dsr", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("llm4dsr ")
