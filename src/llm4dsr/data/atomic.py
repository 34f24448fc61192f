"""Atomic files of RecBole: tab-separated columns whose names have types, as in `item_id:token`.

`X.inter` has interactions and `X.item` has items. A log that RecBole has split into sequences is `X.train.inter`,
`X.valid.inter` and `X.test.inter`, with the history in `item_id_list` and the target in `item_id`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import Final

import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.text import sample_of
from llm4dsr.data.ids import text_ids
from llm4dsr.errors import DataError

INTER: Final = ".inter"
ITEM: Final = ".item"
ATOMIC: Final = (INTER, ITEM)
ITEM_LIST: Final = "item_id_list"  # a history, separated by spaces
_TITLES: Final = (c.TITLE, "name", "item_title", "item_name")
_QUOTED: Final = r'^"(?:[^"]|"")*""(?:[^"]|"")*"$'  # as csv writers quote a title with quotes; RecBole does not


def plain_names(names: Sequence[str]) -> list[str]:
    """Return the names of the columns without their types.

    Examples
    --------
    >>> plain_names(["user_id:token", "rating:float"])
    ['user_id', 'rating']
    """
    return [name.rsplit(":", 1)[0].strip() for name in names]


def title_column(names: Sequence[str]) -> str | None:
    """Return the column with the titles: `title`, `name`, or the only one such as `movie_title`; None if unclear.

    Examples
    --------
    >>> title_column(["item_id", "movie_title", "class"])
    'movie_title'
    """
    known = next((name for name in _TITLES if name in names), None)
    ending = [name for name in names if name.endswith("_title")]
    return known or (ending[0] if len(ending) == 1 else None)


def has_sequences(path: Path) -> bool:
    """Return whether a .inter file holds windows instead of single interactions."""
    return ITEM_LIST in plain_names((sample_of(path).splitlines() or [""])[0].split("\t"))


def unquoted(titles: pl.Series) -> pl.Series:
    """Return titles without the quotes that csv writers put around a title that has some itself."""
    bare = titles.str.slice(1, titles.str.len_chars().cast(pl.Int64) - 2).str.replace_all('""', '"', literal=True)
    return titles.zip_with(~titles.str.contains(_QUOTED).fill_null(False), bare)


def read_atomic(text: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Turn an atomic file, read as text, into a table of ours.

    Parameters
    ----------
    text : DataFrame
        All columns as text, under the names of the file.
    path : Path
        The file, for messages; its ending says what it holds.

    Returns
    -------
    DataFrame
        `item_id, title`; or `user_id, item_id, timestamp`; or `window_id, user_id, item_ids` for sequences.

    Raises
    ------
    DataError
        If a column is missing.
    """
    frame = text.rename(dict(zip(text.columns, plain_names(text.columns), strict=True)))
    if path.suffix == ITEM:
        title = title_column(frame.columns)
        if title is None or c.ITEM not in frame.columns:
            raise _lacks(path, frame.columns, c.ITEM if c.ITEM not in frame.columns else c.TITLE)
        return frame.select(text_ids(frame[c.ITEM]), unquoted(frame[title]).alias(c.TITLE))
    lacking = [name for name in (c.USER, c.ITEM) if name not in frame.columns]
    if lacking:
        raise _lacks(path, frame.columns, lacking[0])
    columns = [text_ids(frame[c.USER]), text_ids(frame[c.ITEM])]
    if c.TIME in frame.columns:
        columns.append(frame[c.TIME].cast(pl.Float64, strict=False).floor().cast(pl.Int64, strict=False))
    log = pl.DataFrame(columns)
    if ITEM_LIST not in frame.columns:
        return log
    history = frame[ITEM_LIST].fill_null("").str.split(" ").list.eval(pl.element().filter(pl.element() != ""))
    whole = pl.concat_list(history, frame[c.ITEM])
    lists = frame.select(whole.alias(c.ITEMS))[c.ITEMS]
    if text_ids(lists.explode()).dtype == pl.Int64:
        lists = lists.list.eval(pl.element().str.strip_suffix(".0").cast(pl.Int64))
    return log.drop(c.ITEM).with_columns(lists).with_row_index(c.WINDOW).cast({c.WINDOW: pl.Int64})


def _lacks(path: Path, found: Sequence[str], name: str) -> DataError:
    return DataError(
        f"{path} has the columns {', '.join(found)}; none of them is {name}. Name it:  "
        f"llm4dsr data prepare {quote(str(path.parent))} --column {name}=NAME  builds the windows."
    )
