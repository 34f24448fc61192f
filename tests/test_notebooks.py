"""The notebooks run, and their saved outputs are those of a run without errors."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    pytest.importorskip("nbclient")
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    from notebooks import run

    ran = run(path, tmp_path)
    saved = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for cell, before in zip(ran.cells, saved, strict=True):
        if cell.cell_type == "code":
            kinds = [output.output_type for output in cell.outputs if output.output_type != "stream"]
            assert kinds == [o["output_type"] for o in before["outputs"] if o["output_type"] != "stream"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_saved_outputs_tell_nothing_of_the_machine(path):
    text = path.read_text(encoding="utf-8")
    assert all(word not in text for word in ("/home/", "/root/", "site-packages", " at 0x", "Traceback"))
    cells = json.loads(text)["cells"]
    assert any(cell["cell_type"] == "code" and cell["outputs"] for cell in cells)


def test_progress_in_a_cell_stays_when_the_cell_fails():
    """Bars in a kernel: HTML that is updated in place; at the end each step tells its time."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient").NotebookClient
    code = (
        "from llm4dsr.core.progress_bar import shown\n"
        "with shown(True) as report:\n"
        "    report(3, 3, 'tune <b>')\n"
        "    report(1, 4, 'score')\n"
        "    raise ValueError\n"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    client(notebook, allow_errors=True, timeout=60).execute()
    (bars,) = [o for o in notebook.cells[0].outputs if o.output_type == "display_data"]
    assert "tune &lt;b&gt;: 0:00" in bars.data["text/html"]
    assert 'value="0.250"' in bars.data["text/html"]
    assert "score: 1/4 (25%)" in bars.data["text/plain"]
