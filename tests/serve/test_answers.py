"""Answers: what a denoiser gives for the same history, whoever else asks at the same time."""

import asyncio
import json

import numpy as np
import polars as pl
import pytest

from llm4dsr import Config
from llm4dsr.data.windows import Windows
from llm4dsr.report.examples import why
from llm4dsr.serve.schema import MAX_LENGTH

from .conftest import ask, look

LOG_ODDS, PROBABILITY = 1e-5, 2e-6  # most that the batch may change: sums of 32-bit numbers, and rounding to 6 digits


def asked(histories, **options) -> dict:
    return {"histories": histories, **options}


def answers(service, *bodies) -> list[list[dict]]:
    """The histories of each answer."""
    responses = ask(service, *bodies)
    assert [r.status_code for r in responses] == [200] * len(bodies), [r.text for r in responses]
    return [r.json()["histories"] for r in responses]


def frame(histories) -> pl.DataFrame:
    """Histories as the table that a denoiser takes."""
    users = [str(h.get("user_id", "somebody new")) for h in histories]
    items = [h["item_ids"] for h in histories]
    return pl.DataFrame(
        {"window_id": range(len(items)), "user_id": pl.Series(users, dtype=pl.String), "item_ids": items}
    )


def assert_alike(one: list[dict], other: list[dict]) -> None:
    """The same answers, but for the last digits."""
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert {**a, "scores": None, "edits": None, "corrected": None} == {
            **b, "scores": None, "edits": None, "corrected": None,
        }  # fmt: skip
        assert a["corrected"]["item_ids"] == b["corrected"]["item_ids"]
        for x, y in zip(a["scores"], b["scores"], strict=True):
            assert x["item_id"] == y["item_id"]
            assert x["log_odds"] == pytest.approx(y["log_odds"], abs=LOG_ODDS)
            for name in ("noise_probability", "noise_probability_low", "noise_probability_high"):
                assert x[name] == pytest.approx(y[name], abs=PROBABILITY)
        for x, y in zip(a["edits"], b["edits"], strict=True):
            assert [x[k] for k in ("position", "action", "kept_item_id")] == [
                y[k] for k in ("position", "action", "kept_item_id")
            ]


def test_an_answer_is_what_the_denoiser_tells(service, denoiser, histories):
    known = [h for h in histories if "user_id" in h][:12]
    given = answers(service(), asked(known, policy="rate", eta=0.2, action="replace", explain=True))[0]
    table = frame(known)
    scores = denoiser.score(table)
    decisions = denoiser.decide(scores, policy="rate", eta=0.2)
    edits = denoiser.correct(table, decisions, action="replace").edits
    reasons = denoiser.explain(table, decisions).partition_by("window_id", "position", as_dict=True)
    assert len(edits) > 5
    assert sum(len(h["edits"]) for h in given) == len(edits)
    for window, history in enumerate(given):
        own = scores.filter(pl.col("window_id") == window)
        assert [s["item_id"] for s in history["scores"]] == own["item_id"].to_list() == known[window]["item_ids"]
        for name, most in (("log_odds", LOG_ODDS), ("noise_probability", PROBABILITY)):
            assert [s[name] for s in history["scores"]] == pytest.approx(own[name].to_list(), abs=most)
        for edit, line in zip(
            history["edits"], edits.filter(pl.col("window_id") == window).iter_rows(named=True), strict=True
        ):
            same = ("position", "item_id", "title", "action", "suggested_item_id", "suggested_title", "kept_item_id")
            assert {k: edit[k] for k in same} == {k: line[k] for k in same}
            told = why(reasons[window, line["position"]])
            assert edit["explanation"].keys() == told.keys()
            assert [edit["explanation"][k] for k in ("users", "alike")] == [told[k] for k in ("users", "alike")]
            assert [w["title"] for w in edit["explanation"]["without"]] == [w["title"] for w in told["without"]]


@pytest.mark.parametrize(
    ("policy", "eta", "action"),
    [
        ("rate", 0.15, "replace"),
        ("percentile", 0.8, "mixed"),
        ("probability", 0.0, "drop"),
        ("rate", 0.3, "downweight"),
    ],
)
def test_answers_do_not_depend_on_who_else_asks(service, histories, action, policy, eta):
    """Requests of 1 to 3 histories, alone and all at once: η of a rate and `mixed` look at the own request only."""
    bodies, start = [], 0
    for number in range(12):
        size = 1 + number % 3
        bodies.append(asked(histories[start : start + size], policy=policy, eta=eta, action=action))
        start += size
    alone, together = service(wait=0), service(wait=0.5, batch=start)
    one_by_one = [answers(alone, body)[0] for body in bodies]
    at_once = answers(together, *bodies)
    assert 'llm4dsr_batch_requests_bucket{le="8.0"} 0.0' in look(together, "/metrics").text  # one batch of twelve
    for one, other in zip(one_by_one, at_once, strict=True):
        assert_alike(one, other)
    assert any(h["edits"] for one in one_by_one for h in one)


