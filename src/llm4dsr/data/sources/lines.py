"""Files of lines, plain or gzip, read in chunks of whole lines, so memory does not grow with the file.

A line that cannot be parsed is counted (`bad_line`) and skipped. What makes the whole file doubtful raises DataError: a
truncated gzip, bytes that are not UTF-8, or no line of the first hundred in the expected format.
"""

from __future__ import annotations

import ast
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.text import as_utf8, is_utf16
from llm4dsr.data.sources.quotes import is_unclosed, last_end, record_lines
from llm4dsr.data.sources.source import Tally
from llm4dsr.errors import DataError

CHUNK: Final = 8 * 2**20
PIECE: Final = 2**20  # read at once
LONGEST: Final = 64 * 2**20  # a line, or a quoted field with its line breaks
SAMPLE: Final = 100  # lines that are looked at before a file is taken for another format
Schema = dict[str, Any]  # column → Polars type
# What a file begins with that is not text.
_MAGIC: Final = {
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"PAR1": "Parquet: name it .parquet",
    b"BZh": "bzip2: unpack it first",
    b"\xfd7zXZ": "xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "zstd: unpack it first",
    b"\x1f\x8b": "gzip inside gzip: unpack it once",
    b"\xff\xfe\0\0": "UTF-32 text: convert it to UTF-8",
    b"<!doctype html": "a web page instead of data: download it again",
    b"<html": "a web page instead of data: download it again",
}


@dataclass(frozen=True)
class Chunk:
    """Whole lines of a file. `line` is the number of the first one, from 1."""

    path: Path
    data: bytes
    line: int

    def where(self, index: int) -> str:
        """Return "file, line n" of a line of this chunk; `index` counts from 0."""
        return f"{self.path.name}, line {self.line + index}"


