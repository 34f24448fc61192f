"""Finished parts of long work, so that it can be interrupted at any moment and resumed.

A part is one unit of a result: the scores of some windows, the suggestions for some flags, one trained recommender. Its
file is named by a hash of everything that the part depends on, so other work never reads it. It is written under
another name and then renamed, so a part is whole or absent. It begins with a checksum: a damaged part is made again.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from llm4dsr.core.arrays import FloatArray
from llm4dsr.core.hashing import digest
from llm4dsr.core.io import write_bytes

SUM = hashlib.sha256().digest_size  # bytes of the checksum, before the Parquet file


class PartCache:
    """A folder of finished parts.

    Parameters
    ----------
    folder : Path, optional
        Where parts are kept. Default: nowhere; everything is computed.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def table(self, key: tuple[Any, ...], make: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """Return the table kept under a key, or make and keep it.

        Parameters
        ----------
        key : tuple
            Everything that the table depends on, as `digest` takes it.
        make : callable
            Computes the table.

        Returns
        -------
        DataFrame

        Raises
        ------
        OutputError
            If the folder cannot be written to.
        """
        if self.folder is None:
            return make()
        name = digest(*key)
        if (found := self.read(name)) is not None:
            return found
        made = make()
        self.keep(name, content_of(made))
        return made

    def array(self, key: tuple[Any, ...], make: Callable[[], FloatArray]) -> FloatArray:
        """Return the array [n] kept under a key, or make and keep it; NaN is kept."""
        return self.table(key, lambda: pl.DataFrame({"value": make()}))["value"].to_numpy()

    def has(self, name: str) -> bool:
        """Return whether the part of this name, the `digest` of its key, is there and whole."""
        return self._content(name) is not None

    def keep(self, name: str, content: bytes) -> None:
        """Keep what `content_of` returned under the digest of its key. Raises OutputError as `table`."""
        if self.folder is not None:
            write_bytes(self._path(name), hashlib.sha256(content).digest() + content)

    def read(self, name: str) -> pl.DataFrame | None:
        """Return the part of this name; None if it is absent or damaged."""
        content = self._content(name)
        return None if content is None else pl.read_parquet(io.BytesIO(content))

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.part"

    def _content(self, name: str) -> bytes | None:
        """The Parquet file of a part; None if it is absent or damaged."""
        try:
            content = self._path(name).read_bytes()
        except OSError:
            return None
        return content[SUM:] if hashlib.sha256(content[SUM:]).digest() == content[:SUM] else None


def content_of(table: pl.DataFrame) -> bytes:
    """Return a table as a Parquet file in memory, for `PartCache.keep`."""
    file = io.BytesIO()
    table.write_parquet(file, compression="zstd")
    return file.getvalue()
