"""Ids of windows may be any whole number, also one that a browser would round."""

import json
from dataclasses import replace

import pytest

from llm4dsr.data.dataset import Dataset
from llm4dsr.review import Review, create_app

from ..tiny_run import make_run
from .test_review import answer_of

testclient = pytest.importorskip("fastapi.testclient")


def test_a_window_id_that_javascript_would_round_stays_itself(tiny_demo, tmp_path):
    """Numbers of JavaScript are floats: of two neighbors above 2^53, one becomes the other."""
    ids = {name: replace(w, window_ids=w.window_ids + 2**60 + 1) for name, w in tiny_demo.splits.items()}
    run = make_run(tmp_path / "run", Dataset(tiny_demo.catalogue, ids), "decide")
    review = Review(run, 12)
    try:
        client = testclient.TestClient(create_app(review), base_url="http://127.0.0.1:8765")
        question = json.loads(client.get("/api/next").text, parse_int=float)["question"]
        question["position"] = int(question["position"])
        assert client.post("/api/answers", json=answer_of(question, "noise")).status_code == 200
        flags = {(str(w), p) for t in run.decisions().values() for w, p in t.select("window_id", "position").rows()}
        assert (question["window"], question["position"]) in flags
        assert review.labels()["window_id"].to_list() == [int(question["window"])]
    finally:
        review.answers.close()
