"""From a log of any size to a folder of windows, in bounded memory. Every dropped row is counted by its reason.

1. The log is read in batches. A large one is written into buckets of whole users, a file each (`buckets.BucketedRows`).
2. Each bucket in turn is sorted and loses its repeats (`windowing.sort_log`).
3. The k-core counts over all buckets until nothing changes. Windows are positions in the rows of their bucket.
4. Windows of all buckets are merged by time, and become lists of ids part by part, as they are written.

A small log is one bucket, which stays in memory. For tables in memory, `dataset.make_windows` gives the same result.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from llm4dsr import columns as c
from llm4dsr.core.arrays import PAD, BoolArray
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import check_new_folder
from llm4dsr.core.manifest import file_hash, sealed_folder
from llm4dsr.core.progress import log as logger
from llm4dsr.data.buckets import Bucket, BucketedRows
from llm4dsr.data.catalogue import clean_titles, tidy_titles
from llm4dsr.data.ids import explain_mismatch
from llm4dsr.data.interaction_log import ReadLog, first_with_title, item_table, read_log, refuse_nothing, to_log
from llm4dsr.data.sources.source import pick
from llm4dsr.data.windowing import (
    Repeats,
    Split,
    WindowIndex,
    build_windows,
    materialize_windows,
    new_rows,
    sort_log,
)
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ConfigError, DataError, OutputError

if TYPE_CHECKING:
    from llm4dsr.core.progress import Progress
    from llm4dsr.data.sources import Source

REPORT: Final = "report.json"
WRITE: Final = 100_000  # windows that are written at once; one row group
SCRATCH: Final = 60  # bytes of scratch files per interaction, about; measured: 32, without known truth
PER_ITEM: Final = 3  # bytes per item of a window in the output, about; measured: 2.3


@dataclass(frozen=True)
class PrepareOptions:
    """How windows are built; `windowing.build_windows` has the details. Raises ConfigError on values out of range."""

    history: int = 10  # items before the target of a window, at most
    k_core: int = 5  # users and items with fewer interactions leave, until none has; 0 keeps all
    split: Split = "time"  # windows by the time of their target, the last targets of each user, or whole users
    ratios: tuple[int, int, int] = (8, 1, 1)  # train, valid, test; not for leave-one-out
    min_rating: float | None = None  # interactions with a lower rating, or with none, leave
    # A second interaction of a user with an item: kept, left out always, or left out where nothing else lies between.
    # Rows that have the time in common too are one row written twice, and always leave.
    repeats: Repeats = "keep"
    merge_titles: bool = False  # items with the same title count as one: the first that anyone took
    max_history: int | None = None  # only so many of a user's interactions are kept, the newest
    seed: int = 0  # draws the users of the split by user; nothing else is drawn

    def __post_init__(self) -> None:
        for name, least in (("history", 1), ("k_core", 0), ("max_history", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"{name} is {value}; expected a whole number from {least} on.")
        for name, allowed in (("split", get_args(Split)), ("repeats", get_args(Repeats))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected one of {', '.join(allowed)}.")
        if len(self.ratios) != 3 or min(self.ratios) < 1:
            raise ConfigError(
                f"ratios is {tuple(self.ratios)}; expected three whole numbers from 1 on, as in (8, 1, 1): "
                "each of train, valid and test needs windows."
            )


def prepare(
    source: Source, out: str | Path, options: PrepareOptions | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Write items, train, valid and test as Parquet, for `llm4dsr run --data` and `read_data`.

    A large log is sorted in files, a 64th of its users at once (benchmarks/results/prepare: 1.1 GB of memory for 100
    million interactions). Scratch files are in a hidden folder beside `out`; they are removed at the end, on errors and
    on interruption.

    Parameters
    ----------
    source : Source
        The log and its catalogue.
    out : str or Path
        A new or empty folder. It appears complete, or not at all.
    options : PrepareOptions, optional
        How windows are built.
    progress : Progress, optional
        Called with (done, total, doing); total is 0 while the log is read, whose length is unknown.

    Returns
    -------
    dict
        The report, also in report.json: rows in and out, dropped rows by reason, options and versions. For interactions
        and items, in = out + dropped; rows that the source could not read are counted separately (`unreadable`).

    Raises
    ------
    DataError
        If the log cannot be used, or nothing is left of it.
    OutputError
        If `out` is not empty or cannot be written, or the disk is too small.
    """
    options, out = options or PrepareOptions(), Path(out)
    tell = progress or (lambda done, total, doing: None)
    if options.min_rating is not None and (log := source.tables) is not None and log.names:
        pick(log.names, log.columns, (c.RATING,), (), f"min_rating needs ratings. {log.log}")
    with _out_folder(out) as folder, TemporaryDirectory(dir=folder, prefix="scratch-") as scratch:
        items, lost_items = item_table(source.items)
        rows = BucketedRows(Path(scratch), SCRATCH + PER_ITEM * (options.history + 1))
        with closing(rows):
            read = read_log(source.batches(), items[c.ITEM], options.min_rating, tell, rows.add)
        rows_in, dropped = read.rows_in, read.dropped
        told = "; ".join(f"{n:,} of {reason} ({', '.join(source.examples.get(reason, []))})"
                         for reason, n in source.dropped.items())  # fmt: skip
        if not rows_in:
            why = f" that can be read: {told}" if told else "; expected at least one"
            raise DataError(f"The log of {source.name} has no interactions{why}.")
        if told:
            logger.warning("Rows of the log were dropped, because they cannot be read: %s.", told)
        why = "" if read.unknown is None else explain_mismatch(read.unknown, items[c.ITEM], "the log", source.others())
        refuse_nothing(read.rows_left, source.name, rows_in, dropped, why)
        if why:
            logger.warning("%s of %s interactions are of unknown items. %s", dropped["unknown_item"], rows_in, why)
        if not read.is_timed and options.split == "time":
            raise DataError(
                f"The log of {source.name} has no timestamps, so that it cannot be split by time. "
                "Choose --split leave-one-out or --split user; interactions are then taken in the order of the log. "
                f"If a column has the times, name it with --column {c.TIME}=NAME."
            )
        wanted = read.seen if options.k_core > 0 else np.ones(len(items), dtype=bool)
        shown = tidy_titles(pl.select(pl.when(pl.Series(wanted)).then(items[c.TITLE])).to_series())
        titles = clean_titles(shown)
        titled = (titles.fill_null("") != "").to_numpy()
        first = first_with_title(titles) if options.merge_titles else np.arange(len(items), dtype=np.int32)
        merged = titled & (first != np.arange(len(items)))

        buckets, users, repeated = _sorted_buckets(rows, read, titled, first, options, tell)
        refuse_nothing(sum(len(bucket["items"]) for bucket in buckets), source.name, rows_in, dropped)
        index = build_windows(
            buckets, len(items), options.history, options.k_core, options.split, options.ratios, options.seed
        )
        tell(len(rows), len(rows), "build windows")

        dropped |= repeated | index.dropped
        used = index.used if options.k_core > 0 else titled & ~merged
        catalogue = pl.DataFrame({c.ITEM: items[c.ITEM].filter(used), c.TITLE: titles.filter(used)})
        catalogue = catalogue.with_columns(pl.col(c.ITEM).first().over(c.TITLE).alias(c.CANONICAL))
        catalogue = catalogue.with_columns(shown.filter(used).alias(c.TITLE))
        catalogue.write_parquet(folder / f"{c.ITEMS_FILE}.parquet", compression="zstd")
        _write_splits(folder, index, catalogue[c.ITEM], new_rows(used), tell)
        lost_items |= {
            "without_title": int((wanted & ~titled).sum()),
            "merged": int(merged.sum()),
            "without_interaction": int((~wanted | (titled & ~merged & ~used)).sum()),
        }
        report = {
            "source": source.name,
            "unreadable": {"interactions": dict(source.dropped), "items": dict(source.dropped_items)},
            "interactions": {"in": rows_in, "out": index.rows_held, "dropped": dropped},
            "items": {"in": len(source.items), "out": len(catalogue), "dropped": lost_items},
            "users": {"in": users, "out": index.users_held},
            "windows": {name: index.count(name) for name in c.SPLITS},
            "options": dataclasses.asdict(options),
            "log": _log_files(source),
            "versions": versions("llm4dsr", "numpy", "polars", "pyarrow"),
        }
        (folder / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def _log_files(source: Source) -> dict[str, Any] | None:
    """Where the log is and what its columns are called, so that `llm4dsr export` finds its rows again."""
    if (found := source.tables) is None:
        return None
    return {
        "path": str(found.log.resolve()),
        "files": {str(part.resolve()): file_hash(part) for part in found.parts},
        "items": str(found.items.resolve()) if found.items else None,
        "columns": found.columns,
    }


def _sorted_buckets(
    rows: BucketedRows,
    read: ReadLog,
    titled: BoolArray,
    first: npt.NDArray[np.int32],
    options: PrepareOptions,
    tell: Progress,
) -> tuple[list[Bucket], int, dict[str, int]]:
    """(The log for `build_windows`, its users, repeated rows by reason). Adds rows without title to `read.dropped`."""
    buckets: list[Bucket] = []
    users, repeated = 0, Counter[str]()
    read.dropped["item_without_title"] = 0
    for some, bucket in rows.take():
        tell(len(buckets), len(rows), "build windows")
        log, names = to_log(some, read.is_timed)
        users += len(names)
        kept = titled[log.items]
        read.dropped["item_without_title"] += int((~kept).sum())
        log = log.take(kept)
        if log.clean_items is not None:
            kept = np.append(titled, True)[log.clean_items]  # PAD, an inserted item, is -1
            read.dropped["unknown_clean_item"] += int((~kept).sum())
            log = log.take(kept)
            log.clean_items = np.append(first, np.int32(PAD))[log.clean_items]
        log.items = first[log.items]
        log, lost = sort_log(log, options.repeats, options.max_history)
        repeated.update(lost)
        bucket.put(log.columns(), names["number"].to_numpy(), names[c.USER])
        buckets.append(bucket)
    return buckets, users, dict(repeated)


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def _out_folder(out: Path) -> Iterator[Path]:
    """`sealed_folder`, with messages for people."""
    try:
        with sealed_folder(out) as part:
            yield part
    except OSError as error:
        check_new_folder(out)  # another process may have filled it
        raise OutputError(
            f"Cannot write {out}: {error.strerror or error}. Check that the place is writable and the disk not full."
        ) from None


def _write_splits(
    folder: Path, index: WindowIndex, item_ids: pl.Series, item_rows: npt.NDArray[np.int32], tell: Progress
) -> None:
    ids = item_ids.to_arrow(compat_level=pl.CompatLevel.oldest())
    done, total = 0, sum(map(index.count, c.SPLITS))
    for name in c.SPLITS:
        with ExitStack() as stack:
            writer = None
            for part in materialize_windows(index, name, item_rows, multiple=WRITE):
                for begin in range(0, len(part), WRITE):
                    windows = part.take(np.arange(begin, min(begin + WRITE, len(part))))
                    table = _table(windows, ids)
                    if writer is None:
                        path = folder / f"{name}.parquet"
                        writer = stack.enter_context(pq.ParquetWriter(path, table.schema, compression="zstd"))
                    writer.write_table(table, row_group_size=WRITE)
                    done += len(windows)
                    tell(done, total, "write windows")


def _table(windows: Windows, item_ids: Any) -> Any:
    """The table of `Windows.to_frame` as Arrow. item_ids: an Arrow array, by catalogue row."""
    ends = pa.array(windows.offsets, pa.int32())

    def lists(values: Any) -> Any:
        return pa.ListArray.from_arrays(ends, values)

    columns = {
        c.WINDOW: pa.array(windows.window_ids),
        c.USER: windows.user_ids.to_arrow(compat_level=pl.CompatLevel.oldest()),
        c.ITEMS: lists(item_ids.take(pa.array(windows.items))),
        c.TIME: pa.array(windows.timestamps),
    }
    if windows.noise_mask is not None:
        columns[c.NOISE_MASK] = lists(pa.array(windows.noise_mask.astype(np.int8)))
    if windows.clean_items is not None:
        clean = windows.clean_items
        columns[c.CLEAN_ITEMS] = lists(item_ids.take(pa.array(clean, mask=clean < 0)))
    return pa.table(columns)
