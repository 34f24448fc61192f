"""Calls in several processes, which end with their parent, however it ends: by a signal, a crash, or lack of memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import BrokenProcessPool

from llm4dsr.core.io import is_running
from llm4dsr.errors import ModelError

INTERVAL = 0.5  # seconds between two looks at the parent
_watched: set[int] = set()  # process ids that have a watchdog; a forked child is not among them


def in_parallel(
    workers: int, call: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], doing: str
) -> Iterator[Any]:
    """Call a function in several processes; with one worker, in this one.

    Parameters
    ----------
    workers : int
        Processes.
    call : callable
        A function of a module.
    arguments : iterable of tuple
        Of each call.
    doing : str
        What a process does, for messages, such as "trained a recommender".

    Yields
    ------
    Any
        The results, in the order of the arguments.

    Raises
    ------
    ModelError
        If a process was killed.
    """
    watched = {"initializer": end_with_parent, "initargs": (os.getpid(),)}  # before a worker imports what it computes
    try:
        jobs = (delayed(call)(*given) for given in arguments)
        yield from Parallel(workers, max_nbytes=None, return_as="generator", **watched)(jobs)
    except BrokenProcessPool:
        raise ModelError(
            f"A process that {doing} was killed, most likely because memory ran out. Repeat the command to resume; "
            "with threads: 1 there is one process at a time."
        ) from None


def end_with_parent(parent: int) -> None:
    """End this process, without clean-up, soon after its parent has ended.

    A thread looks at the parent twice a second. The signal that Linux could send instead is tied to the thread that
    started the worker, and would end workers whose parent still runs.

    Parameters
    ----------
    parent : int
        Process id of the parent. In the parent itself, nothing is done.
    """
    own = os.getpid()
    if own == parent or own in _watched:
        return
    _watched.add(own)
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True, name="parent-watchdog").start()
    if not is_running(parent):  # it ended before this process came to look
        os._exit(1)


def _watch(started_by: int) -> None:
    while os.getppid() == started_by and is_running(started_by):
        time.sleep(INTERVAL)
    os._exit(1)
