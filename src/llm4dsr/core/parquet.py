"""Parquet files that are read in parts, in memory that does not grow with the file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from llm4dsr.errors import DataError, first_line

BUFFER = 2**20  # bytes of a column that are read ahead; without a limit, pyarrow keeps all that was read


def parquet_schema(path: Path) -> tuple[pa.Schema, int]:
    """Return the schema of a file, and its number of rows. Raises DataError if it cannot be read."""
    with _readable(path), pq.ParquetFile(path) as file:
        return file.schema_arrow, file.metadata.num_rows


def parquet_parts(path: Path, rows: int, columns: Sequence[str] | None = None) -> Iterator[pl.DataFrame]:
    """Read a file in parts.

    Parameters
    ----------
    path : Path
        The file.
    rows : int
        Most rows of a part.
    columns : sequence of str, optional
        Default: all.

    Yields
    ------
    DataFrame
        The next rows; fewer than `rows` where a row group ends.

    Raises
    ------
    DataError
        If the file cannot be read, is damaged, or holds text that is not UTF-8.
    """
    with _readable(path), pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
        for batch in file.iter_batches(rows, columns=None if columns is None else list(columns)):
            yield _frame(batch)


def parquet_spans(path: Path, spans: Sequence[tuple[int, int]]) -> Iterator[pl.DataFrame]:
    """Read spans of rows of a file; row groups that hold none of them are not read.

    Parameters
    ----------
    path : Path
        The file.
    spans : sequence of (int, int)
        The first row of each span, and its number of rows, at least 1. In ascending order, without overlap.

    Yields
    ------
    DataFrame
        The rows of the next span.

    Raises
    ------
    DataError
        As `parquet_parts`, and if the file has fewer rows.
    """
    waiting, held, end = list(reversed(spans)), list[pl.DataFrame](), 0
    most = max((size for _, size in spans), default=1)
    with _readable(path), pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
        for group in range(file.num_row_groups):
            row, end = end, end + file.metadata.row_group(group).num_rows
            if not waiting:
                return
            if waiting[-1][0] >= end:
                continue
            for batch in file.iter_batches(most, row_groups=[group]):
                below = row + len(batch)
                while waiting and waiting[-1][0] < below:
                    first, size = waiting[-1]
                    held.append(_frame(batch[max(0, first - row) : first + size - row]))
                    if first + size > below:
                        break
                    yield pl.concat(held)
                    held = []
                    waiting.pop()
                row = below
    if waiting:
        raise DataError(f"{path} has {end:,} rows; expected at least {sum(waiting[0]):,}. Was it replaced meanwhile?")


def footer_hash(path: Path) -> str:
    """Return the SHA-256 of the end of a file: the places, sizes and value ranges of its columns.

    It tells files apart that all machines should see alike, without reading them whole. Raises DataError if the file
    cannot be read.
    """
    with _readable(path), path.open("rb") as file:
        file.seek(-8, os.SEEK_END)  # the size of the footer, and four letters
        size = int.from_bytes(file.read(4), "little")
        file.seek(-8 - size, os.SEEK_END)
        return hashlib.sha256(file.read()).hexdigest()


def _frame(batch: pa.RecordBatch) -> pl.DataFrame:
    batch.validate(full=True)  # Polars panics on text that is not UTF-8
    return pl.DataFrame(pl.from_arrow(batch))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, pl.exceptions.PolarsError) as error:
        why = first_line(error)
        raise DataError(f"{path} cannot be read as Parquet: {why}. Is it cut off, or another format?") from None
