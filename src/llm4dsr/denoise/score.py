"""Scoring: log-odds that each interaction is noise, before calibration (arXiv 2408.08208, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from llm4dsr.config import Config
from llm4dsr.core.arrays import FloatArray
from llm4dsr.core.device import precision
from llm4dsr.core.progress import Progress
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.lm.collate import collate, run_batches
from llm4dsr.lm.model import NoiseLM, noise_logits, read_states
from llm4dsr.lm.passes import scoring_tokens_of
from llm4dsr.lm.prefix_tree import WindowTree, sequence_log_probs
from llm4dsr.lm.prompt import PromptBuilder
from llm4dsr.lm.title_lists import likelihood_ratios
from llm4dsr.lm.tokens import Tokens

MERGED_FROM = 8  # windows from which on adding an adapter to the weights takes less time than computing it
Scored = Iterator[tuple[list[int], list[FloatArray]]]  # a group of prompts and the log-odds of each


def score_windows(
    model: NoiseLM,
    builder: PromptBuilder,
    windows: Windows,
    catalogue: Catalogue,
    config: Config,
    progress: Progress | None = None,
    doing: str = "score",
    states: npt.NDArray[np.float32] | None = None,
) -> FloatArray:
    """Score the interactions of some thousand windows; all their prompts are in memory at once.

    Parameters
    ----------
    model : NoiseLM
        A tuned model.
    builder : PromptBuilder
        Its prompts.
    windows : Windows
        W windows with n interactions.
    catalogue : Catalogue
        The items.
    config : Config
        All options.
    progress : Progress, optional
        Called with (windows done, all windows, `doing`).
    doing : str, default "score"
        What is being done, for progress.
    states : array of float32, optional
        [n, H] filled with the hidden states that noise logits are read from; readout: per_position only.

    Returns
    -------
    array of float
        [n] log-odds of noise, higher = more likely noise; NaN in windows of a single item, where nothing tells what
        belongs. With readout: per_position, noise logits read at all positions in one
        pass. With readout: title, from the probability of each title of the window as the answer: its odds against "no
        item" if the model was tuned on windows without injected noise, which makes windows comparable, else against the
        other titles. With readout: likelihood, a log-likelihood ratio instead of log-odds (`lm/title_lists.py`).
    """
    out = np.full(len(windows.items), np.nan)
    if not len(out):
        return out
    windows = windows.take(np.flatnonzero(windows.lengths))  # an empty one has no prompt
    begins = windows.offsets
    model.eval()
    if len(windows) >= MERGED_FROM:
        model = model.merged()
    done, readout = 0, config.model.readout
    if readout == "likelihood":
        found = likelihood_ratios(model, builder, windows, config.model.dtype, scoring_tokens_of(model, config))
    else:
        prompts = builder.prompts(windows)
        if readout == "per_position":
            found = _positions(model, builder, windows, prompts, config, states)
        else:
            found = _titles(model, builder, windows, prompts, catalogue, config)
    for group, values in found:
        for i, row in zip(group, values, strict=True):
            out[begins[i] : begins[i] + len(row)] = row
        done += len(group)
        if progress:
            progress(done, len(windows), doing)
    out[windows.lengths[windows.owners] < 2] = np.nan  # a model still gives numbers there, and extreme ones
    return out


def _positions(
    model: NoiseLM,
    builder: PromptBuilder,
    windows: Windows,
    prompts: list[Tokens],
    config: Config,
    states: npt.NDArray[np.float32] | None,
) -> Scored:
    with torch.inference_mode(), precision(config.model.dtype, model.device):
        prefix = model.read_prefix(builder.head)

    def score(group: list[int]) -> list[FloatArray]:
        rows = [prompts[i] for i in group]
        with torch.inference_mode(), precision(config.model.dtype, model.device):
            hidden = model.hidden(collate(rows, model.device), prefix)
            read = read_states(hidden, rows)
            no, yes = noise_logits(model, builder, read).unbind(-1)
        if states is not None:
            states[windows.interactions(np.array(group))] = read.float().cpu().numpy()
        flat = (yes - no).cpu().numpy()
        return np.split(flat, np.cumsum([len(r.read) for r in rows])[:-1])

    return run_batches([len(p) for p in prompts], scoring_tokens_of(model, config), score)


def _titles(
    model: NoiseLM,
    builder: PromptBuilder,
    windows: Windows,
    prompts: list[Tokens],
    catalogue: Catalogue,
    config: Config,
) -> Scored:
    trees: list[WindowTree] = []
    columns: list[list[int]] = []  # for each window, the sequence of its tree that stands for each position
    for i in range(len(prompts)):
        rows = catalogue.canonical[windows.row(i)].tolist()
        keys = [tuple(builder.titles[r]) for r in rows]  # long titles that are cut to the same tokens are the same
        unique = dict.fromkeys(key for _, key in sorted(zip(rows, keys, strict=True)))
        place = {key: at for at, key in enumerate(unique)}
        none = [builder.titles[builder.no_noise]] if config.task.none else []
        trees.append(WindowTree.of([*map(list, unique), *none]))
        columns.append([place[key] for key in keys])
    sizes, first = (
        [len(p) + len(t.tokens) for p, t in zip(prompts, trees, strict=True)],
        config.score.mode == "first-token",
    )
    with torch.inference_mode(), precision(config.model.dtype, model.device):
        prefix = model.read_prefix(builder.head)

    def score(group: list[int]) -> list[FloatArray]:
        with precision(config.model.dtype, model.device):
            log_probs = sequence_log_probs(model, [prompts[i] for i in group], [trees[i] for i in group], first, prefix)
        return [
            _title_odds(np.array(v), columns[i], bool(config.task.none)) for i, v in zip(group, log_probs, strict=True)
        ]

    return run_batches(sizes, scoring_tokens_of(model, config), score)


def _title_odds(log_probs: FloatArray, columns: list[int], none: bool) -> FloatArray:
    """Log-odds per position from log P(title). Positions with the same title share its probability evenly."""
    log_p = log_probs - np.logaddexp.reduce(log_probs)
    counts = np.bincount(columns)
    shared = log_p[columns] - np.log(counts[columns])
    if none:
        return np.asarray(shared - log_p[-1])
    p = np.exp(np.minimum(shared, -1e-9))
    return np.asarray(shared - np.log1p(-p))
