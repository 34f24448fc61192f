"""Last.fm: artists are items.

- 1K users (zenodo.org/records/6090214): one line per song played. The item id is the artist's name, because many lines
  lack the MusicBrainz id.
- HetRec 2011, 2K users (grouplens.org/datasets/hetrec-2011): tags with times in ms, and play counts without times.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl

from llm4dsr import columns as c
from llm4dsr.data.sources.delimited import delimited
from llm4dsr.data.sources.lines import numbered_titles
from llm4dsr.data.sources.source import TIMES, Source, Tally, date_seconds, make_source

_PLAY: Final = (c.USER, c.TIME, "musicbrainz-artist-id", c.ITEM, "musicbrainz-track-id", "track-name")


def read_1k(log: Path, items: Path) -> Source:
    """Read one release.

    Parameters
    ----------
    log : Path
        userid-timestamp-artid-artname-traid-traname.tsv.
    items : Path
        The same file. It is read twice, once for the artists.

    Returns
    -------
    Source
    """

    def rows(tally: Tally) -> Iterator[pl.DataFrame]:
        for frame in delimited(log, "\t", _PLAY, {c.USER: pl.String, c.TIME: pl.String, c.ITEM: pl.String}, tally):
            yield date_seconds(frame, "%Y-%m-%dT%H:%M:%SZ", log, tally)

    def artists(tally: Tally) -> Iterator[pl.DataFrame]:
        known: pl.Series = pl.Series(c.ITEM, [], pl.String)
        for frame in delimited(items, "\t", _PLAY, {c.ITEM: pl.String}, Tally()):
            known = pl.concat([known, frame[c.ITEM]]).unique(maintain_order=True)
        known = known.filter(known != "")
        yield pl.DataFrame({c.ITEM: known, c.TITLE: known})

    return make_source("lastfm-1k", artists, rows)


def read_2k_tags(log: Path, items: Path) -> Source:
    """Read one release.

    Parameters
    ----------
    log : Path
        user_taggedartists-timestamps.dat.
    items : Path
        artists.dat.

    Returns
    -------
    Source
    """
    schema = {c.USER: pl.Int64, c.ITEM: pl.Int64, c.TIME: pl.Int64}

    def rows(tally: Tally) -> Iterator[pl.DataFrame]:
        for frame in delimited(log, "\t", (c.USER, c.ITEM, "tagID", c.TIME), schema, tally, titled=True):
            yield frame.with_columns(pl.from_epoch(c.TIME, "ms").cast(TIMES))

    return make_source("lastfm-2k-tags", lambda tally: [_artists(items, tally)], rows)


def read_2k_plays(log: Path, items: Path) -> Source:
    """Read one release.

    Parameters
    ----------
    log : Path
        user_artists.dat, which has no times.
    items : Path
        artists.dat.

    Returns
    -------
    Source
    """
    columns, schema = (c.USER, c.ITEM, "weight"), {c.USER: pl.Int64, c.ITEM: pl.Int64}
    return make_source(
        "lastfm-2k-plays",
        lambda tally: [_artists(items, tally)],
        lambda tally: delimited(log, "\t", columns, schema, tally, titled=True),
    )


def _artists(path: Path, tally: Tally) -> pl.DataFrame:
    """Read artists.dat: id, name, url and pictureURL, separated by tabs, with names in the first line."""
    return numbered_titles(path, tally, lambda line: line.split("\t")[:2], skip=1)
