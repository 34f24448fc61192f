"""Yelp Open Dataset (business.yelp.com/data/resources/open-dataset): businesses are items; the title is the name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from llm4dsr import columns as c
from llm4dsr.data.sources.lines import json_lines
from llm4dsr.data.sources.source import Source, Tally, date_seconds, make_source

_REVIEW: Final = {"user_id": pl.String, "business_id": pl.String, "date": pl.String, "stars": pl.Float64}


def read(log: Path, items: Path) -> Source:
    """Read one release.

    Parameters
    ----------
    log : Path
        yelp_academic_dataset_review.json. Times are local.
    items : Path
        yelp_academic_dataset_business.json.

    Returns
    -------
    Source
    """

    def businesses(tally: Tally) -> Iterator[pl.DataFrame]:
        for frame in json_lines(items, {"business_id": pl.String, "name": pl.String}, tally):
            yield frame.rename({"business_id": c.ITEM, "name": c.TITLE})

    def rows(tally: Tally) -> Iterator[pl.DataFrame]:
        for frame in json_lines(log, _REVIEW, tally):
            frame = frame.rename({"user_id": c.USER, "business_id": c.ITEM, "date": c.TIME, "stars": c.RATING})
            yield date_seconds(frame, "%Y-%m-%d %H:%M:%S", log, tally)

    return make_source("yelp", businesses, rows)
