"""Times of interactions: dates, numbers and text, as microseconds or seconds since 1970."""

from __future__ import annotations

from typing import Final

import polars as pl

from llm4dsr.errors import DataError

# Text that is a date, in the order in which it is tried. %+ is RFC 3339; %#z is a zone such as +00, as PostgreSQL
# writes it; the last is that of Goodreads.
_DATES: Final = (
    "%+", "%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z", "%Y-%m-%dT%H:%M%#z",
    "%a %b %d %H:%M:%S %z %Y",
)  # fmt: skip


def to_microseconds(times: pl.Series, where: str) -> pl.Series:
    """Convert times to Int64 microseconds since 1970; null where a value is missing or unreadable.

    Parameters
    ----------
    times : Series
        Dates; numbers of seconds, or of milli-, micro- or nanoseconds if so large that seconds would lie beyond the
        year 5138; or text that holds either.
    where : str
        The source, for messages.

    Raises
    ------
    DataError
        For any other type.

    Examples
    --------
    >>> to_microseconds(pl.Series("timestamp", [1_717_149_600, 1_717_149_600_250]), "the log").to_list()
    [1717149600000000, 1717149600250000]
    """
    kind = times.dtype
    if kind == pl.Null:
        return times.cast(pl.Int64)
    if kind.is_temporal() and kind not in (pl.Time, pl.Duration):
        return times.dt.epoch("us")
    if kind.is_numeric():
        return _of_numbers(times.cast(pl.Int64 if kind.is_integer() else pl.Float64, strict=False))
    if kind != pl.String:
        raise DataError(f"{times.name!r} of {where} has the type {kind}; expected a number, a date or text.")
    return text_microseconds(times)


def to_seconds(times: pl.Series, where: str) -> pl.Series:
    """Convert times as `to_microseconds` does, to whole seconds, rounded down."""
    return to_microseconds(times, where) // 10**6


def readable_microseconds(times: pl.Series, where: str) -> pl.Series:
    """Convert times as `to_microseconds` does, if all are readable or missing.

    Raises
    ------
    DataError
        For a value that is no time, or another type.
    """
    found, missing = to_microseconds(times, where), times.is_null()
    if times.dtype == pl.String:
        missing |= times.str.strip_chars() == ""
    elif times.dtype.is_float():
        missing |= times.is_nan()
    bad = times.filter(found.is_null() & ~missing)
    if len(bad):
        raise DataError(
            f"{times.name!r} of {where} has {bad[0]!r}, and {len(bad) - 1:,} other value(s) that are no time. "
            "Give seconds since 1970, or dates such as 2024-05-31 13:45:00."
        )
    return found


def text_microseconds(times: pl.Series) -> pl.Series:
    """Convert text of times to Int64 microseconds since 1970, as `to_microseconds` does; null where it is unreadable.

    Only forms in which the year comes first, or the month has a name, are read: nothing tells 10/11 from 11/10.
    """
    text = times.str.strip_chars()
    out = _of_numbers(text.cast(pl.Float64, strict=False))
    for form in _DATES:
        if not (out.is_null() & text.is_not_null() & (text != "")).any():
            return out
        out = out.zip_with(out.is_not_null(), dates_in(text, form))
    return out.zip_with(
        out.is_not_null(), text.str.to_date("%Y-%m-%d", strict=False).cast(pl.Datetime("us")).dt.epoch("us")
    )


def dates_in(text: pl.Series, form: str) -> pl.Series:
    """Convert text of dates in one form to microseconds since 1970, in UTC; null where it is in another."""
    zoned = any(zone in form for zone in ("%+", "%z", "%#z"))
    dates = text.str.to_datetime(form, time_unit="us", time_zone="UTC" if zoned else None, strict=False)
    return dates.dt.epoch("us")


def _of_numbers(numbers: pl.Series) -> pl.Series:
    """Microseconds of whole numbers, or of floats, whose fractions count."""
    size = numbers.abs()
    longer = pl.when(size < 10**11).then(numbers * 10**6).when(size < 10**14).then(numbers * 10**3)
    out = pl.select(longer.when(size < 10**17).then(numbers).otherwise(numbers // 10**3)).to_series()
    whole = out.floor().cast(pl.Int64, strict=False) if out.dtype.is_float() else out
    return whole.alias(numbers.name)
