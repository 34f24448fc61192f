"""What every reader returns: a catalogue, and a log that is read in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.io import as_frame
from llm4dsr.data.ids import whole_numbers
from llm4dsr.data.times import dates_in, to_microseconds
from llm4dsr.errors import DataError

BATCH_ROWS: Final = 500_000
_EXAMPLES: Final = 5
EXTRAS: Final = (c.RATING, c.NOISE_MASK, c.CLEAN_ITEM)  # carried along where a table has them
LOG_EXTRAS: Final = (c.TIME, *EXTRAS)
TIMES: Final = pl.Datetime("us")  # of a log: UTC, null where unknown


@dataclass
class Tally:
    """Dropped rows.

    Attributes
    ----------
    counts : dict of str to int
        By reason.
    examples : dict of str to list of str
        The first few, by reason, as "file, line 12".
    """

    counts: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, rows: int = 1, where: str | None = None) -> None:
        """Count dropped rows; `where` is an example."""
        if rows:
            self.counts[reason] = self.counts.get(reason, 0) + rows
            places = self.examples.setdefault(reason, [])
            if where is not None and len(places) < _EXAMPLES:
                places.append(where)


@dataclass(frozen=True)
class LogTables:
    """Tables of your own, so that each of their rows can be found again.

    Attributes
    ----------
    log : Path
        The log: a file, or a folder of part files.
    parts : list of Path
        Its files, in the order in which they are read.
    items : Path or None
        The items; None if the log has a title in each row.
    columns : dict of str to str
        Our names → those of the log.
    names : list of str
        The columns of its files.
    """

    log: Path
    parts: list[Path]
    items: Path | None
    columns: dict[str, str]
    names: list[str]


@dataclass
class Source:
    """A log and its catalogue, as the publisher has them.

    Attributes
    ----------
    name : str
        For messages.
    items : DataFrame
        `item_id, title`, one row per item, titles not yet cleaned. Ids are Int64 or text, the same in both tables.
    rows : callable
        Yields raw frames of the log and counts what it skips; use `batches` instead.
    dropped_items : dict of str to int
        Rows that the catalogue dropped: no_title, missing_value, repeated_item, bad_line.
    others : callable
        Reads further columns of the items, which messages about unknown ids look at; None if there are none.
    tables : LogTables or None
        The files, if they are tables of your own. None: published data, or tables in memory.
    """

    name: str
    items: pl.DataFrame
    rows: Callable[[Tally], Iterator[pl.DataFrame]]
    dropped_items: dict[str, int] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)
    others: Callable[[], pl.DataFrame | None] = lambda: None
    tables: LogTables | None = None

    @property
    def dropped(self) -> dict[str, int]:
        """Rows of the log that `batches` dropped so far, by reason: bad_line, missing_value."""
        return self.tally.counts

    @property
    def examples(self) -> dict[str, list[str]]:
        """Where the first few dropped rows were, by reason, as "file, line 12"."""
        return self.tally.examples

    def batches(self) -> Iterator[pl.DataFrame]:
        """Yield the log in the order of the file, in batches of 500,000 rows, so that memory is bounded.

        Can be called again; counting then starts at zero.

        Yields
        ------
        DataFrame
            `user_id, item_id, timestamp`, and if known `rating, noise_mask, clean_item_id`. Timestamps have the type
            TIMES, so that what happened within a second keeps its order.

        Raises
        ------
        DataError
            If the file is cut off or of another format.
        """
        tally = self.tally = Tally()
        waiting: list[pl.DataFrame] = []
        for frame in self.rows(tally):
            waiting.append(_complete(frame, tally))
            while sum(map(len, waiting)) >= BATCH_ROWS:
                whole = pl.concat(waiting)
                yield whole[:BATCH_ROWS]
                waiting = [whole[BATCH_ROWS:]]
        if waiting and (rest := pl.concat(waiting)).height:
            yield rest


def _complete(frame: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    """The columns of a batch in their order and types, without incomplete rows."""
    needed = (c.USER, c.ITEM)
    if c.TIME not in frame.columns:
        frame = frame.with_columns(pl.lit(None, TIMES).alias(c.TIME))
    elif frame.schema[c.TIME] != TIMES:  # whole seconds, as most publishers write them
        frame = frame.with_columns(pl.from_epoch(pl.col(c.TIME).cast(pl.Int64)).cast(TIMES))
    extras = [name for name in EXTRAS if name in frame.columns]
    frame = frame.select(c.USER, c.ITEM, c.TIME, *extras)
    empty = [name for name in needed if frame.schema[name] == pl.String]
    full = frame.filter(
        pl.all_horizontal([pl.col(name).is_not_null() for name in needed] + [pl.col(name) != "" for name in empty])
    )
    tally.add("missing_value", len(frame) - len(full))
    return full


def make_source(
    name: str, items: Callable[[Tally], Iterable[pl.DataFrame]], rows: Callable[[Tally], Iterator[pl.DataFrame]]
) -> Source:
    """Make a Source whose catalogue is read now, and whose log on demand."""
    tally = Tally()
    known, dropped = catalogue_of(joined(items(tally), f"the items of {name}"), tally)
    return Source(name, known, rows, dropped)


def joined(frames: Iterable[pl.DataFrame], what: str) -> pl.DataFrame:
    """Concatenate frames. Raises DataError if there is none, as for an empty file."""
    parts = list(frames)
    if not parts:
        raise DataError(f"The file of {what} is empty. Download or write it again.")
    return pl.concat(parts)


def catalogue_of(items: pl.DataFrame, tally: Tally | None = None) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return (`item_id, title` with one row per item, dropped rows by reason). The first title of an item stays."""
    tally = Tally() if tally is None else tally
    known = items.select(c.ITEM, pl.col(c.TITLE).cast(pl.String)).filter(pl.col(c.ITEM).is_not_null())
    if known.schema[c.ITEM] == pl.String:
        known = known.filter(pl.col(c.ITEM) != "")
    titled = known.filter(pl.col(c.TITLE).str.strip_chars().str.len_bytes() > 0)
    once = titled.unique(c.ITEM, keep="first", maintain_order=True)
    tally.add("missing_value", len(items) - len(known))
    tally.add("no_title", len(known) - len(titled))
    tally.add("repeated_item", len(titled) - len(once))
    if once.is_empty():
        raise DataError(f"None of the {len(items)} row(s) of the items has an id and a title. The method reads titles.")
    return once, tally.counts


