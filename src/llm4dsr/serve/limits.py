"""How much the service takes on: sizes, times, and who may ask."""

from __future__ import annotations

import asyncio
import hmac
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llm4dsr.core.listening import is_json
from llm4dsr.errors import ConfigError

TOKEN: Final = "LLM4DSR_TOKEN"  # environment variable of the token
OPEN: Final = ("/healthz", "/readyz")  # paths that need no token
CLOSE: Final = {"Connection": "close"}
CONNECTIONS: Final = 512  # open at once; more are answered with 503
DISCARDED: Final = 8  # times the largest body that is read and thrown away, so that the client gets to read the answer


@dataclass(frozen=True)
class Limits:
    """Limits of a service.

    Attributes
    ----------
    wait : float
        Seconds that a request waits at most for others to be computed with; 0 = not at all.
    batch : int
        Histories that are computed together. A request of more is computed alone. One that is longer than the model's
        width counts as several, one with explanations as ten.
    queue : int
        Histories that may wait, counted alike. Requests beyond are refused with 429.
    timeout : float
        Seconds after which a request is answered with 504. Also the time that a body may take to arrive.
    body : int
        Bytes of a request's body.
    drain : float
        Seconds from the signal to stop until the port is closed. New requests are refused with 503 meanwhile.
    token : str or None
        What requests must carry as bearer token. None: nothing. Never shown.

    Raises
    ------
    ConfigError
        If a limit is out of range.
    """

    wait: float = 0.005
    batch: int = 64
    queue: int = 1_024
    timeout: float = 10.0
    body: int = 2**20
    drain: float = 1.0
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, least in (("wait", 0), ("drain", 0), ("batch", 1), ("queue", 1), ("body", 1)):
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} = {getattr(self, name)}; expected at least {least}.")
        if not self.timeout > 0:
            raise ConfigError(f"timeout = {self.timeout}; expected more than 0 seconds.")
        if self.token is not None and (not self.token or not self.token.isascii() or not self.token.isprintable()):
            raise ConfigError(
                "The token is empty or has characters that no HTTP header can carry. Use printable ASCII."
            )

    def allows(self, authorization: str) -> bool:
        """Return whether a header `Authorization` carries the token. Takes as long for a wrong one as for the right."""
        if self.token is None:
            return True
        scheme, _, given = authorization.partition(" ")
        return hmac.compare_digest(given.strip().encode(), self.token.encode()) and scheme.lower() == "bearer"


def read_token(path: Path | None) -> str | None:
    """Return the token in a file, else in the environment variable TOKEN; None if there is neither.

    Raises
    ------
    ConfigError
        If the file cannot be read.
    """
    if path is None:
        return os.environ.get(TOKEN)
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"The token file {path} cannot be read: {reason}.") from None


class Refused(Exception):
    """A request that is not answered, with its HTTP status and what to say."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}

    @property
    def content(self) -> dict[str, Any]:
        """The body of the answer, as `schema.Problem` describes it."""
        return {"error": {"code": self.code, "message": str(self)}}


def check_headers(limits: Limits, method: str, path: str, headers: Any) -> None:
    """Raise Refused for a request without the token, or with anything but JSON."""
    if path not in OPEN and not limits.allows(headers.get("authorization", "")):
        raise Refused(
            401, "no_token", "Send the service's token:  Authorization: Bearer …",
            CLOSE | {"WWW-Authenticate": "Bearer"},
        )  # fmt: skip
    if method == "POST" and not is_json(headers.get("content-type")):
        raise Refused(415, "not_json", "Send JSON:  Content-Type: application/json", CLOSE)


async def read_body(receive: Any, most: int, seconds: float) -> bytes:
    """Read the body of a request. Raises Refused if it is too large or too slow."""
    parts, size, more = list[bytes](), 0, True
    try:
        async with asyncio.timeout(seconds):
            while more and size <= DISCARDED * most:
                message = await receive()
                if message["type"] != "http.request":
                    raise Refused(400, "disconnected", "The request ended early.", CLOSE)
                size += len(message.get("body", b""))
                more = message.get("more_body", False)
                if size <= most:
                    parts.append(message.get("body", b""))
    except TimeoutError:
        raise Refused(408, "slow_body", f"The body took more than {seconds:g} seconds to arrive.", CLOSE) from None
    if size > most:
        raise Refused(413, "too_large", f"The body has more than {most:,} bytes. Send fewer histories at once.", CLOSE)
    return b"".join(parts)