def test_each_request_has_its_own_options(service, histories):
    bodies = [
        asked(histories[:2], policy="probability", eta=1, action="drop"),
        asked(histories[2:4], policy="rate", eta=0.3, action="drop"),
        asked(histories[4:6], policy="rate", eta=0.3, action="replace", explain=True),
        asked(histories[6:8], policy="rate", eta=0.3, cap=0),
        asked(histories[8:10], policy="rate", eta=0.3, action="downweight"),
    ]
    none, dropped, replaced, capped, weighted = answers(service(wait=0.5, batch=10), *bodies)
    assert not any(h["edits"] for h in [*none, *capped])
    assert {e["action"] for h in dropped for e in h["edits"]} == {"drop"}
    assert {e["action"] for h in replaced for e in h["edits"]} == {"replace"}
    assert all(e["explanation"]["without"] for h in replaced for e in h["edits"])
    for answer, history in zip(dropped, histories[2:4], strict=True):
        gone = {e["position"] for e in answer["edits"]}
        assert answer["corrected"]["item_ids"] == [x for i, x in enumerate(history["item_ids"]) if i not in gone]
    for answer in weighted:
        flagged = {e["position"] for e in answer["edits"]}
        assert len(answer["corrected"]["weights"]) == len(answer["scores"])
        assert all(w == 1 for i, w in enumerate(answer["corrected"]["weights"]) if i not in flagged)


def test_the_configured_rule_is_that_of_evaluation_histories(service, denoiser, histories, monkeypatch):
    """As `transform` and `apply` have it."""
    decide = {"policy": "rate", "eta": 0.9, "cap": 5, "eta_test": 0.1, "cap_test": 1}
    monkeypatch.setattr(denoiser, "config", Config.from_dict({"decide": decide}, base=denoiser.config))
    known = [h for h in histories if "user_id" in h][:12]
    for answer in answers(service(), *[asked([history]) for history in known]):
        expected = denoiser.decide(denoiser.score(frame([answer_of(answer, known)])), is_train=False)
        assert [e["position"] for e in answer[0]["edits"]] == expected["position"].to_list()


def answer_of(answer, known):
    """The history that an answer is of."""
    return next(h for h in known if h["item_ids"] == [s["item_id"] for s in answer[0]["scores"]])


def test_requests_change_no_counts(service, denoiser, histories):
    before = denoiser.ensemble.counts.fingerprint
    first = answers(service(), asked(histories[:8], explain=True, action="replace"))[0]
    assert denoiser.ensemble.counts.fingerprint == before
    assert answers(service(), asked(histories[:8], explain=True, action="replace"))[0] == first


def test_whose_history_it_is_matters(service, histories, denoiser, tiny_demo):
    """A user in training is scored by the model that did not see this user, without the user's own counts."""
    train = tiny_demo.splits["train"]
    items = denoiser.catalogue.ids.gather(train.row(0)).to_list()
    known, new = answers(service(), asked([{"item_ids": items, "user_id": train.user_ids[0]}, {"item_ids": items}]))[0]
    assert [s["log_odds"] for s in known["scores"]] != [s["log_odds"] for s in new["scores"]]


def test_unknown_items_are_told_and_the_others_answered(service, histories):
    strange = {"item_ids": [histories[0]["item_ids"][0], 10**30, "1001", 10**30], "user_id": "Zoë 🛒"}
    first, odd, last = answers(service(), asked([histories[0], strange, histories[1]]))[0]
    assert odd["user_id"] == "Zoë 🛒"
    assert odd["error"]["code"] == "unknown_items"
    assert odd["error"]["item_ids"] == [10**30, "1001"]  # ids of this catalogue are integers
    assert "2 item(s)" in odd["error"]["message"]
    assert "integers" in odd["error"]["message"]
    assert odd["scores"] is odd["edits"] is odd["corrected"] is None
    assert first["error"] is last["error"] is None
    assert len(first["scores"]) == len(histories[0]["item_ids"])


def test_new_items_are_known_by_the_title_that_comes_with_them(service, histories, denoiser):
    titles, item_ids = denoiser.catalogue.original_titles, histories[0]["item_ids"]
    items = [{"item_id": 999_001, "title": titles[3]}, {"item_id": item_ids[0], "title": "Another title"}]
    body = asked([{"item_ids": [*item_ids, 999_001]}, {"item_ids": [999_002]}], items=items, policy="rate", eta=0.9)
    (found, unknown), plain = answers(service(wait=0.2), body, asked([histories[1]]))
    assert found["scores"][-1]["item_id"] == 999_001
    assert found["scores"][-1]["log_odds"] is not None
    assert {e["item_id"]: e["title"] for e in found["edits"]}.get(item_ids[0]) != "Another title"
    assert unknown["error"]["item_ids"] == [999_002]
    assert plain[0]["error"] is None
    assert len(denoiser.catalogue) == 60  # for that request alone
    wrong = ask(service(), asked([{"item_ids": ["x"]}], items=[{"item_id": "x", "title": "A title"}]))[0]
    assert wrong.status_code == 422
    assert "integers" in wrong.json()["error"]["message"]


