"""Checksums of finished folders and of JSON files: damage is noticed before it becomes a wrong number.

A manifest lists the SHA-256 of every file of a folder. It is written last, and is itself sealed with a checksum. Files
are checked before they are used; one that has not changed since the last check (size, time) is not read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from llm4dsr.core.io import new_folder, sync_tree, write_text

MANIFEST: Final = "manifest.json"
FILES, SEAL = "files", "sha256"
_checked: dict[Path, tuple[tuple[int, int, int], str]] = {}  # file → (size, time, inode), SHA-256


class DamageError(Exception):
    """A file is missing, or is not what was written. The message names it."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} {what}")
        self.path = path


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    at = path.resolve()
    stat = at.stat()
    now = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if (known := _checked.get(at)) is not None and known[0] == now:
        return known[1]
    with at.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    _checked[at] = now, found
    return found


def write_sealed(path: Path, facts: dict[str, Any]) -> None:
    """Write a JSON file with a checksum of its content, under the key `sha256`."""
    write_text(path, json.dumps(facts | {SEAL: _seal(facts)}, indent=1))


def read_sealed(path: Path) -> dict[str, Any]:
    """Return what `write_sealed` wrote, without the checksum. Raises DamageError if it does not fit."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        seal = facts.pop(SEAL)
    except FileNotFoundError:
        raise DamageError(path, "is missing") from None
    except (ValueError, KeyError, AttributeError, RecursionError, TypeError):
        raise DamageError(path, "is damaged: it cannot be read") from None
    if seal != _seal(facts):
        raise DamageError(path, "is damaged: its content is not what was written")
    return dict(facts)


def write_manifest(folder: Path, name: str = MANIFEST, only: set[str] | None = None, **facts: Any) -> None:
    """Write the checksums of all files below a folder, once they have reached the disk.

    Parameters
    ----------
    folder : Path
        A folder that is complete.
    name : str, default "manifest.json"
        Name of the manifest.
    only : set of str, optional
        Files that are listed, relative to the folder. Default: all below it.
    **facts
        Further entries.
    """
    if only is None:
        sync_tree(folder)
    listed = folder.rglob("*") if only is None else (folder / file for file in only)
    found = (path for path in listed if path.is_file() and path != folder / name)
    files = {path.relative_to(folder).as_posix(): file_hash(path) for path in sorted(found)}
    write_sealed(folder / name, facts | {FILES: files})


def read_manifest(folder: Path, name: str = MANIFEST, only: set[str] | None = None) -> dict[str, Any]:
    """Check the files of a folder against its manifest.

    Parameters
    ----------
    folder : Path
        The folder. Files that the manifest does not list are ignored.
    name : str, default "manifest.json"
        Name of the manifest.
    only : set of str, optional
        Files that are checked, relative to the folder. Default: all.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    DamageError
        If the manifest or a file is missing or damaged.
    """
    facts = read_sealed(folder / name)
    if not isinstance(facts.get(FILES), dict):
        raise DamageError(folder / name, "is damaged: it lists no files")
    for file, expected in facts[FILES].items():
        if only is not None and file not in only:
            continue
        path = folder / file
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise DamageError(folder / name, f"lists {file!r}, which is not in its folder")
        try:
            found = file_hash(path)
        except FileNotFoundError:
            raise DamageError(path, "is missing") from None
        except OSError as error:
            raise DamageError(path, f"cannot be read: {error.strerror}") from None
        if found != expected:
            raise DamageError(path, "is damaged: its content is not what was written")
    return facts


@contextmanager
def sealed_folder(out: str | Path, **facts: Any) -> Iterator[Path]:
    """`io.new_folder`, with a manifest of what was written into it, and further entries of the manifest."""
    with new_folder(out) as part:
        yield part
        write_manifest(part, **facts)


def _seal(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
