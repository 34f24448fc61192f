"""Run the notebooks of docs/notebooks and save them with their outputs.

python scripts/notebooks.py             # all
python scripts/notebooks.py first-look  # one
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"
LIMIT = 300  # seconds of a cell


def run(path: Path, scratch: Path) -> Any:
    """Return the notebook with the outputs of a run in `scratch`, a folder for what it writes.

    Raises
    ------
    CellExecutionError
        If a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=LIMIT, resources={"metadata": {"path": str(scratch)}}).execute()
    for cell in notebook.cells:
        cell.metadata.clear()  # times of execution
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def main() -> None:
    """Run and save."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        if len(sys.argv) == 1 or path.stem in sys.argv[1:]:
            started = time.perf_counter()
            with TemporaryDirectory() as scratch:
                notebook = run(path, Path(scratch))
            nbformat.write(notebook, path)
            print(f"{path.name}: {time.perf_counter() - started:.0f} s, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
