"""What is refused: too much, too slow, without the token, or not as described. Always with a reason."""

import asyncio
import json

import pytest

from llm4dsr.errors import ConfigError
from llm4dsr.serve import Limits, read_token
from llm4dsr.serve.limits import Refused, read_body
from llm4dsr.serve.schema import MAX_HISTORIES, MAX_INTERACTIONS, MAX_LENGTH

from .conftest import JSON, ask, look


def refusal(response) -> tuple[int, str, str]:
    error = response.json()["error"]
    return response.status_code, error["code"], error["message"]


def test_beyond_the_queue_requests_are_told_to_come_back(service, histories):
    """All at once to a queue of one: some are refused with 429, and each accepted one gets its own answer."""
    one = service(queue=1, batch=1, wait=0)
    responses = ask(one, *({"histories": [h]} for h in histories))
    statuses = {r.status_code for r in responses}
    assert statuses == {200, 429}
    for history, response in zip(histories, responses, strict=True):
        if response.status_code == 429:
            assert refusal(response)[1] == "busy"
            assert int(response.headers["Retry-After"]) >= 1
        else:
            assert [s["item_id"] for s in response.json()["histories"][0]["scores"]] == history["item_ids"]
    refused = sum(r.status_code == 429 for r in responses)
    assert f'llm4dsr_rejected_total{{reason="busy"}} {float(refused)}' in look(one, "/metrics").text


def test_a_request_that_takes_too_long_is_answered_and_dropped(service, histories):
    status, code, message = refusal(ask(service(timeout=0.02, wait=0.3), {"histories": histories[:1]})[0])
    assert (status, code) == (504, "too_slow")
    assert "0.02 seconds" in message


def test_a_large_body_is_refused_and_its_end_still_read(service, histories):
    one = service(body=1_000)
    large = {"histories": [{"item_ids": [], "user_id": "x" * 5_000}]}
    fits, refused = ask(one, {"histories": histories[:1]}, large)
    assert fits.status_code == 200
    assert refusal(refused)[:2] == (413, "too_large")
    assert "1,000 bytes" in refusal(refused)[2]


def test_a_body_that_does_not_come_is_refused():
    async def nothing():
        await asyncio.sleep(60)

    async def endless():
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    with pytest.raises(Refused) as slow:
        asyncio.run(read_body(nothing, 100, 0.01))
    assert slow.value.status == 408
    with pytest.raises(Refused) as large:
        asyncio.run(read_body(endless, 100, 30))
    assert large.value.status == 413


def test_the_token_is_asked_for_wherever_there_is_something_to_see(service, histories):
    one, body = service(token="s3cret"), {"histories": histories[:1]}
    right, scheme = JSON | {"Authorization": "Bearer s3cret"}, JSON | {"Authorization": "bearer s3cret"}
    assert [ask(one, body, headers=h)[0].status_code for h in (right, scheme)] == [200, 200]
    for wrong in ("", "Bearer", "Bearer s3cre", "Bearer s3cret2", "Basic s3cret", "s3cret", "Bearer sécret"):
        response = ask(one, body, headers=JSON | {"Authorization": wrong.encode("latin-1")})[0]
        assert refusal(response)[:2] == (401, "no_token"), wrong
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert [look(one, path).status_code for path in ("/healthz", "/readyz", "/metrics", "/openapi.json")] == [
        200, 200, 401, 401,
    ]  # fmt: skip
    assert look(one, "/openapi.json", right).json()["paths"]["/v1/denoise"]["post"]["security"] == [{"token": []}]
    assert "s3cret" not in repr(one.limits)


def test_where_the_token_comes_from(tmp_path, monkeypatch):
    monkeypatch.delenv("LLM4DSR_TOKEN", raising=False)
    assert read_token(None) is None
    monkeypatch.setenv("LLM4DSR_TOKEN", "of the environment")
    assert read_token(None) == "of the environment"
    (tmp_path / "token").write_text("of the file\n")
    assert read_token(tmp_path / "token") == "of the file"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_token(tmp_path / "missing")
    for unusable in ("", "two\nlines", "schlüssel"):
        with pytest.raises(ConfigError, match="printable ASCII"):
            Limits(token=unusable)


@pytest.mark.parametrize("limits", [{"wait": -1}, {"batch": 0}, {"queue": 0}, {"timeout": 0}, {"drain": float("nan")}])
def test_limits_out_of_range_are_refused(limits):
    with pytest.raises(ConfigError, match=f"{next(iter(limits))} = "):
        Limits(**limits)


def test_other_names_of_this_machine_are_refused(service, histories):
    """A page of another site reaches a service on this machine under a name of that site."""
    body = {"histories": histories[:1]}
    assert ask(service(), body, hosts=("localhost",))[0].status_code == 200
    assert ask(service(), body, hosts=("localhost",), headers=JSON | {"Host": "evil.example"})[0].status_code == 400


