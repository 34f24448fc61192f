"""Memory: how much is free, and how much this process has used."""

from __future__ import annotations

import os
import re
import sys
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


def available_memory() -> int:
    """Return the bytes that this process may still use, within its container's limit; 0 if unknown."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            found.append(int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii")))
    except (OSError, ValueError):
        pass
    names = getattr(os, "sysconf_names", {})
    if not found and "SC_PHYS_PAGES" in names:  # not Linux: all memory of the machine
        found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    return max(0, min(found, default=0))
