"""Labels that training learns from: reviewed items of users, wherever their windows hold them.

A window overlaps with others of its user, and next week's windows have other ids. So a label is about a user and an
item, and holds in all windows of that user.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.arrays import BoolArray, among
from llm4dsr.core.hashing import Hashes, digest, item_hashes, user_hashes
from llm4dsr.core.progress import log
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.ids import explain_mismatch
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.labels import EMPTY, check_values, judged
from llm4dsr.errors import DataError

EXPECTED = (c.USER, c.ITEM, c.IS_NOISE)
UNLABELED = -1
LABEL_WEIGHT = 10.0  # of a labeled interaction beside an unlabeled or injected one, which may be wrong
Labels = npt.NDArray[np.int8]  # [n] of each interaction: 1 noise, 0 none, UNLABELED


@dataclass(frozen=True)
class TrainingLabels:
    """Which items of which users are noise, as reviewers said.

    Attributes
    ----------
    keys : array of uint64
        [L] sorted hashes of (user, catalogue row).
    is_noise : array of bool
        [L].
    """

    keys: Hashes
    is_noise: BoolArray

    @classmethod
    def of(cls, table: pl.DataFrame, catalogue: Catalogue) -> TrainingLabels:
        """Read a table of labels.

        Parameters
        ----------
        table : DataFrame
            `user_id`, `item_id`, and `is_noise`, 0 or 1. `answer`, as `review` writes it, is optional: interactions
            that were accepted without a look teach nothing. Labels of items that are not in the catalogue, and items of
            a user with both labels, are left out and logged.
        catalogue : Catalogue
            The items.

        Raises
        ------
        DataError
            If a column is missing, a label is neither 0 nor 1, or no label is left.
        """
        missing = [name for name in EXPECTED if name not in table.columns]
        if missing:
            raise DataError(
                f"The labels lack {', '.join(missing)}; training expects the columns {', '.join(EXPECTED)}. "
                "labels.csv of the review page has them."
            )
        table = judged(table)
        check_values(table)
        if table.is_empty():
            raise DataError(EMPTY)
        ids = pl.DataFrame({c.ITEM: catalogue.ids.cast(pl.String), "row": np.arange(len(catalogue))})
        asked = table.select(pl.col(c.ITEM).cast(pl.String))
        rows = asked.join(ids, on=c.ITEM, how="left", maintain_order="left")["row"].fill_null(-1).to_numpy()
        known = rows >= 0
        if not known.any():
            why = explain_mismatch(table[c.ITEM], catalogue.ids, "the labels")
            raise DataError(f"No label is about an item of the catalogue. {why}")
        users = user_hashes(table[c.USER])[known]
        keys, is_noise = item_hashes(users, rows[known]), table[c.IS_NOISE].cast(pl.Float64).to_numpy()[known] > 0
        unique, at, count = np.unique(keys, return_inverse=True, return_counts=True)
        noise = np.bincount(at, weights=is_noise, minlength=len(unique))
        agree = (noise == 0) | (noise == count)
        unknown, opposed = int((~known).sum()), int((~agree[at]).sum())
        if unknown or opposed:
            log.warning(
                "%d label(s) are left out: %d about items that are not in the catalogue, %d about items that a user "
                "has with both labels.", unknown + opposed, unknown, opposed,
            )  # fmt: skip
        return cls(unique[agree], noise[agree] > 0)

    def find(self, windows: Windows) -> Labels:
        """Return the label of each interaction [n] of windows; UNLABELED for most."""
        out = np.full(len(windows.items), UNLABELED, dtype=np.int8)
        if len(self.keys):
            keys = item_hashes(user_hashes(windows.user_ids)[windows.owners], windows.items)
            found = among(self.keys, keys)
            out[found] = self.is_noise[np.searchsorted(self.keys, keys[found])]
        return out

    @property
    def fingerprint(self) -> str:
        """A hash; equal for equal labels."""
        return digest(self.keys, self.is_noise)


NO_LABELS = TrainingLabels(np.empty(0, np.uint64), np.empty(0, np.bool_))