def chunks(path: Path, separator: str | None = None) -> Iterator[Chunk]:
    """Yield about 8 MiB of whole lines at a time; nothing for an empty file.

    Parameters
    ----------
    path : Path
        The file.
    separator : str, optional
        That of a table whose fields may be in double quotes. A line break in one belongs to it, so no chunk ends there.

    Yields
    ------
    Chunk

    Raises
    ------
    DataError
        If the file cannot be read on, with the line.
    """
    held, line = bytearray(), 1
    for piece in _pieces(path):
        held += piece
        if len(held) < CHUNK or len(held) % CHUNK >= len(piece):  # looks for the end once for each 8 MiB, not more
            continue
        end = last_end(held, separator)
        if end:
            yield _text(path, bytes(held[:end]), line)
            line += held.count(b"\n", 0, end)
            del held[:end]
        elif len(held) > LONGEST:
            what = "a quoted field that is not closed" if separator and b"\n" in held else "a line"
            raise DataError(
                f"{path}: line {line} begins {what} within {LONGEST // 2**20} MiB. Is it another format? Expected text "
                "with one record per line."
            )
    if held:
        last = _text(path, bytes(held), line)
        if separator and is_unclosed(last.data, separator):
            line += int(record_lines(last.data, separator)[-1])
            raise DataError(f"{path}: line {line} begins a record with a quoted field that is never closed. Repair it.")
        yield last


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield the unpacked text in pieces of up to PIECE bytes, UTF-16 as UTF-8."""
    try:
        yield from as_utf8(_unpacked(path))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged UTF-16 text: {error.reason}. Copy it again, or save it in UTF-8.") from None


def _unpacked(path: Path) -> Iterator[bytes]:
    lines = size = 0
    try:
        with open(path, "rb") as raw:
            packed = raw.peek(2)[:2] == b"\x1f\x8b"
            if path.suffix == ".gz" and not packed and raw.peek(1):
                raise DataError(f"{path} is named .gz but is no gzip file{_found(raw.peek(64)[:64])}.")
            file = cast(BinaryIO, gzip.GzipFile(fileobj=raw) if packed else raw)
            while piece := file.read1(PIECE):  # type: ignore[attr-defined]
                if not size:
                    _check_start(path, piece)
                yield piece
                lines, size = lines + piece.count(b"\n"), size + len(piece)
    except EOFError:
        raise DataError(
            f"{path} is cut short: its gzip stream ends in line {lines + 1}, byte {size} of the unpacked text. "
            "Download or copy it again."
        ) from None
    except (zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path} is damaged after line {lines + 1}, byte {size} of the unpacked text ({error}). "
            "Download or copy it again."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Check the path and its rights.") from None


def _check_start(path: Path, piece: bytes) -> None:
    found = _found(piece)
    if found or (b"\0" in piece[:4096] and not is_utf16(piece)):
        zeros = "; it holds zero bytes. If it is UTF-16 without a byte-order mark, save it in UTF-8"
        raise DataError(f"{path} is not a text file{found or zeros}.")


def _found(start: bytes) -> str:
    lower = start.lstrip()[:16].lower()
    return next((f"; it holds {what}" for magic, what in _MAGIC.items() if lower.startswith(magic.lower())), "")


def _text(path: Path, data: bytes, line: int) -> Chunk:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        begin = data.rfind(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: line {line + data.count(bytes([10]), 0, error.start)}, byte {error.start - begin + 1} of it, is "
            f"not UTF-8 (0x{data[error.start]:02x}). Convert the file, for example with iconv -f latin1 -t utf-8."
        ) from None
    return Chunk(path, data, line)


Parse = Callable[[list[bytes]], pl.DataFrame | None]  # a frame of some lines, or None if one of them is bad


def json_lines(path: Path, schema: Schema, tally: Tally) -> Iterator[pl.DataFrame]:
    """Yield frames with the columns of `schema` from a file of JSON lines. A missing key is null."""
    return _records(path, schema, tally, lambda lines: _json(lines, schema), lambda line: _is_json(line, schema))


def literal_lines(path: Path, names: Sequence[str], tally: Tally) -> Iterator[pl.DataFrame]:
    """Yield frames of text from a file with one printed Python dictionary per line.

    Nothing is executed: only constants, lists and dictionaries are parsed.
    """
    schema = dict.fromkeys(names, pl.String)

    def parse(lines: list[bytes]) -> pl.DataFrame | None:
        return _literals(lines, names)

    return _records(path, schema, tally, parse, lambda line: parse([line]) is not None)


def _records(
    path: Path, schema: Schema, tally: Tally, parse: Parse, is_good: Callable[[bytes], bool]
) -> Iterator[pl.DataFrame]:
    """Parse a chunk at once, and line by line only where that fails."""
    checked = False
    for chunk in chunks(path):
        lines = chunk.data.split(b"\n")
        numbered = [(number, line) for number, line in enumerate(lines) if line.strip()]
        if not numbered:
            continue
        if not checked:
            _check_sample(path, [line for _, line in numbered[:SAMPLE]], schema, parse)
            checked = True
        frame = parse(lines)
        if frame is None:
            good = [(number, line) for number, line in numbered if is_good(line)]
            _count(numbered, good, chunk, tally)
            frame = parse([line for _, line in good])
        if frame is None:  # the two disagree about a line: find it by halving
            numbered, good = good, list(_halved(good, parse))
            _count(numbered, good, chunk, tally)
            frame = parse([line for _, line in good])
        if frame is not None:
            yield frame


def _count(before: list[tuple[int, bytes]], after: list[tuple[int, bytes]], chunk: Chunk, tally: Tally) -> None:
    left = {number for number, _ in after}
    for number, _ in before:
        if number not in left:
            tally.add("bad_line", where=chunk.where(number))


def _halved(lines: list[tuple[int, bytes]], parse: Parse) -> Iterator[tuple[int, bytes]]:
    """Return the lines that can be parsed."""
    if parse([line for _, line in lines]) is not None:
        yield from lines
    elif len(lines) > 1:
        yield from _halved(lines[: len(lines) // 2], parse)
        yield from _halved(lines[len(lines) // 2 :], parse)


def _check_sample(path: Path, sample: list[bytes], schema: Schema, parse: Parse) -> None:
    """Raise DataError if none of the first lines has what every line should have."""
    good = [frame for frame in (parse([line]) for line in sample) if frame is not None]
    whole = pl.concat(good) if good else pl.DataFrame(schema=schema)
    if whole.is_empty() or whole.select(pl.all_horizontal(pl.all().is_null()).all()).item():
        raise DataError(
            f"{path} is of another format: none of its first {len(sample)} line(s) is a record with "
            f"{', '.join(schema)}. The first line begins with {sample[0][:80].decode(errors='replace')!r}."
        )


def _json(lines: list[bytes], schema: Schema) -> pl.DataFrame | None:
    try:
        return pl.read_ndjson(io.BytesIO(b"\n".join(lines)), schema=schema)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None


_JSON_TYPES: Final[dict[Any, Any]] = {pl.Int64: int, pl.Float64: (int, float), pl.String: object}


def _is_json(line: bytes, schema: Schema) -> bool:
    try:
        record = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return False
    if not isinstance(record, dict):
        return False
    values = [(record.get(name), _JSON_TYPES[kind]) for name, kind in schema.items()]
    return all(v is None or (isinstance(v, t) and (t is object or not isinstance(v, bool))) for v, t in values)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_STRING = r"""u?(?:'(?:[^'\\]++|\\.)*+'|"(?:[^"\\]++|\\.)*+")"""
