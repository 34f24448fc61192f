"""Array types that all packages share, padding, and checked pairs of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from llm4dsr.errors import DataError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Numbers = npt.ArrayLike  # what a public function takes for an array
PAD = -1  # fills the end of a row, where a window has no item


def pad(rows: Sequence[npt.NDArray[Any] | Sequence[int]], fill: int) -> IntArray:
    """Stack ragged rows into a right-padded matrix.

    Examples
    --------
    >>> pad([[3, 1], [2]], fill=PAD)
    array([[ 3,  1],
           [ 2, -1]])
    """
    out = np.full((len(rows), max((len(r) for r in rows), default=0)), fill, dtype=np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out


def flat_pair(a: Numbers, b: Numbers, dtype: type = float) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Flatten two arrays of one type and check that they have as many entries.

    Raises
    ------
    DataError
        If they differ in size.

    Examples
    --------
    >>> flat_pair([[1, 0], [0, 1]], [0, 0, 1, 1], bool)
    (array([ True, False, False,  True]), array([False, False,  True,  True]))
    """
    x: npt.NDArray[Any] = np.asarray(a).ravel().astype(dtype)
    y: npt.NDArray[Any] = np.asarray(b).ravel().astype(dtype)
    if x.size != y.size:
        raise DataError(f"The two arrays have {x.size} and {y.size} entries; expected as many in both.")
    return x, y
