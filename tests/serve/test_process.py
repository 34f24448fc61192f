"""The command as people run it: a process that answers, ends when told to, and loses nothing that it accepted."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import threading
from http.client import HTTPConnection, RemoteDisconnected
from pathlib import Path

import pytest

from llm4dsr.cli.serve import serve
from llm4dsr.errors import ModelError, OutputError

from .conftest import JSON, Process, free_port

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def saved(run) -> Path:
    return run.path("train")


@pytest.fixture(scope="module")
def running(saved, histories):
    """A process that is killed, and started again on the same port. `before` is an answer of the first."""
    first = Process(saved)
    before = first.post({"histories": histories[:1]})
    first.popen.kill()
    first.popen.wait(30)
    again = Process(saved, "--wait", "20", "--queue", "100000", "--drain", "2", port=first.port)
    again.before = before
    yield again
    again.popen.kill()
    again.popen.communicate()


def shape(value):
    """The names and nesting of JSON, without its values."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(value[0])] if isinstance(value, list) and value else type(value).__name__


def test_the_documented_call_works(running, histories):
    """The call of the page, with items that this small model knows, and η so low that something is flagged."""
    if shutil.which("curl") is None:
        pytest.skip("no curl on this machine")
    call = re.search(r"^    (curl [^']*'[^']*'[^']*')([^']*)'$", PAGE, re.M)
    body = json.loads(call[2]) | {"eta": 0.0}
    body["histories"][0]["item_ids"] = histories[0]["item_ids"]
    command = f"{call[1]}{json.dumps(body)}'".replace(":8000", f":{running.port}")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    documented = json.loads(re.search(r"```json\n(.*?)```", PAGE, re.S)[1])
    assert done.returncode == 0, done.stderr
    assert shape(json.loads(done.stdout)) == shape(documented)


def test_a_process_that_was_killed_starts_again_and_answers_the_same(running, histories):
    assert running.post({"histories": histories[:1]}) == running.before


def test_a_broken_request_does_not_end_the_connections_of_others(running, histories):
    with socket.create_connection(("127.0.0.1", running.port)) as left:  # one who leaves in the middle of a request
        left.sendall(b"POST /v1/denoise HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{")
    assert running.post({"histories": histories[:1]})["histories"][0]["scores"]
    assert running.status("/healthz") == 200


def test_sigterm_under_load_loses_nothing_that_was_accepted(running, histories):
    """Eight clients that never pause. Each request is answered, refused with 503, or finds the port closed."""
    outcomes: list[tuple[object, bool]] = []
    half_way, states = threading.Event(), set()

    def client(number: int) -> None:
        connection = HTTPConnection("127.0.0.1", running.port, timeout=60)
        for turn in range(100_000):
            history = histories[(number + 8 * turn) % len(histories)] | {"user_id": f"{number}-{turn}"}
            try:
                connection.request("POST", "/v1/denoise", json.dumps({"histories": [history]}), JSON)
            except ConnectionRefusedError:
                outcomes.append(("closed", True))
                return
            try:
                response = connection.getresponse()
                content = json.loads(response.read())
            except (RemoteDisconnected, ConnectionError, ValueError) as error:
                outcomes.append((repr(error), False))
                return
            if response.status != 200:
                outcomes.append((response.status, response.status == 503))
                return
            given = content["histories"][0]
            is_own = given["user_id"] == history["user_id"]
            outcomes.append((200, is_own and [s["item_id"] for s in given["scores"]] == history["item_ids"]))
            if len(outcomes) > 80:
                half_way.set()

    clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for one in clients:
        one.start()
    assert half_way.wait(60)
    running.popen.send_signal(signal.SIGTERM)
    while (state := running.status("/readyz")) is not None:
        states.add(state)
    for one in clients:
        one.join(60)
    assert running.popen.wait(60) == 0
    assert [what for what, is_right in outcomes if not is_right] == []
    assert sum(what == 200 for what, _ in outcomes) > 80
    assert any(what in (503, "closed") for what, _ in outcomes)
    assert 503 in states  # seen by a balancer before the port is closed


def test_what_cannot_be_served_is_told(tmp_path, saved):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OutputError, match=r"Address already in use\. Choose another one"):
            serve(saved, port=taken.getsockname()[1])
    with pytest.raises(OutputError, match=r"The host '256\.0\.0\.1' cannot be used"):
        serve(saved, host="256.0.0.1", port=free_port())
    with pytest.raises(ModelError, match="holds neither"):
        serve(tmp_path, port=free_port())


def test_without_a_token_other_machines_are_warned_about(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LLM4DSR_TOKEN", raising=False)
    (tmp_path / "token").write_text("s3cret")

    def warned(**options) -> bool:
        with pytest.raises(ModelError):  # there is no model, which comes last
            serve(tmp_path / "nothing", port=free_port(), **options)
        return "no token is set" in capsys.readouterr().err

    assert warned(host="0.0.0.0")
    assert not warned(host="0.0.0.0", token_file=tmp_path / "token")
    assert not warned()
