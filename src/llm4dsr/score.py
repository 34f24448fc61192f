"""Scoring: how likely each interaction of each window is noise (arXiv 2408.08208, section 4.2), before calibration."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from llm4dsr.batch import Progress, collate, precision, run_batches
from llm4dsr.catalogue import Catalogue, FloatArray, Windows
from llm4dsr.config import Config
from llm4dsr.model import NoiseLM
from llm4dsr.prompt import PromptBuilder, Tokens
from llm4dsr.tree import WindowTree, sequence_log_probs
from llm4dsr.tune import read_states, verdicts

Scored = Iterator[tuple[list[int], list[FloatArray]]]  # a group of prompts and the log-odds of each


def score_windows(model: NoiseLM, builder: PromptBuilder, windows: Windows, catalogue: Catalogue, config: Config,
                  progress: Progress | None = None, doing: str = "score") -> FloatArray:  # fmt: skip
    """[W, L] log-odds that an interaction is noise (higher = more likely), NaN where a window has no item.

    answer: position: the verdict's log-odds, read at all positions in one pass. answer: title: from the probability
    of each title of the window as the answer; where the model was tuned on windows left whole too, its odds are taken
    against "no item", which makes windows comparable, else against the other titles.
    All prompts are held in memory at once: give some thousands of windows at a time.
    """
    out = np.full(windows.items.shape, np.nan)
    model.eval()
    scorer, done = _positions if config.model.answer == "position" else _titles, 0
    for group, values in scorer(model, builder, windows, builder.prompts(windows), catalogue, config):
        for i, row in zip(group, values, strict=True):
            out[i, : len(row)] = row
        done += len(group)
        if progress:
            progress(done, len(windows), doing)
    return out


def _positions(model: NoiseLM, builder: PromptBuilder, windows: Windows, prompts: list[Tokens], catalogue: Catalogue,
               config: Config) -> Scored:  # fmt: skip
    def judge(group: list[int]) -> list[FloatArray]:
        rows = [prompts[i] for i in group]
        with torch.inference_mode(), precision(config.model.dtype, model.device):
            hidden = model.hidden(collate(rows, model.device))
            no, yes = verdicts(model, builder, read_states(hidden, rows)).unbind(-1)
        flat = (yes - no).cpu().numpy()
        return np.split(flat, np.cumsum([len(r.read) for r in rows])[:-1])

    return run_batches([len(p) for p in prompts], config.train.batch_tokens, judge)


def _titles(model: NoiseLM, builder: PromptBuilder, windows: Windows, prompts: list[Tokens], catalogue: Catalogue,
            config: Config) -> Scored:  # fmt: skip
    trees: list[WindowTree] = []
    columns: list[list[int]] = []  # for each window, the sequence of its tree that stands for each position
    for i in range(len(prompts)):
        unique, inverse = np.unique(catalogue.canonical[windows.row(i)], return_inverse=True)
        none = [builder.titles[builder.no_noise]] if config.task.none else []
        trees.append(WindowTree.of([builder.titles[r] for r in unique] + none))
        columns.append(inverse.tolist())
    sizes = [len(p) + len(t.tokens) for p, t in zip(prompts, trees, strict=True)]

    def judge(group: list[int]) -> list[FloatArray]:
        first = config.score.mode == "first-token"
        with precision(config.model.dtype, model.device):
            log_probs = sequence_log_probs(model, [prompts[i] for i in group], [trees[i] for i in group], first)
        return [
            _title_odds(np.array(v), columns[i], bool(config.task.none)) for i, v in zip(group, log_probs, strict=True)
        ]

    return run_batches(sizes, config.train.batch_tokens // 4, judge)  # the tree's mask takes memory too


def _title_odds(log_probs: FloatArray, columns: list[int], none: bool) -> FloatArray:
    """Log-odds per position from log P(title). Positions that share a title share its probability evenly."""
    log_p = log_probs - np.logaddexp.reduce(log_probs)
    counts = np.bincount(columns)
    shared = log_p[columns] - np.log(counts[columns])
    if none:
        return np.asarray(shared - log_p[-1])
    p = np.exp(np.minimum(shared, -1e-9))
    return np.asarray(shared - np.log1p(-p))
