"""Reviews: nothing answered is lost, the estimate is honest, and answers overrule the model."""

import json
import math
import threading

import numpy as np
import polars as pl
import pytest

from llm4dsr.errors import ConfigError, DataError
from llm4dsr.review import Review
from llm4dsr.review.estimate import stratified_precision
from llm4dsr.review.questions import ordered, sample, strata

testclient = pytest.importorskip("fastapi.testclient")


def answer_of(question: dict, verdict: str, **more) -> dict:
    keys = {name: question[name] for name in ("split", "window", "position")}
    return keys | {"answer": verdict} | more


# --- the estimate of precision ----------------------------------------------------------------------------------------


def test_strata_count_by_their_size():
    """Ninety flags of which all answered are noise, ten of which none is: precision 0.9, however many were answered."""
    found = stratified_precision(np.array([90, 10]), np.repeat([0, 1], 5), np.arange(10) < 5)
    assert found.precision == pytest.approx(0.9)
    assert found.low < 0.9 < found.high


def test_without_an_answer_in_each_stratum_nothing_is_estimated():
    assert math.isnan(stratified_precision(np.array([5, 5]), np.array([0]), np.array([True])).precision)
    assert math.isnan(stratified_precision(np.array([0]), np.array([], int), np.array([], bool)).precision)
    assert stratified_precision(np.array([5, 0]), np.array([0]), np.array([True])).precision == 1


def test_a_stratum_that_is_answered_completely_is_certain():
    found = stratified_precision(np.array([4]), np.zeros(4, int), np.array([1, 1, 1, 0], bool))
    assert (found.low, found.precision, found.high) == (0.75, 0.75, 0.75)


@pytest.mark.parametrize("rates", [(0.5, 0.7, 0.9), (0.05, 0.3, 0.97), (0.9, 0.95, 1.0)])
def test_the_interval_holds_the_truth_in_95_of_100_reviews(rates):
    """A thousand reviews of a hundred answers each; the strata differ in size."""
    rng, sizes = np.random.default_rng(0), np.array([4_000, 2_000, 1_000])
    truth = float((sizes * rates).sum() / sizes.sum())
    stratum = np.repeat([0, 1, 2], 33)
    inside, means = 0, []
    for _ in range(1_000):
        found = stratified_precision(sizes, stratum, rng.random(99) < np.array(rates)[stratum])
        inside += found.low <= truth <= found.high
        means.append(found.precision)
    assert np.mean(means) == pytest.approx(truth, abs=0.01)
    assert inside >= 930


# --- the questions ----------------------------------------------------------------------------------------------------


def test_a_sample_takes_turns_between_strata(finished):
    decisions = finished.decisions()
    flags, asked = strata(decisions), sample(decisions, 30, 0)
    assert flags["stratum"].value_counts()["count"].max() - flags["stratum"].value_counts()["count"].min() <= 1
    assert asked["stratum"].to_list()[:6] == [0, 1, 2, 0, 1, 2]
    assert asked.select("split", "window_id", "position").is_unique().all()
    low, high = (flags.filter(pl.col("stratum") == s)["log_odds"] for s in (0, 2))
    assert low.max() <= high.min()
    assert not asked.equals(sample(decisions, 30, 1))


def test_the_other_orders(finished):
    scores = finished.scores()
    worst = ordered(scores, "worst", dict.fromkeys(scores, 3))
    assert worst["log_odds"].is_sorted(descending=True)
    assert worst["log_odds"][0] == max(t["log_odds"].drop_nans().max() for t in scores.values())
    unsure = ordered(scores, "informative", dict.fromkeys(scores, 3))
    assert (unsure["noise_probability"] - 0.5).abs().is_sorted()


# --- the page's API ---------------------------------------------------------------------------------------------------


def test_questions_come_one_by_one_and_can_be_undone(client, run):
    first = client.get("/api/next").json()
    question = first["question"]
    assert (
        question["items"][question["explained"]]["why"]["others"] == question["of"] - (question["split"] != "train") - 1
    )
    second = client.post("/api/answers", json=answer_of(question, "noise")).json()
    assert second["question"] != question
    assert second["state"]["counts"]["noise"] == 1
    back = client.post("/api/undo", json={"order": "sample"}).json()
    assert back["question"] == question
    assert back["state"]["answers"] == 0
    nothing = client.post("/api/undo", json={"order": "sample"}).json()
    assert nothing["question"] == question


