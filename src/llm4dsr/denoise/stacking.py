"""Stacking: combine the model's log-odds with co-occurrence features, as new windows show them.

The language model is tuned on training windows. Newer windows differ: items have appeared that training does not know,
and others have become popular. A model takes such items for noise. So a small network is fitted on newer windows with
injected noise [1]_. It reads the log-odds of an interaction and of its window, and the co-occurrence features. No label
is read: the network learns to tell injected noise from unlabeled interactions, as the model does.

Nothing is scored by a network that was fitted on its own user: users are in two halves, and each half is scored by the
network of the other. Training windows have networks of their own, because their users are in the counts. If there are
too few newer windows to learn from, those networks score newer windows too.

References
----------
.. [1] Wolpert (1992), Stacked generalization.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from llm4dsr.core.arrays import BoolArray, FloatArray, IntArray
from llm4dsr.core.device import seeded
from llm4dsr.core.hashing import digest, user_folds
from llm4dsr.core.progress import log
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.training_labels import LABEL_WEIGHT, UNLABELED, Labels
from llm4dsr.features.context import N_CONTEXT, context_features
from llm4dsr.features.cooccurrence import N_FEATURES, CooccurrenceCounts
from llm4dsr.metrics import auroc

FILE = "stacking_{}.safetensors"
HALVES = 2
MIN_INJECTED = 500  # injected interactions in each half, below which nothing is fitted
NETWORKS = 3  # whose mean is taken
HIDDEN = 32
EPOCHS = 20
BATCH = 512
LEARNING_RATE = 3e-3
WEIGHT_DECAY = 1e-2
OWN_INPUTS = 4  # of `evidence`, before the co-occurrence features
N_EVIDENCE = OWN_INPUTS + N_FEATURES + N_CONTEXT  # numbers that `evidence` gives for an interaction
CELLS = 50_000  # positions that are described at once
LIMIT = 5.0  # standard deviations beyond which an input is cut off

Floats = npt.NDArray[np.float32]


def evidence(windows: Windows, log_odds: FloatArray, counts: CooccurrenceCounts, titles: Floats) -> Floats:
    """Describe each interaction by all that is known about it.

    Parameters
    ----------
    windows : Windows
        W windows with n interactions.
    log_odds : array of float
        [n] of the model, higher = more likely noise.
    counts : CooccurrenceCounts
        What is known before these windows.
    titles : array of float32
        [N, V] title vectors.

    Returns
    -------
    array of float32
        [n, N_EVIDENCE] the log-odds; their mean and largest value among the other items of the window; items of the
        window; then the features of `CooccurrenceCounts.features` and of `context_features`.
    """
    own = [_own_inputs(batch, log_odds[here]) for here, batch in windows.batches(CELLS)]
    return np.concatenate(
        [np.concatenate(own), counts.features(windows), context_features(windows, counts, titles)], axis=1
    )


def _own_inputs(windows: Windows, log_odds: FloatArray) -> Floats:
    """[n, OWN_INPUTS] the inputs of `evidence` that need no counts, of a batch."""
    present, known = windows.present, windows.matrix(np.nan_to_num(log_odds), 0.0)
    others = np.maximum(windows.lengths - 1, 1)[:, None]
    mean = (known.sum(axis=1, keepdims=True) - known) / others
    ordered = np.sort(np.where(present, known, -np.inf), axis=1)
    largest, second = ordered[:, -1:], ordered[:, -2:-1] if ordered.shape[1] > 1 else ordered[:, -1:]
    top = np.where(known == largest, second, largest)
    columns = (
        known,
        mean,
        np.where(np.isfinite(top), top, 0.0),
        np.broadcast_to(windows.lengths[:, None], known.shape),
    )
    return np.stack(columns, axis=2)[present].astype(np.float32)


@dataclass
class Evidence:
    """Evidence on some interactions.

    Attributes
    ----------
    values : array of float32
        [n, K] as `evidence` returns it.
    half : array of int
        [n] half of the user, 0 or 1.
    """

    values: Floats
    half: IntArray

    @classmethod
    def of(cls, windows: Windows, log_odds: FloatArray, counts: CooccurrenceCounts, titles: Floats) -> Evidence:
        """Describe all interactions of windows; arguments as in `evidence`."""
        half = user_folds(windows.user_ids, HALVES)[windows.owners]
        return cls(evidence(windows, log_odds, counts, titles), half)

    def take(self, chosen: BoolArray) -> Evidence:
        """Return the chosen [n] interactions."""
        return Evidence(self.values[chosen], self.half[chosen])

    @classmethod
    def join(cls, parts: list[Evidence]) -> Evidence:
        """Concatenate."""
        return cls(np.concatenate([p.values for p in parts]), np.concatenate([p.half for p in parts]))


@dataclass
class Stacker:
    """Networks that turn evidence into log-odds; of each half, fitted on the other.

    Attributes
    ----------
    center, scale : array of float32
        [HALVES, K] of the standardized inputs.
    hidden_weight, hidden_bias : array of float32
        [HALVES, NETWORKS, K, HIDDEN] and [HALVES, NETWORKS, 1, HIDDEN].
    out_weight, out_bias : array of float32
        [HALVES, NETWORKS, HIDDEN, 1] and [HALVES, NETWORKS, 1, 1].
    """

    center: Floats
    scale: Floats
    hidden_weight: Floats
    hidden_bias: Floats
    out_weight: Floats
    out_bias: Floats

    @classmethod
    def fit(
        cls,
        noise: Sequence[tuple[Evidence, float]],
        unlabeled: Evidence,
        rate: float,
        seed: int,
        labels: Labels | None = None,
    ) -> Stacker | None:
        """Fit the networks.

        Parameters
        ----------
        noise : sequence of (Evidence, float)
            Of injected noise of each kind, single items first, with the share of all noise that it stands for.
        unlabeled : Evidence
            Of unlabeled interactions.
        rate : float
            Noise rate, in (0, 1), that the log-odds assume; that of the models' own, so that both mean the same.
        seed : int
            Seed of initial weights and order.
        labels : array of int, optional
            [n] what reviewers said of the unlabeled interactions; most are UNLABELED. Default: all are.

        Returns
        -------
        Stacker or None
            None if the sample is too small, or if the networks do not find injected noise better than the model alone
            does in the half that they were not fitted on.
        """
        single = noise[0][0]
        if min(np.bincount(single.half, minlength=HALVES)) < MIN_INJECTED or len(set(unlabeled.half)) < HALVES:
            return None
        injected = Evidence.join([part for part, _ in noise])
        weights = np.concatenate([np.full(len(p.half), s * len(single.half) / max(1, len(p.half))) for p, s in noise])
        labels = np.full(len(unlabeled.half), UNLABELED, np.int8) if labels is None else labels
        with seeded(seed):
            fitted = [
                _fit(injected.values[injected.half != h], weights[injected.half != h],
                     unlabeled.values[unlabeled.half != h], labels[unlabeled.half != h], rate)
                for h in range(HALVES)
            ]  # fmt: skip
        stacker = cls(*(np.stack(part) for part in zip(*fitted, strict=True)))
        return stacker if stacker.helps(single, unlabeled) else None

    def helps(self, noise: Evidence, unlabeled: Evidence, other: Stacker | None = None) -> bool:
        """Return whether it finds injected noise better than another one does, or the model's log-odds alone."""
        is_noise = np.arange(len(noise.half) + len(unlabeled.half)) < len(noise.half)
        both = Evidence.join([noise, unlabeled])
        alone = auroc(both.values[:, 0] if other is None else other(both), is_noise)
        stacked = auroc(self(both), is_noise)
        if stacked <= alone:
            log.info("A stacker was left out: AUROC of injected noise %.3f with it, %.3f without.", stacked, alone)
        return stacked > alone

    def log_odds(self, log_odds: FloatArray, evidence: Evidence) -> FloatArray:
        """Return log-odds [n] in place of the model's; NaN where those are."""
        return np.where(np.isnan(log_odds), np.nan, self(evidence))

    def __call__(self, evidence: Evidence) -> FloatArray:
        """Return the log-odds [n], higher = more likely noise."""
        out = np.empty(len(evidence.half))
        for h in range(HALVES):
            rows = evidence.half == h
            x = np.clip((evidence.values[rows] - self.center[h]) / self.scale[h], -LIMIT, LIMIT)
            # Not by BLAS: its last digits depend on the number of threads and of rows.
            hidden = np.einsum("nk,mkj->mnj", x, self.hidden_weight[h]) + self.hidden_bias[h]  # [NETWORKS, n, HIDDEN]
            logits = np.einsum("mnj,mji->mni", np.maximum(hidden, 0), self.out_weight[h]) + self.out_bias[h]
            out[rows] = logits[:, :, 0].mean(axis=0)
        return out

    @property
    def fingerprint(self) -> str:
        """A hash; equal for equal networks."""
        return digest(*vars(self).values())

    def save(self, folder: Path, name: str) -> None:
        """Write the networks as safetensors into a folder."""
        save_file(vars(self), folder / FILE.format(name))

    @classmethod
    def load(cls, folder: Path, name: str) -> Stacker | None:
        """Read what `save` wrote; None if nothing was."""
        path = folder / FILE.format(name)
        return cls(**load_file(path)) if path.is_file() else None


