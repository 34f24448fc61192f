"""Reading what a user has (ready windows or an interaction log) into memory, and writing it as Parquet."""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.catalogue import Catalogue, Windows
from llm4dsr.cut import cut_log, number_anew, used_items, windows_of
from llm4dsr.errors import DataError, OutputError
from llm4dsr.log import Log

FORMATS: Final = (".parquet", ".csv", ".jsonl")
LOG: Final = "interactions"
ITEMS: Final = "items"
_EXPECTED = (
    "Expected either ready windows (items, train, valid, test) or a log (items, interactions), "
    f"each as one file ending in {', '.join(FORMATS)}; all names may share one prefix, as in toys_items.parquet"
)


@dataclass
class Data:
    """A catalogue and its windows.

    splits: train, valid, test. report: how many interactions `make_windows` left out, by reason; empty for ready
    windows.
    """

    catalogue: Catalogue
    splits: dict[str, Windows]
    report: dict[str, int] = field(default_factory=dict)

    def write(self, folder: str | Path) -> None:
        """Write items, train, valid and test as Parquet into `folder`, which is made if need be."""
        folder = Path(folder)
        write_parquet(self.catalogue.to_frame(), folder / f"{ITEMS}.parquet")
        for name, windows in self.splits.items():
            write_parquet(windows.to_frame(self.catalogue), folder / f"{name}.parquet")


def write_parquet(frame: pl.DataFrame, path: str | Path) -> None:
    """Write zstd Parquet so that `path` is never half a file. Raises OutputError where it cannot be written."""
    with _whole(Path(path)) as part:
        part.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(part, compression="zstd")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8) so that `path` is never half a file. Raises OutputError where it cannot be written."""
    with _whole(Path(path)) as part:
        if not part.parent.is_dir():
            part.parent.mkdir(parents=True)
        part.write_text(text, encoding="utf-8")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Where to write what becomes `path` once it is whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # same folder: a rename across disks is not atomic
    try:
        yield part
        os.replace(part, path)
    except (OSError, pl.exceptions.ComputeError) as error:  # Polars wraps what the system says of a full disk
        raise OutputError(f"Cannot write {path}: {error}. Check that the folder is writable and not full.") from None
    finally:
        if path.parent.is_dir():
            part.unlink(missing_ok=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that is renamed to it at the end; whatever goes wrong, nothing half made is left."""
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        _remove_leftovers(out)
        part.mkdir(parents=True)
        yield part
        os.replace(part, out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    """Hidden folders of processes that were killed while they wrote to the same place."""
    for part in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
        if (number := re.fullmatch(rf"\.{re.escape(out.name)}\.(\d+)\.part", part.name)) is not None:
            try:
                os.kill(int(number[1]), 0)  # no signal: asks whether the process is there
            except ProcessLookupError:
                shutil.rmtree(part, ignore_errors=True)
            except PermissionError:
                pass


def limit_windows(windows: Windows, n: int, seed: int) -> Windows:
    """A seeded sample of `n` windows in their original order; all of them where n is 0 or there are no more than n."""
    if n <= 0 or n >= len(windows):
        return windows
    return windows.take(np.sort(np.random.default_rng(seed).choice(len(windows), n, replace=False)))


# --- reading ---------------------------------------------------------------------------------------------------------


def read_data(path: str | Path, history: int = 10, k_core: int = 5, ratios: tuple[int, int, int] = (8, 1, 1)) -> Data:
    """Read ready windows, or an interaction log that is then cut by `make_windows` with the other arguments.

    path: a folder with `items.*` and either `train.*, valid.*, test.*` or `interactions.*`, each .parquet, .csv or
    .jsonl. One prefix common to all names is fine: give `folder/toys` for `folder/toys_items.parquet` and so on, or the
    folder itself where it holds a single such set. Lists cannot be read from csv, so windows come as Parquet or jsonl.
    Raises DataError where a file or column is missing or cannot be used.
    """
    files = find_files(Path(path))
    items = read_table(files.pop(ITEMS))
    if LOG in files:
        return make_windows(read_table(files[LOG]), items, history, k_core, ratios)
    catalogue = Catalogue.from_frame(items)
    return Data(catalogue, {name: to_windows(read_table(file), catalogue, str(file)) for name, file in files.items()})


def find_files(path: Path) -> dict[str, Path]:
    """items and interactions, or items, train, valid and test; the latter where a folder has both. Raises DataError."""
    folder, prefix = locate(path)
    found = {name: find_file(folder, prefix, name) for name in (ITEMS, *c.SPLITS, LOG)}
    missing = [name for name in c.SPLITS if found[name] is None]
    log = len(missing) == len(c.SPLITS) and found[LOG] is not None
    lacking = [ITEMS] if found[ITEMS] is None else [] if log else missing
    if lacking:
        names = ", ".join(f"{prefix}{name}" for name in lacking)
        raise DataError(f"{folder} lacks {names}; it holds {_listing(folder)}. {_EXPECTED}.")
    wanted = (ITEMS, LOG) if log else (ITEMS, *c.SPLITS)
    return {name: file for name in wanted if (file := found[name]) is not None}


def locate(path: Path) -> tuple[Path, str]:
    """(folder, prefix of the file names)."""
    if path.is_dir():
        if find_file(path, "", ITEMS) is not None:
            return path, ""
        ends = f"_{ITEMS}"
        prefixes = sorted({f.stem.removesuffix(ITEMS) for f in path.iterdir() if f.stem.endswith(ends)})
        sets = [p for p in prefixes if all(find_file(path, p, s) for s in c.SPLITS) or find_file(path, p, LOG)]
        if len(sets) == 1:
            return path, sets[0]
        if len(sets) > 1:
            names = [p.removesuffix("_") for p in sets]
            raise DataError(f"{path} holds several data sets: {names}. Name one, for example {path / names[0]}.")
        return path, prefixes[0] if len(prefixes) == 1 else ""
    if path.parent.is_dir() and any(f.name.startswith(f"{path.name}_") for f in path.parent.iterdir()):
        return path.parent, f"{path.name}_"
    raise DataError(f"There is no folder {path}, nor files whose names begin with {path}_. {_EXPECTED}.")


def find_file(folder: Path, prefix: str, name: str) -> Path | None:
    files = [f for f in (folder / f"{prefix}{name}{end}" for end in FORMATS) if f.is_file()]
    if len(files) > 1:
        raise DataError(f"{folder} holds {prefix}{name} more than once: {[f.name for f in files]}. Keep one of them.")
    return files[0] if files else None


def _listing(folder: Path, most: int = 12) -> str:
    names = sorted(f.name for f in folder.iterdir())
    return (", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")) or "nothing"


