"""Processes that Ray has started for a test: kill one, and see where they listen."""

import os
import signal
from pathlib import Path


def our_processes() -> dict[int, str]:
    """The names of the processes that this one has started, and those have started, by their ids."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue  # it has ended

    def is_ours(process: int) -> bool:
        return process == os.getpid() or (process in parents and is_ours(parents[process]))

    return {process: name for process, name in names.items() if is_ours(process)}


def kill_a_worker() -> None:
    worker = next(process for process, name in our_processes().items() if name.startswith("ray::MapWorker"))
    os.kill(worker, signal.SIGKILL)


def listening_addresses() -> set[str]:
    """The addresses that our processes listen on, as the kernel writes them."""
    sockets = set()
    for process in our_processes():
        try:
            sockets |= {os.readlink(link) for link in Path(f"/proc/{process}/fd").iterdir()}
        except OSError:
            continue
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets}