def _fit(noise: Floats, weights: FloatArray, unlabeled: Floats, labels: Labels, rate: float) -> tuple[Floats, ...]:
    """The arrays of `Stacker` for one half, from its [n, K] evidence; the noise has weights."""
    values = np.concatenate([noise, unlabeled])
    center, scale = values.mean(axis=0), values.std(axis=0) + 1e-6
    x = torch.from_numpy(np.clip((values - center) / scale, -LIMIT, LIMIT))
    y, weight = torch.zeros(len(x)), torch.ones(len(x))
    y[: len(noise)], weight[: len(noise)] = 1, torch.from_numpy(weights.astype(np.float32))
    y[len(noise) :][torch.from_numpy(labels == 1)] = 1
    weight[len(noise) :][torch.from_numpy(labels != UNLABELED)] = LABEL_WEIGHT
    size = x.shape[1]
    layers = [
        nn.Parameter(torch.randn(NETWORKS, size, HIDDEN) * (2 / size) ** 0.5),
        nn.Parameter(torch.zeros(NETWORKS, 1, HIDDEN)),
        nn.Parameter(torch.randn(NETWORKS, HIDDEN, 1) * HIDDEN**-0.5),
        nn.Parameter(torch.zeros(NETWORKS, 1, 1)),
    ]
    optimizer = torch.optim.AdamW(layers, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * -(-len(x) // BATCH)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(x)), BATCH):
            hidden = torch.relu(x[rows] @ layers[0] + layers[1])
            logits = (hidden @ layers[2] + layers[3])[:, :, 0]
            loss = nn.functional.binary_cross_entropy_with_logits(
                logits, y[rows].expand_as(logits), weight[rows].expand_as(logits)
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            decay.step()
    with torch.no_grad():  # from the rate of the sample to the rate that is assumed
        layers[-1].add_(float(np.log(rate / (1 - rate) * len(unlabeled) / weights.sum())))
    return center, scale, *(w.detach().numpy() for w in layers)
