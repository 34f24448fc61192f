"""`llm4dsr serve`: denoise histories over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llm4dsr.cli.terminal import messages
from llm4dsr.core.listening import LOOPBACK, bound, is_loopback
from llm4dsr.errors import ModelError


def serve(
    model: Annotated[Path, typer.Argument(help="A folder that save_pretrained wrote, or a run folder.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 = all of this machine.")] = LOOPBACK,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the token that requests must carry; default: the variable LLM4DSR_TOKEN, or none."
        ),
    ] = None,
    wait: Annotated[
        float, typer.Option(min=0, help="Milliseconds that a request waits at most for others to be computed with.")
    ] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Histories that are computed together.")] = 64,
    queue: Annotated[int, typer.Option(min=1, help="Histories that may wait; requests beyond get 429.")] = 1_024,
    timeout: Annotated[float, typer.Option(help="Seconds until a request gets 504.")] = 10,
    threads: Annotated[
        int | None, typer.Option(min=0, help="CPU threads that compute; 0 = all cores. Default: as configured.")
    ] = None,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds from SIGTERM, when /readyz begins to fail, to closing the port.")
    ] = 1,
) -> None:
    """Denoise histories over HTTP: POST /v1/denoise. Ends on SIGTERM or Ctrl-C, once all accepted work is done."""
    try:
        from llm4dsr.serve import Limits, Service, read_token
        from llm4dsr.serve import serve as serve_forever
    except ImportError as error:
        raise ModelError(
            f"The service needs {error.name}, which is not installed:  pip install 'llm4dsr[serve]'"
        ) from None
    from llm4dsr.pipeline.served_model import open_model

    limits = Limits(wait / 1_000, batch, queue, timeout, drain=drain, token=read_token(token_file))
    with bound(host, port) as listener:
        if not is_loopback(listener) and limits.token is None:
            messages.print(
                f"[yellow]Warning:[/yellow] Whoever reaches {host} may use this service, because no token is set. Set "
                "LLM4DSR_TOKEN or --token-file.", soft_wrap=True,
            )  # fmt: skip
        service = Service(open_model(model, threads), limits)
        messages.print(f"Ready at  http://{host}:{port}   Ctrl-C ends.", soft_wrap=True)
        serve_forever(service, listener)