def test_a_whole_sample_measures_the_precision(client, run):
    """Answer by the known mask: the estimate holds the true precision of the flags."""
    splits = run.data().splits
    truth = {
        (n, int(i), p): bool(w.take(np.array([row])).truth().ravel()[p])
        for n, w in splits.items() for row, i in enumerate(w.window_ids) for p in range(int(w.lengths[row]))
    }  # fmt: skip
    found = client.get("/api/next").json()
    while found["question"] is not None:
        q = found["question"]
        verdict = "noise" if truth[q["split"], int(q["window"]), q["position"]] else "fits"
        found = client.post("/api/answers", json=answer_of(q, verdict)).json()
    flags = [(n, *row) for n, t in run.decisions().items() for row in t.select("window_id", "position").rows()]
    precision = float(np.mean([truth[key] for key in flags]))
    estimate, low, high = found["state"]["precision"]
    assert found["state"]["sampled"] == 12
    assert low <= precision <= high
    assert low <= estimate <= high


def test_an_answer_for_the_whole_history(client, run):
    question = client.get("/api/next").json()["question"]
    client.post("/api/answers", json=answer_of(question, "atypical", whole_window=True))
    labels = pl.read_csv(client.get("/labels.csv").content)
    scored = run.scores()[question["split"]].filter(pl.col("window_id") == int(question["window"]))
    assert labels["position"].sort().to_list() == scored["position"].sort().to_list()
    assert labels["is_noise"].sum() == 0
    back = client.post("/api/undo", json={}).json()
    assert back["state"]["answers"] == 0
    assert back["question"]["position"] == question["position"]


@pytest.mark.parametrize(
    "change",
    [{"answer": "maybe"}, {"split": "other"}, {"position": 99}, {"window": -5}, {"replacement": "no such item"}],
)
def test_what_is_unknown_is_refused_and_not_saved(client, run, change):
    question = client.get("/api/next").json()["question"]
    response = client.post("/api/answers", json=answer_of(question, "noise") | change)
    assert response.status_code == 400
    assert response.json()["error"]
    assert not (run.folder / "review" / "answers.jsonl").exists()


def test_only_this_machine_and_only_json(client, run):
    question = client.get("/api/next").json()["question"]
    form = client.post("/api/answers", content=json.dumps(answer_of(question, "noise")))
    assert form.status_code == 415  # what a form of another site could send
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 400
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert client.get("/api/next", params={"order": "odd"}).status_code == 400


def test_items_are_found_by_words_of_their_title(client, run):
    title = run.data().catalogue.original_titles[5]
    words = title.split()
    found = client.get("/api/items", params={"q": f"{words[-1]} {words[0].upper()}"}).json()
    assert title in [item["title"] for item in found]
    assert client.get("/api/items", params={"q": "  "}).json() == []


