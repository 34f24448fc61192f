"""Download public data sets from their publishers. Downloads are resumed, verified and never left half written.

A file has a hidden name until it has the length that the server announced and the checksum that the publisher states.
Most publishers state none. Then the SHA-256 of the download is saved in `checksums.json`, and later runs verify it.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from llm4dsr.data.sources.known import Download, File, known_sources
from llm4dsr.data.sources.unpack import is_archive, unpack
from llm4dsr.errors import ConfigError, DataError, OutputError

__all__ = ["Download", "File", "fetch", "known_sources", "license_notice"]

RECORD: Final = "checksums.json"
BLOCK: Final = 2**20
TRIES: Final = 5  # in a row without a new byte
TIMEOUT: Final = 60.0  # seconds without a byte
CHECKSUM_BYTES: Final = 2**16  # most that are read of a file with a checksum
Progress = Callable[[int, int, str], None]  # bytes done, bytes in all (0 = not known), what is being done


def license_notice(download: Download) -> str:
    """Return the text to show before a download."""
    return (
        f"{download.name} is published at {download.homepage}\nLicense: {download.license}.\n"
        "The publisher's own terms hold; read them there."
    )


def fetch(
    source: str | Download,
    out: str | Path,
    accept_license: bool = False,
    progress: Progress | None = None,
    wait: float = 1.0,
) -> list[Path]:
    """Download and unpack a data set, for `read_source`.

    Files that are already there with the right checksum are kept, so the same call resumes an interrupted download.

    Parameters
    ----------
    source : str or Download
        A name of `known_sources()`, or a Download with other addresses.
    out : str or Path
        The folder to write.
    accept_license : bool
        Must be True.
    progress : Progress, optional
        Called with (bytes done, all bytes, file name).
    wait : float
        Seconds before the second try; doubled before each further one.

    Returns
    -------
    list of Path
        The downloaded files.

    Raises
    ------
    ConfigError
        If the name is unknown or the license was not accepted.
    DataError
        If the server does not send the file, or sends another one.
    OutputError
        If `out` cannot be written, is full or is in use.
    """
    download = _named(source) if isinstance(source, str) else source
    if not accept_license:
        raise ConfigError(
            f"{license_notice(download)}\nTo download it, accept the license: --accept-license, or accept_license=True "
            "in Python."
        )
    if not download.files:
        raise DataError(
            f"{download.name} is given out by hand only: fill in the form at {download.homepage}, and unpack the files "
            f"into {out}."
        )
    tell = progress or (lambda done, total, doing: None)
    wrong = [
        f.url for f in download.files if not re.match("https?://", f.url) or not re.fullmatch(r"\w[\w.-]*", f.name)
    ]
    if wrong:
        raise ConfigError(f"{wrong[0]} is no http or https address that ends in the name of a file.")
    folder = Path(out)
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            for file in download.files:
                _fetch_file(file, folder, tell, wait)
    return [folder / file.name for file in download.files]


def _named(name: str) -> Download:
    known = {download.name: download for download in known_sources()}
    if name not in known:
        near = [other for other in known if name.lower() in other] or list(known)
        more = f" and {len(near) - 12} more" if len(near) > 12 else ""
        raise ConfigError(f"There is no data set {name!r}. Known: {', '.join(near[:12])}{more}.")
    return known[name]


def _fetch_file(file: File, folder: Path, tell: Progress, wait: float) -> None:
    target, part = folder / file.name, folder / f".{file.name}.part"
    entry = _read_record(folder).get(file.name)
    if entry is None:
        stated = _stated(file, folder, wait)
        here = target if target.exists() else part  # the user may have put it there
        if here == part:
            _download(file, part, tell, wait)
        sums = _checksums(here, tell)
        _check(file, here, stated, sums)
        if here == part:
            os.replace(part, target)
            _forget(part)
        entry = {"url": file.url, "bytes": target.stat().st_size, "sha256": sums["sha256"], "publisher states": stated}
        _write_record(folder, file.name, entry)
    elif not target.exists():
        _write_record(folder, file.name, None)
        return _fetch_file(file, folder, tell, wait)
    elif _checksums(target, tell)["sha256"] != entry.get("sha256"):
        raise DataError(
            f"{target} is not what was downloaded: its SHA-256 differs from the one in {folder / RECORD}. Delete the "
            "file to download it again."
        )
    if is_archive(target):
        sizes: dict[str, int] = entry.get("unpacked") or {}
        if not sizes or any(_size(folder / name) != size for name, size in sizes.items()):
            tell(0, 0, f"unpack {file.name}")
            _write_record(folder, file.name, {**entry, "unpacked": unpack(target, folder)})
    return None


# --- one file from a server ------------------------------------------------------------------------------------------


def _download(file: File, part: Path, tell: Progress, wait: float, most: int | None = None) -> None:
    """Append to `part` until it has the announced length. Raises DataError if it is longer than `most`."""
    failures, why = 0, ""
    while failures < TRIES:
        if failures:
            time.sleep(wait * 2 ** (failures - 1))
        before = _size(part) or 0
        try:
            _one_try(file, part, before, tell, most)
            return
        except urllib.error.HTTPError as error:
            error.close()
            why = f"the server answers {error.code} {error.reason}"
            if error.code == 416:  # nothing from there on: all of it is there, or what is there is of another version
                if before and error.headers.get("Content-Range") == f"bytes */{before}":
                    return
                _forget(part)
            elif error.code not in (408, 425, 429) and error.code < 500:
                raise DataError(f"{file.url}: {why}. Look for the new address on the publisher's page.") from None
        except urllib.error.URLError as error:
            why = str(error.reason)
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise DataError(
                    f"{file.url}: the certificate of the server cannot be verified ({why}). Nothing was downloaded. "
                    f"Try again later, or download the file by other means and put it at {part.with_name(file.name)}."
                ) from None
        except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
            why = str(error) or type(error).__name__
        failures = 0 if (_size(part) or 0) > before else failures + 1
    raise DataError(
        f"{file.url} cannot be downloaded: {TRIES} tries in a row brought nothing new after {_size(part) or 0} bytes "
        f"({why}). Run the same command again to go on from there."
    )


def _one_try(file: File, part: Path, begin: int, tell: Progress, most: int | None) -> None:
    """Append what one connection sends. Raises an error of urllib or http.client if it ends early."""
    headers = {"User-Agent": "llm4dsr", "Accept-Encoding": "identity"}
    version = _read_version(part)
    if begin and (version or file.checksum):  # without either, the rest might be of another version, and nobody see it
        headers |= {"Range": f"bytes={begin}-"} | ({"If-Range": version} if version else {})
    with urllib.request.urlopen(urllib.request.Request(file.url, headers=headers), timeout=TIMEOUT) as answer:
        begin, total = _place(answer, begin)
        if total is not None and file.size not in (None, total):
            raise DataError(
                f"{file.url} has {total} bytes, says the server; expected {file.size}. It is another file or another "
                "version: look at the publisher's page."
            )
        _write_version(part, answer)
        done = begin
        with open(part, "r+b" if begin else "wb") as writer:
            writer.seek(begin)
            writer.truncate()
            for block in _blocks(answer):
                writer.write(block)
                done += len(block)
                if most is not None and done > most:
                    raise DataError(
                        f"{file.url} holds more than {most} bytes, which no checksum does. Try again later."
                    )
                tell(done, total or file.size or 0, f"download {file.name}")
    if total is not None and done < total:
        raise http.client.HTTPException(f"the connection ends after {done} of {total} bytes")


def _place(answer: Any, begin: int) -> tuple[int, int | None]:
    """(Offset of the answer, length of the whole file if announced.) A server that ignores Range starts at 0."""
    if answer.status == 200:
        length = answer.headers.get("Content-Length") or ""
        return 0, int(length) if length.isdecimal() else None
    given = answer.headers.get("Content-Range") or ""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", given)
    if answer.status != 206 or not found or int(found[1]) != begin:
        raise http.client.HTTPException(f"asked from byte {begin} on, the server gives {answer.status} {given}")
    return begin, None if found[2] == "*" else int(found[2])


def _blocks(answer: Any) -> Iterator[bytes]:
    while True:
        try:
            block = answer.read(BLOCK)
        except OSError as error:  # of the network, not to be taken for one of the disk
            raise http.client.HTTPException(str(error) or type(error).__name__) from None
        if not block:
            return
        yield block


def _read_version(part: Path) -> str | None:
    """ETag or date of the file that `part` is the beginning of."""
    path = part.with_suffix(".version")
    return (path.read_text(encoding="utf-8").strip() or None) if path.is_file() else None


def _write_version(part: Path, answer: Any) -> None:
    tag = answer.headers.get("ETag") or ""
    strong = tag if tag.startswith('"') else answer.headers.get("Last-Modified") or ""
    part.with_suffix(".version").write_text(strong, encoding="utf-8")


def _forget(part: Path) -> None:
    for path in (part, part.with_suffix(".version")):
        path.unlink(missing_ok=True)


# --- is it the right file? -------------------------------------------------------------------------------------------


def _stated(file: File, folder: Path, wait: float) -> str | None:
    """The publisher's checksum as "md5:…" or "sha256:…", read from a file beside the data if it is stated there."""
    if file.checksum is None or not file.checksum.startswith("http"):
        return file.checksum
    beside = File(file.checksum)
    part = folder / f".{beside.name}.part"
    _forget(part)
    try:
        _download(beside, part, lambda done, total, doing: None, wait, CHECKSUM_BYTES)
        text = part.read_text(encoding="utf-8", errors="replace")[:4096]
    finally:
        _forget(part)
    sums = re.findall(r"\b(?:[0-9a-f]{64}|[0-9a-f]{32})\b", text.lower())
    if len(sums) != 1:
        raise DataError(f"{file.checksum} should state one checksum, but begins with {text[:60]!r}. Try again later.")
    return f"{'md5' if len(sums[0]) == 32 else 'sha256'}:{sums[0]}"


