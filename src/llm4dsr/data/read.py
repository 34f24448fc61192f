"""Read windows or an interaction log from a folder, and histories from tables and lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.hashing import history_ids
from llm4dsr.core.io import FORMATS, as_data_error, as_frame, read_table
from llm4dsr.core.manifest import MANIFEST, DamageError, read_manifest
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.dataset import Dataset, make_windows
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError

_EXPECTED = (
    "Expected either ready windows (items, train, valid, test) or a log (items, interactions), "
    f"each as one file ending in {', '.join(FORMATS)}; all names may share one prefix, as in toys_items.parquet"
)


def read_data(
    path: str | Path, history: int = 10, k_core: int = 5, ratios: tuple[int, int, int] = (8, 1, 1)
) -> Dataset:
    """Read ready windows, or an interaction log from which windows are built.

    Parameters
    ----------
    path : str or Path
        A folder with `items.*` and either `train.*, valid.*, test.*` or `interactions.*`, each .parquet, .csv or
        .jsonl. Names may share one prefix: give `folder/toys` for `folder/toys_items.parquet` and so on, or the folder
        if it holds one such set. Windows cannot be .csv, which has no lists.
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
    items = read_table(files.pop(c.ITEMS_FILE))
    if c.LOG_FILE in files:
        return make_windows(read_table(files[c.LOG_FILE]), items, history, k_core, ratios)
    catalogue = Catalogue.from_frame(items)
    return Dataset(
        catalogue, {name: to_windows(read_table(file), catalogue, str(file)) for name, file in files.items()}
    )


def find_files(path: Path) -> dict[str, Path]:
    """Find items and interactions, or items, train, valid and test, which come first. Raises DataError."""
    folder, prefix = locate(path)
    found = {name: find_file(folder, prefix, name) for name in (c.ITEMS_FILE, *c.SPLITS, c.LOG_FILE)}
    missing = [name for name in c.SPLITS if found[name] is None]
    log = len(missing) == len(c.SPLITS) and found[c.LOG_FILE] is not None
    lacking = [c.ITEMS_FILE] if found[c.ITEMS_FILE] is None else [] if log else missing
    if lacking:
        names = ", ".join(f"{prefix}{name}" for name in lacking)
        raise DataError(f"{folder} lacks {names}; it holds {_listing(folder)}. {_EXPECTED}.")
    wanted = (c.ITEMS_FILE, c.LOG_FILE) if log else (c.ITEMS_FILE, *c.SPLITS)
    files = {name: file for name in wanted if (file := found[name]) is not None}
    _verify(folder, {file.name for file in files.values()})
    return files


def _verify(folder: Path, names: set[str]) -> None:
    """Check files that `llm4dsr data prepare` or `llm4dsr noise` wrote. Raises DataError."""
    if not (folder / MANIFEST).is_file():
        return
    try:
        read_manifest(folder, only=names)
    except DamageError as error:
        raise DataError(
            f"{error}. Make the folder again. If the files were changed on purpose, remove {folder / MANIFEST}."
        ) from None


def locate(path: Path) -> tuple[Path, str]:
    """Return (folder, prefix of the file names)."""
    if path.is_dir():
        if find_file(path, "", c.ITEMS_FILE) is not None:
            return path, ""
        ends = f"_{c.ITEMS_FILE}"
        prefixes = sorted({f.stem.removesuffix(c.ITEMS_FILE) for f in path.iterdir() if f.stem.endswith(ends)})
        sets = [p for p in prefixes if all(find_file(path, p, s) for s in c.SPLITS) or find_file(path, p, c.LOG_FILE)]
        if len(sets) == 1:
            return path, sets[0]
        if len(sets) > 1:
            names = [p.removesuffix("_") for p in sets]
            raise DataError(f"{path} holds several data sets: {names}. Name one, for example {path / names[0]}.")
        return path, prefixes[0] if len(prefixes) == 1 else ""
    if path.parent.is_dir() and any(f.name.startswith(f"{path.name}_") for f in path.parent.iterdir()):
        return path.parent, f"{path.name}_"
    raise DataError(f"There is no folder {path}, nor files whose names begin with {path}_. {_EXPECTED}.")


def find_file(folder: Path, prefix: str, name: str) -> Path | None:
    """Return the file of this name in any format, or None. Raises DataError if there are several."""
    files = [f for f in (folder / f"{prefix}{name}{end}" for end in FORMATS) if f.is_file()]
    if len(files) > 1:
        raise DataError(f"{folder} holds {prefix}{name} more than once: {[f.name for f in files]}. Keep one of them.")
    return files[0] if files else None


def _listing(folder: Path, most: int = 12) -> str:
    names = sorted(f.name for f in folder.iterdir())
    return (", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")) or "nothing"


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
    with as_data_error(f"{where} cannot be used", f"Columns and types found: {dict(frame.schema)}."):
        if c.TIME in frame.columns:
            frame = frame.with_columns(pl.col(c.TIME).cast(pl.Int64).fill_null(-1))
        return Windows.from_frame(frame, catalogue, where)


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
        size = len(histories)
        lists = pl.Series(c.ITEMS, histories, dtype=pl.List(catalogue.ids.dtype), strict=False)
        frame = pl.DataFrame({c.WINDOW: np.arange(size), c.USER: np.arange(size), c.ITEMS: lists})
        windows = to_windows(frame, catalogue, "the histories")
        return replace(windows, user_ids=history_ids([windows.row(i) for i in range(size)]))
    return to_windows(as_frame(histories, "The histories"), catalogue, "the histories")
