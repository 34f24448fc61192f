"""States that scoring keeps for suggesting: the hidden states of the embedded model at the most suspicious positions.

With `readout: per_position`, the noise logit and the predicted vector of a position are read from one hidden state.
What is flagged is known only after scoring, so the states of as many positions as may be flagged in a window are kept.
Where one is missing, suggesting repeats the pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from llm4dsr.config import EMBEDDED, Config
from llm4dsr.core.arrays import FloatArray, IntArray
from llm4dsr.core.cache import PartCache, content_of
from llm4dsr.core.hashing import digest
from llm4dsr.data.windows import Windows

Floats = npt.NDArray[np.float32]
INTERACTION, STATE = "interaction", "state"  # columns of a part


def states_per_window(config: Config) -> int:
    """Return of how many positions of a window states are kept: of those that may be flagged; 0 for other models.

    Examples
    --------
    >>> states_per_window(Config()), states_per_window(Config.from_dict({"model": {"readout": "title"}}))
    (3, 0)
    """
    model = config.model
    if model.source != EMBEDDED or model.item_input != "soft_token" or model.readout != "per_position":
        return 0
    return max(config.decide.cap, config.decide.cap_test or 0)


def states_to_fill(config: Config, windows: Windows) -> Floats:
    """Return an array [n, H] for the states of windows with n interactions."""
    return np.empty((len(windows.items), config.model.hidden_size), np.float32)


def keep_states(
    cache: PartCache, key: tuple[Any, ...], config: Config, windows: Windows, log_odds: FloatArray, states: Floats
) -> None:
    """Keep the states of those positions of each window that are most likely noise.

    Parameters
    ----------
    cache : PartCache
        Where they are kept.
    key : tuple
        All that the scores depend on.
    config : Config
        All options.
    windows : Windows
        W windows with n interactions.
    log_odds : array of float
        [n] higher = more likely noise; NaN is never flagged.
    states : array of float32
        [n, H] hidden states of the model that suggests.

    Raises
    ------
    OutputError
        If the folder cannot be written to.
    """
    order = np.lexsort((-log_odds, windows.owners))  # in each window the most suspicious first, and NaN last
    kept = np.sort(order[(windows.positions < states_per_window(config)) & ~np.isnan(log_odds[order])])
    column = pl.Series(states[kept], dtype=pl.Array(pl.Float32, states.shape[1]))
    cache.keep(_name(key), content_of(pl.DataFrame({INTERACTION: kept, STATE: column})))


def kept_states(cache: PartCache, key: tuple[Any, ...], interactions: IntArray) -> Floats | None:
    """Find states that were kept.

    Parameters
    ----------
    cache, key
        As in `keep_states`.
    interactions : array of int
        [F] indices among the n interactions.

    Returns
    -------
    array of float32 or None
        [F, H] states; NaN where one was not kept. None if the cache has none of these windows.
    """
    found = cache.read(_name(key)) if cache.folder is not None else None
    if found is None:
        return None
    known, states = found[INTERACTION].to_numpy(), found[STATE].to_numpy()
    out = np.full((len(interactions), states.shape[1]), np.nan, np.float32)
    if len(known):
        at = np.minimum(np.searchsorted(known, interactions), len(known) - 1)
        has = known[at] == interactions
        out[has] = states[at[has]]
    return out


def _name(key: tuple[Any, ...]) -> str:
    return digest("states", *key)
