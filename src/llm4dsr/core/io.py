"""Reading and writing of files: outputs that are complete or absent, and tables of any format.

What is written reaches the disk before it gets its name (fsync), so that a power cut leaves the old file or the new
one. `LLM4DSR_FSYNC=0` in the environment turns this off, for slow network disks.
"""

from __future__ import annotations

import errno
import glob
import os
import platform
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.text import SEPARATOR_NAMES, as_utf8, is_utf16_file, sample_of, separator_of
from llm4dsr.errors import DataError, LLM4DSRError, OutputError, first_line

DELIMITED: Final = (".csv", ".tsv", ".txt")
FORMATS: Final = (".parquet", *DELIMITED, ".jsonl")
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
    """Write UTF-8 text as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file; `path` appears complete, or not at all. Raises OutputError if it cannot be written."""
    with _whole(Path(path)) as part:
        if not part.parent.is_dir():
            part.parent.mkdir(parents=True, exist_ok=True)  # another process may make it at this moment
        part.write_bytes(content)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` when complete."""
    if path.is_dir():
        raise OutputError(f"Cannot write {path}: it is a folder. Give the name of a file.")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # same folder: a rename across disks is not atomic
    try:
        yield part
        sync_file(part)
        os.replace(part, path)
        sync_folder(path.parent)
    except (OSError, pl.exceptions.ComputeError) as error:  # Polars wraps the system's error about a full disk
        raise OutputError(f"Cannot write {path}: {error}. Check that the folder is writable and not full.") from None
    finally:
        if path.parent.is_dir():
            part.unlink(missing_ok=True)


def check_new_folder(out: str | Path) -> Path:
    """Return the absolute path of a folder to make, without links.

    Raises
    ------
    OutputError
        If something is there that is not an empty folder.
    """
    place = Path(os.path.realpath(out))
    if (place.exists() or place.is_symlink()) and (not place.is_dir() or any(place.iterdir())):
        raise OutputError(f"{out} exists already and is not an empty folder. Choose another --out, or remove it.")
    return place


@contextmanager
def new_folder(out: str | Path) -> Iterator[Path]:
    """Yield a hidden folder beside `out` that is renamed to it at the end; on any error nothing is left.

    The current folder stays, as the shell is in it: what was written is moved into it. Raises OutputError as
    `check_new_folder` does.
    """
    out = check_new_folder(out)
    part = out.with_name(f".{out.name}.{_host()}.{os.getpid()}.part")
    try:
        _remove_leftovers(out)
        part.mkdir(parents=True)
        yield part
        sync_tree(part)
        if out.exists() and out.samefile(os.curdir):
            for file in sorted(part.iterdir(), key=os.path.getmtime):  # a manifest was written last, and comes last
                os.replace(file, out / file.name)
            sync_folder(out)
        else:
            os.replace(part, out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Wait until a file has reached the disk."""
    _sync(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)


def sync_folder(folder: Path) -> None:
    """Wait until the names of a folder have reached the disk. Windows has no such call."""
    if os.name != "nt":
        _sync(folder, os.O_RDONLY)


def _sync(path: Path, flags: int) -> None:
    if not _syncs():
        return
    at = os.open(path, flags)
    try:
        os.fsync(at)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync
            raise
    finally:
        os.close(at)


def sync_tree(folder: Path) -> None:
    """Wait until all files and names below a folder have reached the disk."""
    if not _syncs():
        return
    for at, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync_file(Path(at, name))
        sync_folder(Path(at))


def _syncs() -> bool:
    return os.environ.get("LLM4DSR_FSYNC", "1") != "0"


def _host() -> str:
    """The machine's name; a process id says nothing on another machine."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", platform.node()) or "here"


def _remove_leftovers(out: Path) -> None:
    """Remove hidden folders of processes of this machine that were killed while they wrote to the same place."""
    start = f".{out.name}.{_host()}."
    for part in out.parent.glob(f"{glob.escape(start)}*.part"):
        number = re.fullmatch(rf"{re.escape(start)}(\d+)\.part", part.name)
        if number is not None and not is_running(int(number[1])):
            shutil.rmtree(part, ignore_errors=True)


def is_running(process: int) -> bool:
    """Return whether a process of this machine is there; always on Windows, where the question would end it."""
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)  # no signal: asks whether the process is there
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def read_table(path: Path, as_text: Sequence[str] = ()) -> pl.DataFrame:
    """Read a .parquet, .jsonl, .csv, .tsv or .txt file.

    Parameters
    ----------
    path : Path
        The file. Columns of .csv, .tsv and .txt are separated by comma, semicolon, tab or |, in UTF-8 or UTF-16.
    as_text : sequence of str, optional
        Columns that are text in a file without types, besides titles.

    Returns
    -------
    DataFrame

    Raises
    ------
    DataError
        If it cannot be read, has no separator, or has lists and is no .parquet or .jsonl file.
    """
    with as_data_error(f"{path} cannot be read as {path.suffix[1:]}", "Is it cut off, or another format?"):
        if path.suffix == ".parquet":
            return pl.read_parquet(path, glob=False)
        if path.suffix == ".jsonl":
            return pl.read_ndjson(path, infer_schema_length=None)
        frame = _read_delimited(path, [c.TITLE, *as_text])
    if c.ITEMS in frame.columns:
        raise DataError(f"{path} has a column {c.ITEMS!r}, but csv holds no lists. Give windows as .parquet or .jsonl.")
    return frame


def read_text_table(path: Path, separator: str) -> pl.DataFrame:
    """Read a table without quoting, all columns as text, in UTF-8 or UTF-16. Raises DataError."""
    with as_data_error(f"{path} cannot be read as a table", "Is it cut off, or another format?"):
        return pl.read_csv(_utf8(path), separator=separator, quote_char=None, infer_schema=False)


def _read_delimited(path: Path, text: Sequence[str]) -> pl.DataFrame:
    separator = separator_of(path)
    if separator is None:
        raise one_column(path, sample_of(path).splitlines()[0])
    # A title such as 1984 is text, also where every title is a number.
    types = dict.fromkeys(text, pl.String)
    return pl.read_csv(_utf8(path), separator=separator, infer_schema_length=None, schema_overrides=types)


def _utf8(path: Path) -> Path | bytes:
    """The file, or its text where it is UTF-16, which Polars does not read."""
    return b"".join(as_utf8([path.read_bytes()])) if is_utf16_file(path) else path


def one_column(path: Path, first: str) -> DataError:
    """Return the error about a table whose first line no separator splits."""
    return DataError(
        f"{path} has a single column {first[:80]!r}: none of {SEPARATOR_NAMES} separates its columns. Write it with "
        "one of them, the names of the columns in the first line."
    )


@contextmanager
def as_data_error(what: str, advice: str) -> Iterator[None]:
    """Raise errors of Polars, of the file system and about damaged text as a DataError: what, why, what to do."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeDecodeError) as error:
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
