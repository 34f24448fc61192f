"""Rows of a comparison: the same windows as they are, corrected, and corrected by an oracle that knows the noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.config import CorrectConfig
from llm4dsr.core.arrays import PAD, BoolArray
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.correct import Corrected, apply, correct
from llm4dsr.denoise.suggest import Suggestions

ORIGINAL = "original"
ORACLE_DROP, ORACLE_RESTORE = "oracle (drop)", "oracle (restore)"
LEARNED = "learned"  # a split of training and validation windows, for a recommender that is trained anew
Splits = dict[str, Windows]


@dataclass
class DecisionTables:
    """Decisions and suggestions as their stages wrote them.

    Attributes
    ----------
    decisions : dict of str to DataFrame
        Flagged interactions, by split.
    suggestions : dict of str to DataFrame
        Suggestions for them, by split; empty if none were made.
    """

    decisions: dict[str, pl.DataFrame]
    suggestions: dict[str, pl.DataFrame]


def compared_rows(
    splits: Splits, tables: DecisionTables, catalogue: Catalogue, actions: tuple[str, ...], how: CorrectConfig
) -> dict[str, Splits]:
    """Return the rows to compare: original, one per action, and the oracles if the truth is known.

    Parameters
    ----------
    splits : dict of str to Windows
        The original windows.
    tables : DecisionTables
        What was flagged and suggested.
    catalogue : Catalogue
        The items.
    actions : tuple of str
        Of "replace", "drop", "mixed", "downweight".
    how : CorrectConfig
        What may be corrected; the oracles always correct histories. Its action is ignored.

    Returns
    -------
    dict of str to dict of str to Windows
        Row name → the splits that its recommender trains, validates and tests on. The name of a row tells if training
        windows alone are corrected.
    """
    out = {ORIGINAL: splits}
    for action in actions:
        alone = "" if how.histories else ", training alone"
        out[f"corrected ({action}{alone})"] = correct_splits(splits, tables, catalogue, replace(how, action=action))  # type: ignore[arg-type]
    if all(w.noise_mask is not None for w in splits.values()):
        out[ORACLE_DROP] = oracle_splits(splits, catalogue, "drop", how.train_targets)
        if all(w.clean_items is not None for w in splits.values()):
            out[ORACLE_RESTORE] = oracle_splits(splits, catalogue, "replace", how.train_targets)
    return out


def correct_splits(splits: Splits, tables: DecisionTables, catalogue: Catalogue, how: CorrectConfig) -> Splits:
    """Return the windows of `correct_split` for every split."""
    return {n: correct_split(n, w, tables, catalogue, how).windows for n, w in splits.items()}


def oracle_splits(splits: Splits, catalogue: Catalogue, action: str, train_targets: bool) -> Splits:
    """Return `oracle_split` for every split; train_targets: targets of training windows may be corrected."""
    return {n: oracle_split(w, catalogue, action, n != c.TRAIN, not train_targets) for n, w in splits.items()}


def with_validation_learned(splits: Splits) -> Splits:
    """Return a control: the recommender learns from validation windows too, targets included, as they are.

    A denoiser has counted them when it corrects test histories. Validation chooses the epoch before: what is trained on
    anew is the split LEARNED.
    """
    both = [splits[c.TRAIN], splits[c.VALID]]
    learned = Windows(
        items=np.concatenate([w.items for w in both]),
        lengths=np.concatenate([w.lengths for w in both]),
        window_ids=np.arange(sum(map(len, both))),
        user_ids=pl.concat([w.user_ids for w in both]),
        timestamps=np.concatenate([w.timestamps for w in both]),
    )
    return splits | {LEARNED: learned}


def correct_split(
    name: str, windows: Windows, tables: DecisionTables, catalogue: Catalogue, how: CorrectConfig
) -> Corrected:
    """Correct one split by its decisions and suggestions.

    Parameters
    ----------
    name : str
        "train", "valid" or "test".
    windows : Windows
        Its windows.
    tables, catalogue
        As in `compared_rows`.
    how : CorrectConfig
        What is done with flagged interactions, and whether with training targets and histories. The edits of a split
        that is not corrected have the action "keep".
    """
    decisions = tables.decisions[name]
    action: str = how.action if name == c.TRAIN or how.histories else c.KEEP
    if name == c.TRAIN and not how.train_targets:
        last = pl.DataFrame({c.WINDOW: windows.window_ids, c.POSITION: windows.lengths - 1})
        decisions = decisions.join(last, on=[c.WINDOW, c.POSITION], how="anti", maintain_order="left")
    return apply(windows, decisions, tables.suggestions.get(name), catalogue, action, has_target=name != c.TRAIN)


def oracle_split(
    windows: Windows, catalogue: Catalogue, action: str, has_target: bool, keep_target: bool = False
) -> Windows:
    """Correct known noise: what perfect detection would gain.

    Parameters
    ----------
    windows : Windows
        With their noise mask, and for "replace" with the clean items.
    catalogue : Catalogue
        The items.
    action : {"drop", "replace"}
        Drop the noise, or restore what stood there. Inserted noise is dropped either way.
    has_target : bool
        The last item is an evaluation target and stays as it is in every other row.
    keep_target : bool, default False
        The last item stays as it is, evaluation target or not.

    Raises
    ------
    DataError
        If the noise mask, or the clean items for "replace", are not known.
    """
    flagged: BoolArray = windows.truth().copy()
    if has_target or keep_target:
        flagged &= ~windows.is_last
    certain = np.ones(flagged.shape)
    if action == "replace":
        clean = windows.true_items()
        inserted = flagged & (clean == PAD)
        wrong = flagged & ~inserted
        truth = Suggestions.none(windows.owners[wrong], windows.positions[wrong])
        truth.items = clean[wrong]
        windows = correct(windows, wrong, certain, truth, catalogue, "replace", has_target).windows
        if not inserted.any():
            return windows
        flagged = inserted
    if has_target:  # a history must keep an item, or rows would be tested on different windows
        lost = np.bincount(windows.owners[flagged], minlength=len(windows)) >= windows.lengths - 1
        flagged &= ~(lost[windows.owners] & (windows.positions == 0))
    return correct(windows, flagged, certain, None, catalogue, "drop", has_target).windows
