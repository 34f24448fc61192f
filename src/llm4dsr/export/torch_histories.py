"""Windows as a data set of PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.read import as_windows
from llm4dsr.data.windows import Windows
from llm4dsr.errors import DataError


class TorchHistories(Dataset[dict[str, torch.Tensor]]):
    """Windows as tensors, padded on the left, for a `DataLoader`.

    Items are numbered from 1 in the order of the catalogue; 0 pads.

    Parameters
    ----------
    windows : Windows
        W windows. The last item of each is the target.
    width : int, optional
        Items of a history; older ones are cut off. Default: those of the longest.

    Examples
    --------
    >>> from llm4dsr.data.windows import Windows
    >>> windows = Windows.from_lists([[4, 2, 0], [1, 3]])
    >>> windows.weights = np.array([1.0, 0.25, 1.0, 1.0, 1.0])
    >>> histories = TorchHistories(windows)
    >>> len(histories), {name: value.tolist() for name, value in histories[0].items()}
    (2, {'items': [5, 3], 'weights': [1.0, 0.25], 'target': 1, 'target_weight': 1.0})
    >>> histories[1]["items"].tolist()
    [0, 2]
    """

    def __init__(self, windows: Windows, width: int | None = None) -> None:
        histories = windows.histories()
        self.width = int(histories.lengths.max(initial=1)) if width is None else width
        if self.width < 1:
            raise DataError(f"width is {self.width}; expected at least 1.")
        weights = np.ones(len(windows.items)) if windows.weights is None else windows.weights
        newest = np.repeat(histories.lengths, histories.lengths) - histories.positions  # 1 = the newest
        rows, kept = histories.owners, newest <= self.width
        at = rows[kept], (self.width - newest)[kept]
        items, of_items = (
            np.zeros((len(windows), self.width), np.int64),
            np.zeros((len(windows), self.width), np.float32),
        )
        items[at] = histories.items[kept] + 1
        of_items[at] = weights[~windows.is_last][kept]
        self.items, self.weights = torch.from_numpy(items), torch.from_numpy(of_items)
        self.targets = torch.from_numpy(windows.targets().astype(np.int64) + 1)
        self.target_weights = torch.from_numpy(weights[windows.offsets[1:] - 1].astype(np.float32))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return `items` and `weights`, [width]; `target` and `target_weight`, numbers."""
        return {
            "items": self.items[index], "weights": self.weights[index],
            "target": self.targets[index], "target_weight": self.target_weights[index],
        }  # fmt: skip


def to_torch(windows: Any, catalogue: Catalogue, width: int | None = None) -> TorchHistories:
    """Return windows as a data set of PyTorch.

    Parameters
    ----------
    windows : Windows or table
        With targets; `weights` are taken along.
    catalogue : Catalogue
        The items.
    width : int, optional
        As in `TorchHistories`.
    """
    return TorchHistories(as_windows(windows, catalogue), width)
