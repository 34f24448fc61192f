"""A file of histories of any size, corrected by a saved denoiser in bounded memory.

The file is read in parts of some thousand rows. Each part is scored, decided, suggested for and corrected alone, and
written into one folder: `part-00000/` with the tables HISTORIES, EDITS and SCORES. A part is whole or absent, so an
interrupted call resumes with the part that is missing.

Parts do not depend on each other: histories have no target here, so nothing is counted. The policy `probability` flags
alike whatever else is in a part. Other policies and the action `mixed` do not.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.hashing import digest, versions
from llm4dsr.core.io import as_output_error, write_parquet
from llm4dsr.core.lock import HOLDER, LOCK, locked_folder
from llm4dsr.core.manifest import DamageError, file_hash, read_manifest, read_sealed, sealed_folder, write_sealed
from llm4dsr.core.memory import peak_memory_mb
from llm4dsr.core.parquet import parquet_parts, parquet_schema
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


def apply_to_file(
    denoiser: Denoiser, data: Path, out: Path, options: ApplyOptions, progress: Progress | None = None
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

    Returns
    -------
    dict
        How many `histories` and `interactions` there were; of these, how many were `scored` and `flagged`, and how many
        are of `unknown items`; how many histories are `too long` for a prompt of titles; `edits` by action; `seconds`
        of this call and `peak memory MiB`. Also kept in the card.

    Raises
    ------
    DataError
        If a file cannot be read, has no `item_ids`, differs from others of its folder, or changes while it is read.
    ConfigError
        If `out` holds results of another model, other histories or other options.
    OutputError
        If `out` is complete already, in use, damaged, or cannot be written to.
    """
    files, total = _files(data)
    if not total:
        raise DataError(f"{data} has no histories.")
    counts = denoiser.ensemble.counts
    inputs = [file_hash(path) for path in files]
    made_from = {
        "model": digest(
            denoiser.ensemble.content, "" if counts is None else counts.fingerprint, asdict(denoiser.calibrator),
            asdict(denoiser.ranking_weights), [s and s.fingerprint for s in denoiser.ensemble.stackers],
            denoiser.ensemble.seen, denoiser.config.to_dict(),
        ),
        "inputs": inputs,  # SHA-256 of the files: they may be moved
        "options": asdict(options),
    }  # fmt: skip
    started = time.monotonic()
    with locked_folder(out):
        card = _begin(out, made_from)
        done, sums, edits = 0, Counter[str](), Counter[str]()
        for number, frame in enumerate(_parts(files, options.rows)):
            folder = out / f"part-{number:05d}"
            step = progress and _of_part(progress, done, len(frame), total)
            told = _kept(folder)
            if told is None:
                told = _make(denoiser, frame, done, folder, options, step)
            sums.update({name: told[name] for name in COUNTED})
            edits.update(told["edits"])
            done += len(frame)
            if progress:
                progress(done, total, DOING)
        for path, before in zip(files, inputs, strict=True):
            if file_hash(path) != before:
                raise DataError(f"{path} has changed while it was read. Choose another --out for what it holds now.")
        facts = {
            **{name: sums[name] for name in COUNTED}, "edits": dict(edits),
            "seconds": round(time.monotonic() - started, 1), "peak memory MiB": peak_memory_mb(),
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


def _of_part(progress: Progress, before: int, size: int, total: int) -> Progress:
    """Progress of a part as that of the file: one bar for scoring and suggesting."""
    whole = subprogress(progress, before, size, total)
    return lambda done, of, _: whole(done, of, DOING)


def _files(data: Path) -> tuple[list[Path], int]:
    """(The files of histories, after a look at their columns; their rows)."""
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
    return found, sum(rows)


def _parts(files: list[Path], size: int) -> Iterator[pl.DataFrame]:
    """Parts of `size` rows, and what is left at the end of each file; one part is in memory at a time."""
    for path in files:
        held, count = list[pl.DataFrame](), 0
        for batch in parquet_parts(path, size):
            held.append(batch)
            count += len(batch)
            if count >= size:
                table = pl.concat(held)
                yield table[:size]
                held, count = [table[size:]], count - size
        if count:
            yield pl.concat(held)


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
    denoiser: Denoiser, frame: pl.DataFrame, before: int, folder: Path, options: ApplyOptions, progress: Progress | None
) -> dict[str, Any]:
    """Write one part, of the rows after `before`; what was counted in it."""
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
        names = {c.ROW: before + row} | ({c.USER: frame[c.USER].gather(row)} if c.USER in frame.columns else {})
        rest = table.select(pl.exclude(c.WINDOW, c.USER, c.POSITION))
        return pl.DataFrame({**names, c.POSITION: at - (ends - found.lengths)[row], **rest.to_dict()})

    told = {
        "histories": len(frame), "interactions": int(found.lengths.sum()), "scored": len(scores),
        "flagged": len(decisions), "unknown items": found.unknown,
        "too long": len(found.windows) - len(windows),
        "edits": dict(edits[c.ACTION].value_counts().iter_rows()),
    }  # fmt: skip
    with as_output_error(folder), sealed_folder(folder, told=told) as part:
        write_parquet(found.corrected(edits, options.action), part / f"{HISTORIES}.parquet")
        write_parquet(placed(edits), part / f"{EDITS}.parquet")
        write_parquet(placed(scores), part / f"{SCORES}.parquet")
    return told
