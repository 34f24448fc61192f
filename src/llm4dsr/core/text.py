"""Text files from elsewhere: UTF-16 by its byte-order mark, and the separator between columns."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

SEPARATORS: Final = (",", ";", "\t", "|")
SEPARATOR_NAMES: Final = "comma, semicolon, tab and |"
_SAMPLE: Final = 2**16  # bytes
_LINES: Final = 50


def is_utf16(start: bytes) -> bool:
    """Return whether text begins with the byte-order mark of UTF-16, as Excel writes "Unicode text"."""
    return start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not start.startswith(codecs.BOM_UTF32_LE)


def is_utf16_file(path: Path) -> bool:
    """Return whether a file begins with the byte-order mark of UTF-16."""
    with path.open("rb") as file:
        return is_utf16(file.read(4))


def as_utf8(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield UTF-8 without a byte-order mark for pieces of a file in UTF-8 or UTF-16; UTF-8 is not checked.

    Raises
    ------
    UnicodeDecodeError
        If UTF-16 is damaged or cut short.
    """
    decoder = None
    for number, piece in enumerate(pieces):
        if number == 0 and is_utf16(piece):
            decoder = codecs.getincrementaldecoder("utf-16")()
        if decoder is not None:
            piece = decoder.decode(piece).encode("utf-8")
        elif number == 0:
            piece = piece.removeprefix(codecs.BOM_UTF8)
        yield piece
    if decoder is not None:
        decoder.decode(b"", final=True)


def sniff_separator(sample: str) -> str | None:
    r"""Find the separator of a table from its first lines, the names of the columns first.

    Parameters
    ----------
    sample : str
        The first lines. The last one may be cut off.

    Returns
    -------
    str or None
        One of `SEPARATORS`: that which splits the most lines as it splits the names. None if none splits the names.

    Examples
    --------
    >>> sniff_separator("item_id;title\n1;Ball, red\n"), sniff_separator("item_id title\n")
    (';', None)
    """
    whole = sample[: sample.rfind("\n") + 1] or sample
    best, chosen = (0, 0), None
    for separator in SEPARATORS:
        sizes = []
        try:
            for record in csv.reader(io.StringIO(whole, newline=""), delimiter=separator):
                if record:
                    sizes.append(len(record))
                if len(sizes) == _LINES:
                    break
        except csv.Error:  # a field that is too long: what was read before it counts
            pass
        fit = (sizes.count(sizes[0]), sizes[0]) if sizes and sizes[0] > 1 else (0, 0)
        if fit > best:
            best, chosen = fit, separator
    return chosen


def sample_of(path: Path) -> str:
    """Return the first 64 KiB of a text file, plain or gzip, in UTF-8 or UTF-16; "" if it cannot be read."""
    try:
        with open(path, "rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            data = gzip.GzipFile(fileobj=raw).read(_SAMPLE) if packed else raw.read(_SAMPLE)
    except (OSError, EOFError, zlib.error):
        return ""
    return data.decode("utf-16" if is_utf16(data) else "utf-8-sig", errors="replace")


def separator_of(path: Path) -> str | None:
    """Return the separator of a table, by `sniff_separator`; a comma for an empty file."""
    sample = sample_of(path)
    return sniff_separator(sample) if sample.strip() else ","
