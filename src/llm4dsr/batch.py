"""Prompts as tensors: batches by tokens, so that short and long windows cost what they weigh."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from llm4dsr.errors import ModelError
from llm4dsr.prompt import Tokens

log = logging.getLogger("llm4dsr")
T = TypeVar("T")
OF_A_PROCESS = 2 * 2**30  # bytes of GPU memory for each of the small models that are trained side by side
Progress = Callable[[int, int, str], None]  # steps done, steps in all, what is going on


def pick_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What is drawn by torch inside follows from the seed; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def side_by_side(jobs: int, large: bool = False) -> int:
    """How many processes of one thread may train models at a time: as many as torch may use cores, and on a GPU as many
    small ones as its free memory has room for, but one that is large."""
    processes = torch.get_num_threads()
    if torch.cuda.is_available():
        processes = 1 if large else min(processes, torch.cuda.mem_get_info()[0] // OF_A_PROCESS)
    return max(1, min(processes, jobs))


@dataclass
class Batch:
    """ids, slots: [B, T], right-padded. evidence: [soft tokens, EVIDENCE] in reading order, or None. lengths: [B]."""

    ids: Tensor
    slots: Tensor
    evidence: Tensor | None
    lengths: Tensor


def collate(rows: Sequence[Tokens], device: torch.device) -> Batch:
    """The padding's value does not matter: attention never reaches it (`NoiseLM.hidden`)."""
    width = max(len(r) for r in rows)
    ids, slots = np.zeros((len(rows), width), dtype=np.int64), np.full((len(rows), width), -1)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row.ids
        slots[i, : len(row)] = row.slots
    lengths = torch.tensor([len(r) for r in rows]).to(device)
    return Batch(
        torch.from_numpy(ids).to(device), torch.from_numpy(slots).to(device), evidence_of(rows, device), lengths
    )


def evidence_of(rows: Sequence[Tokens], device: torch.device) -> Tensor | None:
    """[soft tokens, EVIDENCE] of all rows in reading order, or None where there is none."""
    known = [r.evidence for r in rows if r.evidence is not None]
    return torch.from_numpy(np.concatenate(known)).to(device) if known else None


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in groups of similar length, each of at most `budget` tokens with its padding (or a single row)."""
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and (len(group) + 1) * lengths[group[0]] > budget:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def run_batches(sizes: Sequence[int], budget: int, run: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """(indices, result of `run` on them) in groups of `token_batches`. Where the memory is too small for a group, the
    budget is halved from there on, and it is said. Raises ModelError where a single row does not fit."""
    left = list(range(len(sizes)))
    while left:
        done: set[int] = set()
        for group in token_batches([sizes[i] for i in left], budget):
            part = [left[g] for g in group]
            result = attempt(lambda part=part: run(part))  # type: ignore[misc]
            if result is None:
                budget = less(min(budget, sum(sizes[i] for i in part)), single=len(part) == 1)
                break
            yield part, result
            done.update(part)
        left = [i for i in left if i not in done]


def attempt(run: Callable[[], T]) -> T | None:
    """What `run` gives; None where it ran out of memory."""
    try:
        return run()
    except (RuntimeError, MemoryError) as error:
        short = isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
        if not short:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def less(budget: int, single: bool = False) -> int:
    """Half the budget of tokens per pass, and a word about it. Raises ModelError where nothing is left to halve."""
    if single or budget < 2:
        raise ModelError("Out of memory with a single window in a pass. Use a smaller model, or a machine with more.")
    log.warning("Out of memory: going on with %d tokens per pass instead of %d.", budget // 2, budget)
    return budget // 2


def precision(dtype: str, device: torch.device) -> Any:
    """Mixed precision where it pays: half-precision models on CUDA."""
    if device.type == "cuda" and dtype != "fp32":
        return torch.autocast("cuda", dtype=torch.bfloat16 if dtype == "bf16" else torch.float16)
    return contextlib.nullcontext()
