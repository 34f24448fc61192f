"""What a run was made from: its input files and library versions, so that a change in between is noticed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

from llm4dsr.core.hashing import digest, user_hashes
from llm4dsr.core.manifest import MANIFEST, file_hash
from llm4dsr.core.progress import log
from llm4dsr.data.dataset import Dataset
from llm4dsr.data.files import find_files
from llm4dsr.data.read import read_data
from llm4dsr.data.validate import validate
from llm4dsr.denoise.storage import CARD, saved_config
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import DataError, ModelError, OutputError

MODEL = "model"  # folder of the saved denoiser in a run folder
Inputs = dict[str, dict[str, Any]]  # path → size, time and hash
Check = Callable[[Dataset], object]  # what it raises stops a run before windows are written


def origin(data: str | Path | Dataset) -> str:
    """Return where data come from, for the run card: the folder, or a hash of all of a dataset in memory."""
    if not isinstance(data, Dataset):
        return str(Path(data).resolve())
    rest = [(w.window_ids, w.timestamps, w.noise_mask, w.clean_items, w.weights) for w in data.splits.values()]
    return f"{windows_origin(data)} {digest(*(part for parts in rest for part in parts))}"


def windows_origin(data: Dataset) -> str:
    """Return a hash of a catalogue and its windows, whatever else is known of them, for results of a benchmark."""
    windows = [part for w in data.splits.values() for part in (w.items, w.lengths, user_hashes(w.user_ids))]
    return f"in memory, {digest(data.catalogue.titles, data.catalogue.ids.to_list(), *windows)}"


def inputs_of(data: str | Path | Dataset) -> Inputs:
    """Return size, time and SHA-256 of each file that is read; nothing for data in memory. Raises DataError."""
    if isinstance(data, Dataset):
        return {}
    return {str(path.resolve()): described(path) for path in find_files(Path(data)).values()}


def start_of(folder: str | Path) -> dict[str, str]:
    """Return what tells a saved denoiser that tuning starts from: its folder, and the SHA-256 of its manifest.

    Parameters
    ----------
    folder : str or Path
        A saved denoiser, or a run folder that holds one.

    Raises
    ------
    ModelError
        If there is none.
    """
    folder = Path(folder)
    if not (folder / CARD).is_file() and (folder / MODEL / CARD).is_file():
        folder = folder / MODEL
    saved_config(folder)  # raises what is wrong with it
    return {"folder": str(folder.resolve()), "sha256": file_hash(folder / MANIFEST)}


def load_start(start: str | Path | None, card: dict[str, Any]) -> tuple[Denoiser | None, dict[str, Any]]:
    """Load the denoiser that tuning starts from.

    Parameters
    ----------
    start : str, Path or None
        As in `start_of`. None: the one that the run began with, if any.
    card : dict
        The run card.

    Returns
    -------
    denoiser : Denoiser or None
    facts : dict
        What `start_of` returns, as `start`; empty without a start.

    Raises
    ------
    ModelError
        If it cannot be loaded, or has changed since the run began.
    """
    begun: dict[str, str] = card.get("start", {})
    if start is None and not begun:
        return None, {}
    found = start_of(start or begun["folder"])
    if start is None and found != begun:
        raise ModelError(f"{found['folder']} has changed since this run began. Restore it, or start another run.")
    return Denoiser.from_pretrained(found["folder"]), {"start": found}


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
        if (now := described(path))["sha256"] != before["sha256"]:
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


def described(path: Path) -> dict[str, Any]:
    """Return size, time and SHA-256 of a file."""
    stat = path.stat()
    return {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns, "sha256": file_hash(path)}


def read_checked(path: str | Path, facts: dict[str, Any]) -> Dataset:
    """Read data without errors; warnings are logged, and counted for the run card. Raises DataError."""
    loaded, report = read_data(path), validate(path, read=False)
    if report.errors:
        found = " ".join(f"{finding.text} {finding.advice}" for finding in report.errors[:3])
        raise DataError(f"{found} For all findings:  llm4dsr data validate {quote(str(path))}")
    facts["warnings"] = {finding.code: finding.count for finding in report.warnings}
    if report.warnings:
        log.warning(
            "%d warning(s) about the data. To see them:  llm4dsr data validate %s",
            len(report.warnings),
            quote(str(path)),
        )
    return loaded