def test_a_form_of_another_site_is_refused(service):
    for content_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = ask(service(), {"histories": []}, headers={"Content-Type": content_type})[0]
        assert refusal(response)[:2] == (415, "not_json")


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"histories": NaN}', b"[" * 50_000, b"9" * 5_000, b'"\\ud800"'],
    ids=lambda body: repr(body[:12]),
)
def test_malformed_json_is_refused(service, body):
    response = ask(service(), body)[0]
    assert response.status_code in (400, 422)
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "histories: Field required"),
        ({"histories": []}, "at least 1 item"),
        ({"histories": [{}]}, "histories.0.item_ids: Field required"),
        ({"histories": [{"item_ids": None}]}, "valid list"),
        ({"histories": [{"item_ids": [1.5]}]}, "histories.0.item_ids.0"),
        ({"histories": [{"item_ids": [True]}]}, "histories.0.item_ids.0"),
        ({"histories": [{"item_ids": ["\ud800"]}]}, "histories.0.item_ids.0"),
        ({"histories": [{"item_ids": [1], "itms": 1}]}, "histories.0.itms: Extra inputs are not permitted"),
        ({"histories": [{"item_ids": [1], "\ud800": 2}]}, "histories.0"),
        ({"histories": [], "\x1b[31m\u202e": 2}, "And 1 more"),
        ({"histories": [{"item_ids": [1, 2], "timestamps": [5]}]}, "1 timestamps for 2 items"),
        ({"histories": [{"item_ids": [1, 2], "timestamps": [5, 4]}]}, "timestamps decrease"),
        ({"histories": [{"item_ids": []}], "policy": "rate"}, "comes without eta"),
        ({"histories": [{"item_ids": []}], "policy": "validation", "eta": 0.1}, "policy"),
        ({"histories": [{"item_ids": []}], "eta": 1.5}, "eta: Input should be less than or equal to 1"),
        ({"histories": [{"item_ids": []}], "cap": -1}, "cap"),
        ({"histories": [{"item_ids": []}], "action": "delete"}, "action"),
        ({"histories": [{"item_ids": []}] * (MAX_HISTORIES + 1)}, f"at most {MAX_HISTORIES} items"),
        ({"histories": [{"item_ids": [1] * (MAX_LENGTH + 1)}]}, f"at most {MAX_LENGTH} items"),
        ({"histories": [{"item_ids": [1] * MAX_LENGTH}] * 21}, f"at most {MAX_INTERACTIONS:,} in a request"),
        ({"histories": [{"item_ids": []}], "items": [{"item_id": 1, "title": ""}]}, "items.0.title"),
    ],
)
def test_requests_that_are_not_as_described_are_told_why(service, body, told):
    status, code, message = refusal(ask(service(), body)[0])
    assert (status, code) == (422, "invalid")
    assert told in message
    assert len(message) < 400


def test_huge_numbers_are_unknown_items(service):
    huge = json.loads("[" + ", ".join(["9" * 4_000, str(-(2**63)), str(2**64)]) + "]")
    response = ask(service(), {"histories": [{"item_ids": huge, "user_id": 10**40, "timestamps": [0, 0, 10**30]}]})[0]
    assert response.status_code == 200
    answer = response.json()["histories"][0]
    assert answer["user_id"] == 10**40
    assert answer["error"]["item_ids"] == huge


def test_draining_is_seen_by_the_balancer(service, histories):
    one = service()
    assert look(one, "/readyz").json() == {"status": "ready"}
    one.drain()
    ready, alive = look(one, "/readyz"), look(one, "/healthz")
    assert (ready.status_code, alive.status_code) == (503, 200)
    response = ask(one, {"histories": histories[:1]})[0]
    assert refusal(response)[:2] == (503, "shutting_down")
    assert response.headers["Connection"] == "close"


def test_metrics_count_what_happened(service, histories):
    one = service(wait=0.3)
    ask(one, {"histories": histories[:3], "policy": "rate", "eta": 0.1}, {"histories": [{"item_ids": ["?"]}]}, b"{")
    text = look(one, "/metrics").text
    for line in (
        'llm4dsr_requests_total{status="200"} 2.0', 'llm4dsr_requests_total{status="422"} 1.0',
        "llm4dsr_request_seconds_count 3.0", "llm4dsr_batch_requests_count 1.0", "llm4dsr_batch_histories_sum 4.0",
        "llm4dsr_histories_total 3.0", "llm4dsr_refused_histories_total 1.0", "llm4dsr_queue_length 0.0",
        'llm4dsr_rejected_total{reason="invalid"} 1.0',
    ):  # fmt: skip
        assert line in text, line
    flagged = round(0.1 * sum(len(h["item_ids"]) for h in histories[:3]))
    assert f"llm4dsr_flags_total {float(flagged)}" in text
