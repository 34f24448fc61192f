"""Quoted fields of a table: which line breaks belong to a field, and on which line each record begins.

A quote opens a field only as its first character, so 12" is plain text. In a quoted field, two quotes are one.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from llm4dsr.core.arrays import BoolArray, IntArray

_QUOTE, _LINE_FEED, _RETURN = b'"\n\r'
_BREAKS: Final = (_LINE_FEED, _RETURN)


def last_end(data: bytes | bytearray, separator: str | None) -> int:
    """Return the offset after the last line feed that ends a record; 0 if there is none.

    Parameters
    ----------
    data : bytes or bytearray
        Text that starts with a record.
    separator : str or None
        Between the fields; None if a quote is an ordinary character.

    Examples
    --------
    >>> last_end(b'12" vinyl,1\\n"one\\ntwo', ",")
    12
    """
    if separator is None or b'"' not in data:
        return data.rfind(b"\n") + 1
    feeds = np.flatnonzero(np.frombuffer(data, np.uint8) == _LINE_FEED)
    ends = feeds[~_is_quoted(feeds, data, separator)]
    return int(ends[-1]) + 1 if len(ends) else 0


def is_unclosed(data: bytes, separator: str) -> bool:
    """Return whether the text ends in a quoted field."""
    return b'"' in data and bool(_quote_runs(data, separator)[1][-1])


def record_lines(data: bytes, separator: str | None) -> IntArray:
    r"""Return [n] the line on which each record begins, from 0. Blank lines are no records.

    Examples
    --------
    >>> record_lines(b'1,"a\nb"\n\n2,c\n', ",").tolist()
    [0, 3]
    """
    text = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(np.isin(text, _BREAKS))
    if separator is not None and b'"' in data:
        ends = ends[~_is_quoted(ends, data, separator)]
    begins = np.append(0, ends + 1)
    begins = begins[begins < len(text)]
    begins = begins[~np.isin(text[begins], _BREAKS)]
    return np.searchsorted(np.flatnonzero(text == _LINE_FEED), begins)


def _is_quoted(places: IntArray, data: bytes | bytearray, separator: str) -> BoolArray:
    """[n] whether each place, which holds no quote, is in a quoted field."""
    runs, is_open = _quote_runs(data, separator)
    return np.append(False, is_open)[np.searchsorted(runs, places)]


def _quote_runs(data: bytes | bytearray, separator: str) -> tuple[IntArray, BoolArray]:
    """(Where each run of quotes begins, whether a quoted field is open after it.)"""
    text = np.frombuffer(data, np.uint8)
    quotes = np.flatnonzero(text == _QUOTE)
    first = np.flatnonzero(np.diff(quotes, prepend=-2) > 1)
    runs = quotes[first]
    odd = np.diff(first, append=len(quotes)) % 2 == 1
    begins = (runs == 0) | np.isin(text[runs - 1], (ord(separator), *_BREAKS))
    # An odd run opens a field that it begins, or closes the open one; elsewhere it can only close. An even run is text.
    turns = np.cumsum(odd & begins)
    closed = np.maximum.accumulate(np.where(odd & ~begins, turns, 0))
    return runs, (turns - closed) % 2 == 1
