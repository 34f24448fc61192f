"""Parquet files that are read in parts, in memory that does not grow with the file."""

from __future__ import annotations

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
            batch.validate(full=True)  # Polars panics on text that is not UTF-8
            yield pl.DataFrame(pl.from_arrow(batch))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, pl.exceptions.PolarsError) as error:
        why = first_line(error)
        raise DataError(f"{path} cannot be read as Parquet: {why}. Is it cut off, or another format?") from None
