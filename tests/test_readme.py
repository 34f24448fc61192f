"""The README is right: its demo table, its Python and its commands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LLM4DSR = Path(sys.executable).with_name("llm4dsr")


def table_rows(text: str) -> dict[str, list[float]]:
    """First cell → the first number of each other cell, for every Markdown table row with numbers."""
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        numbers = [float(n) for cell in cells[1:] for n in re.findall(r"[+-]?\d+\.\d+|[+-]?\d+(?=%)", cell)[:1]]
        if line.startswith("|") and numbers:
            rows[cells[0]] = numbers
    return rows


def shown(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", README, re.S)
    assert found, f"the README has no part {name!r}"
    return found[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("readme") / "demo"
    done = subprocess.run([LLM4DSR, "demo", "--out", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_demo_table_is_that_of_the_readme(demo):
    """The same rows. Training carries rounding differences between processors into the digits, hence the tolerance."""
    stated, got = table_rows(shown("demo table")), table_rows((demo / "evaluation" / "results.md").read_text())
    assert list(stated) == list(got)
    for split in ("train", "valid", "test"):
        assert got[split][:2] == pytest.approx(stated[split][:2], abs=0.03)  # AUROC, AP
    for row in ("original", "oracle (restore)"):
        assert got[row][:2] == pytest.approx(stated[row][:2], rel=0.15)  # NDCG, HR


def test_the_demo_detects_noise_and_its_correction_gains(demo):
    got = table_rows((demo / "evaluation" / "results.md").read_text())
    assert got["test"][0] > 0.9
    assert got["corrected (drop)"][0] > got["original"][0]
    assert got["oracle (restore)"][0] > got["corrected (drop)"][0]


def test_every_stage_writes_its_tables(demo):
    for name in ("windows", "scores", "decisions", "suggestions", "corrected"):
        assert {f"{split}.parquet" for split in ("train", "valid", "test")} <= {f.name for f in (demo / name).iterdir()}
    assert (demo / "run_card.json").is_file()


def test_the_python_block_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", README, re.S)
    assert code
    (tmp_path / "snippet.py").write_text(code[1], encoding="utf-8")
    done = subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my-denoiser" / "denoiser.json").is_file()
    heading = re.search(r"^│ (title.*?) *│$", done.stdout, re.M)
    assert heading
    selected = re.findall(r'"(\w+)"', code[1][code[1].index(".select(") : code[1].index(".head(")])
    assert [name.strip() for name in heading[1].split("┆")] == selected


def test_commands_and_options_exist():
    for script in re.findall(r"bash (scripts/\w+)", README):
        assert (ROOT / script).is_file(), script
    for line in re.findall(r"^    llm4dsr (.*)$", README, re.M):
        words = line.split("#")[0].split()
        verb = words[:2] if words[0] in ("data", "config") else words[:1]
        done = subprocess.run([LLM4DSR, *verb, "--help"], capture_output=True, text=True, env={"COLUMNS": "200"})
        assert done.returncode == 0, line
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"(?<![\w-]){option}\b", done.stdout), f"llm4dsr {' '.join(verb)} has no {option}"
