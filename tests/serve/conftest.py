"""A tiny fitted denoiser, and services that run it: in this process, and as a process of their own."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from llm4dsr import Denoiser
from llm4dsr.pipeline import Run

from ..tiny_run import make_run

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
httpx = pytest.importorskip("httpx")

LLM4DSR = Path(sys.executable).with_name("llm4dsr")
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="session")
def run(tmp_path_factory, tiny_demo) -> Run:
    """A scored run. Shared by all tests, so do not change it."""
    return make_run(tmp_path_factory.mktemp("serve") / "run", tiny_demo, "score")


@pytest.fixture(scope="session")
def denoiser(run) -> Denoiser:
    """Tuned on users who are among the histories below. Shared by all tests, so do not change it."""
    found = Denoiser.from_pretrained(run.path("train"))
    # So small a model distinguishes nothing, and its probabilities are 0. Here they are not.
    found.calibrator = found.calibrator.with_rates([(0.05, 0.1, 0.2)] * len(found.calibrator.kinds))
    return found


@pytest.fixture(scope="session")
def histories(tiny_demo, denoiser) -> list[dict[str, Any]]:
    """Histories as requests have them: every second one says whose it is."""
    windows = tiny_demo.splits["train"].histories()
    ids = denoiser.catalogue.ids
    out = [{"item_ids": ids.gather(windows.row(i)).to_list()} for i in range(60)]
    return [h | ({"user_id": windows.user_ids[i]} if i % 2 else {}) for i, h in enumerate(out)]


@pytest.fixture
def service(denoiser) -> Iterator[Callable[..., Any]]:
    """A function that makes a service with given limits."""
    from llm4dsr.serve import Limits, Service

    made = []

    def make(**limits: Any) -> Service:
        made.append(Service(denoiser, Limits(**limits)))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(
    service: Any,
    *bodies: Any,
    path: str = "/v1/denoise",
    headers: dict[str, Any] = JSON,
    hosts: tuple[str, ...] = ("*",),
) -> list[Any]:
    """Send requests at once, and return the responses in their order. A body is JSON, or bytes as they are."""

    async def send() -> list[Any]:
        transport = httpx.ASGITransport(_app(service, hosts))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            contents = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
            posts = (client.post(path, content=content, headers=headers) for content in contents)
            return await asyncio.gather(*posts)

    return asyncio.run(send())


def look(service: Any, path: str, headers: dict[str, str] | None = None) -> Any:
    """Get a path of a service."""

    async def get() -> Any:
        transport = httpx.ASGITransport(_app(service, ("*",)))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get(path, headers=headers)

    return asyncio.run(get())


@functools.lru_cache(4)
def _app(service: Any, hosts: tuple[str, ...]) -> Any:
    from llm4dsr.serve import create_app

    return create_app(service, hosts)


class Process:
    """`llm4dsr serve` on a free port of this machine, until it is ready."""

    def __init__(self, model: Path, *options: str, port: int = 0) -> None:
        self.port = port or free_port()
        self.popen = subprocess.Popen(
            [LLM4DSR, "serve", model, "--port", str(self.port), *options], stderr=subprocess.PIPE, text=True
        )
        while self.status("/readyz") != 200:
            assert self.popen.poll() is None, self.popen.communicate()[1]
            time.sleep(0.1)

    def status(self, path: str) -> int | None:
        """The status of a GET; None if the port is closed, or closes before the connection is accepted."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except ConnectionError:
            return None
        finally:
            connection.close()

    def post(self, body: Any) -> dict[str, Any]:
        """The answer to a request."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/v1/denoise", json.dumps(body), JSON)
        answer = json.loads(connection.getresponse().read())
        connection.close()
        return answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
