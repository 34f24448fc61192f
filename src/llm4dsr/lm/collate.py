"""Prompts as padded tensors, batched by tokens, so that short windows cost less than long ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm4dsr.core.device import T, halve_budget, run_or_oom
from llm4dsr.lm.tokens import Tokens


@dataclass
class Batch:
    """Prompts as tensors.

    Attributes
    ----------
    ids, slots : Tensor
        [B, T] as in `Tokens`, right-padded.
    features : Tensor or None
        [soft tokens, N_FEATURES] in reading order.
    lengths : Tensor
        [B] tokens of each prompt.
    shared : int
        Leading tokens that all prompts have in common, before any soft token; at least one token of each is left.
    """

    ids: Tensor
    slots: Tensor
    features: Tensor | None
    lengths: Tensor
    shared: int = 0


def collate(rows: Sequence[Tokens], device: torch.device, multiple: int = 1) -> Batch:
    """Pad prompts to a batch on a device; its width is a multiple of `multiple`.

    The value of the padding does not matter, because attention never reaches it (`NoiseLM.hidden`).
    """
    width = -(-max(len(r) for r in rows) // multiple) * multiple
    ids, slots = np.zeros((len(rows), width), dtype=np.int64), np.full((len(rows), width), -1)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row.ids
        slots[i, : len(row)] = row.slots
    lengths = torch.tensor([len(r) for r in rows]).to(device)
    same = (ids == ids[0]).all(axis=0) & (slots < 0).all(axis=0)
    same[min(len(r) for r in rows) - 1 :] = False
    return Batch(
        torch.from_numpy(ids).to(device), torch.from_numpy(slots).to(device), stack_features(rows, device), lengths,
        int(same.argmin()),
    )  # fmt: skip


def stack_features(rows: Sequence[Tokens], device: torch.device) -> Tensor | None:
    """Return the co-occurrence features [soft tokens, N_FEATURES] of all prompts in reading order, or None."""
    known = [r.features for r in rows if r.features is not None]
    return torch.from_numpy(np.concatenate(known)).to(device) if known else None


def token_batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Group rows of similar length into passes of bounded size.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each row.
    budget : int
        Most tokens of a group, padding included. A longer row is a group of its own.

    Yields
    ------
    list of int
        Indices of the rows of a group, longest first.

    Examples
    --------
    >>> list(token_batches([2, 5, 3, 4], budget=8))
    [[1], [3, 2], [0]]
    """
    group: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if group and (len(group) + 1) * lengths[group[0]] > budget:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def run_batches(sizes: Sequence[int], budget: int, run: Callable[[list[int]], T]) -> Iterator[tuple[list[int], T]]:
    """Run a function on groups of `token_batches`; on out-of-memory, halve the budget and go on.

    Parameters
    ----------
    sizes : sequence of int
        Tokens of each row.
    budget : int
        Most tokens of a group.
    run : callable
        Indices of a group → its result.

    Yields
    ------
    indices : list of int
    result
        Of `run` on them.

    Raises
    ------
    ModelError
        If a single row does not fit into memory.
    """
    left = list(range(len(sizes)))
    while left:
        done: set[int] = set()
        for group in token_batches([sizes[i] for i in left], budget):
            part = [left[g] for g in group]
            result = run_or_oom(lambda part=part: run(part))  # type: ignore[misc]
            if result is None:
                budget = halve_budget(min(budget, sum(sizes[i] for i in part)), single=len(part) == 1)
                break
            yield part, result
            done.update(part)
        left = [i for i in left if i not in done]
