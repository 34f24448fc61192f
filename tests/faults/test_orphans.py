"""Workers end with the process that started them, however it ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SECONDS = 2  # after which nothing may be left

RECOMMENDERS = """
if __name__ == "__main__":
    import torch
    from llm4dsr.config import EvaluateConfig, RecommenderConfig
    from llm4dsr.data.demo import make_demo
    from llm4dsr.evaluate.train_and_evaluate import train_and_evaluate

    torch.set_num_threads(2)
    data = make_demo(size="tiny").data
    config = EvaluateConfig(seeds=2, recommender=RecommenderConfig(epochs=100_000, patience=100_000))
    train_and_evaluate({"original": data.splits}, data.catalogue, config, 0)
"""
BASELINES = """
if __name__ == "__main__":
    import sys
    from pathlib import Path
    import torch
    from llm4dsr.bench.datasets import BenchDataset
    from llm4dsr.bench.denoised import denoised
    from llm4dsr.config import Config
    from llm4dsr.data.demo import make_demo

    torch.set_num_threads(2)
    denoised(BenchDataset("demo", make_demo().data), Path(sys.argv[1]), ["sasrec-likelihood", "iadsr"], Config())
"""


def children(process: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{process}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return [grandchild for child in found for grandchild in (child, *children(child))]


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def computes(process: int) -> bool:
    """It has used a second of processor time."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12]) > os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("script", [RECOMMENDERS, BASELINES], ids=["recommenders", "baselines"])
def test_no_worker_is_left_after_the_parent_is_killed(script, how, tmp_path):
    (tmp_path / "script.py").write_text(script)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(tmp_path / "out")])
    try:
        for _ in range(1200):
            time.sleep(0.1)
            assert parent.poll() is None
            workers = children(parent.pid)
            if sum(computes(worker) for worker in workers) >= 1 and len(workers) >= 2:
                break
        else:
            raise AssertionError("no worker began in two minutes")
        parent.send_signal(how)
        parent.wait(30)
        time.sleep(SECONDS)
        assert [worker for worker in workers if is_alive(worker)] == []
    finally:
        parent.kill()
