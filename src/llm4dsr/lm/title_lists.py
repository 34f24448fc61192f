"""Titles in a list: how likely each is, given those before it (readout: likelihood).

A title that does not belong is hardly more likely among the others than alone. So its score is
-log P(title | titles before it) of the list in order and of the reversed list, plus twice log P(title | nothing).
A pre-trained model can tell that before any tuning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from llm4dsr.core.arrays import FloatArray
from llm4dsr.core.device import precision
from llm4dsr.data.windows import Windows
from llm4dsr.lm.collate import collate, run_batches
from llm4dsr.lm.log_probs import token_log_probs
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.lm.tokens import Tokens

Lists = Sequence[Sequence[int]]


def likelihood_ratios(
    model: NoiseLM, builder: PromptBuilder, windows: Windows, dtype: str, budget: int
) -> Iterator[tuple[list[int], list[FloatArray]]]:
    """Score windows by the likelihood of their titles among each other.

    Parameters
    ----------
    model : NoiseLM
        A causal model, tuned or not.
    builder : PromptBuilder
        Its prompts, with readout: likelihood.
    windows : Windows
        W windows.
    dtype : str
        `model.dtype`.
    budget : int
        Most tokens of a pass.

    Yields
    ------
    rows : list of int
        Some of the windows.
    ratios : list of array of float
        For each of them [items], higher = more likely noise.
    """
    lists = [windows.row(i) for i in range(len(windows))]
    items = np.unique(windows.items)
    alone = np.zeros(int(items.max(initial=-1)) + 1)
    for group, found in title_log_probs(model, builder, [[item] for item in items.tolist()], dtype, budget):
        alone[items[group]] = np.concatenate(found)
    both = [ordered for row in lists for ordered in (row, row[::-1])]  # neighbors: of equal length, so read together
    half = dict[int, FloatArray]()
    for group, found in title_log_probs(model, builder, both, dtype, budget):
        rows, ratios = list[int](), list[FloatArray]()
        for i, of_row in zip(group, found, strict=True):
            other = half.pop(i ^ 1, None)
            if other is None:
                half[i] = of_row
                continue
            ahead, behind = (other, of_row) if i % 2 else (of_row, other)
            rows.append(i // 2)
            ratios.append(2 * alone[lists[i // 2]] - ahead - behind[::-1])
        yield rows, ratios


def title_log_probs(
    model: NoiseLM, builder: PromptBuilder, lists: Lists, dtype: str, budget: int
) -> Iterator[tuple[list[int], list[FloatArray]]]:
    """Compute how likely each title of a list is.

    Parameters
    ----------
    model, builder, dtype, budget
        As in `likelihood_ratios`.
    lists : sequence of sequence of int
        Catalogue rows.

    Yields
    ------
    rows : list of int
        Some of the lists.
    log_probs : list of array of float
        For each of them [items] log P(title | titles before it), at most 0.
    """
    prompts = [builder.prompt(row) for row in lists]
    with torch.inference_mode(), precision(dtype, model.device):
        prefix = model.read_prefix(builder.head)

    def read(group: list[int]) -> list[FloatArray]:
        rows = [prompts[i] for i in group]
        places, sizes = _title_tokens(builder, rows, [lists[i] for i in group])
        with torch.inference_mode(), precision(dtype, model.device):
            hidden = model.hidden(collate(rows, model.device), prefix)
            known = token_log_probs(model, hidden, places[0] * hidden.shape[1] + places[1] - 1, places[2])
        sums = np.add.reduceat(known, np.cumsum([0, *sizes])[:-1])
        return np.split(sums, np.cumsum([len(lists[i]) for i in group])[:-1])

    return run_batches([len(prompt) for prompt in prompts], budget, read)


def _title_tokens(builder: PromptBuilder, rows: Sequence[Tokens], lists: Lists) -> tuple[np.ndarray, list[int]]:
    """([3, tokens] row and column of the tokens of all titles, and the tokens; how many each title has)."""
    spans = [
        (i, end + 1 - len(builder.titles[item]), end + 1)
        for i, (row, items) in enumerate(zip(rows, lists, strict=True))
        for end, item in zip(row.read, items, strict=True)
    ]
    places = np.array([(i, t, rows[i].ids[t]) for i, begin, end in spans for t in range(begin, end)], dtype=np.int64).T
    return places, [end - begin for _, begin, end in spans]
