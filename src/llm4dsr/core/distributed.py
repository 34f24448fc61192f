"""Processes that tune one model together: each computes a part of every step, and their gradients are added.

A launcher such as `accelerate launch` or `torchrun` starts them, and tells each its rank in the environment. Without a
launcher there is one process, and nothing here communicates. The first process (rank 0) writes; the others write
nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from llm4dsr.core.arrays import FloatArray
from llm4dsr.core.hashing import digest
from llm4dsr.core.workers import end_with_parent
from llm4dsr.errors import ConfigError, ModelError

T = TypeVar("T")
BUCKET = 2**24  # gradients that are added at once
WAIT = timedelta(hours=2)  # for a process that reads and counts what another has ready
_launched = False  # whether the group is that of `joined`


def launched() -> int:
    """Return how many processes the launcher started; 1 without a launcher.

    Raises
    ------
    ConfigError
        If the launcher's variables are not numbers.
    """
    return _variable("WORLD_SIZE", 1)


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Let this process work with the others of the launcher inside the block; alone, do nothing.

    Gradients are exchanged by NCCL between GPUs, one for each process of a machine, and by Gloo between CPUs. This
    process ends soon after its launcher, however that ends.

    Raises
    ------
    ConfigError
        If the machine has GPUs, but fewer than processes, or the launcher's variables are not numbers.
    """
    global _launched
    if launched() <= 1 or process_count() > 1:
        yield
        return
    end_with_parent(os.getppid())
    gpus, local = torch.cuda.device_count(), _variable("LOCAL_RANK", 0)
    if gpus:
        if local >= gpus:
            raise ConfigError(
                f"Process {local + 1} of this machine has no GPU. Launch at most {gpus} here, one for each GPU."
            )
        torch.cuda.set_device(local)
    # Imported while a group exists, its functions keep the group as a default. Its threads then outlive `leave`, and
    # one that frees a tensor while the interpreter ends aborts the process.
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if gpus else "gloo", timeout=WAIT)
    _launched = True
    try:
        yield
    finally:
        leave()


def leave() -> bool:
    """End the work that `joined` began, and return whether there was any. All leave at about the same time."""
    global _launched
    if not _launched:
        return False
    _launched = False
    dist.destroy_process_group()
    return True


def process_count() -> int:
    """Return the number of processes that work together; 1 outside `joined`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def local_processes() -> int:
    """Return how many of the processes that work together are on this machine, and share its cores."""
    return max(1, _variable("LOCAL_WORLD_SIZE", 1)) if process_count() > 1 else 1


def own_parts(parts: Sequence[T]) -> Iterable[T]:
    """Return the parts that this process computes: every n-th of n processes.

    Examples
    --------
    Alone, all of them:

    >>> own_parts(["a", "b", "c"])
    ['a', 'b', 'c']
    """
    return parts[rank() :: process_count()]


def gathered(row: FloatArray, device: torch.device) -> FloatArray:
    """Return the rows [processes, n] of all processes, which give n numbers each.

    Examples
    --------
    >>> gathered(np.array([1.0, 2.0]), torch.device("cpu"))
    array([[1., 2.]])
    """
    if process_count() == 1:
        return row[None]
    own = torch.from_numpy(row).to(device)
    rows = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(rows, own)
    return np.asarray(torch.stack(rows).cpu().numpy())


def check_same(key: str, device: torch.device) -> None:
    """Raise ModelError unless all processes give the same key."""
    if len(set(gathered(np.array([float(int(digest(key)[:12], 16))]), device)[:, 0])) > 1:
        raise ModelError(
            "The processes that tune together differ in their windows, options, labels or versions. Give all of them "
            "the same run folder and the same installation."
        )


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by the sum over all processes. A process without a part has zeros."""
    if process_count() == 1:
        return
    for bucket in _buckets(parameters):
        for p in bucket:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.flatten() for p in bucket if p.grad is not None])
        dist.all_reduce(flat)
        for p, summed in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):  # type: ignore[no-untyped-call]
            p.grad = summed.view_as(p)


def same_for_all(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors with those of the first process."""
    if process_count() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.data, 0)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Parameters of one type each, together of BUCKET numbers at most; a larger one is alone."""
    bucket, size = list[nn.Parameter](), 0
    for p in parameters:
        if bucket and (size + p.numel() > BUCKET or p.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(p)
        size += p.numel()
    if bucket:
        yield bucket


def _variable(name: str, default: int) -> int:
    value = os.environ.get(name, "") or str(default)
    if not value.isdecimal():
        raise ConfigError(f"The environment variable {name} is {value!r}; a launcher sets it to a number. Unset it.")
    return int(value)
