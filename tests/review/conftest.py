"""A finished run to review, a copy to change, and its page."""

import shutil

import pytest

from llm4dsr.pipeline import Run

from ..tiny_run import make_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_demo) -> Run:
    return make_run(tmp_path_factory.mktemp("review") / "run", tiny_demo, "correct")


@pytest.fixture
def run(finished, tmp_path) -> Run:
    shutil.copytree(finished.folder, tmp_path / "run")
    return Run(tmp_path / "run")


@pytest.fixture
def client(run):
    testclient = pytest.importorskip("fastapi.testclient")
    from llm4dsr.review import Review, create_app

    review = Review(run, 12)
    yield testclient.TestClient(create_app(review), base_url="http://127.0.0.1:8765")
    review.answers.close()
