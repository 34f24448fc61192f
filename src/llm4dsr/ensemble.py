"""The tuned models of all folds: who judges whom, and the scores of any number of windows, a shard at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from llm4dsr.batch import Progress
from llm4dsr.catalogue import Catalogue, FloatArray, IntArray, Windows
from llm4dsr.company import Hashes, user_hashes
from llm4dsr.config import Config
from llm4dsr.model import NoiseLM
from llm4dsr.prompt import PromptBuilder
from llm4dsr.score import score_windows
from llm4dsr.shards import Shards, digest, versions

CHUNK = 2048  # windows whose prompts are held in memory at once, and that make a shard


@dataclass
class Ensemble:
    """models: one per fold, each tuned without the users of that fold. seen: hashes of all users in training."""

    models: list[NoiseLM]
    builder: PromptBuilder
    catalogue: Catalogue
    config: Config
    seen: Hashes

    def log_odds(self, windows: Windows, progress: Progress | None, doing: str, shards: Shards) -> FloatArray:
        """[W, L] mean log-odds of noise by the models that `shares` names, NaN where a window has no item."""
        out = np.full(windows.items.shape, np.nan)
        shares = self.shares(windows)
        done, total = 0, sum(len(rows) * len(members) for rows, members in shares)
        for rows, members in shares:
            for chunk in chunks(rows):
                part, scores = windows.take(chunk), []
                key = self.key(part, shards)
                for member in members:
                    step = progress and within(progress, done, len(part), total)

                    def judge(part: Windows = part, member: int = member, step: Progress | None = step) -> FloatArray:
                        model = self.models[member]
                        return score_windows(model, self.builder, part, self.catalogue, self.config, step, doing)

                    scores.append(shards.matrix((*key, member), part.items.shape, judge))
                    done += len(part)
                    if progress:
                        progress(done, total, doing)
                out[chunk] = np.mean(scores, axis=0)
        return out

    def shares(self, windows: Windows) -> list[tuple[IntArray, list[int]]]:
        """(rows, members) which models judge which windows: never one that was tuned on that user, if there is one."""
        count = len(self.models)
        if count == 1:
            return [(np.arange(len(windows)), [0])]
        seen, folds = np.isin(user_hashes(windows.user_ids), self.seen), fold_of(windows, count)
        shares = [(np.flatnonzero(seen & (folds == k)), [k]) for k in range(count)]
        shares.append((np.flatnonzero(~seen), list(range(count))))
        return [(rows, members) for rows, members in shares if len(rows)]

    def key(self, part: Windows, shards: Shards) -> tuple[Any, ...]:
        """All that scores and suggestions of some windows depend on; empty where nothing is kept."""
        if shards.folder is None:
            return ()
        company = self.builder.company.fingerprint if self.builder.company else ""
        config = (self.config.model, self.config.task.none, self.config.train.batch_tokens, self.config.score.mode)
        return (self.fingerprint, company, config, part.items, user_hashes(part.user_ids))

    @cached_property
    def fingerprint(self) -> str:
        """Of the models, the prompt, the titles and the ids."""
        models = [model.fingerprint() for model in self.models]
        return digest(versions(), models, self.builder.hash, self.builder.max_tokens, self.catalogue.titles,
                      self.catalogue.ids.to_list())  # fmt: skip


def fold_of(windows: Windows, folds: int) -> IntArray:
    """[W] the fold that holds a window's user; the same for a user everywhere."""
    return (user_hashes(windows.user_ids) >> np.uint64(8)).astype(np.int64) % max(1, folds)


def chunks(rows: IntArray) -> list[IntArray]:
    return [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]


def within(progress: Progress, before: int, size: int, total: int) -> Progress:
    """Progress of a part of this size, told as progress of the whole."""
    return lambda done, of, doing: progress(before + size * done // max(1, of), total, doing)
