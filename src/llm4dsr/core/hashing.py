"""Hashes of arrays, configurations and user ids, and the versions that results depend on."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from llm4dsr.columns import USER
from llm4dsr.core.arrays import IntArray

Hashes = npt.NDArray[np.uint64]
AT_ONCE = 1_000_000  # ids that are held as text
NUMERIC_PACKAGES = ("llm4dsr", "torch", "transformers", "peft", "polars", "numpy", "scikit-learn")


def user_hashes(user_ids: pl.Series) -> Hashes:
    """Hash user ids, so that no id is stored.

    Parameters
    ----------
    user_ids : Series
        [W] ids of any type.

    Returns
    -------
    array of uint64
        [W] a 64-bit hash of each id as text, the same on every machine; 0 for null.
    """
    out = np.empty(len(user_ids), np.uint64)
    for start in range(0, len(out), AT_ONCE):  # as text, ids take ten times the memory of their hashes
        ids = user_ids.slice(start, AT_ONCE).cast(pl.String).to_list()
        hashes = dict.fromkeys(ids, 0)
        for i in hashes.keys() - {None}:
            hashes[i] = int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "little")
        out[start : start + len(ids)] = [hashes[i] for i in ids]
    return out


def item_hashes(users: Hashes, rows: IntArray) -> Hashes:
    """Hash pairs [n] of a user, as `user_hashes` names them, and a catalogue row."""
    return mixed(~users ^ rows.astype(np.uint64))  # the complement keeps items apart from hashes of item pairs


def mixed(x: Hashes) -> Hashes:
    """Give similar numbers dissimilar hashes: the finishing step of SplitMix64 (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def history_ids(histories: Sequence[npt.NDArray[Any] | Sequence[int]]) -> pl.Series:
    """Make user ids for histories that come without any: each content is a user of its own.

    The same history gets the same id wherever it stands. So it has one fold, and after fitting on it, its own counts
    are subtracted. No id of real users looks like one, so it gets neither the fold nor the counts of another user.

    Parameters
    ----------
    histories : sequence of array of int
        W histories of catalogue rows.

    Returns
    -------
    Series
        [W] text: `history-` and a 128-bit hash.

    Examples
    --------
    >>> first, second, again = history_ids([[1, 2], [2, 1], [1, 2]])
    >>> first == again, first == second
    (True, False)
    """
    contents = (np.asarray(history, dtype="<i8").tobytes() for history in histories)
    ids = [f"history-{hashlib.blake2b(content, digest_size=16).hexdigest()}" for content in contents]
    return pl.Series(USER, ids, dtype=pl.String)


def versions(*packages: str) -> dict[str, str]:
    """Versions that a result depends on.

    Parameters
    ----------
    *packages : str
        Distribution names. Default: this package and all that its numbers depend on, and the GPU if there is one.

    Returns
    -------
    dict of str to str
        `python`, one entry per package, and `gpu` (its name) by default where CUDA is available.
    """
    found = {"python": platform.python_version()}
    found |= {name: metadata.version(name) for name in packages or NUMERIC_PACKAGES}
    if not packages:
        import torch  # seconds, which reading and preparing data need not wait for

        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def derived_seed(seed: int, *parts: int) -> int:
    """Derive a seed, so that no two combinations share one, as `seed + fold` would.

    Parameters
    ----------
    seed : int
        The seed of the run, at least 0.
    *parts : int
        What tells apart, such as the fold; at least 0 each.

    Returns
    -------
    int
        In [0, 2⁶³).
    """
    words = np.random.SeedSequence([seed, *parts]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))


def digest(*parts: Any) -> str:
    """Hash arrays, and anything with a complete `repr`: text, numbers, tuples, dataclasses.

    Examples
    --------
    >>> digest("a", 1) == digest("a", 1), digest("a", 1) == digest("a", 2)
    (True, False)
    """
    out = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            out.update(f"{part.dtype} {part.shape}".encode())
            out.update(np.ascontiguousarray(part).data)
        else:
            out.update(repr(part).encode("utf-8", "surrogatepass"))
        out.update(b"\0")
    return out.hexdigest()


def user_folds(user_ids: pl.Series, folds: int) -> IntArray:
    """Assign users to folds by a hash of their id, so that a user has the same fold everywhere.

    Parameters
    ----------
    user_ids : Series
        [W] ids of any type.
    folds : int
        Number of folds.

    Returns
    -------
    array of int
        [W] the fold of each user, from 0 to `folds` - 1.
    """
    return hash_folds(user_hashes(user_ids), folds)


def hash_folds(hashes: Hashes, folds: int) -> IntArray:
    """Assign users to folds as `user_folds` does, by the hashes [W] of their ids."""
    return (hashes >> np.uint64(8)).astype(np.int64) % max(1, folds)
