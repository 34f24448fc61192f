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
        path = self.folder / f"{digest(*key)}.part"
        if (found := _read(path)) is not None:
            return found
        made, file = make(), io.BytesIO()
        made.write_parquet(file, compression="zstd")
        content = file.getvalue()
        write_bytes(path, hashlib.sha256(content).digest() + content)
        return made

    def array(self, key: tuple[Any, ...], make: Callable[[], FloatArray]) -> FloatArray:
        """Return the array [n] kept under a key, or make and keep it; NaN is kept."""
        return self.table(key, lambda: pl.DataFrame({"value": make()}))["value"].to_numpy()


def _read(path: Path) -> pl.DataFrame | None:
    """Read a part; None if it is absent or damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[SUM:]).digest() != content[:SUM]:
        return None
    return pl.read_parquet(io.BytesIO(content[SUM:]))
