"""What a run was made from: its input files and library versions, so that a change in between is noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm4dsr.core.hashing import digest, user_hashes
from llm4dsr.core.manifest import file_hash
from llm4dsr.core.progress import log
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.files import find_files
from llm4dsr.data.read import read_data
from llm4dsr.data.validate import validate
from llm4dsr.errors import DataError, OutputError

Inputs = dict[str, dict[str, Any]]  # path → size, time and hash
Check = Callable[[Dataset], object]  # what it raises stops a run before windows are written


def origin(data: str | Path | Dataset) -> str:
    """Return where data come from, for the run card: the folder, or a hash of a dataset in memory."""
    if not isinstance(data, Dataset):
        return str(Path(data).resolve())
    windows = [part for w in data.splits.values() for part in (w.items, w.lengths, user_hashes(w.user_ids))]
    return f"in memory, {digest(data.catalogue.titles, data.catalogue.ids.to_list(), *windows)}"


def inputs_of(data: str | Path | Dataset) -> Inputs:
    """Return size, time and SHA-256 of each file that is read; nothing for data in memory. Raises DataError."""
    if isinstance(data, Dataset):
        return {}
    return {str(path.resolve()): _described(path) for path in find_files(Path(data)).values()}


def check_inputs(inputs: Inputs, folder: Path) -> None:
    """Compare input files with what they were when `prepare` read them.

    A file that is gone is logged: the windows that were made from it are still there.

    Parameters
    ----------
    inputs : dict
        As `inputs_of` returned it.
    folder : Path
        The run folder, for messages.

    Raises
    ------
    OutputError
        If a file has other content now.
    """
    for name, before in inputs.items():
        path = Path(name)
        if not path.is_file():
            log.warning("%s is no longer there. The run goes on with the windows that were made from it.", path)
            continue
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) == (before["bytes"], before["modified_ns"]):
            continue
        if (now := _described(path))["sha256"] != before["sha256"]:
            raise OutputError(
                f"{path} has changed since {folder} was made from it ({before['bytes']:,} bytes then, {now['bytes']:,} "
                "now). Start a run in another folder, or make this one again:  llm4dsr prepare … --overwrite"
            )


def warn_of_versions(before: dict[str, str], now: dict[str, str], made: str) -> list[str]:
    """Log which versions differ from those that made an earlier stage, and return them as text."""
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    changed = [f"{name} {before.get(name, 'absent')}, now {now.get(name, 'absent')}" for name in names]
    if changed:
        log.warning(
            "%s was made with other versions: %s. Numbers may differ from a run with one set of versions.",
            made, "; ".join(changed),
        )  # fmt: skip
    return changed


def _described(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns, "sha256": file_hash(path)}


def read_checked(path: str | Path, facts: dict[str, Any]) -> Dataset:
    """Read data without errors; warnings are logged, and counted for the run card. Raises DataError."""
    loaded, report = read_data(path), validate(path, read=False)
    if report.errors:
        found = " ".join(f"{finding.text} {finding.advice}" for finding in report.errors[:3])
        raise DataError(f"{found} For all findings:  llm4dsr data validate {path}")
    facts["warnings"] = {finding.code: finding.count for finding in report.warnings}
    if report.warnings:
        log.warning("%d warning(s) about the data. To see them:  llm4dsr data validate %s", len(report.warnings), path)
    return loaded
