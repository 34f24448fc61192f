"""A file of histories of any size, corrected by a saved denoiser in bounded memory.

The file is read in parts of some thousand rows. Each part is scored, decided, suggested for and corrected alone, and
written into one folder: `part-00000/` with the tables HISTORIES, EDITS and SCORES. A part is whole or absent, so an
interrupted call resumes with the part that is missing.

Parts do not depend on each other: histories have no target here, so nothing is counted. The policy `probability` flags
alike whatever else is in a part. Other policies and the action `mixed` do not.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.hashing import digest, versions
from llm4dsr.core.io import as_output_error, write_parquet
from llm4dsr.core.lock import HOLDER, LOCK, locked_folder
from llm4dsr.core.manifest import DamageError, file_hash, read_manifest, read_sealed, sealed_folder, write_sealed
from llm4dsr.core.memory import peak_memory_mb
from llm4dsr.core.parquet import parquet_schema, parquet_spans
from llm4dsr.core.progress import Progress, log, subprogress
from llm4dsr.data.histories import Histories, holding
from llm4dsr.denoise.decide import STAND_IN, configured_rule
from llm4dsr.denoiser import Denoiser
from llm4dsr.errors import ConfigError, DataError, OutputError
from llm4dsr.pipeline.inputs import warn_of_versions

HISTORIES, EDITS, SCORES = "histories", "edits", "scores"  # tables of a part
CARD: Final = "apply.json"
DOING: Final = "apply"
ALONE = ("replace", "drop", "downweight")  # actions that do the same whatever else is in a part
COUNTED = ("histories", "interactions", "scored", "flagged", "unknown items", "too long")


@dataclass(frozen=True)
class ApplyOptions:
    """How histories are corrected.

    Attributes
    ----------
    eta : float
        Interactions with at least this noise probability are flagged, in [0, 1].
    cap : int
        Most flagged interactions in a history.
    action : str
        One of ALONE.
    rows : int
        Histories of a part.
    """

    eta: float
    cap: int
    action: str
    rows: int

    def __post_init__(self) -> None:
        """Raise ConfigError if an option is out of range."""
        if self.action not in ALONE:
            raise ConfigError(f"--action {self.action}: for a file, expected one of {', '.join(ALONE)}.")
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"--eta {self.eta}: expected a noise probability, from 0 to 1.")
        if self.rows < 1 or self.cap < 0:
            raise ConfigError(f"rows = {self.rows}, cap = {self.cap}; expected at least 1, and at least 0.")

    @classmethod
    def of(cls, denoiser: Denoiser, eta: float | None, action: str | None, rows: int) -> ApplyOptions:
        """Fill in what is not given from the configuration of the denoiser.

        Raises
        ------
        ConfigError
            If an option is out of range, or the configured η belongs to another policy.
        """
        policy, configured, cap = configured_rule(denoiser.config.decide, is_train=False)
        if eta is None and policy != STAND_IN:
            raise ConfigError(
                f"The denoiser is configured to flag by {policy}, which compares all histories with each other. "
                "A file is flagged by probability: give --eta, such as 0.5."
            )
        return cls(configured if eta is None else eta, cap, action or denoiser.config.correct.action, rows)


@dataclass(frozen=True)
class FilePart:
    """Rows of a file that are corrected together.

    Attributes
    ----------
    number : int
        Of the part, from 0.
    path : Path
        The file.
    first, rows : int
        Where the part begins in the file, and how many rows it has.
    before : int
        Rows of all files before it.
    """

    number: int
    path: Path
    first: int
    rows: int
    before: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"part-{self.number:05d}"


class PartMakers(Protocol):
    """Other processes that make parts: `ray_histories.RayHistories`."""

    def make(
        self, denoiser: Denoiser, parts: Sequence[FilePart], out: Path, made_from: dict[str, Any], options: ApplyOptions
    ) -> Iterator[tuple[FilePart, dict[str, Any], int]]:
        """Yield each part as soon as it is written, what was counted in it, and the MiB that its process has used."""


def apply_to_file(
    denoiser: Denoiser,
    data: Path,
    out: Path,
    options: ApplyOptions,
    progress: Progress | None = None,
    makers: PartMakers | None = None,
) -> dict[str, Any]:
    """Correct a Parquet file of histories, or a folder of such files.

    Parameters
    ----------
    denoiser : Denoiser
        A fitted denoiser.
    data : Path
        One history in each row: a list `item_ids`, oldest first, and optionally `user_id`. Other columns are kept.
        Of a folder, its `*.parquet` files are read in order of their names.
    out : Path
        Folder of the parts. The same call resumes what is there.
    options : ApplyOptions
        How histories are corrected.
    progress : Progress, optional
        Called with (histories done, all histories, what is being done).
    makers : PartMakers, optional
        Other processes that make the parts that are missing. Default: this one.

    Returns
    -------
    dict
        How many `histories` and `interactions` there were; of these, how many were `scored` and `flagged`, and how many
        are of `unknown items`; how many histories are `too long` for a prompt of titles; `edits` by action; `seconds`
        of this call and `peak memory MiB`, of the largest process. Also kept in the card.

    Raises
    ------
    DataError
        If a file cannot be read, has no `item_ids`, differs from others of its folder, or changes while it is read.
    ConfigError
        If `out` holds results of another model, other histories or other options.
    OutputError
        If `out` is complete already, in use, damaged, or cannot be written to.
    LLM4DSRError
        What `makers` raise.
    """
    files, sizes = _files(data)
    if not sum(sizes):
        raise DataError(f"{data} has no histories.")
    inputs = [file_hash(path) for path in files]
    made_from = {
        "model": model_digest(denoiser),
        "inputs": inputs,  # SHA-256 of the files: they may be moved
        "options": asdict(options),
    }
    started = time.monotonic()
    with locked_folder(out):
        card, tally, missing = _begin(out, made_from), _Tally(sum(sizes), progress), list[FilePart]()
        for part in _parts(files, sizes, options.rows):
            told = _kept(out / part.name)
            if told is None:
                missing.append(part)
            else:
                tally.add(part, told)
        tally.report()
        if makers is not None and missing:
            for part, told, memory in makers.make(denoiser, missing, out, made_from, options):
                tally.add(part, told, memory)
        else:
            for part, frame in _frames(missing):
                tally.add(part, _make(denoiser, frame, part, out, options, tally.of_part(part)))
        for path, before in zip(files, inputs, strict=True):
            if file_hash(path) != before:
                raise DataError(f"{path} has changed while it was read. Choose another --out for what it holds now.")
        for left in out.glob(".part-*.part"):  # of processes, also on other machines, that were killed
            shutil.rmtree(left, ignore_errors=True)
        facts = tally.facts() | {
            "seconds": round(time.monotonic() - started, 1), "peak memory MiB": max(tally.memory, peak_memory_mb()),
        }  # fmt: skip
        if facts["too long"]:
            log.warning(
                "%s of %s histories have more title tokens than train.max_tokens. They are kept as they are.",
                f"{facts['too long']:,}", f"{facts['histories']:,}",
            )  # fmt: skip
        if facts["unknown items"]:
            log.warning(
                "%s of %s interactions are of items that the denoiser does not know. They are kept as they are.",
                f"{facts['unknown items']:,}", f"{facts['interactions']:,}",
            )  # fmt: skip
        write_sealed(out / CARD, card | {"result": facts})
    return facts


@dataclass
class _Tally:
    """What was counted in the parts that are done."""

    total: int
    progress: Progress | None
    done: int = 0
    memory: int = 0  # MiB of the largest process
    sums: Counter[str] = field(default_factory=Counter)
    edits: Counter[str] = field(default_factory=Counter)

    def add(self, part: FilePart, told: dict[str, Any], memory: int = 0) -> None:
        self.sums.update({name: told[name] for name in COUNTED})
        self.edits.update(told["edits"])
        self.done, self.memory = self.done + part.rows, max(self.memory, memory)
        self.report()

    def report(self) -> None:
        if self.progress:
            self.progress(self.done, self.total, DOING)

    def of_part(self, part: FilePart) -> Progress | None:
        """Progress of a part as that of the file: one bar for scoring and suggesting."""
        if self.progress is None:
            return None
        whole = subprogress(self.progress, self.done, part.rows, self.total)
        return lambda done, of, _: whole(done, of, DOING)

    def facts(self) -> dict[str, Any]:
        return {name: self.sums[name] for name in COUNTED} | {"edits": dict(sorted(self.edits.items()))}


def model_digest(denoiser: Denoiser) -> str:
    """Return a hash of all of a denoiser that its corrections depend on."""
    counts = denoiser.ensemble.counts
    return digest(
        denoiser.ensemble.content, "" if counts is None else counts.fingerprint, asdict(denoiser.calibrator),
        asdict(denoiser.ranking_weights), [s and s.fingerprint for s in denoiser.ensemble.stackers],
        denoiser.ensemble.seen, denoiser.config.to_dict(),
    )  # fmt: skip


def make_part(denoiser: Denoiser, part: FilePart, out: Path, options: ApplyOptions) -> dict[str, Any]:
    """Return what was counted in a part, which is read and written unless it is there."""
    told = _kept(out / part.name)
    if told is None:
        ((_, frame),) = _frames([part])
        told = _make(denoiser, frame, part, out, options, None)
    return told


def _files(data: Path) -> tuple[list[Path], list[int]]:
    """(The files of histories, after a look at their columns; the rows of each)."""
    found = sorted(p for p in data.glob("*.parquet") if p.name[0] not in "._") if data.is_dir() else [data]
    if not found or not all(path.is_file() for path in found):
        raise DataError(f"{data} is no Parquet file, and no folder that holds any. Give one with a list {c.ITEMS!r}.")
    schemas, rows = zip(*(parquet_schema(path) for path in found), strict=True)
    for path, schema in zip(found, schemas, strict=True):
        if c.ITEMS not in schema.names:
            raise DataError(
                f"{path} has the columns {', '.join(schema.names)}; expected {c.ITEMS!r}, a list of item ids in each "
                "row. Group interactions by user first."
            )
        if schema.remove_metadata() != schemas[0].remove_metadata():
            raise DataError(f"{path} has other columns or types than {found[0]}. Write all files alike.")
    return found, list(rows)


def _parts(files: list[Path], sizes: list[int], rows: int) -> Iterator[FilePart]:
    """Parts of so many rows, and what is left at the end of each file."""
    number = before = 0
    for path, size in zip(files, sizes, strict=True):
        for first in range(0, size, rows):
            here = min(rows, size - first)
            yield FilePart(number, path, first, here, before)
            number, before = number + 1, before + here


def _frames(parts: Sequence[FilePart]) -> Iterator[tuple[FilePart, pl.DataFrame]]:
    """Parts, in their order, with their rows; those of one part are in memory at a time."""
    for path, group in groupby(parts, key=lambda part: part.path):
        of_file = list(group)
        yield from zip(of_file, parquet_spans(path, [(part.first, part.rows) for part in of_file]), strict=True)


def _begin(out: Path, made_from: dict[str, Any]) -> dict[str, Any]:
    """The card of a new folder, which is written, or of one that is resumed, which is checked."""
    path, now = out / CARD, versions()
    if not path.is_file():
        unwritten = f".{CARD}."  # of a process that was killed while it wrote the card
        if any(file.name not in (LOCK, HOLDER) and not file.name.startswith(unwritten) for file in out.iterdir()):
            raise OutputError(f"{out} exists already. Choose another --out.")
        card = made_from | {"versions": now, "command": " ".join(sys.argv)}
        write_sealed(path, card)
        return card
    try:
        card = read_sealed(path)
    except DamageError as error:
        raise OutputError(f"{error}. Choose another --out.") from None
    for name, what in (("model", "another model"), ("inputs", "other histories"), ("options", "other options")):
        if card.get(name) != made_from[name]:
            raise ConfigError(
                f"{out} holds results of {what}. Repeat its command to resume it, or choose another --out."
            )
    if "result" in card:
        raise OutputError(f"{out} is complete already. Choose another --out.")
    changed = warn_of_versions(card["versions"], now, f"A part of {out}")
    return card | ({"changed_versions": changed} if changed else {})


def _kept(folder: Path) -> dict[str, Any] | None:
    """What was counted in a part that is there; None if it is absent."""
    if not folder.is_dir():
        return None
    try:
        return dict(read_manifest(folder)["told"])
    except DamageError as error:
        raise OutputError(f"{error}. Remove {folder} and repeat the command to make it again.") from None


def _make(
    denoiser: Denoiser, frame: pl.DataFrame, of: FilePart, out: Path, options: ApplyOptions, progress: Progress | None
) -> dict[str, Any]:
    """Write one part; what was counted in it."""
    folder = out / of.name
    kind = frame.schema[c.ITEMS]
    if isinstance(kind, pl.List) and options.action == "replace":  # in all parts alike, whatever is suggested there
        wide = holding(kind.inner, denoiser.catalogue.ids.to_list())
        frame = frame.with_columns(pl.col(c.ITEMS).cast(pl.List(wide)))
    found = Histories.of(frame, denoiser.catalogue)
    windows = found.windows.take(denoiser.fitting_rows(found.windows))
    scores = denoiser.score(windows, progress and subprogress(progress, 0, 1, 2))
    decisions = denoiser.decide(scores, STAND_IN, options.eta, options.cap, is_train=False)
    correcting = progress and subprogress(progress, 1, 1, 2)
    edits = denoiser.correct(windows, decisions, action=options.action, progress=correcting).edits
    ends = np.cumsum(found.lengths)

    def placed(table: pl.DataFrame) -> pl.DataFrame:
        """The table with rows of the input and places in its lists, instead of windows and their positions."""
        at = found.places[found.windows.offsets[table[c.WINDOW].to_numpy()] + table[c.POSITION].to_numpy()]
        row = np.searchsorted(ends, at, side="right")
        names = {c.ROW: of.before + row} | ({c.USER: frame[c.USER].gather(row)} if c.USER in frame.columns else {})
        rest = table.select(pl.exclude(c.WINDOW, c.USER, c.POSITION))
        return pl.DataFrame({**names, c.POSITION: at - (ends - found.lengths)[row], **rest.to_dict()})

    told = {
        "histories": len(frame), "interactions": int(found.lengths.sum()), "scored": len(scores),
        "flagged": len(decisions), "unknown items": found.unknown,
        "too long": len(found.windows) - len(windows),
        "edits": dict(edits[c.ACTION].value_counts().iter_rows()),
    }  # fmt: skip
    try:
        with as_output_error(folder), sealed_folder(folder, told=told) as part:
            write_parquet(found.corrected(edits, options.action), part / f"{HISTORIES}.parquet")
            write_parquet(placed(edits), part / f"{EDITS}.parquet")
            write_parquet(placed(scores), part / f"{SCORES}.parquet")
    except (OSError, OutputError):
        if (there := _kept(folder)) is None:
            raise
        return there  # a worker that outlived the call that had started it was first
    return told