def _checksums(path: Path, tell: Progress) -> dict[str, str]:
    sums = {"md5": hashlib.md5(usedforsecurity=False), "sha256": hashlib.sha256()}
    size, done = path.stat().st_size, 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            for each in sums.values():
                each.update(block)
            done += len(block)
            tell(done, size, f"check {path.name.removeprefix('.').removesuffix('.part')}")
    return {kind: each.hexdigest() for kind, each in sums.items()}


def _check(file: File, path: Path, stated: str | None, sums: dict[str, str]) -> None:
    """Raise DataError if the file is not the publisher's. Deletes it if this run downloaded it."""
    size = path.stat().st_size
    wrong = None
    if not size:
        wrong = "it is empty"
    elif file.size not in (None, size):
        wrong = f"it has {size} bytes, expected {file.size}"
    elif stated is not None:
        kind, _, expected = stated.partition(":")
        if sums[kind] != expected.lower():
            wrong = f"its {kind} is {sums[kind]}, the publisher states {expected}"
    elif file.name.endswith(".gz"):
        wrong = _gzip_fault(path)
    if wrong is not None:
        if path.name.startswith("."):
            _forget(path)
        raise DataError(
            f"{file.url} gave wrong bytes: {wrong}. Nothing was kept. Try again; if it happens again, the publisher "
            "has changed the file, or something on the way does."
        )


