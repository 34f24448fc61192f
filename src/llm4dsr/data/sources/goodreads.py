"""Goodreads, UCSD Book Graph (cseweb.ucsd.edu/~jmcauley/datasets/goodreads.html): books on a shelf are interactions.

The time is `date_added`, as in "Fri Apr 19 08:15:15 -0700 2013". A rating of 0 means that the user gave none.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from llm4dsr import columns as c
from llm4dsr.data.sources.lines import json_lines
from llm4dsr.data.sources.source import Source, Tally, date_seconds, make_source

_SHELVED: Final = {"user_id": pl.String, "book_id": pl.String, "date_added": pl.String, "rating": pl.Float64}


def read(log: Path, items: Path) -> Source:
    """Read one release.

    Parameters
    ----------
    log : Path
        goodreads_interactions_X.json.gz.
    items : Path
        goodreads_books_X.json.gz.

    Returns
    -------
    Source
    """

    def books(tally: Tally) -> Iterator[pl.DataFrame]:
        for frame in json_lines(items, {"book_id": pl.String, "title": pl.String}, tally):
            yield frame.rename({"book_id": c.ITEM, "title": c.TITLE})

    def rows(tally: Tally) -> Iterator[pl.DataFrame]:
        for frame in json_lines(log, _SHELVED, tally):
            frame = frame.rename({"user_id": c.USER, "book_id": c.ITEM, "date_added": c.TIME, "rating": c.RATING})
            frame = frame.with_columns(pl.when(pl.col(c.RATING) > 0).then(c.RATING).alias(c.RATING))
            yield date_seconds(frame, "%a %b %d %H:%M:%S %z %Y", log, tally)

    return make_source("goodreads", books, rows)
