"""Make the fixture of today's formats: a small finished run, as one archive for tests/pipeline/test_formats.py.

python scripts/format_fixture.py

A released format stays readable. So a new fixture is made when a format changes, beside those of released formats.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from pathlib import Path

from llm4dsr import Config
from llm4dsr.data.demo import make_demo
from llm4dsr.denoise.storage import FORMAT as DENOISER
from llm4dsr.pipeline import STAGES, Run
from llm4dsr.pipeline.run_folder import FORMAT as RUN

FOLDER = Path(__file__).parents[1] / "tests" / "pipeline" / "formats"
SMALL = {
    "threads": 1,
    "model": {"hidden_size": 16, "layers": 1, "vector_size": 16, "vocabulary": 300},
    "train": {"epochs": 2, "folds": 2, "batch_windows": 32},
    "decide": {"policy": "rate", "eta": 0.1},
    "evaluate": {"backbone": "itemknn"},
}


def main() -> None:
    """Write the archive. Its content is fixed, except for timings on the run card and rounding."""
    with tempfile.TemporaryDirectory() as scratch:
        run = Run.create(Path(scratch) / "run", Config.from_dict(SMALL))
        data = make_demo(size="tiny").data
        for stage in STAGES:
            run.make(stage, data)
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"run-{RUN}-denoiser-{DENOISER}.tar.xz"
        with tarfile.open(path, "w:xz") as archive:
            for file in sorted(p for p in run.folder.rglob("*") if p.is_file() and not p.name.startswith(".")):
                entry = tarfile.TarInfo(file.relative_to(scratch).as_posix())
                content = file.read_bytes()
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