def _gzip_fault(path: Path) -> str | None:
    """Read to the end, where gzip has a checksum."""
    try:
        with gzip.open(path) as file:
            while file.read(BLOCK):
                pass
    except (OSError, EOFError, zlib.error) as error:
        return f"it is no whole gzip file ({error})"
    return None


# --- the folder ------------------------------------------------------------------------------------------------------


def _read_record(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(record, dict) and all(isinstance(entry, dict) for entry in record.values()):
            return record
    except ValueError:
        pass
    raise DataError(f"{path} is not as it was written. Delete it: the files are then checked again.")


def _write_record(folder: Path, name: str, entry: dict[str, Any] | None) -> None:
    """Set or remove the entry of one file, atomically."""
    record = _read_record(folder)
    record.pop(name, None)
    if entry is not None:
        record[name] = entry
    part = folder / f".{RECORD}.part"
    part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    os.replace(part, folder / RECORD)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn errors of the disk into OutputError."""
    try:
        yield
    except OSError as error:
        what = "The disk is full" if error.errno == errno.ENOSPC else f"{error.strerror or error}"
        raise OutputError(
            f"Cannot write into {folder}: {what}. What came already is kept; run the same command again to go on."
        ) from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock the folder: two downloads would write the same part file."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputError(f"Another download into {folder} is going on. Wait for it to end.") from None
    except NotImplementedError as error:
        raise OutputError(f"{folder} cannot be locked: {error}. Choose a folder on another disk.") from None
    try:
        yield
    finally:
        lock.release()
