"""The prepared script for a GPU: all its parts run with tiny shapes on a CPU, and a cut loses nothing else."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gpu

    return gpu


def test_every_part_is_measured_and_priced(tmp_path, script):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--price", "3", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in script.PARTS}
    assert {name: of["stopped"] for name, of in found.items() if "stopped" in of} == {}
    assert all(of["rows"] for of in found.values())
    asked = ["per_position", "likelihood", "title", "title, a pass over each"]
    assert [row["readout"] for row in found["score-8b"]["rows"]] == asked

    scored, priced = found["score-8b"]["rows"][0], found["costs"]["rows"]
    (cost,) = [row for row in priced if (row["model"], row["doing"], row["readout"]) == ("8b", "score", asked[0])]
    assert cost["hours for a million"] == pytest.approx(1e6 / scored["windows/s"] / 3600)
    assert cost["money for a hundred million"] == pytest.approx(300 * cost["hours for a million"])
    text = (tmp_path / "README.md").read_text()
    assert text.count("\n## ") == len(script.PARTS)


def test_a_part_that_is_cut_off_keeps_what_it_has_measured(tmp_path, script):
    def rows():
        yield {"speed": 1}
        time.sleep(60)
        yield {"speed": 2}

    script.measure(rows(), tmp_path / "part.json", limit=0.1)
    found = json.loads((tmp_path / "part.json").read_text())
    assert found["rows"] == [{"speed": 1}]
    assert found["stopped"] == "TimeoutError: cut off after 0.1 s"


def test_a_part_that_fails_says_why(tmp_path, script):
    def rows():
        yield {"speed": 1}
        raise RuntimeError("out of memory\nand more lines")

    script.measure(rows(), tmp_path / "part.json", limit=60)
    assert json.loads((tmp_path / "part.json").read_text())["stopped"] == "RuntimeError: out of memory"
