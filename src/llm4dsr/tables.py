"""Between the tables that stages read and write and the matrices that they compute on."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.catalogue import BoolArray, Catalogue, Windows
from llm4dsr.data import to_windows
from llm4dsr.errors import DataError
from llm4dsr.sources.source import as_frame


def matrix(table: pl.DataFrame, windows: Windows, column: str | None) -> Any:
    """[W, L] a column of a table by window_id and position (NaN elsewhere); column None: True where there is a row."""
    row = {int(w): i for i, w in enumerate(windows.window_ids)}
    try:
        at = ([row[w] for w in table[c.WINDOW].to_list()], table[c.POSITION].to_numpy())
    except KeyError as missing:
        raise DataError(
            f"The table names {c.WINDOW} {missing.args[0]}, which is not among the histories given."
        ) from None
    if column is None:
        mask: BoolArray = np.zeros(windows.items.shape, dtype=bool)
        mask[at] = True
        return mask
    values = np.full(windows.items.shape, np.nan)
    values[at] = table[column].to_numpy()
    return values


def as_windows(histories: Any, catalogue: Catalogue) -> Windows:
    """Windows from any accepted form of histories. Raises DataError."""
    if isinstance(histories, Windows):
        return histories
    if isinstance(histories, list):
        size = len(histories)
        lists = pl.Series(c.ITEMS, histories, dtype=pl.List(catalogue.ids.dtype), strict=False)
        frame = pl.DataFrame({c.WINDOW: np.arange(size), c.USER: np.arange(size), c.ITEMS: lists})
        return to_windows(frame, catalogue, "the histories")
    return to_windows(as_frame(histories, "The histories"), catalogue, "the histories")
