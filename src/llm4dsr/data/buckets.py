"""Buckets of whole users: a small log is one bucket in memory, a large one is many in files, worked on one by one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from llm4dsr import columns as c
from llm4dsr.errors import OutputError

BUCKET: Final = 2_000_000  # rows of a log that stays one bucket in memory
BUCKETS: Final = 64  # of a larger log; each has a file that is open while the log is read
_USERS: Final = "users.arrow"

Array = npt.NDArray[Any]


class Bucket:
    """Columns of the rows, and of the windows, of some users: arrays in memory, or in a folder.

    Columns from files are memory-mapped, and are mapped only while they are used.

    Parameters
    ----------
    folder : Path, optional
        Where the columns are written. Default: they stay in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._arrays: dict[str, Array] = {}
        self._user_ids = pl.Series(dtype=pl.String)
        if folder is not None:
            folder.mkdir()

    def __contains__(self, name: str) -> bool:
        return name in self._arrays if self.folder is None else (self.folder / f"{name}.npy").exists()

    def __getitem__(self, name: str) -> Array:
        if self.folder is None:
            return self._arrays[name]
        column: Array = np.lib.format.open_memmap(self.folder / f"{name}.npy", mode="r")
        return column

    def __setitem__(self, name: str, values: Array) -> None:
        if self.folder is None:
            self._arrays[name] = values
            return
        part = self.folder / "part.npy"
        np.save(part, values)
        os.replace(part, self.folder / f"{name}.npy")

    def __delitem__(self, name: str) -> None:
        if self.folder is None:
            del self._arrays[name]
        else:
            (self.folder / f"{name}.npy").unlink()

    def put(self, columns: Mapping[str, Array], user_numbers: Array, user_ids: pl.Series) -> None:
        """Add columns, and the numbers of the users, ascending, with their ids."""
        for name, values in columns.items():
            self[name] = values
        self["user_numbers"] = user_numbers
        if self.folder is None:
            self._user_ids = user_ids
            return
        table = _arrow(user_ids.alias("id").to_frame())
        with pa.ipc.new_file(str(self.folder / _USERS), table.schema) as file:
            file.write_table(table)

    def user_ids(self, numbers: Array) -> pl.Series:
        """Return the ids of users."""
        rows = np.searchsorted(self["user_numbers"], numbers)
        if self.folder is None:
            return self._user_ids.gather(rows)
        with pa.memory_map(str(self.folder / _USERS)) as file:
            ids = pa.ipc.open_file(file).read_all()["id"].take(pa.array(rows))
        return pl.Series(pl.from_arrow(ids))


class BucketedRows:
    """Rows of a log by bucket: all rows of a user are in one bucket, in the order of the log.

    Parameters
    ----------
    folder : Path
        Where rows are written as soon as there are more than BUCKET.
    need : int
        Bytes per row that must be free there, for these files and for all that follows.
    """

    def __init__(self, folder: Path, need: int) -> None:
        self._folder, self._need, self._rows = folder, need, 0
        self._held: list[pl.DataFrame] = []
        self._files: list[Any] = []
        self._writers: list[Any] = []

    def add(self, rows: pl.DataFrame) -> None:
        """Add the next rows of the log."""
        self._held.append(rows)
        self._rows += len(rows)
        self._check_space()
        if self._files or sum(map(len, self._held)) > BUCKET:
            self._write(pl.concat(self._held))
            self._held = []

    def __len__(self) -> int:
        return len(self._files) or 1

    def take(self) -> Iterator[tuple[pl.DataFrame, Bucket]]:
        """Yield the rows of each bucket, with the empty bucket that takes what becomes of them; once."""
        if not self._files:
            rows, self._held = pl.concat(self._held), []
            yield rows, Bucket()
        for number in range(len(self._files)):
            path = self._path(number)
            with pa.OSFile(str(path)) as file:
                rows = pl.DataFrame(pl.from_arrow(pa.ipc.open_file(file).read_all()))
            path.unlink()
            yield rows, Bucket(self._folder / f"{number}")

    def close(self) -> None:
        """Finish the files, so that they can be taken."""
        for each in (*self._writers, *self._files):
            each.close()

    def _check_space(self) -> None:
        """Raise OutputError if the disk is too small for what was read so far and the windows made of it."""
        need, place = self._rows * self._need, self._folder.parent.parent
        free = shutil.disk_usage(self._folder).free + sum(file.tell() for file in self._files)
        if free < need:
            raise OutputError(
                f"The disk of {place} is too small: {free / 1e6:,.0f} MB are free, and the first {self._rows:,} "
                f"interactions need about {need / 1e6:,.0f} MB for scratch files and windows. Free some space, or "
                "choose a folder on another disk."
            )

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.arrow"

    def _write(self, rows: pl.DataFrame) -> None:
        if not self._files:
            compressed = pa.ipc.IpcWriteOptions(compression="lz4")
            schema = _arrow(rows).schema
            self._files = [pa.OSFile(str(self._path(number)), "wb") for number in range(BUCKETS)]
            self._writers = [pa.ipc.new_file(file, schema, options=compressed) for file in self._files]
        numbers = rows.with_columns(_bucket=pl.col(c.USER).hash() % BUCKETS)
        parts = numbers.partition_by("_bucket", maintain_order=True, include_key=False, as_dict=True)
        for (number,), part in parts.items():
            self._writers[number].write_table(_arrow(part))


def _arrow(frame: pl.DataFrame) -> Any:
    return frame.to_arrow(compat_level=pl.CompatLevel.oldest())
