"""Reading what a user has (ready windows or an interaction log), cutting windows, writing Parquet."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.catalogue import PAD, Catalogue, IntArray, Windows
from llm4dsr.errors import DataError, OutputError

MIN_HISTORY: Final = 4  # fewer items show no interest that another could fail to fit
FORMATS: Final = (".parquet", ".csv", ".jsonl")
LOG: Final = "interactions"
_ITEMS: Final = "items"
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
        write_parquet(self.catalogue.to_frame(), folder / f"{_ITEMS}.parquet")
        for name, windows in self.splits.items():
            write_parquet(windows.to_frame(self.catalogue), folder / f"{name}.parquet")


def write_parquet(frame: pl.DataFrame, path: str | Path) -> None:
    """Write zstd Parquet so that `path` is never half a file: under another name first, then renamed.

    Raises OutputError if the folder cannot be made or written to.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # same folder: a rename across disks is not atomic
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.write_parquet(part, compression="zstd")
        os.replace(part, path)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error}. Check that the folder is writable and not full.") from None
    finally:
        if path.parent.is_dir():
            part.unlink(missing_ok=True)


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
    folder, prefix = _locate(Path(path))
    items = _file(folder, prefix, _ITEMS)
    found = {name: _file(folder, prefix, name) for name in (*c.SPLITS, LOG)}
    missing = [f"{prefix}{name}" for name in c.SPLITS if found[name] is None]
    whole = items is not None and (not missing or (found[LOG] is not None and len(missing) == len(c.SPLITS)))
    if items is None or not whole:
        lacking = [f"{prefix}{_ITEMS}"] if items is None else missing
        raise DataError(f"{folder} lacks {', '.join(lacking)}; it holds {_listing(folder)}. {_EXPECTED}.")
    catalogue_frame = _read(items)
    if missing:
        log = found[LOG]
        assert log is not None
        return make_windows(_read(log), catalogue_frame, history, k_core, ratios)
    catalogue = Catalogue.from_frame(catalogue_frame)
    files = {name: file for name, file in found.items() if file is not None and name != LOG}
    return Data(catalogue, {name: to_windows(_read(file), catalogue, str(file)) for name, file in files.items()})


def _locate(path: Path) -> tuple[Path, str]:
    """(folder, prefix of the file names)."""
    if path.is_dir():
        if _file(path, "", _ITEMS) is not None:
            return path, ""
        ends = f"_{_ITEMS}"
        prefixes = sorted({f.stem.removesuffix(_ITEMS) for f in path.iterdir() if f.stem.endswith(ends)})
        sets = [p for p in prefixes if all(_file(path, p, s) for s in c.SPLITS) or _file(path, p, LOG)]
        if len(sets) == 1:
            return path, sets[0]
        if len(sets) > 1:
            names = [p.removesuffix("_") for p in sets]
            raise DataError(f"{path} holds several data sets: {names}. Name one, for example {path / names[0]}.")
        return path, prefixes[0] if len(prefixes) == 1 else ""
    if path.parent.is_dir() and any(f.name.startswith(f"{path.name}_") for f in path.parent.iterdir()):
        return path.parent, f"{path.name}_"
    raise DataError(f"There is no folder {path}, nor files whose names begin with {path}_. {_EXPECTED}.")


def _file(folder: Path, prefix: str, name: str) -> Path | None:
    files = [f for f in (folder / f"{prefix}{name}{end}" for end in FORMATS) if f.is_file()]
    if len(files) > 1:
        raise DataError(f"{folder} holds {prefix}{name} more than once: {[f.name for f in files]}. Keep one of them.")
    return files[0] if files else None


def _listing(folder: Path, most: int = 12) -> str:
    names = sorted(f.name for f in folder.iterdir())
    return (", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")) or "nothing"


def _read(path: Path) -> pl.DataFrame:
    with _as_data_error(f"{path} cannot be read as {path.suffix[1:]}", "Is it cut off, or another format?"):
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        if path.suffix == ".jsonl":
            return pl.read_ndjson(path, infer_schema_length=None)
        # A title such as 1984 is text, also where every title is a number.
        frame = pl.read_csv(path, infer_schema_length=None, schema_overrides={c.TITLE: pl.String})
    if c.ITEMS in frame.columns:
        raise DataError(f"{path} has a column {c.ITEMS!r}, but csv holds no lists. Give windows as .parquet or .jsonl.")
    return frame


