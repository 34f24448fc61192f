"""Where pages and services listen: a port of this machine, by default for this machine alone."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from llm4dsr.errors import OutputError

LOOPBACK: Final = "127.0.0.1"
LOCAL: Final = [LOOPBACK, "localhost"]  # names of this machine: no other site can reach it by a name of its own


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """Bind a port, for a server that listens on it later.

    Parameters
    ----------
    host : str
        Address or name of this machine.
    port : int
        Port. 0: any free one.

    Yields
    ------
    socket
        Closed at the end.

    Raises
    ------
    OutputError
        If the host or port cannot be used.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"The host {host!r} cannot be used: {reason}. Give an address of this machine.") from None
    with socket.socket(family, kind, protocol) as listener:  # asyncio sends without delay over TCP that is named
        if os.name != "nt":  # there it would let two servers share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise OutputError(
                f"Port {port} cannot be used: {error.strerror}. Choose another one, such as --port {port % 60_000 + 1}."
            ) from None
        yield listener


def is_loopback(listener: socket.socket) -> bool:
    """Return whether a bound socket can be reached from this machine alone."""
    return ipaddress.ip_address(listener.getsockname()[0].split("%")[0]).is_loopback


def is_json(content_type: str | None) -> bool:
    """Return whether a request says that it sends JSON. A form of another site cannot, without asking first."""
    return (content_type or "").split(";")[0].strip().lower() == "application/json"
