"""Read windows or an interaction log from a folder, and histories from tables and lists."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.hashing import history_ids
from llm4dsr.core.io import as_data_error, as_frame
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.dataset import Dataset, make_windows
from llm4dsr.data.files import find_files, read_files
from llm4dsr.data.ids import whole_number_ids
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError


def read_data(
    path: str | Path, history: int = 10, k_core: int = 5, ratios: tuple[int, int, int] = (8, 1, 1)
) -> Dataset:
    """Read ready windows, or an interaction log from which windows are built.

    Parameters
    ----------
    path : str or Path
        A folder with `items.*` and either `train.*, valid.*, test.*` or `interactions.*`, each .parquet, .csv, .tsv,
        .txt or .jsonl. Names may share one prefix: give `folder/toys` for `folder/toys_items.parquet` and so on, or the
        folder if it holds one such set. Windows cannot be .csv, .tsv or .txt, which have no lists. Or the files of
        RecBole: `X.item` with `X.inter`, or with `X.train.inter`, `X.valid.inter` and `X.test.inter`.
    history, k_core, ratios
        As in `make_windows`, for a log.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If a file or column is missing or cannot be used.
    """
    files = find_files(Path(path))
    tables = read_files(files)
    if c.LOG_FILE in files:
        return make_windows(tables[c.LOG_FILE], tables[c.ITEMS_FILE], history, k_core, ratios)
    catalogue = Catalogue.from_frame(tables.pop(c.ITEMS_FILE))
    return Dataset(catalogue, {name: to_windows(table, catalogue, str(files[name])) for name, table in tables.items()})


def to_windows(frame: pl.DataFrame, catalogue: Catalogue, where: str) -> Windows:
    """Make windows from a table from outside: `Windows.from_frame` with more checks. Raises DataError."""
    if frame.is_empty():
        raise DataError(f"{where} has no rows; expected at least one window.")
    for name in (c.WINDOW, c.TIME):
        if name in frame.columns and not frame[name].dtype.is_integer():
            raise DataError(f"{name!r} in {where} has the type {frame[name].dtype}; expected integers.")
    for name in (c.WINDOW, c.USER):
        if name in frame.columns and frame[name].null_count():
            raise DataError(f"{frame[name].null_count()} row(s) of {where} have no {name!r}. Fill or remove them.")
    if c.WINDOW in frame.columns and frame[c.WINDOW].is_duplicated().any():
        repeated = frame[c.WINDOW].filter(frame[c.WINDOW].is_duplicated()).unique().sort().head(3).to_list()
        raise DataError(f"{c.WINDOW!r} must be unique in {where}; repeated: {repeated}. Number the windows again.")
    for name in (c.NOISE_MASK, c.WEIGHTS):
        if name in frame.columns:
            low, high = _range(frame[name], f"{name!r} in {where}")
            if not 0.0 <= low <= high <= 1.0:
                raise DataError(f"{name!r} in {where} holds values from {low:g} to {high:g}; expected 0 to 1.")
    with as_data_error(f"{where} cannot be used", f"Columns and types found: {_types(frame)}."):
        if c.TIME in frame.columns:
            frame = frame.with_columns(pl.col(c.TIME).cast(pl.Int64).fill_null(-1))
        return Windows.from_frame(frame, catalogue, where)


def _known_ids(histories: list[Any], catalogue: Catalogue) -> pl.Series:
    """Lists of item ids as a column of lists in the type of the catalogue; no id is changed to fit it."""
    for history in histories:
        if isinstance(history, str | bytes) or not isinstance(history, Iterable):
            raise DataError(f"A list of histories holds {history!r}; expected a list of item ids for each history.")
    split = [list(history) for history in histories]
    ids = catalogue.ids_of(catalogue.index([item for history in split for item in history], "the histories")).to_list()
    ends = np.cumsum([0, *map(len, split)])
    return pl.Series(c.ITEMS, [ids[a:b] for a, b in pairwise(ends)], dtype=pl.List(catalogue.ids.dtype))


def _types(frame: pl.DataFrame) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in frame.schema.items())


def _range(lists: pl.Series, what: str) -> tuple[float, float]:
    inner = lists.dtype.inner if isinstance(lists.dtype, pl.List) else pl.Null()
    if not isinstance(inner, pl.DataType) or not (inner.is_numeric() or inner == pl.Boolean):
        raise DataError(f"{what} has the type {lists.dtype}; expected a list of numbers, one for each item.")
    values = lists.explode().drop_nulls().cast(pl.Float64).to_numpy()
    return float(values.min(initial=1.0)), float(values.max(initial=0.0))


def as_windows(histories: Any, catalogue: Catalogue) -> Windows:
    """Make windows from any accepted form of histories.

    Parameters
    ----------
    histories : Windows, table or list of lists
        A table of Polars, pandas or Arrow has `window_id, user_id, item_ids`; lists hold item ids, oldest first.
        Histories of a list have no user, so each content is a user of its own (`history_ids`).
    catalogue : Catalogue
        The items.

    Raises
    ------
    DataError
        If they cannot be used.
    """
    if isinstance(histories, Windows):
        return histories
    if isinstance(histories, list):
        size, lists = len(histories), _known_ids(histories, catalogue)
        frame = pl.DataFrame({c.WINDOW: np.arange(size), c.USER: np.arange(size), c.ITEMS: lists})
        windows = to_windows(frame, catalogue, "the histories")
        return replace(windows, user_ids=history_ids([windows.row(i) for i in range(size)]))
    frame = whole_number_ids(as_frame(histories, "The histories").lazy()).collect()
    return to_windows(frame, catalogue, "the histories")
