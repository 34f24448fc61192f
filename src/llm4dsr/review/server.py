"""The review page and its small API, on this machine alone."""

from __future__ import annotations

from importlib import resources
from typing import Any

from llm4dsr.core.listening import LOCAL, LOOPBACK, bound, is_json
from llm4dsr.errors import ConfigError, LLM4DSRError, ModelError
from llm4dsr.review.questions import ORDERS
from llm4dsr.review.session import Review

_POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; connect-src 'self'"


def create_app(review: Review) -> Any:
    """Make the FastAPI application of a review.

    Parameters
    ----------
    review : Review
        The review.

    Raises
    ------
    ModelError
        If FastAPI is not installed.
    """
    try:
        from fastapi import Body, FastAPI, Request
        from fastapi.responses import HTMLResponse, JSONResponse, Response
        from starlette.middleware.trustedhost import TrustedHostMiddleware
    except ImportError:
        raise ModelError("The review page needs FastAPI. Install it with:  pip install 'llm4dsr[serve]'") from None
    app = FastAPI(title="llm4dsr review", openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL)
    page = _page()

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Any:
        # A form of another site cannot send JSON without asking first, and nothing here answers that it may
        if request.method == "POST" and not is_json(request.headers.get("content-type")):
            return JSONResponse({"error": "Send JSON."}, status_code=415)
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Cache-Control"] = "no-store"
        return response

    @app.exception_handler(LLM4DSRError)
    def refused(request: Request, error: LLM4DSRError) -> Response:
        return JSONResponse({"error": str(error)}, status_code=400 if isinstance(error, ConfigError) else 500)

    @app.get("/")
    def index() -> Response:
        return HTMLResponse(page)

    @app.get("/api/next")
    def following(order: str = "sample") -> dict[str, Any]:
        return {"question": review.next(order), "state": review.state()}

    @app.post("/api/answers")
    def answer(
        split: str = Body(), window: int = Body(), position: int = Body(), answer: str = Body(),
        replacement: str | None = Body(None), whole_window: bool = Body(False), order: str = Body("sample"),
    ) -> dict[str, Any]:  # fmt: skip
        review.answer(split, window, position, answer, replacement, whole_window)
        return following(order)

    @app.post("/api/accept")
    def accept(count: int = Body(), order: str = Body()) -> dict[str, Any]:
        return {"accepted": review.accept(order, count), **following(order)}

    @app.post("/api/undo")
    def undo(order: str = Body("sample", embed=True)) -> dict[str, Any]:
        back = review.undo()
        return {"question": back or review.next(order), "state": review.state()}

    @app.get("/api/items")
    def items(q: str) -> list[dict[str, str]]:
        return review.search(q)

    @app.get("/labels.csv")
    def labels() -> Response:
        headers = {"Content-Disposition": "attachment; filename=labels.csv"}
        return Response(review.labels().write_csv(), media_type="text/csv", headers=headers)

    return app


def _page() -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    from markupsafe import Markup

    def read(package: str, name: str) -> str:
        return (resources.files(package) / "templates" / name).read_text(encoding="utf-8")

    environment = Environment(
        loader=PackageLoader("llm4dsr.review"), autoescape=select_autoescape(default=True), undefined=StrictUndefined
    )
    return environment.get_template("review.html.j2").render(
        orders=ORDERS,
        css=Markup(read("llm4dsr.report", "report.css")),
        js=Markup(read("llm4dsr.report", "history.js") + read("llm4dsr.review", "review.js")),
    )


def serve_review(review: Review, port: int) -> None:
    """Serve the page of a review, on this machine alone, until it is interrupted.

    Parameters
    ----------
    review : Review
        The review.
    port : int
        Port on 127.0.0.1.

    Raises
    ------
    ModelError
        If FastAPI or uvicorn is not installed.
    OutputError
        If the port cannot be used.
    """
    app = create_app(review)
    import uvicorn

    with bound(LOOPBACK, port) as listener:
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