def from_frames(interactions: Any, items: Any, columns: Mapping[str, str] | None = None) -> Source:
    """Make a Source from two tables in memory: pandas, Polars or Arrow.

    Parameters
    ----------
    interactions : table
        User and item ids, and optionally times (seconds, dates or ISO text) and ratings.
    items : table
        Ids and titles.
    columns : mapping, optional
        Where names differ, ours → yours, as in {"user_id": "visitor", "title": "name"}.

    Raises
    ------
    DataError
        If a column is missing or has a type that cannot be used.
    """
    log, catalogue = as_frame(interactions, "the interactions"), as_frame(items, "the items")
    left_out = Tally()
    check_mapping(columns, {"the interactions": log.columns}, {"the items": catalogue.columns})
    log = renamed(log, columns, (c.USER, c.ITEM), LOG_EXTRAS, "the interactions")
    log = typed_log(log, "the interactions", "the interactions", left_out)
    known, dropped = catalogue_of(typed(renamed(catalogue, columns, (c.ITEM, c.TITLE), (), "the items"), "the items"))
    known, log = one_type([known, log])

    def rows(tally: Tally) -> Iterator[pl.DataFrame]:
        for reason, count in left_out.counts.items():
            tally.add(reason, count, left_out.examples[reason][0])
        yield from log.iter_slices(BATCH_ROWS)

    return Source("tables in memory", known, rows, dropped)


def one_type(frames: list[pl.DataFrame]) -> list[pl.DataFrame]:
    """Return the frames with item ids of one type: as they are, or as text, which can hold both 12 and "12"."""
    ids = (c.ITEM, c.CLEAN_ITEM)
    if len({frame.schema[name] for frame in frames for name in ids if name in frame.columns}) < 2:
        return frames
    return [frame.with_columns(pl.col(n).cast(pl.String) for n in ids if n in frame.columns) for frame in frames]


def renamed(
    frame: pl.DataFrame,
    columns: Mapping[str, str] | None,
    needed: tuple[str, ...],
    optional: tuple[str, ...],
    where: str,
) -> pl.DataFrame:
    """Return the needed and optional columns under our names. Raises DataError that names the missing one."""
    return frame.select(
        pl.col(theirs).alias(ours) for ours, theirs in pick(frame.columns, columns, needed, optional, where).items()
    )


def pick(
    found: list[str],
    columns: Mapping[str, str] | None,
    needed: tuple[str, ...],
    optional: tuple[str, ...],
    where: str,
) -> dict[str, str]:
    """Find our columns in a table, which may use our names in spite of `columns`.

    Returns
    -------
    dict of str to str
        Our name → the name in the table, for the columns that it has.

    Raises
    ------
    DataError
        If a needed column is missing.
    """
    columns = columns or {}
    out = {}
    for name in (*needed, *optional):
        theirs = next((n for n in (columns.get(name), name) if n in found), None)
        if theirs is not None:
            out[name] = theirs
        elif name in needed:
            raise missing(name, found, columns, where)
    return out