def test_short_histories(service, histories, denoiser):
    """Nothing to say about nothing; of a single item, no more than how common noise is."""
    item = histories[0]["item_ids"][0]
    empty, single = answers(service(), asked([{"item_ids": []}, {"item_ids": [item]}], policy="rate", eta=1.0))[0]
    assert (empty["scores"], empty["edits"], empty["corrected"]["item_ids"]) == ([], [], [])
    assert single["scores"][0]["log_odds"] is None
    rate = denoiser.calibrator.noise_rate
    assert single["scores"][0]["noise_probability"] == (
        None if np.isnan(rate) else pytest.approx(rate, abs=PROBABILITY)
    )
    assert single["edits"] == []
    assert single["corrected"]["item_ids"] == [item]


def test_only_empty_histories(service):
    assert answers(service(), asked([{"item_ids": []}] * 3))[0][2]["scores"] == []


def test_long_histories_are_scored_in_overlapping_parts(service, denoiser, histories):
    long = [item for h in histories[:12] for item in h["item_ids"]]
    assert len(long) > 5 * denoiser.width
    answer, short = answers(service(), asked([{"item_ids": long, "user_id": "u"}, histories[1]], cap=0))[0]
    expected = denoiser.score(pl.DataFrame({"window_id": [0], "user_id": ["u"], "item_ids": [long]}))
    assert [s["log_odds"] for s in answer["scores"]] == pytest.approx(expected["log_odds"].to_list(), abs=LOG_ODDS)
    assert [s["rank"] for s in answer["scores"]] == expected["rank"].to_list()
    assert_alike([short], answers(service(), asked([histories[1]], cap=0))[0])


def test_the_longest_history(service, histories):
    body = asked([{"item_ids": (histories[0]["item_ids"] * MAX_LENGTH)[:MAX_LENGTH]}], action="drop")
    answer = answers(service(), body)[0][0]
    assert len(answer["scores"]) == MAX_LENGTH


def test_timestamps_stay_with_their_items(service, histories):
    times = list(range(100, 100 + len(histories[0]["item_ids"])))
    history = histories[0] | {"timestamps": times}
    answer = answers(service(), asked([history], policy="rate", eta=0.3, action="drop"))[0][0]
    gone = {e["position"] for e in answer["edits"]}
    assert gone
    assert answer["corrected"]["timestamps"] == [t for i, t in enumerate(times) if i not in gone]


def test_a_request_without_known_histories_shares_its_batch(service, histories):
    unknown, known = answers(service(wait=0.3), asked([{"item_ids": [-5]}]), asked(histories[:1]))
    assert unknown[0]["error"]["code"] == "unknown_items"
    assert known[0]["scores"]


def test_work_is_counted_in_histories_of_the_width_of_the_model(denoiser):
    """Long histories are several, explained ones ten; a request without known items is still one."""
    from llm4dsr.serve.items import Items
    from llm4dsr.serve.schema import Request

    items, known = Items(denoiser.catalogue), denoiser.catalogue.ids[0]

    def work(*lengths, **options) -> int:
        histories = [{"item_ids": [known] * length} for length in lengths]
        return items.look_up(Request(**asked(histories, **options))).work(10)

    assert [work(0), work(1), work(10), work(11), work(5, 25)] == [1, 1, 1, 2, 4]
    assert work(5, 25, explain=True) == 40
    assert items.look_up(Request(**asked([{"item_ids": ["?"]}]))).work(10) == 1


def test_answers_are_json_without_nan(service, histories):
    """NaN is no JSON, though Python reads it."""
    text = ask(service(), asked([{"item_ids": histories[0]["item_ids"][:1]}, *histories[:3]], action="replace"))[0].text

    def refuse(name: str) -> None:
        raise AssertionError(name)

    json.loads(text, parse_constant=refuse)


def test_windows_of_a_batch_have_the_width_of_the_model(service, denoiser, histories):
    """Else features of short histories would change with the longest one of the batch."""
    from llm4dsr.serve.answers import _windows
    from llm4dsr.serve.schema import History

    windows = _windows([(History(item_ids=[1, 2]), [0, 1])], denoiser.width)
    assert isinstance(windows, Windows)
    assert windows.width == denoiser.width


def test_a_service_that_is_closed_finishes_what_it_accepted(service, histories):
    """Work is waiting when it closes. All of it is answered, and no more is taken."""
    from llm4dsr.serve.limits import Refused
    from llm4dsr.serve.schema import Request

    one = service(wait=60, batch=1_000)

    async def close_under_load() -> list:
        waiting = [asyncio.ensure_future(one.denoise(Request(**asked([h])))) for h in histories[:20]]
        await asyncio.sleep(0.05)
        await asyncio.to_thread(one.close)
        replies = await asyncio.gather(*waiting)
        with pytest.raises(Refused, match="shutting down") as refused:
            await one.denoise(Request(**asked(histories[:1])))
        assert refused.value.status == 503
        return replies

    bodies = [json.loads(reply.body)["histories"][0] for reply in asyncio.run(close_under_load())]
    for history, body in zip(histories[:20], bodies, strict=True):
        assert [s["item_id"] for s in body["scores"]] == history["item_ids"]
