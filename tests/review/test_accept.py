"""The top of a list is accepted as noise at once, without a look: that overrules the model, but measures nothing."""

import polars as pl
import pytest

from llm4dsr.errors import DataError

from .test_review import answer_of


def test_the_top_of_an_order_is_accepted_at_once(client, run):
    """As many as `decide --top` would flag, also beyond the twelve questions; one undo takes all of them back."""
    first = client.get("/api/next", params={"order": "worst"}).json()["question"]
    found = client.post("/api/accept", json={"count": 30, "order": "worst"}).json()
    assert found["accepted"] == 30
    assert (found["state"]["counts"]["accepted"], found["state"]["left"]["worst"]) == (30, 0)
    labels = pl.read_csv(client.get("/labels.csv").content)
    assert labels["is_noise"].to_list() == [1] * 30
    run.decide(policy="top", eta=30, overwrite=True)
    flagged = {(n, *row) for n, t in run.decisions().items() for row in t.select("window_id", "position").rows()}
    assert set(labels.select("split", "window_id", "position").rows()) == flagged
    back = client.post("/api/undo", json={"order": "worst"}).json()
    assert (back["question"], back["state"]["answers"]) == (first, 0)


def test_what_was_accepted_without_a_look_measures_nothing(client, run):
    """The random sample still asks about it, and neither calibration nor the guaranteed policy learns from it."""
    asked = client.get("/api/next").json()["question"]
    found = client.post("/api/accept", json={"count": 10_000, "order": "worst"}).json()
    assert 100 < found["accepted"] < 10_000
    assert found["question"] is None
    assert client.get("/api/next").json()["question"] == asked
    assert found["state"]["precision"] is None
    answered = client.post("/api/answers", json=answer_of(asked, "fits")).json()["state"]
    assert (answered["counts"]["fits"], answered["sampled"]) == (1, 1)
    client.post("/api/undo", json={})
    labels = pl.read_csv(client.get("/labels.csv").content, schema_overrides={"replacement_item_id": pl.String})
    with pytest.raises(DataError, match="no labels"):
        run.calibrate(labels)
    run.decide(overwrite=True, reviewed=labels)
    assert sum(map(len, run.decisions().values())) == len(labels)


@pytest.mark.parametrize("asked", [{"order": "sample", "count": 5}, {"order": "odd", "count": 5},
                                   {"order": "worst", "count": 0}])  # fmt: skip
def test_the_random_sample_is_not_accepted_unseen(client, run, asked):
    assert client.post("/api/accept", json=asked).status_code == 400
    assert not (run.folder / "review" / "answers.jsonl").exists()
