"""Run a service on a port until a signal ends it."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import uvicorn

from llm4dsr.core.listening import LOCAL, is_loopback
from llm4dsr.serve.app import create_app
from llm4dsr.serve.limits import CONNECTIONS
from llm4dsr.serve.service import Service

SIGNALS = (signal.SIGINT, signal.SIGTERM)
KEEP_ALIVE = 60  # seconds that an idle connection stays open


def serve(service: Service, listener: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C. Then refuse new work, and return once all that was accepted is answered.

    Parameters
    ----------
    service : Service
        The service. It is closed at the end.
    listener : socket
        A bound socket. If it is of this machine alone, requests under other names are refused.
    """
    address = listener.getsockname()[0]
    app = create_app(service, hosts=[*LOCAL, address, f"[{address}]"] if is_loopback(listener) else ["*"])
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=KEEP_ALIVE,
        limit_concurrency=CONNECTIONS,
    )  # fmt: skip
    try:
        _Server(config, service).run(sockets=[listener])
    finally:
        service.close()


class _Server(uvicorn.Server):
    """Drains before it closes the port, so that a balancer sees /readyz fail first. A second signal ends that early."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service, self._closes = service, float("inf")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGNALS; a service that was stopped ends without an error."""
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begin to drain; at the second signal, close the port at once; at the third, drop what is left."""
        self.force_exit = self.should_exit
        self.should_exit = self._closes < float("inf")
        self._closes = time.monotonic() + self._service.limits.drain
        self._service.drain()

    async def on_tick(self, counter: int) -> bool:
        """Return whether to close the port; asked ten times a second."""
        self.should_exit |= time.monotonic() >= self._closes
        return await super().on_tick(counter)
