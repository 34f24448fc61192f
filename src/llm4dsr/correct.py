"""Correcting: apply decisions and suggestions to windows, by position, and say what was changed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.catalogue import PAD, BoolArray, Catalogue, FloatArray, Windows, pad
from llm4dsr.errors import ConfigError
from llm4dsr.suggest import Suggestions
from llm4dsr.tables import matrix


@dataclass
class Corrected:
    """windows: the corrected ones (a window that lost all but one item is left out).
    edits: one row per flagged interaction, see ARCHITECTURE.md."""

    windows: Windows
    edits: pl.DataFrame


def correct(windows: Windows, flagged: BoolArray, probability: FloatArray, suggestions: Suggestions | None,
            catalogue: Catalogue, action: str, target_fixed: bool) -> Corrected:  # fmt: skip
    """Applies `action` to the flagged [W, L] positions.

    action: "replace" by the suggestion (kept as it is where none was left), "drop", or "downweight" (kept, with weight
    1 - probability in the column `weights`). target_fixed: the last item of each window is an evaluation target and
    must not be flagged; this is checked, not assumed.
    """
    if action not in c.ACTIONS:
        raise ConfigError(f"correct.action = {action!r}; expected one of {', '.join(c.ACTIONS)}.")
    if action == "replace" and suggestions is None:
        raise ConfigError(
            "correct.action = 'replace' needs suggestions: run the suggest stage, or use drop or downweight."
        )
    rows, positions = np.nonzero(flagged)
    if target_fixed and (positions == windows.lengths[rows] - 1).any():
        raise AssertionError("a target of an evaluation window was flagged; targets are never touched")
    items, lengths, weights = windows.items.copy(), windows.lengths.copy(), windows.weights
    kept = items[rows, positions].copy()
    taken = np.full(len(rows), action, dtype=object)
    keep = np.arange(len(windows))
    if action == "replace":
        assert suggestions is not None
        found = suggestions.items >= 0
        kept = np.where(found, suggestions.items, kept)
        taken[~found] = "keep"
        items[rows, positions] = kept
    elif action == "downweight":
        weights = np.ones(items.shape) if weights is None else weights.copy()
        weights[rows, positions] *= 1 - probability[rows, positions]
    else:
        kept[:] = PAD
        stay = windows.present & ~flagged
        items = pad([items[w][stay[w]] for w in range(len(windows))], PAD)
        lengths = stay.sum(axis=1)
        if weights is not None:
            weights = _left(weights, stay, items.shape[1])
        keep = np.flatnonzero(lengths >= 2)  # a training window that lost its target now ends in the item before
    truth_fits = action != "drop"
    out = Windows(
        items, lengths, windows.window_ids, windows.user_ids, windows.timestamps,
        windows.noise_mask if truth_fits else None, windows.clean_items if truth_fits else None, weights,
    ).take(keep)  # fmt: skip
    return Corrected(out, _edits(windows, rows, positions, probability, suggestions, kept, taken, catalogue))


def _left(values: FloatArray, stay: BoolArray, width: int) -> FloatArray:
    out = np.ones((len(values), width))
    for w in range(len(values)):
        out[w, : stay[w].sum()] = values[w][stay[w]]
    return out


def _edits(windows, rows, positions, probability, suggestions, kept, taken, catalogue) -> pl.DataFrame:  # type: ignore[no-untyped-def]
    users = windows.user_ids.gather(rows)
    suggested = np.full(len(rows), -1) if suggestions is None else suggestions.items
    return pl.DataFrame(
        {
            c.WINDOW: windows.window_ids[rows],
            c.USER: users,
            c.POSITION: positions,
            c.ITEM: catalogue.ids.gather(windows.items[rows, positions]),
            c.TITLE: catalogue.titles_of(windows.items[rows, positions]),
            c.NOISE_PROBABILITY: probability[rows, positions],
            c.SUGGESTED: catalogue.ids_of(suggested),
            c.SUGGESTED_TITLE: catalogue.titles_of(suggested),
            c.GENERATED: pl.Series(
                [None] * len(rows) if suggestions is None else suggestions.generated, dtype=pl.String
            ),
            c.GROUNDING: pl.Series(
                ["none"] * len(rows) if suggestions is None else suggestions.grounding, dtype=pl.String
            ),
            c.DISTANCE: np.full(len(rows), np.nan) if suggestions is None else suggestions.distance,
            c.ACTION: pl.Series(taken.tolist(), dtype=pl.String),
            c.KEPT: catalogue.ids_of(kept),
        }
    )


def apply(windows: Windows, decisions: pl.DataFrame, suggestions: pl.DataFrame | None, catalogue: Catalogue,
          action: str, target_fixed: bool) -> Corrected:  # fmt: skip
    """`correct` from the tables of the stages before."""
    flagged = matrix(decisions, windows, None)
    probability = np.nan_to_num(matrix(decisions, windows, c.NOISE_PROBABILITY))
    found = None
    if suggestions is not None and action == "replace":
        rows, positions = np.nonzero(flagged)
        at = pl.DataFrame({c.WINDOW: windows.window_ids[rows], c.POSITION: positions})
        joined = at.join(suggestions, on=[c.WINDOW, c.POSITION], how="left", maintain_order="left")
        ids = joined[c.SUGGESTED]
        items = np.full(len(rows), -1)
        known = ids.is_not_null().to_numpy()
        items[known] = catalogue.index(ids.drop_nulls(), "the suggestions")
        found = Suggestions(rows, positions, items, joined[c.GENERATED].to_list(),
                            joined[c.GROUNDING].fill_null("none").to_list(), joined[c.DISTANCE].to_numpy())  # fmt: skip
    return correct(windows, flagged, probability, found, catalogue, action, target_fixed)
