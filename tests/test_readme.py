"""What the README says is what happens: its demo, its Python, its commands."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
LLM4DSR = Path(sys.executable).with_name("llm4dsr")


def table_rows(text: str) -> dict[str, list[float]]:
    """First cell → the numbers of its row, for every Markdown table row that has any."""
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


def test_the_demo_gives_the_table_of_the_readme(demo):
    """The same rows; numbers as near as another processor's rounding, carried through training, leaves them."""
    said, got = table_rows(shown("demo table")), table_rows((demo / "evaluation" / "results.md").read_text())
    assert list(said) == list(got)
    for split in ("train", "valid", "test"):
        assert got[split][:2] == pytest.approx(said[split][:2], abs=0.03)  # AUROC, AP
    for row in ("original", "oracle (restore)"):
        assert got[row][:2] == pytest.approx(said[row][:2], rel=0.15)  # NDCG, HR


def test_the_demo_finds_noise_and_corrects_it_to_gain(demo):
    got = table_rows((demo / "evaluation" / "results.md").read_text())
    assert got["test"][0] > 0.9
    assert got["corrected (drop)"][0] > got["original"][0]
    assert got["oracle (restore)"][0] > got["corrected (drop)"][0]


def test_every_stage_left_its_table(demo):
    for name in ("windows", "scores", "decisions", "suggestions", "corrected"):
        assert {f"{split}.parquet" for split in ("train", "valid", "test")} <= {f.name for f in (demo / name).iterdir()}
    assert (demo / "run_card.json").is_file()


def test_the_python_of_the_readme_runs(tmp_path):
    code = re.search(r"```python\n(.*?)```", README, re.S)
    assert code
    (tmp_path / "snippet.py").write_text(code[1], encoding="utf-8")
    done = subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "my-denoiser" / "denoiser.json").is_file()
    for heading in re.findall(r"^│ window_id.*$|^│ title.*$", done.stdout, re.M):
        names = {name.strip() for name in heading.strip("│").split("┆")}
        assert all(name in README for name in names), names


def test_the_commands_of_the_readme_exist():
    for script in re.findall(r"bash (scripts/\w+)", README):
        assert (ROOT / script).is_file(), script
    help_text = subprocess.run([LLM4DSR, "--help"], capture_output=True, text=True).stdout
    for verb in set(re.findall(r"^    llm4dsr ((?:data )?\w+)", README, re.M)):
        assert verb.split()[0] in help_text
        command = [LLM4DSR, *verb.split(), "--help"]
        help_of = subprocess.run(command, capture_output=True, text=True, env={"COLUMNS": "200"})
        assert help_of.returncode == 0, verb
        for line in re.findall(rf"^    llm4dsr {verb} (.*)$", README, re.M):
            for option in re.findall(r"--[\w-]+", line.split("#")[0]):
                assert option in help_of.stdout, f"llm4dsr {verb} has no {option}"
