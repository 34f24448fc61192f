"""Correcting: apply decisions and suggestions to windows, by position, and list every edit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import PAD, BoolArray, FloatArray, IntArray
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows, align
from llm4dsr.denoise.strips import edited_histories, summary
from llm4dsr.denoise.suggest import Suggestions
from llm4dsr.errors import ConfigError, DataError


@dataclass(repr=False)
class Corrected:
    """Corrected windows and the edits that made them.

    Attributes
    ----------
    windows : Windows
        The corrected windows. One with fewer than `min_items` left is removed: by default, fewer than two.
    edits : DataFrame
        One row per flagged interaction: what it was, how likely noise, what was suggested, what was done.
    original : Windows
        The windows as they were.
    catalogue : Catalogue
        The items.
    """

    windows: Windows
    edits: pl.DataFrame
    original: Windows
    catalogue: Catalogue

    def __repr__(self) -> str:
        return f"<Corrected: {summary(self.original, self.edits)}>"

    def _repr_html_(self) -> str:
        """For notebooks: the most suspicious histories with their edits."""
        return edited_histories(self.original, self.edits, self.catalogue)


def correct(
    windows: Windows,
    flagged: BoolArray,
    probability: FloatArray,
    suggestions: Suggestions | None,
    catalogue: Catalogue,
    action: str,
    has_target: bool,
    min_items: int = 2,
) -> Corrected:
    """Apply an action to flagged positions.

    Parameters
    ----------
    windows : Windows
        W windows with n interactions.
    flagged : array of bool
        [n] True where the action applies.
    probability : array of float
        [n] noise probability.
    suggestions : Suggestions or None
        In the order of np.flatnonzero(flagged); needed to replace.
    catalogue : Catalogue
        The items.
    action : {"replace", "drop", "mixed", "downweight", "keep"}
        Replace by the suggestion (kept if there is none); drop; replace the half of the flags whose suggestions are
        most probable, and drop the rest; keep with the weight 1 - probability; or keep as it is.
    has_target : bool
        The last item of each window is an evaluation target. It must not be flagged, which is checked.
    min_items : int, default 2
        Windows with fewer items left after dropping are removed: a history and a target are two.

    Returns
    -------
    Corrected

    Raises
    ------
    ConfigError
        If the action is unknown, or suggestions are missing.
    DataError
        If a target of an evaluation window is flagged.
    """
    if action not in (*c.ACTIONS, c.KEEP):
        raise ConfigError(f"correct.action = {action!r}; expected one of {', '.join(c.ACTIONS)}.")
    if action in c.WITH_SUGGESTIONS and suggestions is None:
        raise ConfigError(
            f"correct.action = {action!r} needs suggestions: run the suggest stage, or use drop or downweight."
        )
    at = np.flatnonzero(flagged)
    if has_target and (wrong := np.flatnonzero(flagged & windows.is_last)).size:
        window = windows.owners[wrong[0]]
        raise DataError(
            f"Position {windows.lengths[window] - 1} of {c.WINDOW} {windows.window_ids[window]} is flagged, but it is "
            "the target of an evaluation window, which is never changed. Remove it from the decisions."
        )
    out, kept = windows, windows.items[at]
    taken = np.full(len(at), action, dtype=object)
    if action in c.WITH_SUGGESTIONS:
        assert suggestions is not None
        found = suggestions.items >= 0
        if action == "mixed":
            found &= _most_probable_half(suggestions)
        kept = np.where(found, suggestions.items, kept)
        taken[:] = np.where(found, "replace", c.KEEP if action == "replace" else "drop")
        items = windows.items.copy()
        items[at] = kept
        out = replace(windows, items=items)
    elif action == "downweight":
        weights = np.ones(len(windows.items)) if windows.weights is None else windows.weights.copy()
        weights[at] *= 1 - probability[at]
        out = replace(windows, weights=weights)
    dropped = taken == "drop"
    if action == "drop" or dropped.any():
        kept[dropped] = PAD
        out = _without(out, at[dropped])
        # A window that lost its target ends in the item before.
        out = out.take(np.flatnonzero(out.lengths >= min_items))
    return Corrected(out, _edits(windows, at, probability, suggestions, kept, taken, catalogue), windows, catalogue)


def _most_probable_half(suggestions: Suggestions) -> BoolArray:
    """[F] True for the half of the flags whose suggestions are most probable. Text has no probability: all, then."""
    known = suggestions.probability[np.isfinite(suggestions.probability)]
    return (
        np.asarray(suggestions.probability >= np.median(known)) if len(known) else np.ones(len(suggestions.rows), bool)
    )


def _without(windows: Windows, dropped: IntArray) -> Windows:
    """The windows without these interactions. Their truth no longer fits."""
    stay = np.ones(len(windows.items), dtype=bool)
    stay[dropped] = False
    lengths = np.bincount(windows.owners[stay], minlength=len(windows))
    left = windows.cut(np.arange(len(windows)), lengths, np.flatnonzero(stay))
    return replace(left, noise_mask=None, clean_items=None)


def _edits(windows, at, probability, suggestions, kept, taken, catalogue) -> pl.DataFrame:  # type: ignore[no-untyped-def]
    rows = windows.owners[at]
    suggested = np.full(len(rows), -1) if suggestions is None else suggestions.items
    return pl.DataFrame(
        {
            c.WINDOW: windows.window_ids[rows],
            c.USER: windows.user_ids.gather(rows),
            c.POSITION: windows.positions[at],
            c.ITEM: catalogue.ids.gather(windows.items[at]),
            c.TITLE: catalogue.titles_of(windows.items[at]),
            c.NOISE_PROBABILITY: probability[at],
            c.SUGGESTED: catalogue.ids_of(suggested),
            c.SUGGESTED_TITLE: catalogue.titles_of(suggested),
            c.GENERATED: pl.Series(
                [None] * len(rows) if suggestions is None else suggestions.generated, dtype=pl.String
            ),
            c.GROUNDING: pl.Series(
                ["none"] * len(rows) if suggestions is None else suggestions.grounding, dtype=pl.String
            ),
            c.DISTANCE: np.full(len(rows), np.nan) if suggestions is None else suggestions.distance,
            c.SUGGESTION_PROBABILITY: np.full(len(rows), np.nan) if suggestions is None else suggestions.probability,
            c.ACTION: pl.Series(taken.tolist(), dtype=pl.String),
            c.KEPT: catalogue.ids_of(kept),
        }
    )


def apply(
    windows: Windows,
    decisions: pl.DataFrame,
    suggestions: pl.DataFrame | None,
    catalogue: Catalogue,
    action: str,
    has_target: bool,
    min_items: int = 2,
) -> Corrected:
    """Apply an action to the tables of the earlier stages.

    Parameters
    ----------
    windows : Windows
        The windows.
    decisions, suggestions : DataFrame
        As `Denoiser.decide` and `Denoiser.suggest` return them.
    catalogue, action, has_target, min_items
        As in `correct`.

    Returns
    -------
    Corrected

    Raises
    ------
    ConfigError, DataError
        As in `correct`; also if the tables name a window or position that is not among the windows, or an interaction
        has several suggestions.
    """
    flagged = align(decisions, windows, None)
    probability = np.nan_to_num(align(decisions, windows, c.NOISE_PROBABILITY))
    found = None
    if suggestions is not None and action in c.WITH_SUGGESTIONS:
        if len(twice := suggestions.filter(suggestions.select(c.WINDOW, c.POSITION).is_duplicated())):
            raise DataError(
                f"The suggestions have several rows for position {twice[c.POSITION][0]} of {c.WINDOW} "
                f"{twice[c.WINDOW][0]}; expected one for each flagged interaction. Remove the others."
            )
        rows, positions = windows.owners[flagged], windows.positions[flagged]
        at = pl.DataFrame({c.WINDOW: windows.window_ids[rows], c.POSITION: positions})
        joined = at.join(suggestions, on=[c.WINDOW, c.POSITION], how="left", maintain_order="left")
        ids = joined[c.SUGGESTED]
        items = np.full(len(rows), -1)
        known = ids.is_not_null().to_numpy()
        items[known] = catalogue.index(ids.drop_nulls(), "the suggestions")
        found = Suggestions(rows, positions, items, joined[c.GENERATED].to_list(),
                            joined[c.GROUNDING].fill_null("none").to_list(), joined[c.DISTANCE].to_numpy(),
                            joined[c.SUGGESTION_PROBABILITY].to_numpy())  # fmt: skip
    return correct(windows, flagged, probability, found, catalogue, action, has_target, min_items)
