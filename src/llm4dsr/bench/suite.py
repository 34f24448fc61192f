"""A suite: the windows that a benchmark or a study runs on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from llm4dsr import columns as c
from llm4dsr.catalogue import Windows
from llm4dsr.data import Data, limit_windows, read_data
from llm4dsr.demo import make_demo
from llm4dsr.errors import DataError

DEMO = "demo"


@dataclass(frozen=True)
class Suite:
    """name: also the folder of its results."""

    name: str
    data: Data


def load(suite: str, natural: bool = False, limit: int = 0, seed: int = 0, tiny: bool = False) -> Suite:
    """The embedded demo, or a folder as `read_data` takes it. natural: the windows as they were before the noise, so
    that what is left is what was always there, and its truth is not known.

    limit: a sample of so many windows of each split (0 = all). tiny: a tiny demo. Raises DataError.
    """
    data = make_demo(seed, "tiny" if tiny else "full").data if suite == DEMO else read_data(suite)
    name = Path(suite).name + ("-tiny" if tiny and suite == DEMO else "")
    splits = {n: limit_windows(w, limit, seed) for n, w in data.splits.items()}
    if natural:
        if not all(knows_before(w) for w in splits.values()):
            raise DataError(
                f"--natural needs windows that know what stood there before the noise; {suite} has no whole column "
                f"{c.CLEAN_ITEMS!r}."
            )
        name += "-natural"
        splits = {n: before_noise(w) for n, w in splits.items()}
    return Suite(name + (f"-{limit}" if limit else ""), Data(data.catalogue, splits))


def knows_before(windows: Windows) -> bool:
    """True where it is known of every interaction what stood there before the noise."""
    return windows.clean_items is not None and bool((windows.clean_items[windows.present] >= 0).all())


def before_noise(windows: Windows) -> Windows:
    """What stood there before the noise; `knows_before` must be true."""
    assert windows.clean_items is not None
    return dataclasses.replace(windows, items=windows.clean_items, clean_items=None, noise_mask=None, weights=None)
