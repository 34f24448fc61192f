"""MovieLens of GroupLens (grouplens.org/datasets/movielens): users rate movies from 0.5 or 1 to 5 stars.

- 100K: u.data with tabs; u.item with bars, in Latin-1.
- 1M and 10M: ratings.dat and movies.dat, with `::` between fields. The movies are in Latin-1 (1M) or UTF-8 (10M).
- 20M, 25M, 32M, latest and latest-small: ratings.csv and movies.csv.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from llm4dsr import columns as c
from llm4dsr.data.sources.delimited import delimited, header
from llm4dsr.data.sources.lines import numbered_titles
from llm4dsr.data.sources.source import Source, Tally, make_source
from llm4dsr.errors import DataError

_RATING: Final = {c.USER: pl.Int64, c.ITEM: pl.Int64, c.RATING: pl.Float64, c.TIME: pl.Int64}


def read_100k(log: Path, items: Path) -> Source:
    """Read one release.

    Parameters
    ----------
    log : Path
        u.data.
    items : Path
        u.item.

    Returns
    -------
    Source
    """
    return make_source(
        "movielens-100k",
        lambda tally: [numbered_titles(items, tally, lambda line: line.split("|")[:2])],
        lambda tally: delimited(log, "\t", list(_RATING), _RATING, tally),
    )


def read_dat(log: Path, items: Path) -> Source:
    """Read one release.

    Parameters
    ----------
    log : Path
        ratings.dat.
    items : Path
        movies.dat.

    Returns
    -------
    Source
    """
    # A separator has one letter: `1::2::5::978300760` has an empty column between any two.
    columns = [c.USER, "_1", c.ITEM, "_2", c.RATING, "_3", c.TIME]

    def fields(line: str) -> list[str]:
        number, _, rest = line.partition("::")
        return [number, rest.rpartition("::")[0]]  # a title may hold a colon, and genres follow it

    return make_source(
        "movielens-dat",
        lambda tally: [numbered_titles(items, tally, fields)],
        lambda tally: delimited(log, ":", columns, _RATING, tally),
    )


def read_csv(log: Path, items: Path) -> Source:
    """Read one release.

    Parameters
    ----------
    log : Path
        ratings.csv.
    items : Path
        movies.csv.

    Returns
    -------
    Source
    """

    def frames(path: Path, names: dict[str, str], schema: dict[str, object], tally: Tally) -> Iterator[pl.DataFrame]:
        found = header(path, ",")
        if not set(names) <= set(found):
            raise DataError(
                f"{path} has the columns {', '.join(found)}; expected {', '.join(names)}, as MovieLens has them."
            )
        columns = [names.get(name, name) for name in found]
        yield from delimited(path, ",", columns, schema, tally, titled=True, quoted=True)

    movie = {"movieId": c.ITEM, "title": c.TITLE}
    rating = {"userId": c.USER, "movieId": c.ITEM, "rating": c.RATING, "timestamp": c.TIME}
    return make_source(
        "movielens-csv",
        lambda tally: frames(items, movie, {c.ITEM: pl.Int64, c.TITLE: pl.String}, tally),
        lambda tally: frames(log, rating, dict(_RATING), tally),
    )
