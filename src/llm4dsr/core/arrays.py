"""Array types that all packages share, and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
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
