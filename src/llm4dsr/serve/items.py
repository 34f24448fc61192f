"""Find the items of requests: those of the catalogue, and those that a request brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from llm4dsr import columns as c
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.errors import DataError
from llm4dsr.serve.schema import HistoryError, Id, Request

SHOWN = 10  # unknown ids that an answer repeats
EXPLAINED = 10  # a history with explanations takes about as long as so many without


@dataclass
class Query:
    """A request whose items were looked up.

    Attributes
    ----------
    request : Request
        The request.
    rows : list of (list of int or None)
        Catalogue rows of each history; None where an item is unknown.
    errors : dict of int to HistoryError
        What is wrong with such histories, by their place in the request.
    new : DataFrame or None
        Items that the request brings, whose rows follow those of the catalogue.
    """

    request: Request
    rows: list[list[int] | None]
    errors: dict[int, HistoryError] = field(default_factory=dict)
    new: pl.DataFrame | None = None

    def work(self, width: int) -> int:
        """How much there is to compute, in histories of at most `width` items."""
        parts = sum(max(1, -(-len(rows) // width)) for rows in self.rows if rows is not None)
        return max(1, parts * (EXPLAINED if self.request.explain else 1))


class Items:
    """The items of a catalogue by the ids that JSON has for them.

    Parameters
    ----------
    catalogue : Catalogue
        Ids that are neither integers nor text are known by their text.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        ids = (as_json(value) for value in catalogue.ids.to_list())
        self._rows: dict[Id, int] = {value: row for row, value in enumerate(ids)}
        self._dtype = catalogue.ids.dtype
        self.kind = "integers" if self._dtype.is_integer() else "text"

    def look_up(self, request: Request) -> Query:
        """Look up all items of a request.

        Raises
        ------
        DataError
            If an id of the request's own items has another type than those of the catalogue.
        """
        new = {item.item_id: item.title for item in request.items if item.item_id not in self._rows}
        extra = {item_id: len(self._rows) + place for place, item_id in enumerate(new)}
        out = Query(request, [], new=self._table(new) if new else None)
        for place, history in enumerate(request.histories):
            rows = [self._rows.get(item, -1) for item in history.item_ids]
            if extra:
                rows = [
                    extra.get(item, -1) if row < 0 else row for row, item in zip(rows, history.item_ids, strict=True)
                ]
            if -1 in rows:
                out.rows.append(None)
                unknown = [item for row, item in zip(rows, history.item_ids, strict=True) if row < 0]
                out.errors[place] = self._error(list(dict.fromkeys(unknown)))
            else:
                out.rows.append(rows)
        return out

    def _error(self, unknown: Sequence[Id]) -> HistoryError:
        told = (
            f"{len(unknown)} item(s) are not in the catalogue, whose ids are {self.kind}. Send their titles in `items`."
        )
        return HistoryError(code="unknown_items", message=told, item_ids=list(unknown[:SHOWN]))

    def _table(self, new: dict[Id, str]) -> pl.DataFrame:
        try:
            ids = pl.Series(c.ITEM, list(new), dtype=self._dtype, strict=True)
        except (TypeError, OverflowError, pl.exceptions.PolarsError):
            raise DataError(f"An id in `items` is of another type than those of the catalogue: {self.kind}.") from None
        return pl.DataFrame([ids, pl.Series(c.TITLE, list(new.values()), dtype=pl.String)])


def as_json(value: Any) -> Id:
    """Return an item id as JSON has it."""
    return value if isinstance(value, int | str) and not isinstance(value, bool) else str(value)
