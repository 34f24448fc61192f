"""Formats stay readable: run folders and denoisers as they were written when their format was new.

docs/reference/formats.md has the promise; scripts/format_fixture.py makes the archive of a new format.
"""

import re
import tarfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from llm4dsr import Denoiser
from llm4dsr.data.read import read_data
from llm4dsr.denoise.storage import FORMAT as DENOISER
from llm4dsr.pipeline import STAGES, Run
from llm4dsr.pipeline.run_folder import FORMAT as RUN

ARCHIVES = sorted((Path(__file__).parent / "formats").glob("*.tar.xz"))
TABLES = Path(__file__).parents[2] / "docs" / "reference" / "tables.md"


@pytest.fixture(scope="module", params=ARCHIVES, ids=[path.name.removesuffix(".tar.xz") for path in ARCHIVES])
def run(request, tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("kept")
    with tarfile.open(request.param) as archive:
        archive.extractall(folder)  # our own archive; Python 3.11.2 has no filters
    return Run(folder / "run")


def test_there_is_an_archive_of_todays_formats():
    assert f"run-{RUN}-denoiser-{DENOISER}.tar.xz" in {path.name for path in ARCHIVES}


def test_todays_formats_are_documented():
    assert f"The format is {DENOISER}." in TABLES.read_text(encoding="utf-8")
    formats = (TABLES.parent / "formats.md").read_text(encoding="utf-8")
    assert f"| run folder | {RUN} |" in formats
    assert f"| saved denoiser | {DENOISER} |" in formats


def test_a_kept_run_is_read_and_can_go_on(run):
    assert all(run.verified(stage).is_dir() for stage in STAGES)
    assert run.card()["stages"]["train"]["parameters"] > 0
    run.decide(policy="rate", eta=0.2, overwrite=True)
    run.suggest()
    run.correct("replace")
    assert "NDCG@20" in run.evaluate()
    for split, flagged in run.decisions().items():
        assert len(flagged) == pytest.approx(0.2 * len(run.scores()[split]), abs=1)


def test_a_kept_denoiser_gives_the_scores_that_it_gave(run):
    """Up to rounding, which depends on the machine."""
    denoiser, kept = Denoiser.from_pretrained(run.verified("train")), run.scores()["train"]
    again = denoiser.score(run.data().splits["train"])
    np.testing.assert_allclose(again["log_odds"], kept["log_odds"], atol=1e-3)


def test_kept_tables_have_the_columns_that_are_documented(run):
    documented = dict(
        re.findall(r"^\| `(\w+/\{?\w+\}?\w*)` \| `([\w, ]+)`(?=;| \|)", TABLES.read_text(encoding="utf-8"), re.M)
    )
    seen = 0
    for name, columns in documented.items():
        path = run.folder / f"{name.replace('{split}', 'test')}.parquet"
        if path.is_file() and name != "evaluation/summary":  # its columns are described, not listed
            assert set(pl.read_parquet(path).columns) <= {*columns.split(", "), "noise_mask", "clean_item_ids"}, name
            seen += 1
    assert seen >= 5
    assert len(read_data(run.path("prepare")).catalogue) > 0
