"""The files of a log, record by record as they are on the disk, so that what is not changed stays as it is.

A text file keeps the bytes of each record that is not changed, its separator, quotes, line ends and encoding. Parquet
keeps its schema and row groups.
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm4dsr import columns as c
from llm4dsr.core.arrays import BoolArray, FloatArray
from llm4dsr.core.text import is_utf16_file, separator_of
from llm4dsr.data.atomic import ATOMIC, title_column
from llm4dsr.data.histories import WEIGHT
from llm4dsr.data.sources.lines import LONGEST, chunks
from llm4dsr.data.sources.source import pick
from llm4dsr.data.sources.tables import JSON, columns_of, kind_of, with_decimal_points
from llm4dsr.errors import DataError

KEYS: Final = (c.USER, c.ITEM, c.TIME, c.RATING)
Fields = dict[str, Any]  # our name → value of a record


@dataclass(frozen=True)
class LogEdits:
    """What is done with the records of a log, numbered over all of its files.

    Attributes
    ----------
    dropped : array of bool
        [n] True for records that are left out.
    replaced : dict of int to (id, title)
        Records that get another item.
    weights : array of float or None
        [n] a further column; None: no column.
    """

    dropped: BoolArray
    replaced: dict[int, tuple[Any, str]]
    weights: FloatArray | None = None


class LogFile:
    """A file of a log.

    Parameters
    ----------
    path : Path
        The file.
    columns : mapping
        Our names → those of the file.
    """

    def __init__(self, path: Path, columns: Mapping[str, str]) -> None:
        self.path, self.kind = path, kind_of(path)
        self.names = columns_of(path)
        if self.kind in ATOMIC and (title := title_column(self.names)):
            columns = {c.TITLE: title, **columns}
        optional = (c.TIME, c.RATING, c.TITLE)
        self.ours = pick(self.names, columns, (c.USER, c.ITEM), optional, str(path)) if self.names else {}
        self.weight = WEIGHT if WEIGHT not in self.names else f"{WEIGHT}_llm4dsr"  # the name of the new column

    def read_keys(self) -> Iterator[pl.DataFrame]:
        """Yield `user_id, item_id, timestamp, rating` of all records, as far as they are there; null where bad."""
        wanted = {ours: theirs for ours, theirs in self.ours.items() if ours in KEYS}
        if self.kind == ".parquet":
            with pq.ParquetFile(self.path) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=list(dict.fromkeys(wanted.values())))
                    frame = pl.DataFrame(pl.from_arrow(table))
                    yield frame.select(pl.col(theirs).alias(ours) for ours, theirs in wanted.items())
            return
        for _, records in self._records():
            values = {
                name: [None if fields is None else fields.get(name) for fields in records]
                for name in wanted
            }  # fmt: skip
            frame = pl.DataFrame([pl.Series(name, of, strict=False) for name, of in values.items()])
            yield frame if self.kind in JSON else with_decimal_points(frame, self._separator)

    def write(self, out: Path, edits: LogEdits, first: int) -> int:
        """Write the file with its edits; `first` is the number of its first record. Returns the number after its last.

        Parameters
        ----------
        out : Path
            The file to write, packed as this one is.
        edits : LogEdits
            Of all files.
        first : int
            Number of the first record of this file.
        """
        if self.kind == ".parquet":
            return self._write_parquet(out, edits, first)
        number, encoding = first, "utf-16" if is_utf16_file(self.path) else "utf-8"
        encoder = codecs.getincrementalencoder(encoding)()
        with _opened(out) as file:
            if _has_bom(self.path):
                file.write(codecs.BOM_UTF8)
            if self._header:
                head, end = _line_end(self._header)
                more = self._separator.encode() + self.weight.encode() if edits.weights is not None else b""
                typed = b":float" if more and self.kind in ATOMIC else b""
                file.write(encoder.encode((head + more + typed + end).decode()))
            for raw, records in self._records():
                written = [
                    self._edited(line, fields, number + i, edits)
                    for i, (line, fields) in enumerate(zip(raw, records, strict=True))
                    if not edits.dropped[number + i]
                ]
                file.write(encoder.encode(b"".join(written).decode()))
                number += len(raw)
        return number

    # -- text ----------------------------------------------------------------------------------------------------------

    @property
    def _separator(self) -> str:
        return "\t" if self.kind in ATOMIC else separator_of(self.path) or ","

    @property
    def _header(self) -> bytes:
        """The line with the names; empty for JSON."""
        if self.kind in JSON:
            return b""
        for chunk in chunks(self.path, None if self.kind in ATOMIC else self._separator):
            return chunk.data[: chunk.data.find(b"\n") + 1 or len(chunk.data)]
        return b""

    def _records(self) -> Iterator[tuple[list[bytes], list[Fields | None]]]:
        """Yield records as they are written, and their values by our names; None for one that cannot be read."""
        quoted = self.kind not in (*JSON, *ATOMIC)
        for chunk in chunks(self.path, self._separator if quoted else None):
            lines = chunk.data.splitlines(keepends=True) if b"\r" not in chunk.data else _lines(chunk.data)
            if self.kind in JSON:
                yield lines, [self._of_json(line) for line in lines]
                continue
            if chunk.line == 1:
                lines = lines[1:]
            if quoted:
                yield self._of_csv(lines)
            else:
                found = [line.rstrip(b"\r\n").decode().split(self._separator) for line in lines]
                yield lines, [self._named(fields) for fields in found]

    def _of_csv(self, lines: list[bytes]) -> tuple[list[bytes], list[Fields | None]]:
        raw, records, before = [], [], 0
        limit = csv.field_size_limit(LONGEST)
        try:
            reader = csv.reader((line.decode() for line in lines), delimiter=self._separator)
            for fields in reader:
                raw.append(b"".join(lines[before : reader.line_num]))
                records.append(self._named(fields))
                before = reader.line_num
        except csv.Error as error:
            raise DataError(f"{self.path} cannot be read record by record: {error}.") from None
        finally:
            csv.field_size_limit(limit)
        return raw, records

    def _named(self, fields: list[str]) -> Fields | None:
        if len(fields) != len(self.names):
            return None
        at = {ours: self.names.index(theirs) for ours, theirs in self.ours.items()}
        return {ours: fields[i] for ours, i in at.items()} | {"": fields}

    def _of_json(self, line: bytes) -> Fields | None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return None
        if not isinstance(record, dict):
            return None
        return {ours: record.get(theirs) for ours, theirs in self.ours.items()} | {"": record}

    def _edited(self, line: bytes, fields: Fields | None, number: int, edits: LogEdits) -> bytes:
        if fields is None:
            return line
        body, end = _line_end(line)
        new = edits.replaced.get(number)
        if new is not None:
            body = self._with_item(body, fields, new)
        if edits.weights is not None:
            weight = f"{edits.weights[number]:.6g}".encode()
            if self.kind in JSON:
                rest = body.rstrip()[:-1].rstrip()
                body = rest + b", " * bool(fields[""]) + b'"%s": %s}' % (self.weight.encode(), weight)
            else:
                body += self._separator.encode() + weight
        return body + end

    def _with_item(self, body: bytes, fields: Fields, new: tuple[Any, str]) -> bytes:
        changes = {self.ours[c.ITEM]: new[0]} | ({self.ours[c.TITLE]: new[1]} if c.TITLE in self.ours else {})
        if self.kind in JSON:
            record = dict(fields[""])
            record |= {name: _like(record.get(name), value) for name, value in changes.items()}
            spaced = b'": ' in body
            escaped = b"\\u" in body
            return json.dumps(record, ensure_ascii=escaped, separators=None if spaced else (",", ":")).encode()
        values = list(fields[""])
        for name, value in changes.items():
            values[self.names.index(name)] = str(value)
        if self.kind in ATOMIC:
            return "\t".join(values).encode()
        text = io.StringIO(newline="")
        csv.writer(text, delimiter=self._separator, lineterminator="").writerow(values)
        return text.getvalue().encode()

    # -- Parquet -------------------------------------------------------------------------------------------------------

    def _write_parquet(self, out: Path, edits: LogEdits, first: int) -> int:
        number = first
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(pq.ParquetFile(self.path))
            schema = file.schema_arrow
            if edits.weights is not None:
                schema = schema.append(pa.field(self.weight, pa.float64()))
            kind = file.metadata.row_group(0).column(0).compression if file.num_row_groups else "zstd"
            writer = stack.enter_context(pq.ParquetWriter(out, schema, compression=_compression(kind)))
            for group in range(file.num_row_groups):
                table = file.read_row_group(group)
                here = slice(number, number + len(table))
                changed = {n - number: new for n, new in edits.replaced.items() if here.start <= n < here.stop}
                for name, which in ((self.ours[c.ITEM], 0), (self.ours.get(c.TITLE), 1)):
                    if changed and name is not None:
                        at = table.schema.get_field_index(name)
                        values = {row: new[which] for row, new in changed.items()}
                        column = _replaced(table.column(at), values, f"{name!r} of {self.path}")
                        table = table.set_column(at, table.schema.field(at), column)
                if edits.weights is not None:
                    table = table.append_column(schema.field(self.weight), pa.array(edits.weights[here]))
                writer.write_table(table.filter(pa.array(~edits.dropped[here])))
                number = here.stop
        return number


def _like(old: Any, new: Any) -> Any:
    """The new value as a JSON number where the old one is a number and it can be, else as text."""
    if type(old) is float and isinstance(new, int):
        return float(new)
    with contextlib.suppress(ValueError):
        if type(old) is int and str(int(new)) == str(new):  # 007 is text
            return int(new)
    return str(new)


def _replaced(column: Any, values: dict[int, Any], where: str) -> Any:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    for value in dict.fromkeys(values.values()):
        if not _fits(pa.scalar(value), kind):
            raise DataError(
                f"{where} has the type {kind}, which does not hold the new value {value!r}. Write the column as text, "
                "prepare the log and run again."
            )
    mask = np.zeros(len(column), dtype=bool)
    mask[list(values)] = True
    new = pa.array([values[row] for row in sorted(values)]).cast(kind)
    plain = column.cast(kind).combine_chunks()
    plain = plain if isinstance(plain, pa.Array) else plain.chunk(0)
    out = pc.replace_with_mask(plain, pa.array(mask), new)
    return pa.chunked_array([out.dictionary_encode().cast(column.type) if kind != column.type else out])


def _fits(value: Any, kind: Any) -> bool:
    """Whether a column of this type holds a value as it is; 007 is no number."""
    try:
        return bool(value.cast(kind).cast(value.type).equals(value))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False


def _compression(name: str) -> str:
    return "none" if name == "UNCOMPRESSED" else name.lower()


def _lines(data: bytes) -> list[bytes]:
    """Lines that end in a line feed; a lone carriage return ends none."""
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + [parts[-1]] * bool(parts[-1])


def _line_end(line: bytes) -> tuple[bytes, bytes]:
    body = line.rstrip(b"\r\n")
    return body, line[len(body) :]


def _has_bom(path: Path) -> bool:
    with open(path, "rb") as raw:
        start = raw.read(3)
    if start[:2] == b"\x1f\x8b":
        with gzip.open(path, "rb") as packed:
            start = packed.read(3)
    return start == codecs.BOM_UTF8


@contextlib.contextmanager
def _opened(out: Path) -> Iterator[IO[bytes]]:
    with out.open("wb") as raw:
        if out.suffix != ".gz":
            yield raw
            return
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:  # the same bytes at any time
            yield cast("IO[bytes]", packed)
