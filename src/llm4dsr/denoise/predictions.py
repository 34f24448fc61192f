"""Predictions: the title vector that the model expects at each flag, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from llm4dsr.config import Config
from llm4dsr.core.arrays import BoolArray, IntArray
from llm4dsr.core.device import halve_batch, precision, run_or_oom
from llm4dsr.data.windows import Windows
from llm4dsr.lm.collate import collate
from llm4dsr.lm.model import NoiseLM
from llm4dsr.lm.prompt import PromptBuilder

T = TypeVar("T")


@dataclass
class Predictions:
    """What the model predicts at G flags.

    Attributes
    ----------
    flags : array of int
        [G] the flags, in the order of np.flatnonzero(flagged).
    vectors : Tensor
        [G, V] unit title vectors of what belongs there.
    windows : Windows
        The window of each flag; G windows, some of them equal.
    context : array of bool
        [interactions of `windows`] True for items that are not flagged.
    """

    flags: IntArray
    vectors: Tensor
    windows: Windows
    context: BoolArray


def predict(
    model: NoiseLM,
    builder: PromptBuilder,
    windows: Windows,
    flagged: BoolArray,
    config: Config,
    read: Callable[[Predictions], T],
    size: int,
    histories: IntArray | None = None,
    states: npt.NDArray[np.float32] | None = None,
) -> Iterator[tuple[IntArray, T]]:
    """Predict what belongs at each flag, for some flags at a time.

    Parameters
    ----------
    model, builder, windows, config
        As in `suggest.suggest`.
    flagged : array of bool
        [n] True where an item is predicted.
    read : callable
        Predictions → what is made of them. On out-of-memory it is called again, for fewer flags.
    size : int
        Flags at a time, unless a history has more.
    histories : array of int, optional
        [F] the history of each flag, ascending. Default: the window.
    states : array of float32, optional
        [F, H] the hidden states of the model at the flags. Default: those of a pass over the windows with flags.

    Yields
    ------
    flags : array of int
        [G]; the flags of a history come together.
    result
        Of `read`.

    Raises
    ------
    ModelError
        If the flags of a single history do not fit into memory.
    """
    rows, positions = windows.owners[flagged], windows.positions[flagged]
    starts = np.flatnonzero(np.diff(rows if histories is None else histories, prepend=-1))  # of histories

    def at(flags: IntArray) -> Predictions:
        with torch.inference_mode(), precision(config.model.dtype, model.device):
            vectors = F.normalize(model.out(read_at(flags).float()), dim=-1).float()
        return Predictions(flags, vectors, windows.take(rows[flags]), ~flagged[windows.interactions(rows[flags])])

    def read_at(flags: IntArray) -> Tensor:
        """[G, H] hidden states."""
        if states is not None:
            return torch.from_numpy(states[flags]).to(model.device)
        if config.model.readout == "per_position":  # one pass for all flags of a window
            asked, of = np.unique(rows[flags], return_inverse=True)
            prompts = builder.prompts(windows.take(asked))
            reads = [prompts[w].read[p] for w, p in zip(of, positions[flags], strict=True)]
        else:
            some, of = windows.take(rows[flags]), np.arange(len(flags))
            described = builder.features(some)
            prompts = [builder.suggestion_prompt(some.row(i), int(p), described[i])
                       for i, p in enumerate(positions[flags])]  # fmt: skip
            reads = [len(prompt) - 1 for prompt in prompts]
        return model.hidden(collate(prompts, model.device))[of, reads]

    begin = 0
    while begin < len(rows):
        ends = np.append(starts[starts > begin], len(rows))  # never inside a history
        end = int(ends[ends <= begin + size].max(initial=ends[0]))
        flags = np.arange(begin, end)
        found = run_or_oom(lambda flags=flags: (read(at(flags)),))  # type: ignore[misc]
        if found is None:
            size = halve_batch(1 if end == ends[0] else len(flags), "flags")
            continue
        yield flags, found[0]
        begin = end
