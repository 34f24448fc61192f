"""The way from windows back to the records of the log that they were built from.

`llm4dsr data prepare` notes where the log is, what its columns are called, and its checksums. Here the log is read
again and goes through the same steps: what can be used, titles, order and repeats. Each window then has to be a part of
its user's history, item by item, or nothing is exported.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import BoolArray, IntArray, ranges
from llm4dsr.core.manifest import DamageError, file_hash, read_manifest
from llm4dsr.data.atomic import INTER
from llm4dsr.data.catalogue import Catalogue, clean_titles, tidy_titles
from llm4dsr.data.ids import whole_numbers, without_decimals
from llm4dsr.data.interaction_log import InteractionLog, Ints, first_with_title, item_table, look_up
from llm4dsr.data.prepare import REPORT
from llm4dsr.data.sources import tables
from llm4dsr.data.sources.read import tables_at
from llm4dsr.data.times import to_microseconds
from llm4dsr.data.windowing import sort_log
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError, OutputError
from llm4dsr.export.log_files import LogFile
from llm4dsr.pipeline import Run
from llm4dsr.pipeline.inputs import check_inputs

_ORDER: Final = "microseconds"  # column of times that rows are sorted by


@dataclass(frozen=True)
class LogOrigin:
    """The log of a run.

    Attributes
    ----------
    log : Path
        A file, or a folder of part files.
    parts : list of Path
        Its files.
    items : Path or None
        The items; None if the log has the titles.
    columns : dict of str to str
        Our names → those of the files.
    options : dict
        Of `PrepareOptions`: `min_rating, repeats, max_history, merge_titles`.
    """

    log: Path
    parts: list[Path]
    items: Path | None
    columns: dict[str, str]
    options: dict[str, Any]


def log_origin(run: Run, moved: Path | None = None) -> LogOrigin:
    """Find the log that the windows of a run were built from, and check that it has not changed.

    Parameters
    ----------
    run : Run
        Prepared, at least.
    moved : Path, optional
        Where the log is now, if not where it was.

    Raises
    ------
    DataError
        If the windows came from no log, or it is gone.
    OutputError
        If the log or the windows have changed since.
    """
    card = run.card()
    inputs, options = card.get("inputs", {}), {"min_rating": None, "repeats": "keep", "max_history": None}
    check_inputs(inputs, run.folder)
    logs = [path for path in map(Path, inputs) if _is_log(path)]
    if logs:
        catalogue = next(path for path in map(Path, inputs) if path not in logs)
        found: dict[str, Any] = {
            "path": str(logs[0]), "files": {str(logs[0]): inputs[str(logs[0])]["sha256"]},
            "items": str(catalogue), "columns": {},
        }  # fmt: skip
    else:
        report = _report(inputs)
        found = report.get("log") or {}
        if not found:
            raise DataError(
                f"The windows of {run.folder} were not built from tables of yours by this version of  llm4dsr data "
                "prepare, so there are no rows to go back to. Prepare your tables again, or export the format datasets "
                "or recbole-splits, which have windows."
            )
        options = report["options"]
    items = Path(found["items"]) if found["items"] else None
    log = Path(found["path"])
    if moved is not None:
        log, beside = tables_at(moved)
        items = beside if items and not items.exists() else items
    before = {Path(path): sha for path, sha in found["files"].items()}
    now = tables.parts_of(log)
    if not log.exists() or not all(part.is_file() for part in now):
        raise DataError(f"The log {log} is no longer there. Say where it is now with --log.")
    if [file_hash(part) for part in now] != list(before.values()):
        raise OutputError(
            f"{log} has changed since {run.folder} was made from it, so its rows cannot be found again. Restore it, or "
            "prepare it and run again."
        )
    return LogOrigin(log, now, items, found["columns"], options)


def _is_log(path: Path) -> bool:
    is_split = any(path.name.endswith(f".{split}{INTER}") for split in c.SPLITS)
    return path.stem.endswith(c.LOG_FILE) or (path.suffix == INTER and not is_split)


def _report(inputs: dict[str, Any]) -> dict[str, Any]:
    """report.json beside the windows of a run; empty if there is none."""
    folders = {Path(path).parent for path in inputs}
    if len(folders) != 1 or not ((folder := folders.pop()) / REPORT).is_file():
        return {}
    try:
        read_manifest(folder, only={REPORT})
    except DamageError as error:
        raise OutputError(f"{error}. Prepare the data again.") from None
    return dict(json.loads((folder / REPORT).read_text(encoding="utf-8")))


@dataclass
class LogRows:
    """Records of a log, and those of each window.

    Attributes
    ----------
    files : list of LogFile
        The files, in order.
    keys : DataFrame
        One row per record, in order: `user_id, item_id, timestamp` as the run has them, and the time in microseconds;
        null where unusable.
    of_windows : dict of str to array of int
        By split: [n] the record of each interaction of its windows.
    twins : array of int
        [N] the first record with the same user, item and time; itself where there is none.
    """

    files: list[LogFile]
    keys: pl.DataFrame
    of_windows: dict[str, Ints]
    twins: IntArray


def find_rows(origin: LogOrigin, splits: dict[str, Windows], catalogue: Catalogue) -> LogRows:
    """Find the record of each interaction of the windows.

    The ids and times of all records are in memory at once, some 40 bytes each.

    Raises
    ------
    DataError
        If a window is no part of the log.
    """
    files = [LogFile(part, origin.columns) for part in origin.parts]
    windows = list(splits.values())
    keys = _keys(files, windows[0].user_ids.dtype, catalogue.ids.dtype)
    is_timed = bool((keys[c.TIME].is_not_null()).any()) and any((w.timestamps >= 0).any() for w in windows)
    items = tables.read(origin.log, origin.items, origin.columns).items
    log = _usable(keys, items, catalogue, origin.options, is_timed)
    users = pl.concat([w.user_ids for w in windows]).unique(maintain_order=True)
    known = pl.DataFrame({c.USER: users, "code": np.arange(len(users))})
    codes = look_up(keys[c.USER].gather(log.users), known)
    kept = (codes >= 0) & (log.items >= 0)
    log, codes = log.take(kept), codes[kept]
    rows = log.seconds  # carries the number of the record through the sort
    assert rows is not None
    log.users = codes
    found = {name: rows[_ends(name, w, look_up(w.user_ids, known), log, is_timed)] for name, w in splits.items()}
    return LogRows(files, keys, found, _twins(keys) if is_timed else np.arange(len(keys)))


def _keys(files: list[LogFile], users: Any, items: Any) -> pl.DataFrame:
    """User, item, times and rating of all records, with the types of the windows."""
    frames = []
    for file in files:
        for frame in file.read_keys():
            columns = [_ids(frame[c.USER], users), _ids(frame[c.ITEM], items)]
            time = frame[c.TIME] if c.TIME in frame.columns else pl.Series(c.TIME, [None] * len(frame), pl.Int64)
            order = to_microseconds(time, str(file.path)).alias(_ORDER)
            columns += [order, (order // 10**6).alias(c.TIME)]
            rating = frame[c.RATING] if c.RATING in frame.columns else pl.Series(c.RATING, [None] * len(frame))
            columns.append(rating.cast(pl.Float64, strict=False).fill_nan(None))
            frames.append(pl.DataFrame(columns))
    return pl.concat(frames)


def _ids(ids: pl.Series, kind: Any) -> pl.Series:
    if isinstance(ids.dtype, pl.Categorical | pl.Enum):
        ids = ids.cast(pl.String)
    ids = whole_numbers(ids)
    if ids.dtype == pl.String:
        ids = ids.set(ids == "", None)
        ids = without_decimals(ids) if kind.is_integer() else ids
    return ids.cast(kind, strict=False)


def _usable(
    keys: pl.DataFrame, items: pl.DataFrame, catalogue: Catalogue, options: dict[str, Any], is_timed: bool
) -> InteractionLog:
    """The log as `prepare` sorts it; items are catalogue rows, -1 outside; `users` and `seconds` are record numbers."""
    items, _ = item_table(items)
    number = look_up(keys[c.ITEM], pl.DataFrame({c.ITEM: items[c.ITEM].cast(keys.schema[c.ITEM], strict=False),
                                                  "code": np.arange(len(items))}))  # fmt: skip
    titles = clean_titles(tidy_titles(items[c.TITLE]))
    titled = (titles.fill_null("") != "").to_numpy()
    first = first_with_title(titles) if options.get("merge_titles") else np.arange(len(items), dtype=np.int32)
    ok: BoolArray = keys[c.USER].is_not_null().to_numpy() & (number >= 0)
    if options["min_rating"] is not None:
        ok &= (keys[c.RATING] >= options["min_rating"]).fill_null(False).to_numpy()
    if is_timed:
        ok &= keys[c.TIME].is_not_null().to_numpy()
    ok[ok] = titled[number[ok]]
    rows = np.flatnonzero(ok)
    users = keys[c.USER].gather(rows).to_frame().with_columns(row=rows).select(pl.col("row").first().over(c.USER))
    order = keys[_ORDER].gather(rows).to_numpy() if is_timed else rows
    log = InteractionLog(users["row"].to_numpy(), first[number[rows]].astype(np.int64), order, rows)
    log, _ = sort_log(log, options["repeats"], options["max_history"])
    of_items = pl.DataFrame({c.ITEM: catalogue.ids, "code": np.arange(len(catalogue))})
    ids = items[c.ITEM].cast(catalogue.ids.dtype, strict=False)
    log.items = look_up(ids, of_items)[log.items]
    return log


def _ends(name: str, windows: Windows, users: Ints, log: InteractionLog, is_timed: bool) -> IntArray:
    """[n] the row of `log` of each interaction of the windows."""
    targets = {"user": users, "item": windows.targets()} | ({"time": windows.timestamps} if is_timed else {})
    rows = {"user": log.users, "item": log.items} | ({"time": log.order // 10**6} if is_timed else {})
    wanted = pl.DataFrame(targets).with_row_index("window").cast({"window": pl.Int64})
    have = pl.DataFrame(rows).with_row_index("end").cast({"end": pl.Int64})
    pairs = wanted.join(have, on=list(targets), how="inner", maintain_order="left_right")
    window, end = pairs["window"].to_numpy(), pairs["end"].to_numpy()
    lengths = windows.lengths[window]
    begins = end - lengths + 1
    inside = begins >= 0
    window, begins, lengths = window[inside], begins[inside], lengths[inside]
    at, theirs = ranges(begins, lengths), windows.interactions(window)
    same = (log.items[at] == windows.items[theirs]) & (log.users[at] == np.repeat(users[window], lengths))
    fits = np.logical_and.reduceat(same, np.cumsum(lengths) - lengths) if len(window) else np.empty(0, dtype=bool)
    window, begins = window[fits], begins[fits]
    chosen = _one_each(users[window], window, begins, len(windows))
    if (chosen < 0).any():
        missing = windows.window_ids[np.flatnonzero(chosen < 0)[0]]
        raise DataError(
            f"Window {missing} of {name} and {int((chosen < 0).sum()) - 1} other(s) are no part of the log. Was noise "
            "injected after it was prepared? Prepare the log and run again."
        )
    return ranges(chosen, windows.lengths)


def _one_each(users: Ints, window: IntArray, begins: IntArray, count: int) -> IntArray:
    """[W] where each window begins. Of several places (a log without times) that after the user's window before."""
    out = np.full(count, -1, dtype=np.int64)
    first = np.unique(window, return_index=True)[1]
    out[window[first]] = begins[first]
    if len(first) < len(window):
        last: dict[int, int] = {}
        taken: set[int] = set()
        for user, w, begin in zip(users.tolist(), window.tolist(), begins.tolist(), strict=True):
            if w not in taken and begin > last.get(user, -1):
                out[w], last[user] = begin, begin
                taken.add(w)
    return out


def _twins(keys: pl.DataFrame) -> IntArray:
    rows = keys.select(c.USER, c.ITEM, _ORDER).with_row_index("row")
    same = pl.col("row").first().over(c.USER, c.ITEM, _ORDER)
    whole = pl.all_horizontal(pl.col(c.USER, c.ITEM, _ORDER).is_not_null())
    return rows.select(pl.when(whole).then(same).otherwise("row")).to_series().cast(pl.Int64).to_numpy()
