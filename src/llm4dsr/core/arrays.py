"""Array types that all packages share, concatenated ranges, and checked pairs of arrays."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from llm4dsr.errors import DataError

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
Numbers = npt.ArrayLike  # what a public function takes for an array
T = TypeVar("T", bound=np.generic)
PAD = -1  # in place of an item where there is none, as at the end of a padded row


def ranges(starts: IntArray, sizes: IntArray) -> IntArray:
    """Concatenate ranges of whole numbers.

    Examples
    --------
    >>> ranges(np.array([7, 0, 3]), np.array([2, 0, 3]))
    array([7, 8, 3, 4, 5])
    """
    ends = np.cumsum(sizes)
    return np.arange(int(sizes.sum())) + np.repeat(starts - ends + sizes, sizes)


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


def sorted_unique(*parts: npt.NDArray[T]) -> npt.NDArray[T]:
    """Return the different values of arrays in rising order.

    `np.unique` hashes integers first, which takes a hundred times as long for arrays that are sorted already.

    Examples
    --------
    >>> sorted_unique(np.array([1, 5, 5]), np.array([2, 1]))
    array([1, 2, 5])
    """
    values = np.concatenate(parts)
    values.sort(kind="stable")
    return values[differ(values)]


def differ(values: npt.NDArray[Any]) -> BoolArray:
    """Return True where a value differs from the one before, and for the first.

    Examples
    --------
    >>> differ(np.array([4, 4, 7, 4]))
    array([ True, False,  True,  True])
    """
    out = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=out[1:])
    return out


def among(ordered: npt.NDArray[T], values: npt.NDArray[T]) -> BoolArray:
    """Return True for each value that is in a sorted array.

    Examples
    --------
    >>> among(np.array([1, 4]), np.array([4, 2, 9]))
    array([ True, False, False])
    """
    if not len(ordered):
        return np.zeros(len(values), dtype=bool)
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)  # type: ignore[arg-type]
    return np.asarray(ordered[at] == values)
