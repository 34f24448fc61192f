"""Tables of your own: CSV, TSV, RecBole's files, JSON lines (each also .gz) and Parquet; a file, or a folder of parts.

CSV has no types, and a column of JSON may have several. Ids become whole numbers if every id of the log is one without
a leading zero, else text. Ids that JSON has as text stay text. 61.0, as pandas writes numbers in a column with gaps,
is 61. If log and items differ, both become text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.io import DELIMITED, one_column
from llm4dsr.core.parquet import parquet_parts, parquet_schema
from llm4dsr.core.text import separator_of
from llm4dsr.data.atomic import ATOMIC, INTER, ITEM_LIST, plain_names, title_column, unquoted
from llm4dsr.data.ids import WHOLE_TEXT, text_ids, without_decimals
from llm4dsr.data.sources.delimited import delimited, header
from llm4dsr.data.sources.lines import Schema, chunks, json_lines
from llm4dsr.data.sources.source import (
    BATCH_ROWS,
    LOG_EXTRAS,
    TIMES,
    LogTables,
    Source,
    Tally,
    catalogue_of,
    check_mapping,
    joined,
    one_type,
    pick,
    typed,
    typed_log,
)
from llm4dsr.errors import DataError

UNTYPED: Final = (*DELIMITED, *ATOMIC)
JSON: Final = (".jsonl", ".ndjson")
KINDS: Final = (*DELIMITED, *JSON, ".parquet")
_IDS: Final = (c.USER, c.ITEM, c.CLEAN_ITEM)
_SAMPLE: Final = 10_000  # JSON records that are looked at for the names of the columns, and for ids that are text

Columns = Mapping[str, str] | None


def kind_of(path: Path) -> str | None:
    """Return the file ending without .gz; None if the format is not supported."""
    name = path.name.lower().removesuffix(".gz")
    return next((kind for kind in (*KINDS, *ATOMIC) if name.endswith(kind)), None)


def parts_of(path: Path) -> list[Path]:
    """Return the table itself, or its part files in order of their names. Hidden files and _SUCCESS are skipped.

    Part files are no .txt, which may be notes, and no file of RecBole, where each file is a table.
    """
    if not path.is_dir():
        return [path]
    inside = (part for part in path.rglob("*") if part.is_file() and kind_of(part) not in (None, ".txt", *ATOMIC))
    return sorted(part for part in inside if not any(n[0] in "._" for n in part.relative_to(path).parts))


def read(log: Path, items: Path | None, columns: Columns) -> Source:
    """Read a log and its items.

    Parameters
    ----------
    log : Path
        A table with `user_id, item_id`, and optionally `timestamp, rating, noise_mask, clean_item_id`.
    items : Path or None
        A table with `item_id, title`. None if the log has a title in each row.
    columns : dict or None
        Our names → the file's names.

    Returns
    -------
    Source

    Raises
    ------
    DataError
        If a column is missing.
    """
    logs = _parts(log)
    of_items = {str(items): [name for part in _parts(items) for name in columns_of(part)]} if items else {}
    names = {part: columns_of(part) for part in logs}
    of_log = list(dict.fromkeys(name for part in logs for name in names[part]))
    check_mapping(columns, {str(log): of_log}, of_items)
    known, dropped = _catalogue(_parts(items), columns) if items else (_titles_of(logs, columns), {})
    kinds = _id_types(logs, columns)
    if known.schema[c.ITEM] != kinds[c.ITEM]:
        as_text = known[c.ITEM].cast(pl.String)
        known = known.with_columns(text_ids(as_text) if kinds[c.ITEM] == pl.Int64 else as_text)
    types = {
        c.USER: kinds[c.USER], c.ITEM: known.schema[c.ITEM], c.TIME: TIMES, c.RATING: pl.Float64,
        c.NOISE_MASK: pl.Int8, c.CLEAN_ITEM: known.schema[c.ITEM],
    }  # fmt: skip
    found = [pick(names[part], columns, (c.USER, c.ITEM), LOG_EXTRAS, str(part)) for part in logs if names[part]]
    present = [name for name in types if any(name in of_part for of_part in found)]

    def rows(tally: Tally) -> Iterator[pl.DataFrame]:
        for part in logs:
            for frame in _frames(part, columns, (c.USER, c.ITEM), LOG_EXTRAS, tally):
                frame = typed_log(frame, str(part), part.name, tally)
                numbers = [
                    n for n, kind in frame.schema.items() if kind == pl.String and kinds.get(_kind(n)) == pl.Int64
                ]
                frame = frame.with_columns(without_decimals(frame[name]) for name in numbers)
                yield frame.select(  # a part without a column that others have gets nulls there, an empty number too
                    pl.col(name).cast(types[name], strict=False)
                    if name in frame.columns
                    else pl.lit(None, types[name]).alias(name)
                    for name in present
                )

    files = LogTables(log, logs, items, dict(columns or {}), of_log)
    return Source(log.name, known, rows, dropped, others=lambda: _all_columns(items) if items else None, tables=files)


def _all_columns(items: Path) -> pl.DataFrame | None:
    """All columns of the first part of the items; None if they cannot be read."""
    part = parts_of(items)[0]
    names = columns_of(part)
    try:
        if kind_of(part) == ".parquet":
            return pl.read_parquet(part, glob=False)
        if kind_of(part) in JSON or len(set(names)) < len(names):
            return None
        schema = dict.fromkeys(names, pl.String)
        return next(delimited(part, _separator(part), names, schema, Tally(), True, kind_of(part) not in ATOMIC), None)
    except (DataError, pl.exceptions.PolarsError):
        return None


def _parts(path: Path) -> list[Path]:
    parts = parts_of(path)
    for part in parts:
        if kind_of(part) == INTER and ITEM_LIST in columns_of(part):
            raise DataError(
                f"{part} holds ready windows ({ITEM_LIST}), not single interactions. Give X.train.inter, X.valid.inter "
                "and X.test.inter, with X.item beside them, to  llm4dsr run --data."
            )
    if not parts or not all(map(kind_of, parts)):
        raise DataError(f"{path} is no table; expected a file, or a folder of files, ending in {', '.join(KINDS)}.")
    return parts


def _catalogue(parts: list[Path], columns: Columns) -> tuple[pl.DataFrame, dict[str, int]]:
    tally = Tally()
    frames = [
        typed(frame, str(part)).with_columns(pl.col(c.TITLE).cast(pl.String))
        for part in parts
        for frame in _frames(part, columns, (c.ITEM, c.TITLE), (), tally)
    ]
    known, dropped = catalogue_of(joined(one_type(frames), "items"), tally)
    if all(c.ITEM in _untyped(part, columns) for part in parts) and known.schema[c.ITEM] == pl.String:
        whole = text_ids(known[c.ITEM])
        known = known.with_columns((whole if whole.dtype == pl.Int64 else known[c.ITEM]).cast(pl.String))
    return known, dropped


def _titles_of(logs: list[Path], columns: Columns) -> pl.DataFrame:
    """First title of each item of a log. Missing values are counted when the log is read."""
    known: list[pl.DataFrame] = []
    for part in logs:
        for frame in _frames(part, columns, (c.ITEM, c.TITLE), (), Tally()):
            frame = typed(frame, str(part)).with_columns(pl.col(c.TITLE).cast(pl.String))
            known = one_type([*known, frame.filter(pl.col(c.TITLE).str.strip_chars().str.len_bytes() > 0)])
            known = [pl.concat(known).unique(c.ITEM, keep="first", maintain_order=True)]
    return catalogue_of(joined(known, "interactions"))[0]


# --- types of ids ----------------------------------------------------------------------------------------------------


def _id_types(logs: list[Path], columns: Columns) -> Schema:
    """Int64 or text for the user and item ids of all parts."""
    whole = {c.USER: True, c.ITEM: True}
    for part in logs:
        untyped = _untyped(part, columns)
        extra = (c.CLEAN_ITEM,) if (columns or {}).get(c.CLEAN_ITEM, c.CLEAN_ITEM) in columns_of(part) else ()
        for frame in _frames(part, columns, (c.USER, c.ITEM), extra, Tally()):
            for name in frame.columns:
                if name in untyped:
                    whole[_kind(name)] &= bool((frame[name].str.contains(WHOLE_TEXT) | (frame[name] == "")).all())
                else:
                    whole[_kind(name)] &= typed(frame.select(name), str(part)).schema[name] == pl.Int64
            if not any(whole.values()) or not (untyped or pl.UInt64 in frame.dtypes):
                break  # what follows changes nothing: other columns have one type from beginning to end
    return {name: pl.Int64 if good else pl.String for name, good in whole.items()}


def _untyped(path: Path, columns: Columns) -> set[str]:
    """The id columns that are read as text, and are numbers if all of the log are written so."""
    if kind_of(path) not in JSON:
        return set(_IDS) if kind_of(path) in UNTYPED else set()
    types = _json_types(path)
    names = pick(list(types), columns, (), _IDS, str(path))
    return {ours for ours, theirs in names.items() if types[theirs] <= {int, float, type(None)}}


def _kind(name: str) -> str:
    """The column whose type the ids of a column have; other columns have one of their own."""
    return c.ITEM if name == c.CLEAN_ITEM else name


# --- frames of one file ----------------------------------------------------------------------------------------------


def _frames(
    path: Path, columns: Columns, needed: tuple[str, ...], optional: tuple[str, ...], tally: Tally
) -> Iterator[pl.DataFrame]:
    """Yield the needed and optional columns under our names, with the types of Parquet, else as text."""
    kind = kind_of(path)
    if kind == ".parquet":
        yield from _parquet(path, columns, needed, optional)
    elif kind in JSON:
        found = columns_of(path)
        names = pick(found, columns, needed, optional, str(path)) if found else {}
        if names:
            for frame in json_lines(path, dict.fromkeys(names.values(), pl.String), tally):
                yield frame.select(pl.col(theirs).alias(ours) for ours, theirs in names.items())
    elif kind is not None:
        yield from _separated(path, columns, needed, optional, tally)


def _separated(
    path: Path, columns: Columns, needed: tuple[str, ...], optional: tuple[str, ...], tally: Tally
) -> Iterator[pl.DataFrame]:
    atomic, found = kind_of(path) in ATOMIC, columns_of(path)
    if atomic and (title := title_column(found)):
        columns = {c.TITLE: title, **(columns or {})}
    names = pick(found, columns, needed, optional, str(path)) if found else {}
    if not names:
        return
    separator = _separator(path)
    # Of columns with one name, the first counts.
    unique = [name if name not in found[:i] else f"{name} {i}" for i, name in enumerate(found)]
    schema = dict.fromkeys(names.values(), pl.String)
    for frame in delimited(path, separator, unique, schema, tally, titled=True, quoted=not atomic):
        frame = frame.select(pl.col(theirs).alias(ours) for ours, theirs in names.items())
        if atomic and c.TITLE in frame.columns:
            frame = frame.with_columns(unquoted(frame[c.TITLE]))
        yield with_decimal_points(frame, separator)


def with_decimal_points(frame: pl.DataFrame, separator: str) -> pl.DataFrame:
    """Write ratings such as 4,5, as in much of Europe, with a point where no comma separates the columns."""
    if separator == "," or c.RATING not in frame.columns:
        return frame
    return frame.with_columns(pl.col(c.RATING).cast(pl.String).str.replace(r"^(-?\d+),(\d+)$", "$1.$2"))


def _separator(path: Path) -> str:
    """The separator of a file. Raises DataError if no known one splits the names of its columns."""
    separator = "\t" if kind_of(path) in ATOMIC else separator_of(path)
    if separator is None:
        raise one_column(path, ", ".join(header(path, ",")))
    return separator


def _parquet(
    path: Path, columns: Columns, needed: tuple[str, ...], optional: tuple[str, ...]
) -> Iterator[pl.DataFrame]:
    names = pick(parquet_schema(path)[0].names, columns, needed, optional, str(path))
    for frame in parquet_parts(path, BATCH_ROWS, list(dict.fromkeys(names.values()))):
        yield frame.select(pl.col(theirs).alias(ours) for ours, theirs in names.items())


def _json_types(path: Path) -> dict[str, set[type]]:
    """Types of every key in the first records."""
    types: dict[str, set[type]] = {}
    for chunk in chunks(path):
        for line in chunk.data.split(b"\n")[:_SAMPLE]:
            try:
                record: Any = json.loads(line)
            except (ValueError, RecursionError):
                continue  # json_lines counts it
            for key, value in record.items() if isinstance(record, dict) else ():
                types.setdefault(key, set()).add(type(value))
        if not types:
            raise DataError(f"{path} is of another format: none of its first lines is a JSON object.")
        break
    return types


def columns_of(path: Path) -> list[str]:
    """Return the column names of a table."""
    kind = kind_of(path)
    if kind == ".parquet":
        return list(parquet_schema(path)[0].names)
    if kind in JSON:
        return list(_json_types(path))
    names = header(path, _separator(path), quoted=kind not in ATOMIC)
    return plain_names(names) if kind in ATOMIC else names
