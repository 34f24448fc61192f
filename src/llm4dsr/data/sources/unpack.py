"""Unpack zip and tar archives. Nothing is written outside the folder, and no file is left half written."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llm4dsr.errors import DataError, OutputError

_BROKEN = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error, NotImplementedError, RuntimeError
)  # fmt: skip
MOST_FILES = 100_000
MOST_TIMES = 200  # an archive may unpack to so many times its size; text of interactions packs 3 to 30 times
ALWAYS = 64 * 2**20  # bytes that any archive may unpack to
HEADER = 2**24  # bytes of one read: more than any header of a tar, and than the blocks that are copied


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    plain: bool  # a file, and not a link or a device
    read: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive that `unpack` reads."""
    return path.name.endswith((".zip", ".tar.gz", ".tgz", ".tar"))


def unpack(archive: Path, folder: Path) -> dict[str, int]:
    """Unpack all files of an archive.

    They are written beside `folder` first and moved when complete.

    Returns
    -------
    dict
        Paths in `folder`, and sizes.

    Raises
    ------
    DataError
        If the archive is damaged, or a member is a link, a device, or would land outside `folder`; or if it unpacks to
        many times its size, as no data does.
    OutputError
        If there is too little space.
    """
    with _members(archive) as members:
        for member in members:
            parts = re.split(r"[/\\]", member.name)
            if not member.plain or ".." in parts or parts[0] == "" or re.match(r"[A-Za-z]:", member.name):
                raise DataError(
                    f"{archive} holds {member.name!r}, which is a link or would be written outside {folder}. Nothing "
                    "was unpacked. Do not trust this archive."
                )
        need, free = sum(member.size for member in members), shutil.disk_usage(folder).free
        if need > free:
            raise OutputError(f"{archive} unpacks to {need} bytes, but only {free} are free at {folder}. Make room.")
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=folder) as beside:
            for member in members:
                target = Path(beside, member.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                with member.read() as source, open(target, "wb") as sink:
                    shutil.copyfileobj(source, sink, 2**20)
            for member in members:
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(Path(beside, member.name), target)
        return {member.name: member.size for member in members}


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    """All members except folders and macOS extras. Errors of the archive become DataError."""
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as zipped:
                infos = _bounded(archive, zipped.infolist(), lambda info: info.file_size)
                yield [_of_zip(zipped, i) for i in infos if not i.is_dir() and _wanted(i.filename)]
        else:
            packed = archive.name.endswith(("gz", "tgz"))
            with open(archive, "rb") as raw, _tar(raw, packed) as tar:
                found = _bounded(archive, tar, lambda info: info.size)
                yield [_of_tar(tar, i) for i in found if not i.isdir() and _wanted(i.name)]
    except _BROKEN as error:
        raise DataError(f"{archive} is a damaged archive: {error}. Delete it to download it again.") from None


class _Reader:
    """A file for `tarfile` that refuses to read a header of gigabytes into memory."""

    def __init__(self, file: Any) -> None:
        self._file, self.tell, self.seek, self.close = file, file.tell, file.seek, file.close

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data: bytes = self._file.read(size)
        return data


def _tar(raw: IO[bytes], packed: bool) -> tarfile.TarFile:
    reader: Any = _Reader(gzip.GzipFile(fileobj=raw) if packed else raw)
    return tarfile.open(fileobj=reader, mode="r:")


def _bounded(archive: Path, infos: Iterable[Any], size: Callable[[Any], int]) -> list[Any]:
    """All members, in a list; stops at the first that is too much. Raises DataError."""
    most, total, found = max(ALWAYS, MOST_TIMES * archive.stat().st_size), 0, []
    for info in infos:
        total += size(info)
        found.append(info)
        if total > most or len(found) > MOST_FILES:
            raise DataError(
                f"{archive} unpacks to more than {most} bytes or {MOST_FILES} files, which no data of its size does. "
                "Nothing was unpacked. Do not trust this archive."
            )
    return found


def _wanted(name: str) -> bool:
    return not name.startswith("__MACOSX/") and not name.endswith("/.DS_Store")


def _of_zip(zipped: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)
    return _Member(info.filename, info.file_size, kind in (0, stat.S_IFREG), lambda: zipped.open(info))


def _of_tar(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    def read() -> IO[bytes]:
        file: Any = tar.extractfile(info)
        if file is None:
            raise tarfile.TarError(f"{info.name} cannot be read")
        return file  # type: ignore[no-any-return]

    return _Member(info.name, info.size, info.isreg(), read)
