"""Ray workers make the parts of a stage; its tables have the same bytes, also when workers die in the middle."""

import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from llm4dsr import Denoiser
from llm4dsr.denoise.score_in_time import parts_to_score
from llm4dsr.errors import ConfigError, ModelError, OutputError
from llm4dsr.pipeline import FOLDERS, STAGES, Run
from llm4dsr.pipeline.ray_workers import RayWorkers, _error, _PartWorker
from tests.faults.harness import contents
from tests.pipeline.ray_processes import kill_a_worker, listening_addresses
from tests.tiny_run import make_run


@pytest.fixture(scope="module")
def local(tmp_path_factory, tiny_demo) -> Run:
    """A run that this process made alone."""
    return make_run(tmp_path_factory.mktemp("local") / "run", tiny_demo, "correct")


def run_before(stage: str, local: Run, folder: Path, workers: RayWorkers | None) -> Run:
    """A copy of the run as it was before the stage."""
    shutil.copytree(local.folder, folder)
    for later in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(folder / FOLDERS[later], ignore_errors=True)
    run = Run(folder)
    run.workers = workers
    return run


@pytest.fixture
def cluster(ray):
    """Two nodes of one core each, with processes of their own, as on two machines."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.second = nodes.add_node(num_cpus=1)
    yield nodes
    ray.shutdown()
    nodes.shutdown()


class OnFirstPart:
    """A progress callback that does something once, when the first part has come back, and most are still to come."""

    def __init__(self, act) -> None:
        self.act, self.seen = act, []

    def __call__(self, done: int, total: int, doing: str) -> None:
        if doing.endswith("by Ray") and 0 < done < total and not self.seen:
            self.act()
            self.seen.append((done, total))


def test_scores_have_the_same_bytes_after_a_worker_was_killed(ray, local, tmp_path):
    run = run_before("score", local, tmp_path / "run", RayWorkers(count=2))
    heard = OnFirstPart(kill_a_worker)
    run.score(heard)
    assert heard.seen
    assert contents(run.path("score")) == contents(local.path("score"))
    assert listening_addresses() == {"0100007F", "0000000000000000FFFF00000100007F"}  # 127.0.0.1


def test_suggestions_and_corrections_have_the_same_bytes_after_a_node_was_killed(cluster, local, tmp_path):
    run = run_before("suggest", local, tmp_path / "run", RayWorkers(cluster.address))
    heard = OnFirstPart(lambda: cluster.remove_node(cluster.second, allow_graceful=False))
    run.suggest(heard)
    assert heard.seen
    run.correct()
    assert contents(run.path("suggest")) == contents(local.path("suggest"))
    assert contents(run.path("correct")) == contents(local.path("correct"))


def answer(folder: Path, fingerprint: str, python: str) -> Exception:
    """What a worker gives back for its first part if it cannot work."""
    worker = _PartWorker(1, str(folder), fingerprint, {"python": python}, [None], [])
    (row,) = worker(pa.table({"name": ["x"], "counts": [0], "part": [0]})).to_pylist()
    return _error(row)


def test_a_worker_without_the_model_or_with_other_versions_says_so(local, tmp_path):
    missing = answer(tmp_path / "none", "", "")
    assert isinstance(missing, OutputError)
    assert f"cannot read {tmp_path / 'none'}" in str(missing)
    assert "share" in str(missing)
    other = answer(local.path("train"), "another", "2.7")
    assert isinstance(other, ModelError)
    assert "not 2.7" in str(other)
    assert "Install the same versions" in str(other)


def test_without_missing_parts_no_cluster_is_asked(local, tmp_path):
    denoiser = Denoiser.from_pretrained(local.path("train"))
    windows = local.data().splits["train"]
    denoiser.score(windows, work=tmp_path)  # makes them
    parts = parts_to_score(denoiser.ensemble, windows, windows, None, False, False, denoiser.width)
    RayWorkers("127.0.0.1:1025").make(denoiser.ensemble, parts, local.path("train"), tmp_path, "score")


def test_a_cluster_that_is_not_there(ray, local, tmp_path):
    run = run_before("score", local, tmp_path / "run", RayWorkers("127.0.0.1:1025"))
    with pytest.raises(ConfigError, match="no Ray cluster at --address"):
        run.score()
    assert not run.done("score")


def test_without_the_library_the_message_has_the_command(local, tmp_path, monkeypatch):
    run = run_before("score", local, tmp_path / "run", RayWorkers())
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ModelError, match=r"pip install 'llm4dsr\[ray\]'"):
        run.score()


def test_options_of_the_command_line(llm4dsr, local, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(local.folder, folder)
    for wrong in (("--engine", "spark"), ("--workers", 2), ("--address", "auto")):
        code, printed = llm4dsr("score", "--run", folder, *wrong)
        assert code == 6
        assert "expected local or ray" in printed or "need --engine ray" in printed
