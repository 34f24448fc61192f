"""Describe a data folder in numbers, a log or windows, without loading either completely."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.io import as_data_error
from llm4dsr.core.text import is_utf16_file, separator_of
from llm4dsr.data.atomic import ATOMIC
from llm4dsr.data.catalogue import clean_titles
from llm4dsr.data.files import find_files, read_file
from llm4dsr.data.ids import without_decimals
from llm4dsr.data.times import to_microseconds
from llm4dsr.errors import DataError

QUANTILES: Final = {"min": 0.0, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}


def describe(path: str | Path) -> dict[str, Any]:
    """Count and summarize the data in a folder that `read_data` takes.

    In windows, an interaction counts once for each window that holds it.

    Parameters
    ----------
    path : str or Path
        The folder.

    Returns
    -------
    dict
        Plain values, ready for JSON:

        - `form`: "log" or "windows". `users`, `items`, `interactions`: counts; only items with interactions count.
        - `windows`: of each split. `history_length`: interactions per user, or items per window with its target.
        - `popularity`: `top_1_percent`, the fraction of interactions with the most popular 1 % of the items, and `gini`
          (0 = all equally popular, near 1 = all interactions with one item).
        - `time`: `first` and `last` as ISO dates in UTC, or None.
        - `repeats`: `count` and `share` of interactions with an item that the user had before, or that occurs earlier
          in the
          same window.
        - `titles`: items in the table, those `without_title`, `duplicates`, and the `length` of titles in characters.
        - `never_taken`, `unknown`: items never taken, and items of interactions that the table lacks.
        - `noise`: the fraction of known noise, of each split or of the log, or None.

    Raises
    ------
    DataError
        If a file or column is missing or cannot be read.
    """
    files = find_files(Path(path))
    items = files.pop(c.ITEMS_FILE)
    with _readable(items):
        catalogue = _needs(_scan(items), items, c.ITEM, c.TITLE).select(c.ITEM, c.TITLE).collect()
    tables = {name: _scan(file) for name, file in files.items()}
    if c.LOG_FILE in files:
        with _readable(files[c.LOG_FILE]):
            found, taken = _log(_needs(tables[c.LOG_FILE], files[c.LOG_FILE], c.USER, c.ITEM))
    else:
        with _readable(items.parent):
            found, taken = _windows({k: _needs(t, files[k], c.USER, c.ITEMS) for k, t in tables.items()})
    known = without_decimals(catalogue[c.ITEM].drop_nulls().cast(pl.String))
    used = without_decimals(taken[c.ITEM].cast(pl.String))
    counts = taken["count"].to_numpy()
    return {
        **found,
        "items": len(taken),
        "interactions": int(counts.sum()),
        "popularity": {"top_1_percent": _top_share(counts), "gini": _gini(counts)},
        "titles": _titles(catalogue[c.TITLE]),
        "never_taken": int((~known.is_in(used.implode())).sum()),
        "unknown": int((~used.is_in(known.implode())).sum()),
    }


def describe_text(description: dict[str, Any]) -> str:
    """Render `describe` as lines of text, with numbers and names of splits only."""
    d = description
    lengths, titles, popularity = d["history_length"], d["titles"], d["popularity"]
    lines = {
        "holds": f"{d['interactions']:,} interactions of {d['users']:,} users with {d['items']:,} items",
        "windows": ", ".join(f"{name} {count:,}" for name, count in d["windows"].items()),
        "noise": ", ".join(f"{name} {_percent(share)}" for name, share in (d["noise"] or {}).items()) or "not known",
        "time": f"{d['time']['first'][:10]} to {d['time']['last'][:10]}" if d["time"] else "not known",
        "interactions per user" if d["form"] == "log" else "items per window": _spread(lengths),
        "popularity": f"the top 1 % of the items have {_percent(popularity['top_1_percent'])} of the interactions; "
        f"Gini {popularity['gini']:.2f}",
        "repeats": f"{d['repeats']['count']:,} interactions ({_percent(d['repeats']['share'])}) with an item "
        + ("that the user had before" if d["form"] == "log" else "that stands earlier in the window"),
        "titles": f"{titles['items']:,} items; {titles['without_title']:,} without a title, "
        f"{titles['duplicates']:,} with that of an earlier item",
        "title length": _spread(titles["length"]) + " characters",
        "items never taken": f"{d['never_taken']:,}",
        "items without an entry": f"{d['unknown']:,}",
    }  # fmt: skip
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines.items() if text)


def _spread(found: dict[str, float] | None) -> str:
    if found is None:
        return "none"
    return (
        f"{found['min']:,} to {found['max']:,}; median {found['median']:,}, mean {found['mean']:,.1f}, "
        f"95 % up to {found['p95']:,}"
    )


def _percent(share: float) -> str:
    return f"{share:.1%}"


# --- the two forms ---------------------------------------------------------------------------------------------------


def _log(log: pl.LazyFrame) -> tuple[dict[str, Any], pl.DataFrame]:
    """(what `describe` reports of a log, its items with the `count` of interactions)."""
    names = log.collect_schema().names()
    log = log.filter(pl.col(c.USER).is_not_null() & pl.col(c.ITEM).is_not_null())
    taken = _stream(log.group_by(c.ITEM).agg(pl.len().alias("count")))
    lengths = _stream(log.group_by(c.USER).agg(pl.len()))["len"]
    pairs = int(_stream(log.select(pl.struct(c.USER, c.ITEM).hash().n_unique())).item())
    rows = int(taken["count"].sum())
    is_noise = (
        pl.col(c.NOISE_MASK).cast(pl.Float64)
        if c.NOISE_MASK in names
        else pl.col(c.ITEM).ne_missing(pl.col(c.CLEAN_ITEM))
        if c.CLEAN_ITEM in names
        else None
    )
    noise = None if is_noise is None else _stream(log.select(is_noise.mean())).item()
    return {
        "form": "log",
        "users": len(lengths),
        "windows": {},
        "history_length": _quantiles(lengths),
        "time": _time([_ends(log)] if c.TIME in names else []),
        "repeats": {"count": rows - pairs, "share": (rows - pairs) / max(1, rows)},
        "noise": None if noise is None else {"log": noise},
    }, taken


def _windows(splits: dict[str, pl.LazyFrame]) -> tuple[dict[str, Any], pl.DataFrame]:
    """The same of windows."""
    entries, users, lengths, ends = [], [], [], []
    repeats, noise = 0, dict[str, float]()
    for name, table in splits.items():
        kind = table.collect_schema()[c.ITEMS]
        if not isinstance(kind, pl.List):
            raise DataError(f"{c.ITEMS!r} of {name} has the type {kind}; expected a list of item ids, oldest first.")
        listed = pl.col(c.ITEMS)
        entries.append(_stream(table.select(listed.explode().alias(c.ITEM)).drop_nulls().group_by(c.ITEM).len("count")))
        users.append(_stream(table.select(pl.col(c.USER).unique())))
        part = _stream(
            table.select(listed.list.len().alias("n"), (listed.list.len() - listed.list.n_unique()).alias("r"))
        )
        lengths.append(part["n"].drop_nulls())
        repeats += int(part["r"].sum())
        if c.TIME in table.collect_schema():
            ends.append(_ends(table.filter(pl.col(c.TIME) >= 0)))  # -1: unknown
        if c.NOISE_MASK in table.collect_schema():
            share = _stream(table.select(pl.col(c.NOISE_MASK).explode().cast(pl.Float64).mean())).item()
            noise |= {} if share is None else {name: share}
    taken = pl.concat(entries, how="vertical_relaxed").group_by(c.ITEM).agg(pl.col("count").sum())
    rows = int(taken["count"].sum())
    return {
        "form": "windows",
        "users": pl.concat(users, how="vertical_relaxed")[c.USER].n_unique(),
        "windows": {name: len(part) for name, part in zip(splits, lengths, strict=True)},
        "history_length": _quantiles(pl.concat(lengths)),
        "time": _time(ends),
        "repeats": {"count": repeats, "share": repeats / max(1, rows)},
        "noise": noise or None,
    }, taken


# --- numbers ---------------------------------------------------------------------------------------------------------


def _quantiles(values: pl.Series) -> dict[str, float] | None:
    if values.is_empty():
        return None
    found = {name: int(values.quantile(q, "nearest")) for name, q in QUANTILES.items()}  # type: ignore[arg-type]
    return {**found, "mean": float(values.mean())}  # type: ignore[arg-type]


def _top_share(counts: Any) -> float:
    """Fraction of the interactions with the most popular 1 % of the items, at least one item."""
    most = max(1, round(len(counts) / 100))
    return float(np.sort(counts)[::-1][:most].sum() / max(1, counts.sum()))


def _gini(counts: Any) -> float:
    """Σ (2 i - n - 1) x_i / (n Σ x_i), with x rising and i from 1."""
    n = len(counts)
    return float(((2 * np.arange(1, n + 1) - n - 1) * np.sort(counts)).sum() / max(1, n * counts.sum()))


def _titles(titles: pl.Series) -> dict[str, Any]:
    clean = clean_titles(titles)
    clean = clean.filter((clean != "").fill_null(False))
    return {
        "items": len(titles),
        "without_title": len(titles) - len(clean),
        "duplicates": len(clean) - clean.n_unique(),
        "length": _quantiles(clean.str.len_chars()),
    }


def _ends(table: pl.LazyFrame) -> tuple[float, float] | None:
    """(first, last) time in seconds since 1970; None without times."""
    times = pl.col(c.TIME).map_batches(lambda some: to_microseconds(some, "the times"), return_dtype=pl.Int64) / 10**6
    first, last = _stream(table.select(times.min().alias("first"), times.max().alias("last"))).row(0)
    return None if first is None else (first, last)


def _time(ends: list[tuple[float, float] | None]) -> dict[str, str] | None:
    known = [pair for pair in ends if pair is not None]
    if not known:
        return None
    first, last = min(a for a, _ in known), max(b for _, b in known)
    return {"first": _date(first), "last": _date(last)}


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (OverflowError, ValueError) as error:
        raise DataError(
            f"The data have a time of {seconds:,.0f} seconds since 1970, outside of the years 1 to 9999. "
            "`llm4dsr data validate` says more."
        ) from error


# --- files -----------------------------------------------------------------------------------------------------------


def _scan(file: Path) -> pl.LazyFrame:
    if file.suffix == ".parquet":
        return pl.scan_parquet(file)
    if file.suffix == ".jsonl":
        return pl.scan_ndjson(file, infer_schema_length=None)
    separator = separator_of(file)
    if file.suffix in ATOMIC or separator is None or is_utf16_file(file):
        return read_file(file).lazy()
    return pl.scan_csv(file, separator=separator, infer_schema=False)  # as text: ids are counted, not computed with


def _needs(table: pl.LazyFrame, file: Path, *names: str) -> pl.LazyFrame:
    found = table.collect_schema().names()
    for name in names:
        if name not in found:
            raise DataError(f"{file} has the columns {', '.join(found)}, but {name!r} is missing.")
    return table


def _stream(table: pl.LazyFrame) -> pl.DataFrame:
    return table.collect(engine="streaming")


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    with as_data_error(f"{file} cannot be read", "Is it cut off, or another format? `llm4dsr data validate` says more"):
        try:
            yield
        except pl.exceptions.PanicException as error:  # what Polars makes of some damaged files
            raise DataError(f"{file} is damaged: {error}.") from None