def check_mapping(
    columns: Mapping[str, str] | None, log: Mapping[str, Sequence[str]], items: Mapping[str, Sequence[str]]
) -> None:
    """Check that a table has each column that is named, since `pick` takes ours where it has not.

    Parameters
    ----------
    columns : mapping or None
        Our names → theirs. One of an id or a title may be in either table, the others are columns of the log.
    log, items : mapping of str to sequence of str
        Name for messages → columns, of each file of the log and of the items. Nothing is checked where all are empty.

    Raises
    ------
    DataError
        If a column is in no table, or `columns` has a name that is not ours.
    """
    ours = (c.USER, c.ITEM, c.TITLE, *LOG_EXTRAS)
    for name, theirs in (columns or {}).items():
        if name not in ours:
            raise DataError(f"There is no column {name!r} to name; expected our name out of {', '.join(ours)}.")
        tables = {**log, **(items if name in (c.ITEM, c.TITLE) else {})}
        found = list(dict.fromkeys(column for names in tables.values() for column in names))
        if found and theirs not in found:
            raise missing(name, found, columns, " and ".join(tables))


def missing(name: str, found: Iterable[str], columns: Mapping[str, str] | None, where: str) -> DataError:
    """Return the error about a missing column."""
    wanted = f"{columns[name]!r} (for {name})" if columns and name in columns else repr(name)
    return DataError(
        f"{where}: the columns are {', '.join(found)}, but {wanted} is missing. Rename a column, or say which it is "
        f"with --column {name}=NAME (in Python, with the argument columns)."
    )


def typed_log(frame: pl.DataFrame, where: str, name: str, tally: Tally) -> pl.DataFrame:
    """`typed`, without rows whose time is unreadable text (bad_line)."""
    out = typed(frame, where)
    if frame.schema.get(c.TIME) != pl.String:
        return out
    bad = out[c.TIME].is_null() & frame[c.TIME].is_not_null() & (frame[c.TIME].str.strip_chars() != "")
    for value in frame[c.TIME].filter(bad).head(1).to_list():
        tally.add("bad_line", int(bad.sum()), f"{name}, {c.TIME} {value!r}")
    return out.filter(~bad)


def typed(frame: pl.DataFrame, where: str) -> pl.DataFrame:
    """Return ids as Int64 or text, times as TIMES, ratings as Float64. Raises DataError for unusable types."""
    changes = []
    for name, kind in frame.schema.items():
        if name in (c.USER, c.ITEM, c.CLEAN_ITEM):
            changes.append(_ids(frame[name], where))
        elif name == c.TIME:
            changes.append(to_microseconds(frame[name], where).cast(TIMES))
        elif name == c.RATING:
            if not (kind.is_numeric() or kind in (pl.String, pl.Null)):
                raise DataError(f"{name!r} of {where} has the type {kind}; expected numbers.")
            changes.append(frame[name].cast(pl.Float64, strict=False).fill_nan(None))
        elif name == c.NOISE_MASK:
            changes.append(frame[name].cast(pl.Int8, strict=False))
        elif not (kind in (pl.String, pl.Null) or kind.is_numeric() or isinstance(kind, (pl.Categorical, pl.Enum))):
            raise DataError(f"{name!r} of {where} has the type {kind}; expected text.")
    return frame.with_columns(changes)


def _ids(ids: pl.Series, where: str) -> pl.Series:
    kind = ids.dtype
    if kind == pl.String:
        return ids
    if isinstance(kind, (pl.Categorical, pl.Enum)) or (kind == pl.UInt64 and (ids > 2**63 - 1).any()):
        return ids.cast(pl.String)
    if kind == pl.Null or kind.is_integer():
        return ids.cast(pl.Int64)
    if kind.is_float():  # what pandas makes of whole numbers when some are missing
        whole = whole_numbers(ids)
        if whole.dtype == pl.Int64:
            return whole
    raise DataError(f"{ids.name!r} of {where} has the type {kind}; expected ids that are whole numbers or text.")


def date_seconds(frame: pl.DataFrame, form: str, path: Path, tally: Tally) -> pl.DataFrame:
    """Return the frame with its `timestamp`, text of a date in the given form, in seconds; other rows are dropped."""
    text = frame[c.TIME]
    seconds = dates_in(text.str.strip_chars(), form) // 10**6
    bad = seconds.is_null() & text.is_not_null() & (text != "")
    for value in text.filter(bad).head(1).to_list():
        tally.add("bad_line", int(bad.sum()), f"{path.name}, date {value!r}")
    return frame.with_columns(seconds.alias(c.TIME)).filter(~bad)
