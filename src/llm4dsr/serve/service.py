"""A denoiser at work: requests in, replies out. Knows no web."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from llm4dsr.core.progress import log
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import LLM4DSRError
from llm4dsr.serve.answers import Reply, answer
from llm4dsr.serve.batching import Batcher, ClosedError, QueueFullError
from llm4dsr.serve.items import Items, Query
from llm4dsr.serve.limits import Limits, Refused
from llm4dsr.serve.metrics import Metrics
from llm4dsr.serve.schema import Request


class Service:
    """Answer requests with a denoiser, several at once.

    Parameters
    ----------
    denoiser : Denoiser
        Fitted. Requests never change it.
    limits : Limits, optional
        How much is taken on.
    """

    def __init__(self, denoiser: Denoiser, limits: Limits | None = None) -> None:
        self.denoiser, self.limits = denoiser, limits or Limits()
        self._items, self._is_draining = Items(denoiser.catalogue), False
        first = [item for item, _ in zip(denoiser.catalogue.ids.to_list(), range(2), strict=False)]
        denoiser.score([first])  # libraries set up what they need with the first call
        self._batcher: Batcher[Query, Reply] = Batcher(
            self._compute, self.limits.wait, self.limits.batch, self.limits.queue
        )
        self.metrics = Metrics(lambda: self._batcher.size)

    def _compute(self, queries: Sequence[Query]) -> list[Reply]:
        self.metrics.batch_requests.observe(len(queries))
        self.metrics.batch_histories.observe(sum(len(query.rows) for query in queries))
        return answer(self.denoiser, queries)

    @property
    def is_ready(self) -> bool:
        """Whether the service takes work."""
        return self.is_alive and not self._is_draining

    @property
    def is_alive(self) -> bool:
        """Whether the thread that computes lives."""
        return self._batcher.is_alive

    def drain(self) -> None:
        """Refuse new work. What was accepted is still done."""
        self._is_draining = True

    def close(self) -> None:
        """Refuse new work, and return once all that was accepted is done."""
        self.drain()
        self._batcher.close()

    async def denoise(self, request: Request) -> Reply:
        """Answer a request.

        Raises
        ------
        Refused
            If the service is busy, too slow or shutting down, or the request cannot be answered.
        """
        if not self.is_ready:
            raise _shutting_down()
        try:
            query = self._items.look_up(request)
            future = self._batcher.submit(query, query.work(self.denoiser.width))
        except LLM4DSRError as error:
            raise Refused(422, "invalid", str(error)) from None
        except QueueFullError:
            message = f"As many histories wait as may: {self.limits.queue:,}. Send the request again later."
            raise Refused(429, "busy", message, {"Retry-After": "1"}) from None
        except ClosedError:
            raise _shutting_down() from None
        try:
            reply = await asyncio.wait_for(asyncio.wrap_future(future), self.limits.timeout)
        except TimeoutError:
            raise Refused(
                504, "too_slow", f"There was no answer within {self.limits.timeout:g} seconds. Send fewer histories at "
                "once, or without explain; or start the service with a longer --timeout.",
            ) from None  # fmt: skip
        except LLM4DSRError as error:
            raise Refused(422, "invalid", str(error)) from None
        except Exception as error:
            log.exception("A request failed.", exc_info=error)
            raise Refused(500, "failed", "The request failed. The service's log has the reason.") from None
        self.metrics.histories.inc(reply.answered)
        self.metrics.refused_histories.inc(reply.refused)
        self.metrics.flags.inc(reply.flags)
        return reply


def _shutting_down() -> Refused:
    message = "The service is shutting down. Ask another one, or again later."
    return Refused(503, "shutting_down", message, {"Retry-After": "1"})
