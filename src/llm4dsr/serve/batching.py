"""Micro-batches: requests wait a moment for others, and one thread computes them together."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

R = TypeVar("R")
A = TypeVar("A")


class QueueFullError(Exception):
    """More requests wait than the queue holds."""


class ClosedError(Exception):
    """The queue takes no more work."""


@dataclass
class _Job(Generic[R, A]):
    request: R
    size: int
    future: Future[A] = field(default_factory=Future)
    added: float = field(default_factory=time.monotonic)


class Batcher(Generic[R, A]):
    """A queue of requests and the thread that computes them.

    Parameters
    ----------
    compute : callable
        Requests of a batch → their answers, in the same order.
    wait : float
        Seconds that a request waits at most for others, while the thread is free.
    batch : int
        Largest size of a batch, unless a single request is larger.
    queue : int
        Largest size of all that waits, unless a single request is larger.
    """

    def __init__(self, compute: Callable[[Sequence[R]], Sequence[A]], wait: float, batch: int, queue: int) -> None:
        self._compute, self._wait, self._batch, self._queue = compute, wait, batch, queue
        self._jobs: deque[_Job[R, A]] = deque()
        self._size, self._closed, self._changed = 0, False, threading.Condition()
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)
        self._thread.start()

    def submit(self, request: R, size: int) -> Future[A]:
        """Queue a request.

        Parameters
        ----------
        request : R
            The request.
        size : int
            How much it takes, in the unit of `batch` and `queue`.

        Returns
        -------
        Future
            Of its answer. If it is cancelled before its turn, nothing is computed.

        Raises
        ------
        QueueFullError, ClosedError
            If it is not accepted.
        """
        with self._changed:
            if self._closed:
                raise ClosedError
            if self._jobs and self._size + size > self._queue:
                raise QueueFullError
            job: _Job[R, A] = _Job(request, size)
            self._jobs.append(job)
            self._size += size
            if len(self._jobs) == 1 or self._size >= self._batch:
                self._changed.notify()
        return job.future

    def close(self) -> None:
        """Take no more work, and return once all that was accepted is done."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    @property
    def size(self) -> int:
        """Size of all that waits."""
        return self._size

    @property
    def is_alive(self) -> bool:
        """Whether the thread lives."""
        return self._thread.is_alive()

    def _work(self) -> None:
        while jobs := self._take():
            wanted = [job for job in jobs if job.future.set_running_or_notify_cancel()]
            if wanted:
                self._answer(wanted)

    def _take(self) -> list[_Job[R, A]]:
        """The next batch, once it is full or its oldest request has waited; nothing once closed and empty."""
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            while self._jobs and self._size < self._batch and not self._closed:
                left = self._jobs[0].added + self._wait - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            taken, size = list[_Job[R, A]](), 0
            while self._jobs and (not taken or size + self._jobs[0].size <= self._batch):
                taken.append(self._jobs.popleft())
                size += taken[-1].size
            self._size -= size
            return taken

    def _answer(self, jobs: list[_Job[R, A]]) -> None:
        try:
            answers = self._compute([job.request for job in jobs])
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].future.set_exception(error)
                return
            for job in jobs:  # one that fails does not take the others with it
                self._answer([job])
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.future.set_result(answer)
