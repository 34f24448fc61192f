"""What studies share: the page with its generated and its written part, its tables, and the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from llm4dsr.bench import studies
from llm4dsr.bench.datasets import BenchDataset
from llm4dsr.bench.studies.study import UNWRITTEN, Context, Found, check_page, markdown, smaller, write_page
from llm4dsr.cli import main as cli
from llm4dsr.config import Config
from llm4dsr.data.dataset import Dataset
from llm4dsr.errors import OutputError

TABLE = pl.DataFrame({"η": [0.5, 1.0], "precision": [2 / 3, float("nan")], "there": [True, False], "flags": [3, None]})


def draw(figure: Any) -> None:
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1])
    axes.set_xlabel("η")


@pytest.fixture
def context(tiny_demo: Dataset, tmp_path: Path) -> Context:
    return Context(BenchDataset("demo-tiny", tiny_demo), tmp_path / "out", Config(seed=7))


def write(context: Context, docs: Path, note: str = "A note.") -> str:
    found = Found({"At some η!": TABLE}, draw, [note])
    page = write_page("task", "Does it work?", found, context, docs, "llm4dsr study task --quick", 90.0)
    return page.read_text(encoding="utf-8")


def test_markdown_has_few_digits_words_for_truth_and_nothing_for_what_is_unknown() -> None:
    assert markdown(TABLE).splitlines() == [
        "| η | precision | there | flags |",
        "| --- | --- | --- | --- |",
        "| 0.5 | 0.6667 | yes | 3 |",
        "| 1 |  | no |  |",
    ]


def test_a_page_shows_question_plot_tables_notes_sizes_and_command(context: Context, tmp_path: Path) -> None:
    text = write(context, tmp_path / "docs")
    assert text.startswith("# Does it work?\n")
    assert UNWRITTEN in text
    assert "![Does it work?](task.png)" in text
    assert f"## At some η!\n\n{markdown(TABLE)}" in text
    assert "- A note.\n- Dataset demo-tiny: 257 train, 32 valid, 33 test windows, 60 items; seed 7." in text
    assert "Took 1.5 minutes" in text
    assert text.endswith("    llm4dsr study task --quick\n")


def test_beside_a_page_are_its_plot_and_its_tables(context: Context, tmp_path: Path) -> None:
    write(context, tmp_path / "docs")
    assert (tmp_path / "docs" / "task.png").read_bytes().startswith(b"\x89PNG")
    written = pl.read_parquet(tmp_path / "docs" / "tables" / "task-at-some.parquet")
    assert written.equals(TABLE)


def test_findings_that_people_wrote_outlive_a_new_page(context: Context, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    text = write(context, docs)
    findings = "It works.\n\n1. Rather well."
    (docs / "task.md").write_text(text.replace(UNWRITTEN, findings), encoding="utf-8")
    again = write(context, docs, note="Another note.")
    assert findings in again
    assert UNWRITTEN not in again
    assert "Another note." in again
    assert "- A note." not in again


def test_findings_on_one_dataset_are_not_kept_for_another(context: Context, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    check_page("task", "toys", docs)
    text = write(context, docs)
    check_page("task", "toys", docs)  # nobody has written anything yet
    (docs / "task.md").write_text(text.replace(UNWRITTEN, "It works."), encoding="utf-8")
    check_page("task", "demo-tiny", docs)
    with pytest.raises(OutputError, match="another dataset than toys"):
        check_page("task", "toys", docs)


def test_a_page_that_cannot_be_written_is_an_output_error(context: Context, tmp_path: Path) -> None:
    (tmp_path / "docs").write_text("a file where the folder should be")
    with pytest.raises(OutputError, match="docs"):
        write(context, tmp_path / "docs")


def test_every_study_writes_a_page_in_quick_mode(tmp_path: Path) -> None:
    """The command of docs/studies/README.md, as a user gives it."""
    llm4dsr = Path(sys.executable).with_name("llm4dsr")
    out, docs = tmp_path / "out", tmp_path / "pages"
    command = [llm4dsr, "study", "all", "--quick", "--out", out, "--docs", docs]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {page.stem for page in docs.glob("*.md")} == {page.stem for page in docs.glob("*.png")} == set(studies.NAMES)
    for page in docs.glob("*.md"):
        assert f"    llm4dsr study {page.stem} --dataset demo --seeds 2 --quick" in page.read_text(encoding="utf-8")


def test_every_study_has_a_question_and_a_function() -> None:
    for name in studies.NAMES:
        module = studies.module(name)
        assert module.QUESTION.endswith("?")
        assert callable(module.study)


def test_the_quick_configuration_is_smaller_and_else_the_same() -> None:
    quick, whole = smaller(Config(seed=3)), Config(seed=3)
    assert quick.model.hidden_size < whole.model.hidden_size
    assert quick.train.epochs < whole.train.epochs
    assert (quick.seed, quick.decide, quick.suggest) == (3, whole.decide, whole.suggest)


def test_an_unknown_study_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.argv", ["llm4dsr", "study", "taste", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 6
    said = " ".join(capsys.readouterr().err.split())
    assert "Unknown study 'taste'" in said
    assert "threshold" in said