@contextmanager
def _as_data_error(what: str, advice: str) -> Iterator[None]:
    """Polars' own exceptions as one line that says what to do."""
    try:
        yield
    except (pl.exceptions.PolarsError, OSError, ValueError, TypeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{what}: {first}. {advice}") from None


def to_windows(frame: pl.DataFrame, catalogue: Catalogue, where: str) -> Windows:
    """`Windows.from_frame` with the checks that a file from outside needs."""
    if frame.is_empty():
        raise DataError(f"{where} has no rows; expected at least one window.")
    for name in (c.WINDOW, c.TIME):
        if name in frame.columns and not frame[name].dtype.is_integer():
            raise DataError(f"{name!r} in {where} has the type {frame[name].dtype}; expected integers.")
    if c.TIME in frame.columns:
        frame = frame.with_columns(pl.col(c.TIME).fill_null(-1))
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
    with _as_data_error(f"{where} cannot be used", f"Columns and types found: {dict(frame.schema)}."):
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
    """Windows of up to `history` items and a target, in the protocol of the study.

    interactions: `user_id, item_id, timestamp` (integer, float, date, or ISO text), in any order; rows of one user with
    one timestamp keep theirs. Optional truth, carried along: `noise_mask` (0/1) and `clean_item_id`.
    k_core: users and items with fewer interactions leave, until none has; 0 or less keeps all, also items nobody took.

    A history longer than history + 1 gives one window per step; a shorter one is a single window, and none if it has
    fewer than 4 items before the target. Windows are split by the time of their target. Where the truth is known, the
    target of a test window is restored to it: a recommender is measured on what the user wanted.
    Returns Data with `report`: interactions left out, by reason. Raises DataError if nothing or too little is left.
    """
    if history < 1 or len(ratios) != 3 or min(ratios) < 0 or sum(ratios) <= 0:
        raise DataError(f"history={history}, ratios={tuple(ratios)}; expected at least 1, and three shares.")
    catalogue = Catalogue.from_frame(items)
    log, report = _usable_rows(interactions)
    rows = catalogue.index(log[c.ITEM].to_list(), "the interactions")
    clean = catalogue.index(log[c.CLEAN_ITEM].to_list(), c.CLEAN_ITEM) if c.CLEAN_ITEM in log.columns else None
    users = log.with_row_index("row").select(pl.col("row").first().over(c.USER))["row"].to_numpy().astype(np.int64)

    keep = _k_core(users, rows, k_core)
    report["k_core"] = len(log) - len(keep)
    if not len(keep):
        raise DataError(
            f"The {k_core}-core is empty: none of the {len(log)} interactions has a user and an item with at least "
            f"{k_core} interactions each. Set a smaller k_core (0 = keep all), or give a longer log."
        )
    keep = keep[np.lexsort((log["order"].to_numpy()[keep], users[keep]))]  # stable: ties keep the order of the file

    starts, lengths, report["short_history"] = _cuts(users[keep], history)
    if not len(starts):
        raise DataError(
            f"No user has the {min(MIN_HISTORY, history) + 1} interactions that a window needs at least. "
            "Give longer histories, or a smaller k_core if that took them away."
        )
    target_rows = keep[starts + lengths - 1]
    order = np.argsort(log["order"].to_numpy()[target_rows], kind="stable")
    starts, lengths, target_rows = starts[order], lengths[order], target_rows[order]

    if k_core > 0:  # an item that no interaction is left of is no longer part of the catalogue
        used = np.unique(np.concatenate([rows[keep], clean[keep] if clean is not None else rows[:0]]))
        catalogue = Catalogue(catalogue.ids.gather(used), [catalogue.titles[i] for i in used])
        renumber = np.full(len(items), PAD)
        renumber[used] = np.arange(len(used))
        rows, clean = renumber[rows], None if clean is None else renumber[clean]

    steps = np.arange(int(lengths.max()))
    present = steps < lengths[:, None]
    at = keep[np.minimum(starts[:, None] + steps, len(keep) - 1)]  # [W, L] rows of the log
    mask = log[c.NOISE_MASK].to_numpy().astype(bool) if c.NOISE_MASK in log.columns else None
    windows = Windows(
        items=np.where(present, rows[at], PAD),
        lengths=lengths,
        window_ids=np.arange(len(starts)),
        user_ids=log[c.USER].gather(target_rows),
        timestamps=log["seconds"].to_numpy()[target_rows],
        noise_mask=None if mask is None else present & mask[at],
        clean_items=None if clean is None else np.where(present, clean[at], PAD),
    )
    return Data(catalogue, _split(windows, ratios), report)


def _usable_rows(interactions: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """The log with `order` and `seconds` (integers), without rows that lack a value or stand there twice."""
    needed = [c.USER, c.ITEM, c.TIME]
    for name in needed:
        if name not in interactions.columns:
            raise DataError(f"The interactions have the columns {interactions.columns}, but {name!r} is missing.")
    truth = [name for name in (c.NOISE_MASK, c.CLEAN_ITEM) if name in interactions.columns]
    log = interactions.select(*needed, *truth)
    time = pl.col(c.TIME)
    kind = log.schema[c.TIME]
    if kind == pl.String:
        with _as_data_error(f"{c.TIME!r} of the interactions is text that is no date", "Give seconds, or 2024-05-31."):
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
        with _as_data_error(f"{c.CLEAN_ITEM!r} and {c.ITEM!r} cannot be compared", "Give both the same type."):
            log = log.with_columns(pl.col(c.ITEM).ne_missing(pl.col(c.CLEAN_ITEM)).alias(c.NOISE_MASK))
    full = log.drop_nulls([*needed, "seconds"])
    once = full.unique(needed, keep="first", maintain_order=True)
    if once.is_empty():
        raise DataError(f"The interactions have {len(log)} row(s), none of them with {', '.join(needed)}.")
    return once, {"missing_value": len(log) - len(full), "repeated_row": len(full) - len(once)}


def _k_core(users: IntArray, items: IntArray, k: int) -> IntArray:
    """Rows left when users and items with fewer than k rows have left, again and again until nothing changes."""
    keep = np.arange(len(users))
    while len(keep):
        enough = (np.bincount(users[keep])[users[keep]] >= k) & (np.bincount(items[keep])[items[keep]] >= k)
        if enough.all():
            break
        keep = keep[enough]
    return keep


def _cuts(users: IntArray, history: int) -> tuple[IntArray, IntArray, int]:
    """(starts, lengths) of the windows in rows sorted by user, and how many rows are in none."""
    first = np.flatnonzero(np.diff(users, prepend=-1))
    counts = np.diff(first, append=len(users))
    enough = counts > min(MIN_HISTORY, history)
    short = int(counts[~enough].sum())
    first, counts = first[enough], counts[enough]
    windows = np.maximum(counts - history, 1)  # per user
    step = np.arange(windows.sum()) - np.repeat(np.cumsum(windows) - windows, windows)
    return np.repeat(first, windows) + step, np.repeat(np.minimum(counts, history + 1), windows), short


def _split(windows: Windows, ratios: Sequence[int]) -> dict[str, Windows]:
    """Windows in order of time into consecutive parts; ids begin at 0 in each, test targets are the true ones."""
    ends = [len(windows) * done // sum(ratios) for done in np.cumsum([0, *ratios]).tolist()]
    splits = {name: windows.take(np.arange(a, b)) for name, a, b in zip(c.SPLITS, ends, ends[1:], strict=False)}
    empty = [name for name, share in zip(c.SPLITS, ratios, strict=True) if share and not len(splits[name])]
    if empty:
        raise DataError(
            f"{len(windows)} window(s) are too few to split {':'.join(map(str, ratios))}: {', '.join(empty)} would be "
            "empty. Give more histories, or a smaller k_core."
        )
    for part in splits.values():
        part.window_ids = np.arange(len(part))
    test = splits[c.TEST]
    if test.clean_items is not None and test.noise_mask is not None:
        last = np.arange(len(test)), test.lengths - 1
        test.items[last], test.noise_mask[last] = test.clean_items[last], False
    return splits
