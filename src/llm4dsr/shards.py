"""Finished parts of long work, so that it can be stopped at any moment and goes on where it was.

A shard is the result of one part (the scores of some windows, the suggestions for some flags, one trained recommender),
in a file that is named by a hash of everything the result depends on. The same work asked for again finds its shards;
other work never does, whatever is left over from it. A shard is written under another name and then renamed: it is
whole or absent.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from llm4dsr.data import write_parquet

Floats = npt.NDArray[np.float64]


def versions() -> dict[str, str]:
    """Of this package and of those that its numbers depend on, and the GPU, if there is one."""
    names = ("llm4dsr", "torch", "transformers", "peft", "polars", "numpy", "scikit-learn")
    found = {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def digest(*parts: Any) -> str:
    """A hash of arrays and of anything whose `repr` tells all (texts, numbers, tuples, dataclasses of these)."""
    out = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            out.update(f"{part.dtype} {part.shape}".encode())
            out.update(np.ascontiguousarray(part).data)
        else:
            out.update(repr(part).encode("utf-8", "surrogatepass"))
        out.update(b"\0")
    return out.hexdigest()


class Shards:
    """A folder of shards. Where it is None nothing is kept, and everything is computed."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder

    def table(self, key: tuple[Any, ...], make: Callable[[], pl.DataFrame]) -> pl.DataFrame:
        """The table kept under `key` (see `digest`), else what `make` gives, which is then kept.

        Raises OutputError where the folder cannot be written to.
        """
        if self.folder is None:
            return make()
        path = self.folder / f"{digest(*key)}.parquet"
        try:
            return pl.read_parquet(path, glob=False)
        except (pl.exceptions.PolarsError, OSError):  # not there, or damaged: it is made again
            made = make()
            write_parquet(made, path)
            return made

    def matrix(self, key: tuple[Any, ...], shape: tuple[int, ...], make: Callable[[], Floats]) -> Floats:
        """The same for a matrix of numbers of that shape; NaN is kept."""
        flat = self.table((*key, shape), lambda: pl.DataFrame({"value": make().reshape(-1)}))
        return flat["value"].to_numpy().reshape(shape)