_NESTED = "(?!)"
for _ in range(4):  # lists and dictionaries, four deep
    _NESTED = rf"""[\[{{(](?:[^\[\](){{}}'"]++|{_STRING}|{_NESTED})*+[\]}})]"""
_PAIR = re.compile(rf"""\s*+({_STRING})\s*+:\s*+({_STRING}|{_NESTED}|[^\[\](){{}}'",:]++)\s*+(?:,|(?=}}))""")


def literal(line: str, names: Sequence[str]) -> dict[str, str | None]:
    """Return the selected entries of a printed dictionary as text.

    `ast.literal_eval` parses every list of a record. Skipping unused entries is 2 to 9 times as fast. It is still
    called where the regular expression does not reach the closing brace. Raises ValueError or SyntaxError if it is no
    dictionary.
    """
    found: dict[str, str | None] = {}
    begin = end = line.find("{") + 1
    while pair := _PAIR.match(line, end):
        end = pair.end()
        key = pair[1][pair[1].index(pair[1][-1]) + 1 : -1]
        if key in names:
            plain = pair[2][0] in "'\"" and "\\" not in pair[2]
            found[key] = pair[2][1:-1] if plain else _as_text(ast.literal_eval(pair[2].strip()))
    if line[:begin].strip() == "{" and line[end:].strip() == "}":
        return found
    record = ast.literal_eval(line.strip())
    if not isinstance(record, dict):
        raise ValueError("no dictionary")
    return {name: _as_text(record.get(name)) for name in names}


def _as_text(value: object) -> str | None:
    return None if value is None else str(value)


def _literals(lines: list[bytes], names: Sequence[str]) -> pl.DataFrame | None:
    try:
        records = [literal(line.decode("utf-8"), names) for line in lines if line.strip()]
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    return pl.DataFrame(
        {name: [record.get(name) for record in records] for name in names}, dict.fromkeys(names, pl.String)
    )


def numbered_titles(path: Path, tally: Tally, fields: Callable[[str], list[str]], skip: int = 0) -> pl.DataFrame:
    """Read `item_id, title` from a file of some ten thousand lines, in UTF-8, or in Latin-1 as older sets are.

    Parameters
    ----------
    path : Path
        The file.
    tally : Tally
        Counts bad lines.
    fields : callable
        line -> [number, title].
    skip : int, default 0
        Lines before the first record.

    Returns
    -------
    DataFrame
    """
    data = b"".join(_pieces(path))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    rows: list[tuple[int, str]] = []
    for number, line in enumerate(text.split("\n")[skip:], skip + 1):
        key, *title = fields(line.rstrip("\r"))
        if title and re.fullmatch("[0-9]{1,18}", key):
            rows.append((int(key), title[0]))
        elif line.strip():
            tally.add("bad_line", where=f"{path.name}, line {number}")
    if not rows:
        raise DataError(f"{path} is of another format: no line begins with the number and the title of an item.")
    return pl.DataFrame(rows, schema={c.ITEM: pl.Int64, c.TITLE: pl.String}, orient="row")
