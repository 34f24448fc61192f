"""Reading and writing of files: outputs that are complete or absent, and tables of any format."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import polars as pl

from llm4dsr import columns as c
from llm4dsr.errors import DataError, LLM4DSRError, OutputError, first_line

FORMATS: Final = (".parquet", ".csv", ".jsonl")
UNWRITABLE = {  # errors of the system that mean a full, closed or read-only disk
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR,
    errno.ENAMETOOLONG,
}  # fmt: skip


def write_parquet(frame: pl.DataFrame, path: str | Path) -> None:
    """Write zstd Parquet; `path` appears complete, or not at all.

    Raises
    ------
    OutputError
        If it cannot be written. An existing file is then unchanged.
    """
    with _whole(Path(path)) as part:
        part.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(part, compression="zstd")


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text; `path` appears complete, or not at all. Raises OutputError if it cannot be written."""
    with _whole(Path(path)) as part:
        if not part.parent.is_dir():
            part.parent.mkdir(parents=True)
        part.write_text(text, encoding="utf-8")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` when complete."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # same folder: a rename across disks is not atomic
    try:
        yield part
        os.replace(part, path)
    except (OSError, pl.exceptions.ComputeError) as error:  # Polars wraps the system's error about a full disk
        raise OutputError(f"Cannot write {path}: {error}. Check that the folder is writable and not full.") from None
    finally:
        if path.parent.is_dir():
            part.unlink(missing_ok=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a hidden folder beside `out` that is renamed to it at the end; on any error nothing is left."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        _remove_leftovers(out)
        part.mkdir(parents=True)
        yield part
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    """Remove hidden folders of processes that were killed while they wrote to the same place."""
    for part in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
        if (number := re.fullmatch(rf"\.{re.escape(out.name)}\.(\d+)\.part", part.name)) is not None:
            try:
                os.kill(int(number[1]), 0)  # no signal: asks whether the process is there
            except ProcessLookupError:
                shutil.rmtree(part, ignore_errors=True)
            except PermissionError:
                pass


def read_table(path: Path) -> pl.DataFrame:
    """Read a .parquet, .jsonl or .csv file. Raises DataError if it cannot be read, or is a .csv with lists."""
    with as_data_error(f"{path} cannot be read as {path.suffix[1:]}", "Is it cut off, or another format?"):
        if path.suffix == ".parquet":
            return pl.read_parquet(path, glob=False)
        if path.suffix == ".jsonl":
            return pl.read_ndjson(path, infer_schema_length=None)
        # A title such as 1984 is text, also where every title is a number.
        frame = pl.read_csv(path, infer_schema_length=None, schema_overrides={c.TITLE: pl.String})
    if c.ITEMS in frame.columns:
        raise DataError(f"{path} has a column {c.ITEMS!r}, but csv holds no lists. Give windows as .parquet or .jsonl.")
    return frame


@contextmanager
def as_data_error(what: str, advice: str) -> Iterator[None]:
    """Raise errors of Polars and of the file system as a DataError: what went wrong, the reason, what to do."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        raise DataError(f"{what}: {first_line(error)}. {advice}") from None


@contextmanager
def as_output_error(folder: Path) -> Iterator[None]:
    """Raise errors about a full or read-only disk as an OutputError that says how to go on."""
    try:
        yield
    except LLM4DSRError:
        raise
    except Exception as error:  # tokenizers and safetensors wrap errors of the system in their own
        written = error.errno in UNWRITABLE if isinstance(error, OSError) else "os error" in str(error)
        if not written:
            raise
        raise OutputError(
            f"{folder} cannot be written to: {error}. Free some space or choose another folder, and repeat the command "
            "to resume."
        ) from error


def as_frame(table: Any, what: str) -> pl.DataFrame:
    """Convert a table of Polars, pandas or Arrow to Polars. Raises DataError for anything else."""
    try:
        if isinstance(table, pl.LazyFrame):
            return table.collect()
        if isinstance(table, pl.DataFrame):
            return table
        if type(table).__module__.split(".")[0] == "pandas":
            return pl.from_pandas(table, include_index=False)
        if type(table).__module__.split(".")[0] == "pyarrow":
            table.validate(full=True)  # Polars panics on text that is not UTF-8
            return pl.DataFrame(pl.from_arrow(table))
    except Exception as error:  # Arrow and pandas raise many kinds here, all about an unsuitable column
        raise DataError(f"{what} cannot be read: {first_line(error)}. Give each column a single type.") from None
    raise DataError(f"{what} are of type {type(table).__name__}; expected a table of Polars, pandas or Arrow.")