def test_answers_of_several_threads_are_all_saved(run):
    review = Review(run, 12)
    keys = [(n, *row) for n, t in run.scores().items() for row in t.select("window_id", "position").rows()[:20]]
    threads = [threading.Thread(target=review.answer, args=(*key, "fits", None, False)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    review.answers.close()
    again = Review(run, 12)
    assert set(again.answers.current) == set(keys)
    again.answers.close()


# --- what answers do --------------------------------------------------------------------------------------------------


def reviewed(*rows: tuple) -> pl.DataFrame:
    schema = ["split", "window_id", "position", "is_noise", "replacement_item_id"]
    return pl.DataFrame(rows, schema=schema, orient="row", schema_overrides={"replacement_item_id": pl.String})


def test_answers_overrule_flags_and_suggestions(run):
    flagged = run.decisions()["train"].row(0, named=True)
    kept = run.scores()["train"].join(run.decisions()["train"], on=["window_id", "position"], how="anti")
    missed = kept.filter(pl.col("window_id") != flagged["window_id"]).row(0, named=True)
    data = run.data()
    row = int(np.flatnonzero(data.splits["train"].window_ids == missed["window_id"])[0])
    other = int(np.setdiff1d(np.arange(len(data.catalogue)), data.splits["train"].row(row))[0])
    table = reviewed(
        ("train", flagged["window_id"], flagged["position"], 0, None),
        ("train", missed["window_id"], missed["position"], 1, str(data.catalogue.ids[other])),
    )
    before = run.decisions()
    run.decide(overwrite=True, reviewed=table)
    after = run.decisions()
    keys = {n: set(t.select("window_id", "position").rows()) for n, t in after.items()}
    assert (flagged["window_id"], flagged["position"]) not in keys["train"]
    assert (missed["window_id"], missed["position"]) in keys["train"]
    assert len(after["train"]) == len(before["train"])
    assert after["test"].equals(before["test"])
    assert run.facts("decide")["train"]["reviewed"] == 2
    run.suggest()
    run.correct("replace")
    edit = run.edits()["train"].filter(
        (pl.col("window_id") == missed["window_id"]) & (pl.col("position") == missed["position"])
    )
    assert edit.select("suggested_item_id", "grounding", "action").row(0) == (
        data.catalogue.ids[other],
        "reviewed",
        "replace",
    )


def test_an_unknown_replacement_is_named(run):
    flagged = run.decisions()["train"].row(0, named=True)
    with pytest.raises(DataError, match="'nothing'"):
        run.decide(
            overwrite=True, reviewed=reviewed(("train", flagged["window_id"], flagged["position"], 1, "nothing"))
        )
    assert len(run.decisions()["train"])  # as they were


def test_a_window_is_never_emptied(run):
    """All of a history was answered as noise: the least suspicious interaction stays, and evaluation goes on."""
    window = run.scores()["test"]["window_id"][0]
    all_of_it = run.scores()["test"].filter(pl.col("window_id") == window)
    run.decide(overwrite=True, reviewed=reviewed(*[("test", window, p, 1, None) for p in all_of_it["position"]]))
    kept = all_of_it.join(run.decisions()["test"], on=["window_id", "position"], how="anti")
    assert kept["rank"].to_list() == [len(all_of_it)]
    facts = run.facts("decide")["test"]
    assert facts["flagged"] == len(run.decisions()["test"])
    assert facts["flagged_rate"] == pytest.approx(facts["flagged"] / len(run.scores()["test"]))
    run.suggest()
    run.correct("drop", histories=True)
    assert "NDCG@20" in run.evaluate()


def test_answers_in_another_order_do_not_bias_the_estimate(run):
    """The most suspicious are answered first; the estimate waits until the first sampled ones are among them."""
    review = Review(run, 200)
    for _ in range(20):
        question = review.next("worst")
        review.answer(question["split"], int(question["window"]), question["position"], "noise", None, False)
    queue = review._queues["sample"]
    prefix = next(i for i, key in enumerate(queue) if key not in review.answers.current)
    assert review.state()["sampled"] == prefix < 20
    review.answers.close()


def test_answers_about_earlier_decisions_measure_those_of_today(run):
    """After the answers are applied, confirmed flags must not stand for all."""
    first = Review(run, 40)
    while (question := first.next("sample")) is not None:
        verdict = "noise" if (int(question["window"]) + question["position"]) % 4 == 0 else "fits"
        first.answer(question["split"], int(question["window"]), question["position"], verdict, None, False)
    assert first.state()["precision"][0] < 0.6
    run.decide(overwrite=True, reviewed=first.labels())
    first.answers.close()
    again = Review(run, 40)
    known = again.state()
    assert known["sampled"] < 40
    assert known["precision"] is None or known["precision"][2] - known["precision"][1] > 0.3
    again.answers.close()


def test_replacements_in_a_text_table_keep_their_zeros(run, tmp_path):
    from llm4dsr.core.io import read_table

    path = tmp_path / "labels.csv"
    path.write_text("split,window_id,position,is_noise,replacement_item_id\ntrain,1,0,1,0007\n")
    assert read_table(path, ["replacement_item_id"])["replacement_item_id"][0] == "0007"


def test_labels_of_a_review_calibrate(client, run):
    found = client.get("/api/next").json()
    for _ in range(10):
        found = client.post("/api/answers", json=answer_of(found["question"], "noise")).json()
    low, high = run.calibrate(pl.read_csv(client.get("/labels.csv").content))
    assert 0 <= low <= high <= 1


def test_an_order_must_be_known(run):
    review = Review(run, 3)
    with pytest.raises(ConfigError, match="expected one of sample"):
        review.next("odd")
    review.answers.close()


def test_labels_of_a_review_name_users_and_items_and_training_learns_from_them(run, tmp_path, llm4dsr):
    review = Review(run, 40)
    while (question := review.next("sample")) is not None:
        review.answer(question["split"], int(question["window"]), question["position"], "noise", None, False)
    labels = review.labels()
    review.answers.close()
    data = run.data()
    for split, window, position, user, item in labels.select(
        "split", "window_id", "position", "user_id", "item_id"
    ).iter_rows():
        windows = data.splits[split]
        row = windows.window_ids.tolist().index(window)
        assert (user, item) == (
            str(windows.user_ids[row]), str(data.catalogue.ids[windows.row(row)[position]]),
        )  # fmt: skip
    labels.write_csv(tmp_path / "labels.csv")
    before = run.scores()["train"]["log_odds"].to_list()
    assert llm4dsr("train", "-r", run.folder, "--labels", tmp_path / "labels.csv", "--overwrite")[0] == 0
    assert run.facts("train")["labels"] == len(labels)
    run.score()
    assert run.scores()["train"]["log_odds"].to_list() != before