def read_table(path: Path) -> pl.DataFrame:
    with as_data_error(f"{path} cannot be read as {path.suffix[1:]}", "Is it cut off, or another format?"):
        if path.suffix == ".parquet":
            return pl.read_parquet(path, glob=False)
        if path.suffix == ".jsonl":
            return pl.read_ndjson(path, infer_schema_length=None)
        # A title such as 1984 is text, also where every title is a number.
        frame = pl.read_csv(path, infer_schema_length=None, schema_overrides={c.TITLE: pl.String})
    if c.ITEMS in frame.columns:
        raise DataError(f"{path} has a column {c.ITEMS!r}, but csv holds no lists. Give windows as .parquet or .jsonl.")
    return frame


@contextmanager
def as_data_error(what: str, advice: str) -> Iterator[None]:
    """Polars' own exceptions as one line that says what to do."""
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{what}: {first}. {advice}") from None


def to_windows(frame: pl.DataFrame, catalogue: Catalogue, where: str) -> Windows:
    """`Windows.from_frame` with the checks that a file from outside needs."""
    if frame.is_empty():
        raise DataError(f"{where} has no rows; expected at least one window.")
    for name in (c.WINDOW, c.TIME):
        if name in frame.columns and not frame[name].dtype.is_integer():
            raise DataError(f"{name!r} in {where} has the type {frame[name].dtype}; expected integers.")
    for name in (c.WINDOW, c.USER):
        if name in frame.columns and frame[name].null_count():
            raise DataError(f"{frame[name].null_count()} row(s) of {where} have no {name!r}. Fill or remove them.")
    if c.WINDOW in frame.columns and frame[c.WINDOW].is_duplicated().any():
        repeated = frame[c.WINDOW].filter(frame[c.WINDOW].is_duplicated()).unique().sort().head(3).to_list()
        raise DataError(f"{c.WINDOW!r} must be unique in {where}; repeated: {repeated}. Number the windows anew.")
    for name in (c.NOISE_MASK, c.WEIGHTS):
        if name in frame.columns:
            low, high = _range(frame[name], f"{name!r} in {where}")
            if not 0.0 <= low <= high <= 1.0:
                raise DataError(f"{name!r} in {where} holds values from {low:g} to {high:g}; expected 0 to 1.")
    with as_data_error(f"{where} cannot be used", f"Columns and types found: {dict(frame.schema)}."):
        if c.TIME in frame.columns:
            frame = frame.with_columns(pl.col(c.TIME).cast(pl.Int64).fill_null(-1))
        return Windows.from_frame(frame, catalogue, where)


def _range(lists: pl.Series, what: str) -> tuple[float, float]:
    inner = lists.dtype.inner if isinstance(lists.dtype, pl.List) else pl.Null()
    if not isinstance(inner, pl.DataType) or not (inner.is_numeric() or inner == pl.Boolean):
        raise DataError(f"{what} has the type {lists.dtype}; expected a list of numbers, one for each item.")
    values = lists.explode().drop_nulls().cast(pl.Float64).to_numpy()
    return float(values.min(initial=1.0)), float(values.max(initial=0.0))


