"""What the service counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters of one service.

    Parameters
    ----------
    queue_length : callable
        How many histories wait.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, queue_length: Callable[[], float]) -> None:
        self._registry = r = CollectorRegistry()
        self.requests = Counter(
            "llm4dsr_requests", "Requests of /v1/denoise, by HTTP status of the answer.", ["status"], registry=r
        )
        self.seconds = Histogram(
            "llm4dsr_request_seconds", "Seconds from the head of a request of /v1/denoise to its answer.",
            buckets=SECONDS, registry=r,
        )  # fmt: skip
        self.rejected = Counter(
            "llm4dsr_rejected", "Requests that were not answered, by reason.", ["reason"], registry=r
        )
        self.histories = Counter("llm4dsr_histories", "Histories that were answered.", registry=r)
        self.refused_histories = Counter("llm4dsr_refused_histories", "Histories with unknown items.", registry=r)
        self.flags = Counter("llm4dsr_flags", "Interactions that were flagged as noise.", registry=r)
        self.batch_requests = Histogram(
            "llm4dsr_batch_requests", "Requests that were computed together.", buckets=SIZES, registry=r
        )
        self.batch_histories = Histogram(
            "llm4dsr_batch_histories", "Histories that were computed together.", buckets=SIZES, registry=r
        )
        Gauge("llm4dsr_queue_length", "Histories that wait.", registry=r).set_function(queue_length)

    def text(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
