"""Tables with a separator (csv, tsv, …), read in chunks of bounded size."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from llm4dsr.data.sources.lines import Chunk, Schema, chunks
from llm4dsr.data.sources.quotes import record_lines
from llm4dsr.data.sources.source import Tally
from llm4dsr.errors import DataError


def header(path: Path, separator: str, quoted: bool = True) -> list[str]:
    """Return the names in the first line; an empty list for an empty file. Raises DataError if only that is empty."""
    for chunk in chunks(path, separator if quoted else None):
        first = chunk.data.split(b"\n", 1)[0].decode("utf-8").rstrip("\r")
        if not first.strip() and chunk.data.strip():
            raise DataError(f"{path}: line 1 is empty; expected the names of the columns. Remove the empty line.")
        try:
            return next(csv.reader([first], delimiter=separator), [])
        except csv.Error as error:
            raise DataError(f"{path}: the names of the columns in line 1 cannot be read: {error}.") from None
    return []


def delimited(
    path: Path,
    separator: str,
    columns: Sequence[str],
    schema: Schema,
    tally: Tally,
    titled: bool = False,
    quoted: bool = False,
) -> Iterator[pl.DataFrame]:
    """Yield frames from a file with one record per line.

    Parameters
    ----------
    path : Path
        The file, plain or gzip.
    separator : str
        Between the fields.
    columns : sequence of str
        Names of all columns of the file, in order. A line with more or fewer fields is a bad line.
    schema : dict
        Columns to read and their types. Text in a numeric column makes a bad line; an empty number is null, an empty
        text "".
    tally : Tally
        Counts bad lines.
    titled : bool
        The first line has the names.
    quoted : bool
        Fields may be in double quotes, as in csv. If False, a quote is an ordinary character.

    Yields
    ------
    DataFrame
        The columns of `schema`.
    """
    checked, quoting = False, separator if quoted else None
    for chunk in chunks(path, quoting):
        if titled and chunk.line == 1:
            chunk = Chunk(path, chunk.data[chunk.data.find(b"\n") + 1 or len(chunk.data) :], 2)
        table, bad = _split(chunk, separator, columns, list(schema), quoted)
        frame, kept = _cast(table, schema)
        if not checked and len(bad) + len(frame) and kept.sum() == 0:
            line = chunk.data.lstrip().split(b"\n", 1)[0][:80].decode(errors="replace")
            raise DataError(
                f"{path} is of another format: no line of its first {len(bad) + len(frame)} has {len(columns)} columns "
                f"with {', '.join(f'{name} ({kind})' for name, kind in schema.items())}. It begins with {line!r}."
            )
        checked = checked or bool(kept.any())
        if not kept.all():
            numbers = np.delete(np.arange(len(frame) + len(bad)), bad)  # records of the frame's rows
            bad += numbers[~kept].tolist()
        if bad:
            for line in record_lines(chunk.data, quoting)[sorted(bad)].tolist():
                tally.add("bad_line", where=chunk.where(line))
        yield frame.filter(pl.Series(kept))


def _split(
    chunk: Chunk, separator: str, columns: Sequence[str], wanted: list[str], quoted: bool
) -> tuple[pl.DataFrame, list[int]]:
    """(Selected columns as text, index of each record with another number of columns.)"""
    bad: list[int] = []

    def skip(row: Any) -> str:
        bad.append(row.number - 1)
        return "skip"

    if not chunk.data.strip(b"\r\n"):
        return pl.DataFrame(schema=dict.fromkeys(wanted, pl.String)), bad
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(chunk.data),
            read_options=pa.csv.ReadOptions(
                column_names=list(columns), use_threads=False, block_size=len(chunk.data) + 1
            ),
            parse_options=pa.csv.ParseOptions(
                delimiter=separator, quote_char='"' if quoted else False, newlines_in_values=quoted,
                invalid_row_handler=skip,
            ),
            convert_options=pa.csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.string()), strings_can_be_null=False
            ),
        )  # fmt: skip
    except pa.ArrowInvalid as error:
        raise DataError(f"{chunk.path}, from line {chunk.line} on, cannot be split into columns: {error}.") from None
    return cast(pl.DataFrame, pl.from_arrow(table)), bad


def _cast(text: pl.DataFrame, schema: Schema) -> tuple[pl.DataFrame, np.ndarray]:
    """(Typed columns, mask of the rows that could be read.)"""
    numbers = [name for name, kind in schema.items() if kind != pl.String]
    stripped = text.with_columns(pl.col(numbers).str.strip_chars()) if numbers else text
    typed = stripped.with_columns(pl.col(name).cast(schema[name], strict=False) for name in numbers)
    kept = np.ones(len(text), dtype=bool)
    for name in numbers:
        kept &= (typed[name].is_not_null() | (stripped[name] == "")).to_numpy()
    return typed, kept