# --- cutting windows from a log --------------------------------------------------------------------------------------


def make_windows(
    interactions: pl.DataFrame,
    items: pl.DataFrame,
    history: int = 10,
    k_core: int = 5,
    ratios: Sequence[int] = (8, 1, 1),
) -> Data:
    """Windows of up to `history` items and a target, in the protocol of the study (`cut.cut_log`). All in memory;
    `prepare` does the same for logs of any size.

    interactions: `user_id, item_id, timestamp` (integer, float, date, or ISO text), in any order; rows of one user with
    one timestamp keep theirs. Optional truth, carried along: `noise_mask` (0/1) and `clean_item_id` (null where an item
    was inserted that does not belong there).
    k_core: users and items with fewer interactions leave, until none has; 0 or less keeps all, also items nobody took.

    Windows are split by the time of their target. Where the truth is known, the target of a test window is restored to
    it. Returns Data with `report`: interactions left out, by reason. Raises DataError if nothing or too little is left.
    """
    if history < 1 or len(ratios) != 3 or min(ratios) < 0 or sum(ratios) <= 0:
        raise DataError(f"history={history}, ratios={tuple(ratios)}; expected at least 1, and three shares.")
    catalogue = Catalogue.from_frame(items)
    frame, missing = _usable_rows(interactions)
    columns = Log(
        users=frame.with_row_index("row").select(pl.col("row").first().over(c.USER))["row"].to_numpy().astype(np.int64),
        items=catalogue.index(frame[c.ITEM], "the interactions"),
        order=frame["order"].to_numpy(),
        seconds=frame["seconds"].to_numpy(),
    )
    if c.NOISE_MASK in frame.columns:
        columns.noise_mask = frame[c.NOISE_MASK].to_numpy().astype(bool)
    if c.CLEAN_ITEM in frame.columns:
        columns.clean_items = catalogue.index_or_pad(frame[c.CLEAN_ITEM], c.CLEAN_ITEM)
    cut = cut_log(columns, history, k_core, ratios=ratios)
    if k_core > 0:  # an item that no interaction is left of is no longer part of the catalogue
        used = used_items(columns, cut, len(catalogue))
        number_anew(columns, used)
        catalogue = Catalogue(catalogue.ids.filter(used), [catalogue.titles[i] for i in np.flatnonzero(used)])
    splits = {name: windows_of(columns, cut, name, frame[c.USER]) for name in c.SPLITS}
    return Data(catalogue, splits, {"missing_value": missing, **cut.dropped})


def _usable_rows(interactions: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """(the log with `order` and `seconds`, without rows that lack a value; how many of these there were)."""
    needed = [c.USER, c.ITEM, c.TIME]
    for name in needed:
        if name not in interactions.columns:
            raise DataError(f"The interactions have the columns {interactions.columns}, but {name!r} is missing.")
    truth = [name for name in (c.NOISE_MASK, c.CLEAN_ITEM) if name in interactions.columns]
    log = interactions.select(*needed, *truth)
    time = pl.col(c.TIME)
    kind = log.schema[c.TIME]
    if kind == pl.String:
        with as_data_error(f"{c.TIME!r} of the interactions is text that is no date", "Give seconds, or 2024-05-31."):
            log = log.with_columns(time.str.to_datetime(time_unit="us", time_zone="UTC"))
            kind = log.schema[c.TIME]
    if kind.is_temporal() and kind not in (pl.Time, pl.Duration):
        log = log.with_columns(order=time.dt.epoch("us"), seconds=time.dt.epoch("s"))
    elif kind.is_numeric():
        log = log.with_columns(order=time, seconds=time.cast(pl.Int64, strict=False))
    else:
        raise DataError(f"{c.TIME!r} of the interactions has the type {kind}; expected a number or a date.")
    if c.NOISE_MASK in truth and not set(log[c.NOISE_MASK].unique()) <= {0, 1}:
        found = log[c.NOISE_MASK].unique().head(5).to_list()
        raise DataError(f"{c.NOISE_MASK!r} of the interactions holds {found}; expected 0 or 1 in each row.")
    if c.CLEAN_ITEM in truth and c.NOISE_MASK not in truth:
        with as_data_error(f"{c.CLEAN_ITEM!r} and {c.ITEM!r} cannot be compared", "Give both the same type."):
            log = log.with_columns(pl.col(c.ITEM).ne_missing(pl.col(c.CLEAN_ITEM)).alias(c.NOISE_MASK))
    full = log.drop_nulls([*needed, "seconds"])
    if full.is_empty():
        raise DataError(f"The interactions have {len(log)} row(s), none of them with {', '.join(needed)}.")
    return full, len(log) - len(full)
