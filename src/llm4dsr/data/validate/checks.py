"""Checks of a data folder before any work: one report with errors and warnings.

An error is what `read_data` refuses, or what makes a result wrong. A warning is what a user should know. Parquet is
scanned, not loaded. Schema libraries describe a single table. Most faults are between tables, or in files that cannot
be read at all, so such a library would not shorten this module.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import polars as pl
import pyarrow.parquet as pq

from llm4dsr import columns as c
from llm4dsr.core.memory import available_memory
from llm4dsr.data.catalogue import clean_titles
from llm4dsr.data.files import find_files, one_id_type, read_file
from llm4dsr.data.ids import explain_mismatch, whole_number_ids
from llm4dsr.data.read import read_data
from llm4dsr.data.times import to_seconds
from llm4dsr.data.validate.findings import FEW_WINDOWS, GIANT, LEAK_SHARE, LONG_TITLE, LONG_WINDOW, Report, size
from llm4dsr.errors import DataError, first_line

FIRST_MILLISECOND: Final = 100_000_000_000  # as seconds this is the year 5138, as milliseconds 1973
DAY: Final = 86_400
# Bytes of memory beside the tables, for each interaction of a log or entry of a window, while they are read: measured.
LOG_BYTES: Final = 400
ENTRY_BYTES: Final = 120
TEXT_FACTOR: Final = 3  # memory for a csv or jsonl file, over its size
_TEXT: Final = (pl.String, pl.Categorical, pl.Enum)


def validate(path: str | Path, strict: bool = False, read: bool = True) -> Report:
    """Check a data folder of either form (`read_data`). Writes nothing, and never raises because of the data.

    Parameters
    ----------
    path : str or Path
        The folder.
    strict : bool, default False
        Warnings count as errors in `Report.ok`.
    read : bool, default True
        Finally read the data as a run does, if twice the needed memory is free. False: the caller reads them anyway.

    Returns
    -------
    Report
    """
    report = Report(str(path), strict)
    with _guarded(report, "The folder"):
        try:
            files = find_files(Path(path))
        except DataError as error:
            report.add("files", said=error)
            return report
        tables = {name: table for name, file in files.items() if (table := _open(report, name, file)) is not None}
        _memory(report, files, tables)
        with _guarded(report, "The folder"):
            tables = one_id_type(tables, files)
        items = None
        if c.ITEMS_FILE in tables:
            with _guarded(report, c.ITEMS_FILE):
                items = _items(report, tables.pop(c.ITEMS_FILE))
        for name, table in tables.items():
            with _guarded(report, name):
                (_log if name == c.LOG_FILE else _windows)(report, name, table, items)
        if not report.errors and items is not None:
            with _guarded(report, "The folder"):
                _unused(report, tables, items)
                if c.TRAIN in tables:
                    _leaks(report, tables)
        if read and not report.errors and 2 * report.needed < report.available:
            try:
                read_data(path)
            except DataError as error:
                report.add("refused", said=error)
    return report


@contextmanager
def _guarded(report: Report, what: str) -> Iterator[None]:
    """Turn any error into a finding: a file may be broken where no check expects it."""
    try:
        yield
    except (Exception, pl.exceptions.PanicException) as error:
        report.add("unreadable", where=what, said=first_line(error))


def _open(report: Report, name: str, file: Path) -> pl.LazyFrame | None:
    """Return the table and count its rows in the report; None and an error if it is unreadable or empty."""
    try:
        table = whole_number_ids(pl.scan_parquet(file)) if file.suffix == ".parquet" else read_file(file).lazy()
        rows = int(table.select(pl.len()).collect().item())
    except (DataError, OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        code = _why(file)
        described = code == "unreadable" and isinstance(error, DataError) and "cannot be read" not in str(error)
        report.add("refused" if described else code, where=file.name, said=first_line(error))
        return None
    if not rows:
        report.add("no_rows", where=file.name)
        return None
    report.rows[name] = rows
    return table


def _why(file: Path) -> str:
    """Return the code for an unreadable file, from its bytes."""
    try:
        with file.open("rb") as stream:
            start = stream.read(4)
            stream.seek(max(0, file.stat().st_size - 4))
            end = stream.read()
        if file.suffix == ".parquet":
            return "cut_short" if start == b"PAR1" and end != b"PAR1" else "not_parquet"
        if start == b"PAR1":
            return "misnamed"
        zipped = start[:2] == b"\x1f\x8b"
        with gzip.open(file, "rt", encoding="utf-8") if zipped else file.open(encoding="utf-8") as text:
            while text.read(1 << 20):
                pass
    except EOFError:
        return "cut_short"
    except UnicodeDecodeError:
        return "not_utf8"
    except (OSError, ValueError):
        pass
    return "unreadable"


def _memory(report: Report, files: dict[str, Path], tables: dict[str, pl.LazyFrame]) -> None:
    """Estimate the memory that reading takes, from sizes and numbers of rows."""
    for name, table in tables.items():
        file, entries = files[name], 0
        with _guarded(report, name):
            windows = isinstance(table.collect_schema().get(c.ITEMS), pl.List)
            if file.suffix == ".parquet":
                meta = pq.read_metadata(file)
                groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
                report.needed += 2 * sum(group.total_byte_size for group in groups)
                columns = [group.column(i) for group in groups for i in range(group.num_columns)]
                entries = sum(col.num_values for col in columns if col.path_in_schema.split(".")[0] == c.ITEMS)
            else:
                report.needed += TEXT_FACTOR * file.stat().st_size
                if windows:
                    entries = int(table.select(pl.col(c.ITEMS).list.len().sum()).collect().item())
            report.needed += (
                LOG_BYTES * report.rows[name] if name == c.LOG_FILE else ENTRY_BYTES * entries if windows else 0
            )
    report.available = available_memory()
    if report.needed > report.available > 0:
        report.add("memory", needed=size(report.needed), available=size(report.available))


def _lacks(report: Report, where: str, schema: pl.Schema, *names: str) -> bool:
    missing = [name for name in names if name not in schema]
    for name in missing:
        report.add("missing_column", where=where, column=name, there=", ".join(schema) or "none")
    return bool(missing)


def _is_id(kind: Any) -> bool:
    return bool(kind.is_integer() or kind in _TEXT)


def _is_number(kind: Any) -> bool:
    return bool(kind.is_numeric() or kind == pl.Boolean)


def _wrong(report: Report, where: str, schema: pl.Schema, column: str, right: bool, expected: str) -> bool:
    if not right:
        report.add("column_type", where=where, column=column, kind=schema[column], expected=expected)
    return not right


def _again(expression: pl.Expr) -> pl.Expr:
    """True in each row that repeats an earlier one."""
    return ~expression.is_first_distinct()


def _ids(report: Report, where: str, column: str, ids: pl.LazyFrame, items: pl.LazyFrame | None) -> None:
    """Check that ids (one column, null is ignored) are among those of the items."""
    if items is None:
        return
    kind, expected = (next(iter(frame.collect_schema().values())) for frame in (ids, items))
    if kind == pl.Null:
        return
    if not ((kind.is_integer() and expected.is_integer()) or (kind in _TEXT and expected in _TEXT)):
        why = _why_unknown(ids, items, where)
        report.add("id_type", where=where, column=column, kind=kind, expected=expected, why=why)
        return
    common = pl.String if kind in _TEXT else pl.Int128  # holds every signed and unsigned whole number
    there, known = (frame.select(id=pl.all().cast(common)) for frame in (ids, items))
    given = there.drop_nulls().unique()
    unknown = given.join(known, on="id", how="anti").sort("id")
    missing, total = (int(frame.select(pl.len()).collect().item()) for frame in (unknown, given))
    why = f" {_why_unknown(unknown, known, where)}" if 2 * missing > total else ""
    report.check("unknown_item", unknown, pl.lit(True), pl.col("id"), where=where, column=column, why=why)


def _why_unknown(ids: pl.LazyFrame, items: pl.LazyFrame, where: str) -> str:
    given, known = (frame.collect().to_series() for frame in (ids, items))
    return explain_mismatch(given, known, where)


def _times(report: Report, where: str, table: pl.LazyFrame, seconds: pl.Expr) -> None:
    late = int(time.time()) + DAY
    for code, bad in (
        ("negative_time", seconds < 0),
        ("future_time", seconds.is_between(late, FIRST_MILLISECOND, closed="none")),
        ("milliseconds", seconds >= FIRST_MILLISECOND),
    ):
        report.check(code, table, bad, pl.col(c.TIME), where=where)


def _items(report: Report, items: pl.LazyFrame) -> pl.LazyFrame | None:
    """Check the items. Returns the column of their ids, or None if nothing can be compared with them."""
    schema, item = items.collect_schema(), pl.col(c.ITEM)
    if _lacks(report, c.ITEMS_FILE, schema, c.ITEM, c.TITLE):
        return None
    if _wrong(report, c.ITEMS_FILE, schema, c.ITEM, _is_id(schema[c.ITEM]), "whole numbers or text"):
        return None
    report.check("missing_id", items, item.is_null(), pl.col(c.TITLE), where=c.ITEMS_FILE, column=c.ITEM)
    report.check("repeated_id", items, item.is_not_null() & _again(item), item, where=c.ITEMS_FILE, column=c.ITEM)
    if not _wrong(report, c.ITEMS_FILE, schema, c.TITLE, schema[c.TITLE] in _TEXT, "text"):
        read = items.select(item, raw=pl.col(c.TITLE).cast(pl.String)).collect()
        titles, title = read.with_columns(title=clean_titles(read["raw"]).fill_null("")).lazy(), pl.col("title")
        report.check("no_title", titles, title == "", item)
        report.check("same_title", titles, title.is_duplicated() & (title != ""), title)
        report.check("long_title", titles, title.str.len_chars() > LONG_TITLE, item)
        report.check("control_characters", titles, pl.col("raw").str.contains(r"[\p{Cc}\p{Cf}]"), pl.col("raw"))
    return items.select(c.ITEM)


def _log(report: Report, name: str, log: pl.LazyFrame, items: pl.LazyFrame | None) -> None:
    schema, needed, stamp = log.collect_schema(), [c.USER, c.ITEM, c.TIME], pl.col(c.TIME)
    if _lacks(report, name, schema, *needed):
        return
    lacking = pl.any_horizontal(pl.col(*needed).is_null())
    report.check("missing_value", log, lacking, pl.struct(needed), where=name)
    if _wrong(report, name, schema, c.USER, _is_id(schema[c.USER]), "whole numbers or text"):
        return
    kind = schema[c.TIME]
    known = kind.is_numeric() or kind in (pl.String, pl.Date, pl.Datetime)
    if _wrong(report, name, schema, c.TIME, known, "seconds since 1970, or dates"):
        return
    seconds = stamp.map_batches(lambda times: to_seconds(times, name), return_dtype=pl.Int64)
    if kind == pl.String:
        unreadable = (stamp.str.strip_chars() != "") & seconds.is_null()
        report.check("time_type", log, unreadable, stamp, where=name)
    _times(report, name, log, seconds)
    _ids(report, name, c.ITEM, log.select(c.ITEM), items)
    full = log.select(needed).filter(~lacking)
    report.check("repeated_row", full, _again(pl.struct(needed)), pl.struct(needed), where=name)
    users, size_of = full.group_by(c.USER).agg(pl.len(), times=stamp.n_unique()).sort(c.USER), pl.col("len")
    report.check("one_interaction", users, size_of == 1, pl.col(c.USER))
    report.check("giant_history", users, size_of > GIANT, pl.col(c.USER))
    report.check("no_order", users, (size_of > 1) & (pl.col("times") == 1), pl.col(c.USER))
    if c.CLEAN_ITEM in schema:
        _ids(report, name, c.CLEAN_ITEM, log.select(c.CLEAN_ITEM), items)
    if c.NOISE_MASK in schema:
        mask = pl.col(c.NOISE_MASK)
        if _wrong(report, name, schema, c.NOISE_MASK, _is_number(schema[c.NOISE_MASK]), "0 or 1"):
            return
        bad = mask.is_null() | ~mask.cast(pl.Float64).is_in([0.0, 1.0])
        report.check("value", log, bad, mask, where=name, column=c.NOISE_MASK, other="not 0 or 1", expected="0 or 1")
        _truth(report, name, log, c.ITEM, c.CLEAN_ITEM)


def _truth(report: Report, where: str, table: pl.LazyFrame, item: str, clean: str) -> None:
    """Check that the mask marks what differs from the true item. `table` has one row per interaction."""
    schema = table.collect_schema()
    if schema.get(clean) == schema[item]:
        differs, marked = pl.col(item).ne_missing(pl.col(clean)), pl.col(c.NOISE_MASK).cast(pl.Float64) > 0
        report.check("unmarked_noise", table, differs & ~marked, pl.struct(item, clean), where=where)
        report.check("marked_clean", table, ~differs & marked, pl.col(item), where=where)


def _windows(report: Report, name: str, windows: pl.LazyFrame, items: pl.LazyFrame | None) -> None:
    schema = windows.collect_schema()
    if _lacks(report, name, schema, c.WINDOW, c.USER, c.ITEMS):
        return
    inner = getattr(schema[c.ITEMS], "inner", pl.Null())
    right = isinstance(schema[c.ITEMS], pl.List) and (_is_id(inner) or inner == pl.Null)
    wrong = [_wrong(report, name, schema, c.ITEMS, right, "a list of item ids for each window, oldest first"),
             _wrong(report, name, schema, c.USER, _is_id(schema[c.USER]), "whole numbers or text")]  # fmt: skip
    for column in (c.WINDOW, c.TIME):
        if column in schema:
            wrong.append(_wrong(report, name, schema, column, schema[column].is_integer(), "whole numbers"))
    if any(wrong):
        return
    window, entries = pl.col(c.WINDOW), pl.col(c.ITEMS)
    length = entries.list.len().fill_null(0)
    for column in (c.WINDOW, c.USER):
        report.check("missing_id", windows, pl.col(column).is_null(), entries, where=name, column=column)
    repeats = window.is_not_null() & _again(window)
    report.check("repeated_id", windows, repeats, window, where=name, column=c.WINDOW)
    history = entries.list.head(pl.max_horizontal(length.cast(pl.Int64) - 1, 0))
    for code, bad in (
        ("empty_history", length == 0),
        ("one_item", length == 1),
        ("long_window", length > LONG_WINDOW),
        ("missing_item", entries.list.drop_nulls().list.len() < length),
        ("target_in_history", history.list.contains(entries.list.last())),
        ("repeated_window", _again(pl.struct(c.USER, c.ITEMS))),
    ):
        report.check(code, windows, bad, window, where=name)
    _ids(report, name, c.ITEMS, windows.select(entries.explode()), items)
    if c.TIME in schema:
        _times(report, name, windows.filter(pl.col(c.TIME) != -1), pl.col(c.TIME))
    if name == c.TRAIN and report.rows[name] < FEW_WINDOWS:
        report.add("few_windows", report.rows[name])
    fits = {column: _fits(report, name, windows, column) for column in (c.NOISE_MASK, c.CLEAN_ITEMS, c.WEIGHTS)}
    if fits[c.CLEAN_ITEMS]:
        _ids(report, name, c.CLEAN_ITEMS, windows.select(pl.col(c.CLEAN_ITEMS).explode()), items)
    if fits[c.NOISE_MASK]:
        if name != c.TRAIN:
            report.check("noisy_target", windows, pl.col(c.NOISE_MASK).list.last() > 0, window, where=name)
        if fits[c.CLEAN_ITEMS]:
            lists = [c.ITEMS, c.NOISE_MASK, c.CLEAN_ITEMS]
            flat = windows.select(lists).drop_nulls().explode(lists)
            _truth(report, name, flat, c.ITEMS, c.CLEAN_ITEMS)


def _fits(report: Report, name: str, windows: pl.LazyFrame, column: str) -> bool:
    """Check that the list column has one valid entry per item. Returns False if the column is missing."""
    schema, before = windows.collect_schema(), len(report.errors)
    if column not in schema:
        return False
    inner = getattr(schema[column], "inner", pl.Null())
    numbers = column != c.CLEAN_ITEMS
    right = isinstance(schema[column], pl.List) and (_is_number(inner) if numbers else _is_id(inner))
    expected = "a list with a number for each item" if numbers else "a list with an item id for each item"
    if _wrong(report, name, schema, column, right, expected):
        return False
    uneven = pl.col(column).list.len() != pl.col(c.ITEMS).list.len()
    report.check("list_length", windows, uneven, pl.col(c.WINDOW), where=name, column=column)
    if numbers:
        flat, entry = windows.select(pl.col(column).explode().cast(pl.Float64)), pl.col(column)
        mask = column == c.NOISE_MASK
        bad = entry.is_not_null() & ~(entry.is_in([0.0, 1.0]) if mask else entry.is_between(0, 1))
        expected, other = ("0 or 1", "not 0 or 1") if mask else ("numbers from 0 to 1", "below 0 or above 1")
        report.check("value", flat, bad, entry, where=name, column=column, other=other, expected=expected)
    return len(report.errors) == before


def _unused(report: Report, tables: dict[str, pl.LazyFrame], items: pl.LazyFrame) -> None:
    used = [
        table.select(item=(pl.col(c.ITEM) if name == c.LOG_FILE else pl.col(c.ITEMS).explode()).cast(pl.String))
        for name, table in tables.items()
    ]
    rest = items.with_columns(item=pl.col(c.ITEM).cast(pl.String)).join(pl.concat(used).unique(), on="item", how="anti")
    report.check("unused_item", rest, pl.lit(True), pl.col(c.ITEM))


def _leaks(report: Report, tables: dict[str, pl.LazyFrame]) -> None:
    """Check what training windows reveal of evaluation windows."""
    parts = {
        name: table.select(
            c.WINDOW, pl.col(c.USER).cast(pl.String), pl.col(c.ITEMS).cast(pl.List(pl.String)),
            target=pl.col(c.ITEMS).list.last().cast(pl.String),
            time=pl.col(c.TIME) if c.TIME in table.collect_schema() else pl.lit(-1),
        )
        for name, table in tables.items()
    }  # fmt: skip
    train = parts[c.TRAIN]
    for name in (c.VALID, c.TEST):
        same = parts[name].join(train, on=[c.USER, c.ITEMS], how="semi").collect().lazy()
        many = same.select(pl.len()).collect().item() > LEAK_SHARE * report.rows[name]
        ends = parts[name].join(train, on=[c.USER, c.ITEMS], how="anti").join(train, on=[c.USER, "target"], how="semi")
        report.check(
            "leak" if many else "repeated_in_train", same.sort(c.WINDOW), pl.lit(True), pl.col(c.WINDOW), where=name
        )
        report.check("target_in_train", ends.sort(c.WINDOW), pl.lit(True), pl.col(c.WINDOW), where=name)
        known = pl.col("time") >= 0
        first = parts[name].filter(known).group_by(c.USER).agg(first=pl.col("time").min())
        both = train.filter(known).group_by(c.USER).agg(last=pl.col("time").max()).join(first, on=c.USER)
        report.check("time_order", both.sort(c.USER), pl.col("last") > pl.col("first"), pl.col(c.USER), where=name)
