"""The HTTP interface of a service: POST /v1/denoise, GET /healthz, /readyz and /metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from llm4dsr import __version__
from llm4dsr.errors import plain
from llm4dsr.serve.limits import OPEN, Refused, check_headers, read_body
from llm4dsr.serve.schema import Answer, Problem, Request, State
from llm4dsr.serve.service import Service

DENOISE = "/v1/denoise"
CLOSING = (b"connection", b"close")
ABOUT = """Find the interactions in user histories that do not belong there, suggest better items, and return corrected
histories. Answers depend on the request and the model alone. Requests change nothing."""
REASONS = {
    400: "The request is not valid HTTP or JSON.", 401: "The token is missing or wrong.",
    408: "The body took too long to arrive.", 413: "The body is too large.", 415: "The body is not JSON.",
    422: "The request is not as described here.", 429: "Too many histories wait. See Retry-After.",
    500: "The request failed.", 503: "The service is shutting down.", 504: "The answer took too long.",
}  # fmt: skip


def create_app(service: Service, hosts: Sequence[str] = ("*",)) -> FastAPI:
    """Make the FastAPI application of a service.

    Parameters
    ----------
    service : Service
        The service.
    hosts : sequence of str, default any
        Names under which the service may be asked.
    """
    app = FastAPI(title="llm4dsr", version=__version__, description=ABOUT, docs_url=None, redoc_url=None)
    app.add_middleware(_Gate, service=service)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)

    @app.exception_handler(Refused)
    async def refused(_: Any, error: Refused) -> Response:
        return _refusal(service, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Any, error: RequestValidationError) -> Response:
        return _refusal(service, Refused(422, "invalid", _told(error)))

    @app.exception_handler(HTTPException)
    async def other(_: Any, error: HTTPException) -> Response:
        headers = dict(error.headers or {})
        return JSONResponse(Refused(error.status_code, "http", error.detail).content, error.status_code, headers)

    @app.post(
        DENOISE,
        response_model=Answer,
        responses={status: {"model": Problem, "description": told} for status, told in REASONS.items()},
        operation_id="denoise",
    )
    async def denoise(request: Request) -> Response:
        """Score histories, flag what does not belong, and correct it."""
        reply = await service.denoise(request)
        return Response(reply.body, media_type="application/json")

    @app.get("/healthz", response_model=State, responses={503: {"model": State}}, operation_id="health")
    async def health() -> Response:
        """Tell whether the process works. If not, start it again."""
        return _state("ok" if service.is_alive else "failed", service.is_alive)

    @app.get("/readyz", response_model=State, responses={503: {"model": State}}, operation_id="ready")
    async def ready() -> Response:
        """Tell whether the service takes requests. If not, ask another one."""
        return _state("ready" if service.is_ready else "shutting down", service.is_ready)

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, 401: {"model": Problem}},
        operation_id="metrics",
    )
    async def metrics() -> Response:
        """Return metrics for Prometheus."""
        return Response(service.metrics.text(), headers={"Content-Type": service.metrics.content_type})

    if service.limits.token is not None:
        _describe_token(app)
    return app


class _Gate:
    """Checks of each request before its body is parsed, and the metrics of its answer."""

    def __init__(self, app: Any, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, metrics = time.perf_counter(), self._service.metrics

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                if scope["path"] == DENOISE:
                    metrics.requests.labels(status=str(message["status"])).inc()
                    metrics.seconds.observe(time.perf_counter() - started)
                if not self._service.is_ready:  # so that clients move to another service
                    message["headers"] = [h for h in message["headers"] if h[0] != b"connection"] + [CLOSING]
            await send(message)

        try:
            replayed = await self._checked(scope, receive)
        except Refused as error:
            await _refusal(self._service, error)(scope, receive, answer)
            return
        await self._app(scope, replayed, answer)

    async def _checked(self, scope: Any, receive: Any) -> Any:
        """`receive` of a request that passed, with its whole body. Raises Refused."""
        limits = self._service.limits
        check_headers(limits, scope["method"], scope["path"], Headers(scope=scope))
        if scope["method"] != "POST":
            return receive
        messages = [{"type": "http.request", "body": await read_body(receive, limits.body, limits.timeout)}]

        async def replay() -> Any:
            return messages.pop() if messages else await receive()

        return replay


def _refusal(service: Service, error: Refused) -> Response:
    service.metrics.rejected.labels(reason=error.code).inc()
    return JSONResponse(error.content, error.status, error.headers)


def _state(status: str, is_good: bool) -> Response:
    return JSONResponse({"status": status}, 200 if is_good else 503, {"Cache-Control": "no-store"})


def _told(error: RequestValidationError) -> str:
    """What is wrong, and where; nothing of what was sent but names of fields."""
    first, *others = error.errors()
    where = ".".join(str(part) for part in first["loc"] if part != "body")[:200]
    more = f" And {len(others)} more." if others else ""
    return plain(f"{where}: {first['msg']}.{more}" if where else f"{first['msg']}.{more}")


def _describe_token(app: FastAPI) -> None:
    """Say in OpenAPI that all but OPEN needs the token."""
    described = app.openapi()
    described["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    for path, operations in described["paths"].items():
        for operation in operations.values():
            operation["security"] = [] if path in OPEN else [{"token": []}]
