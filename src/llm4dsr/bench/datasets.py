"""The dataset that a benchmark or a study runs on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from llm4dsr import columns as c
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.demo import make_demo
from llm4dsr.data.read import read_data
from llm4dsr.data.windows import Windows, limit_windows
from llm4dsr.errors import DataError

DEMO = "demo"


@dataclass(frozen=True)
class BenchDataset:
    """Windows with a name, which is also the folder of their results.

    Attributes
    ----------
    name : str
    data : Dataset
    """

    name: str
    data: Dataset


def load_dataset(
    dataset: str, natural: bool = False, limit: int = 0, seed: int = 0, tiny: bool = False
) -> BenchDataset:
    """Load the embedded demo, or a folder as `read_data` takes it.

    Parameters
    ----------
    dataset : str
        "demo", or a folder.
    natural : bool, default False
        The windows as they were before noise was injected. Remaining noise is natural, and unknown.
    limit : int, default 0
        Windows sampled of each split; 0: all.
    seed : int, default 0
        Seed of the sample and of the demo.
    tiny : bool, default False
        A tiny demo.

    Raises
    ------
    DataError
        If the data cannot be read, or do not know what was there before the noise.
    """
    data = make_demo(seed, "tiny" if tiny else "full").data if dataset == DEMO else read_data(dataset)
    name = (DEMO if dataset == DEMO else Path(dataset).resolve().name) + ("-tiny" if tiny and dataset == DEMO else "")
    splits = {n: limit_windows(w, limit, seed) for n, w in data.splits.items()}
    if natural:
        if not all(knows_before(w) for w in splits.values()):
            raise DataError(
                f"--natural needs windows that know what stood there before the noise; {dataset} has no whole column "
                f"{c.CLEAN_ITEMS!r}."
            )
        name += "-natural"
        splits = {n: before_noise(w) for n, w in splits.items()}
    return BenchDataset(name + (f"-{limit}" if limit else ""), Dataset(data.catalogue, splits))


def knows_before(windows: Windows) -> bool:
    """Return whether it is known of every interaction what was there before the noise."""
    return windows.clean_items is not None and bool((windows.clean_items >= 0).all())


def before_noise(windows: Windows) -> Windows:
    """Return the windows as they were before the noise; `knows_before` must be true."""
    return dataclasses.replace(windows, items=windows.true_items(), clean_items=None, noise_mask=None, weights=None)
