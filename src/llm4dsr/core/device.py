"""Where torch computes: device, threads, workers, seeds, precision, and recovery from out-of-memory."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from llm4dsr.core.distributed import local_processes
from llm4dsr.core.memory import is_out_of_memory
from llm4dsr.core.progress import log
from llm4dsr.errors import ModelError

T = TypeVar("T")
BYTES_PER_WORKER = 2 * 2**30  # GPU memory of each small model, where several are trained in parallel


def pick_device() -> str:
    """Return "cuda" if there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def use_threads(threads: int = 0) -> None:
    """Let torch use so many CPU threads; 0: one for each core that this process may use.

    Processes of this machine that work together share its cores.
    """
    torch.set_num_threads(threads or max(1, available_cpus() // local_processes()))


def available_cpus() -> int:
    """Count the CPU cores that this process may use, which can be fewer than the machine has."""
    if hasattr(os, "process_cpu_count"):  # from Python 3.13
        return os.process_cpu_count() or 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """Let torch use one thread inside the block and restore the caller's number after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch inside the block and restore the caller's random state after it."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def max_workers(jobs: int, large: bool = False) -> int:
    """Return how many single-threaded processes may train models in parallel.

    Parameters
    ----------
    jobs : int
        Models to train.
    large : bool, default False
        The models are large: one at a time on a GPU.

    Returns
    -------
    int
        At least 1; at most `jobs`, the threads that torch may use, and the models that fit the free GPU memory.
    """
    processes = torch.get_num_threads()
    if torch.cuda.is_available():
        processes = 1 if large else min(processes, torch.cuda.mem_get_info()[0] // BYTES_PER_WORKER)
    return max(1, min(processes, jobs))


def run_or_oom(run: Callable[[], T]) -> T | None:
    """Return the result of `run`, or None if it ran out of memory; other errors are raised."""
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def random_state() -> Callable[[], None]:
    """Return a function that restores the random state that torch has now."""
    cpu, gpu = torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore() -> None:
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)

    return restore


def in_parts(parts: Iterable[slice], run: Callable[[slice], T], of: str) -> Iterator[tuple[slice, T]]:
    """Run a function on slices; on out-of-memory, halve the slice and all that follow, and log a warning.

    Parameters
    ----------
    parts : iterable of slice
        Slices with start and stop.
    run : callable
        Slice → its result.
    of : str
        What a slice holds, for messages, such as "histories".

    Yields
    ------
    part : slice
        The slice, or a part of it.
    result
        Of `run` on it.

    Raises
    ------
    ModelError
        If a slice of one does not fit into memory.

    Examples
    --------
    >>> [(part.stop, found) for part, found in in_parts([slice(0, 3), slice(3, 4)], lambda part: part.start, "rows")]
    [(3, 0), (4, 3)]
    """
    most = 0
    for part in parts:
        start = part.start
        while start < part.stop:
            here = slice(start, min(part.stop, start + most) if most else part.stop)
            found = run_or_oom(lambda here=here: run(here))  # type: ignore[misc]
            if found is None:
                most = halve_batch(here.stop - here.start, of)
                continue
            yield here, found
            start = here.stop


def halve_batch(size: int, of: str) -> int:
    """Return half of a batch that did not fit into memory, and log a warning.

    Raises
    ------
    ModelError
        If the batch holds one of them only.
    """
    if size < 2:
        raise ModelError(
            f"Out of memory with a single one of the {of} at a time. Use a smaller model, fewer items, or a larger "
            "machine."
        )
    log.warning("Out of memory: %d %s at a time from now on, instead of %d.", size // 2, of, size)
    return size // 2


def halve_budget(budget: int, single: bool = False) -> int:
    """Halve the tokens per forward pass after out-of-memory, and log a warning.

    Parameters
    ----------
    budget : int
        Tokens per pass that did not fit.
    single : bool, default False
        The pass held a single window, so smaller passes cannot help.

    Returns
    -------
    int
        Tokens per pass from now on.

    Raises
    ------
    ModelError
        If the pass cannot be made smaller.
    """
    if single or budget < 2:
        raise ModelError("Out of memory with a single window in a pass. Use a smaller model or a larger machine.")
    log.warning("Out of memory: %d tokens per pass from now on, instead of %d.", budget // 2, budget)
    return budget // 2


def precision(dtype: str, device: torch.device) -> Any:
    """Return the autocast context of half-precision models where the hardware multiplies in half precision.

    That is on CUDA, and for bf16 on CPUs with AMX. Elsewhere the context does nothing.
    """
    if device.type == "cuda" and dtype != "fp32":
        return torch.autocast("cuda", dtype=torch.bfloat16 if dtype == "bf16" else torch.float16)
    if device.type == "cpu" and dtype == "bf16" and has_amx():
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def has_amx() -> bool:
    """Tell whether the CPU multiplies matrices of bf16 in hardware, several times as fast as those of fp32."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)  # since PyTorch 2.5
    return supported is not None and bool(supported())


@contextlib.contextmanager
def fp32_weights(parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Hold half-precision weights in fp32 inside the block, and round them to their own precision after it.

    For tuning: a small step is below the resolution of bf16 and would be lost, and PyTorch unscales no fp16 gradients.
    """
    given = [p.dtype for p in parameters]
    half = [(p, kind) for p, kind in zip(parameters, given, strict=True) if kind in (torch.bfloat16, torch.float16)]
    for p, _ in half:
        p.data = p.data.float()
    try:
        yield
    finally:
        for p, kind in half:
            p.grad = None
            p.data = p.data.to(kind)
