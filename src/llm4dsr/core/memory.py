"""Memory: how much is free, and how much this process has used."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

_NO_MEMORY: Final = ("can't allocate memory", "std::bad_alloc", "Storage size calculation overflowed")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory is used up; PyTorch raises some of them as RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def peak_memory_mb() -> int:
    """Return the largest resident size of this process so far, in MB; 0 if unknown."""
    # Linux inherits ru_maxrss from the parent process, so the kernel's own record is read there.
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.M)):
        return int(found[1]) // 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1024**2 if sys.platform == "darwin" else 1024  # macOS counts bytes, others KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit


def resident_memory() -> int:
    """Return the bytes of main memory that this process uses now; its peak where only that is known."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return peak_memory_mb() * 2**20
    return pages * os.sysconf("SC_PAGE_SIZE")


def return_memory() -> None:
    """Collect what is no longer used, and give freed memory back to the system."""
    gc.collect()
    return_freed_memory()


def return_freed_memory() -> None:
    """Give memory that this process has freed back to the system, where the C library can do that (glibc)."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def available_memory() -> int:
    """Return the bytes that this process may still use, within its container's limit; 0 if unknown."""
    found = []
    with suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
    with suppress(OSError, ValueError):
        found.append(free_in_container(Path("/sys/fs/cgroup")))
    names = getattr(os, "sysconf_names", {})
    if not found and "SC_PHYS_PAGES" in names:  # not Linux: all memory of the machine
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return max(0, min(found, default=0))


def free_in_container(folder: Path) -> int:
    """Return the bytes that are free within the limit of a control group (cgroup version 2).

    Files that the group has read are cached in its memory, but make room when needed. So they count as free.

    Raises
    ------
    OSError, ValueError
        If there is no limit.
    """
    limit = int((folder / "memory.max").read_text(encoding="ascii"))  # "max" is no number
    used = int((folder / "memory.current").read_text(encoding="ascii"))
    cached = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(encoding="ascii"), re.M)
    return limit - used + (int(cached[1]) if cached else 0)
