"""Amazon reviews of 2014, 2018 and 2023: reviewers are users, products are items.

- 2014 (jmcauley.ucsd.edu/data/amazon): reviews are JSON lines, metadata are printed Python dictionaries.
- 2018 (nijianmo.github.io/amazon): both are JSON lines. Some titles are page code, which contains the word getTime;
  they
  count as missing titles.
- 2023 (amazon-reviews-2023.github.io): both are JSON lines. Products are identified by parent_asin; times are in ms.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from llm4dsr import columns as c
from llm4dsr.data.sources.lines import json_lines, literal_lines
from llm4dsr.data.sources.source import TIMES, Source, Tally, make_source

_REVIEW: Final = {"reviewerID": pl.String, "asin": pl.String, "unixReviewTime": pl.Int64, "overall": pl.Float64}
_REVIEW_2023: Final = {"user_id": pl.String, "parent_asin": pl.String, "timestamp": pl.Int64, "rating": pl.Float64}


def read_2014(log: Path, items: Path) -> Source:
    """Read one release.

    Parameters
    ----------
    log : Path
        reviews_X.json.gz or reviews_X_5.json.gz.
    items : Path
        meta_X.json.gz.

    Returns
    -------
    Source
    """

    def catalogue(tally: Tally) -> Iterator[pl.DataFrame]:
        for frame in literal_lines(items, ("asin", "title"), tally):
            yield frame.rename({"asin": c.ITEM, "title": c.TITLE})

    return make_source("amazon-2014", catalogue, lambda tally: _reviews(log, tally))


def read_2018(log: Path, items: Path) -> Source:
    """Read one release.

    Parameters
    ----------
    log : Path
        X.json.gz or X_5.json.gz.
    items : Path
        meta_X.json.gz.

    Returns
    -------
    Source
    """

    def catalogue(tally: Tally) -> Iterator[pl.DataFrame]:
        for frame in json_lines(items, {"asin": pl.String, "title": pl.String}, tally):
            title = pl.when(~pl.col("title").str.contains("getTime", literal=True)).then("title")
            yield frame.select(pl.col("asin").alias(c.ITEM), title.alias(c.TITLE))

    return make_source("amazon-2018", catalogue, lambda tally: _reviews(log, tally))


def read_2023(log: Path, items: Path) -> Source:
    """Read one release.

    Parameters
    ----------
    log : Path
        X.jsonl.gz.
    items : Path
        meta_X.jsonl.gz.

    Returns
    -------
    Source
    """

    def catalogue(tally: Tally) -> Iterator[pl.DataFrame]:
        for frame in json_lines(items, {"parent_asin": pl.String, "title": pl.String}, tally):
            yield frame.rename({"parent_asin": c.ITEM, "title": c.TITLE})

    def rows(tally: Tally) -> Iterator[pl.DataFrame]:
        for frame in json_lines(log, _REVIEW_2023, tally):
            yield frame.select(
                pl.col("user_id").alias(c.USER), pl.col("parent_asin").alias(c.ITEM),
                pl.from_epoch("timestamp", "ms").cast(TIMES).alias(c.TIME), pl.col("rating").alias(c.RATING),
            )  # fmt: skip

    return make_source("amazon-2023", catalogue, rows)


def _reviews(log: Path, tally: Tally) -> Iterator[pl.DataFrame]:
    for frame in json_lines(log, _REVIEW, tally):
        yield frame.rename({"reviewerID": c.USER, "asin": c.ITEM, "unixReviewTime": c.TIME, "overall": c.RATING})
