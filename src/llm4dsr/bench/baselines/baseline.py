"""The contract of a baseline: a noise score for each interaction.

All baselines are treated alike:

1. A baseline tries up to four settings (`grid`), each fitted on the same sample of training windows.
2. The setting that finds injected noise in validation histories best, by average precision, is fitted on all windows.
   Labels are never read.
3. Every baseline flags the same fraction of interactions, the most suspicious first.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from llm4dsr.core.arrays import FloatArray
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.denoise.noise_injection import Injectable, inject
from llm4dsr.metrics import average_precision

TUNED_ON = 8_000  # training windows that settings are compared on


class Baseline:
    """Find noise in histories. Subclasses take their settings as keyword arguments after (catalogue, seed).

    Attributes
    ----------
    name : str
        Name in commands and tables.
    source : str
        The paper or library.
    grid : tuple of dict
        Settings that `choose` compares.
    is_seeded : bool
        Another seed gives other scores.
    """

    name: ClassVar[str]
    source: ClassVar[str]  # the paper or library
    grid: ClassVar[tuple[dict[str, Any], ...]] = ({},)
    is_seeded: ClassVar[bool] = True

    def __init__(self, catalogue: Catalogue, seed: int) -> None:
        self.catalogue, self.seed = catalogue, seed

    def fit(self, train: Windows, valid: Windows) -> None:
        """Learn from training windows.

        Parameters
        ----------
        train : Windows
            Training windows, target included.
        valid : Windows
            Validation windows with targets, for early stopping.
        """

    def score(self, windows: Windows) -> FloatArray:
        """Score every interaction, target included where there is one.

        Parameters
        ----------
        windows : Windows
            W windows with n interactions.

        Returns
        -------
        array of float
            [n] finite, on any scale; higher = more likely noise.
        """
        raise NotImplementedError

    def rewrite(self, windows: Windows, has_target: bool) -> Windows | None:
        """Correct histories, for baselines that do more than score.

        Parameters
        ----------
        windows : Windows
            The windows.
        has_target : bool
            The last item of each window is an evaluation target, and stays where it is.

        Returns
        -------
        Windows or None
            The same windows in the same order; None for baselines that only score.
        """
        return None


def choose(
    kind: type[Baseline], train: Windows, valid: Windows, catalogue: Catalogue, seed: int
) -> tuple[Baseline, list[dict[str, Any]]]:
    """Choose the setting of a baseline, and fit it.

    Parameters
    ----------
    kind : type of Baseline
        The baseline.
    train, valid : Windows
        Training and validation windows, target included.
    catalogue : Catalogue
        The items.
    seed : int
        Of the sample, the injected noise and the baseline.

    Returns
    -------
    baseline : Baseline
        With its best setting, fitted on all of `train`.
    tried : list of dict
        Each setting and its average precision on injected noise; empty if there is only one.
    """
    tried: list[dict[str, Any]] = []
    if len(kind.grid) > 1:
        some = limit_windows(train, TUNED_ON, seed)
        injectable = Injectable.of(catalogue, train)
        injected, chosen, _, _ = inject(valid.histories(), injectable, np.random.default_rng(seed))
        for settings in kind.grid:
            baseline = kind(catalogue, seed, **settings)
            baseline.fit(some, valid)
            found = average_precision(baseline.score(injected), chosen)
            tried.append({**settings, "average_precision": found})
    best = kind.grid[int(np.argmax([t["average_precision"] for t in tried]))] if tried else kind.grid[0]
    baseline = kind(catalogue, seed, **best)
    baseline.fit(train, valid)
    return baseline, tried
