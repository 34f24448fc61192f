"""One process at a time works on a folder."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from llm4dsr.core.io import as_output_error
from llm4dsr.errors import OutputError

LOCK, HOLDER = ".lock", ".holder"  # the lock; who holds it, for messages


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder, so that no other process works on it; it is made if there is none.

    The operating system releases the lock when the process ends, however it ends.

    Raises
    ------
    OutputError
        Names the process that holds the folder.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file. Choose another folder.")
    made = not folder.exists()
    lock, holder = FileLock(folder / LOCK), folder / HOLDER
    with as_output_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOCK).touch()  # a disk that cannot be written to is reported as such
        try:
            lock.acquire(timeout=0)
        except Timeout:
            who = holder.read_text(encoding="utf-8") if holder.is_file() else "another process"
            raise OutputError(f"{folder} is in use by {who}. Wait for it, stop it, or choose another folder.") from None
        except (OSError, NotImplementedError) as error:
            raise OutputError(f"{folder} cannot be locked: {error}. Choose a folder on another disk.") from None
    try:
        with as_output_error(folder):
            holder.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
        if made and {f.name for f in folder.iterdir()} <= {LOCK}:
            shutil.rmtree(folder, ignore_errors=True)
