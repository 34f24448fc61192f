"""Steam reviews (cseweb.ucsd.edu/~jmcauley/datasets.html#steam_data): reviewers are users, games are items.

Both files hold one printed Python dictionary per line. The user is `username`, since most lines have no `user_id`.
Times are days. Some games have an `app_name` but no `title`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from llm4dsr import columns as c
from llm4dsr.data.sources.lines import literal_lines
from llm4dsr.data.sources.source import Source, Tally, date_seconds, make_source


def read(log: Path, items: Path) -> Source:
    """Read one release.

    Parameters
    ----------
    log : Path
        steam_reviews.json.gz.
    items : Path
        steam_games.json.gz.

    Returns
    -------
    Source
    """

    def games(tally: Tally) -> Iterator[pl.DataFrame]:
        for frame in literal_lines(items, ("id", "title", "app_name"), tally):
            yield frame.select(pl.col("id").alias(c.ITEM), pl.coalesce("title", "app_name").alias(c.TITLE))

    def rows(tally: Tally) -> Iterator[pl.DataFrame]:
        for frame in literal_lines(log, ("username", "product_id", "date"), tally):
            frame = frame.rename({"username": c.USER, "product_id": c.ITEM, "date": c.TIME})
            yield date_seconds(frame, "%Y-%m-%d", log, tally)

    return make_source("steam", games, rows)
