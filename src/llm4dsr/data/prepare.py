"""From a log of any size to a folder of windows, in bounded memory. Every dropped row is counted by its reason.

Ids become numbers while the log is read, so an interaction takes 16 bytes. Windows are positions in these columns
(`windowing.WindowIndex`) and become lists of ids part by part, as they are written. For tables in memory,
`dataset.make_windows` gives the same result.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from llm4dsr import columns as c
from llm4dsr.core.hashing import versions
from llm4dsr.core.manifest import sealed_folder
from llm4dsr.core.progress import log as logger
from llm4dsr.data.catalogue import clean_titles, tidy_titles
from llm4dsr.data.ids import explain_mismatch
from llm4dsr.data.interaction_log import InteractionLog, filter_rows, item_table, merge_titles, read_log, refuse_nothing
from llm4dsr.data.windowing import (
    Repeats,
    Split,
    WindowIndex,
    build_windows,
    materialize_windows,
    reindex_items,
    used_items,
)
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ConfigError, DataError, OutputError

if TYPE_CHECKING:
    from llm4dsr.core.progress import Progress
    from llm4dsr.data.sources import Source

REPORT: Final = "report.json"
WRITE: Final = 100_000  # windows that are written at once; one row group


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

    Peak memory is about 80 bytes per interaction, user ids and items included (benchmarks/results/prepare: 0.9 GB for
    10 million).

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
        If `out` is not empty or cannot be written.
    """
    options, out = options or PrepareOptions(), Path(os.path.abspath(out))
    tell = progress or (lambda done, total, doing: None)
    with _out_folder(out) as folder:
        items, lost_items = item_table(source.items)
        log, users, rows_in, dropped = read_log(source.batches(), items[c.ITEM], options.min_rating, tell)
        why = "" if log.unknown is None else explain_mismatch(log.unknown, items[c.ITEM], "the log", source.others())
        refuse_nothing(log, source.name, rows_in, dropped, why)
        if why:
            logger.warning("%s of %s interactions are of unknown items. %s", dropped["unknown_item"], rows_in, why)
        if log.seconds is None and options.split == "time":
            raise DataError(
                f"The log of {source.name} has no timestamps, so that it cannot be split by time. "
                "Choose --split leave-one-out or --split user; interactions are then taken in the order of the log. "
                f"If a column has the times, name it with --column {c.TIME}=NAME."
            )
        seen = np.zeros(len(items), dtype=bool)
        for column in (log.items, log.clean_items):
            if column is not None:
                seen[column[column >= 0]] = True
        wanted = seen if options.k_core > 0 else np.ones(len(items), dtype=bool)
        shown = tidy_titles(pl.select(pl.when(pl.Series(wanted)).then(items[c.TITLE])).to_series())
        titles = clean_titles(shown)
        titled = (titles.fill_null("") != "").to_numpy()
        dropped["item_without_title"] = filter_rows(log, titled[log.items])
        if log.clean_items is not None:
            dropped["unknown_clean_item"] += filter_rows(log, np.append(titled, True)[log.clean_items])
        refuse_nothing(log, source.name, rows_in, dropped)
        merged = np.zeros(len(items), dtype=bool)
        if options.merge_titles:
            merged = merge_titles(log, titles, titled)

        tell(0, 1, "build windows")
        index = build_windows(log, options.history, options.k_core, options.split, options.ratios, options.seed,
                      options.repeats, options.max_history)  # fmt: skip
        dropped |= index.dropped
        used = used_items(log, index, len(items)) if options.k_core > 0 else titled & ~merged
        reindex_items(log, used)
        tell(1, 1, "build windows")

        catalogue = pl.DataFrame({c.ITEM: items[c.ITEM].filter(used), c.TITLE: titles.filter(used)})
        catalogue = catalogue.with_columns(pl.col(c.ITEM).first().over(c.TITLE).alias(c.CANONICAL))
        catalogue = catalogue.with_columns(shown.filter(used).alias(c.TITLE))
        catalogue.write_parquet(folder / f"{c.ITEMS_FILE}.parquet", compression="zstd")
        _write_splits(folder, log, index, users, catalogue[c.ITEM], tell)
        held = index.held()
        lost_items |= {
            "without_title": int((wanted & ~titled).sum()),
            "merged": int(merged.sum()),
            "without_interaction": int((~wanted | (titled & ~merged & ~used)).sum()),
        }
        report = {
            "source": source.name,
            "unreadable": {"interactions": dict(source.dropped), "items": dict(source.dropped_items)},
            "interactions": {
                "in": rows_in, "out": int(held.sum()), "dropped": dropped
            },
            "items": {"in": len(source.items), "out": len(catalogue), "dropped": lost_items},
            "users": {"in": len(users), "out": int(np.count_nonzero(np.bincount(log.users[index.rows[held]])))},
            "windows": {name: len(numbers) for name, numbers in index.splits.items()},
            "options": dataclasses.asdict(options),
            "versions": versions("llm4dsr", "numpy", "polars", "pyarrow"),
        }  # fmt: skip
        (folder / REPORT).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def _out_folder(out: Path) -> Iterator[Path]:
    """`sealed_folder`, with messages for people."""
    taken = f"{out} exists already and is not an empty folder. Choose another one, or remove it."
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(taken)
    try:
        with sealed_folder(out) as part:
            yield part
    except OSError as error:
        why = taken if out.is_dir() and any(out.iterdir()) else f"Cannot write {out}: {error.strerror or error}."
        raise OutputError(f"{why} Check that the place is writable and the disk not full.") from None


def _write_splits(
    folder: Path, log: InteractionLog, index: WindowIndex, users: pl.Series, item_ids: pl.Series, tell: Progress
) -> None:
    ids = item_ids.to_arrow(compat_level=pl.CompatLevel.oldest())
    done, total = 0, sum(len(numbers) for numbers in index.splits.values())
    for name, numbers in index.splits.items():
        writer = None
        try:
            for begin in range(0, len(numbers), WRITE):
                windows = materialize_windows(log, index, name, users, begin, begin + WRITE)
                table = _table(windows, ids)
                if writer is None:
                    writer = pq.ParquetWriter(folder / f"{name}.parquet", table.schema, compression="zstd")
                writer.write_table(table, row_group_size=WRITE)
                done += len(windows)
                tell(done, total, "write windows")
        finally:
            if writer is not None:
                writer.close()


def _table(windows: Windows, item_ids: Any) -> Any:
    """The table of `Windows.to_frame` as Arrow. item_ids: an Arrow array, by catalogue row."""
    present = windows.present
    ends = pa.array(np.append(0, np.cumsum(windows.lengths)), pa.int32())

    def lists(values: Any) -> Any:
        return pa.ListArray.from_arrays(ends, values)

    columns = {
        c.WINDOW: pa.array(windows.window_ids),
        c.USER: windows.user_ids.to_arrow(compat_level=pl.CompatLevel.oldest()),
        c.ITEMS: lists(item_ids.take(pa.array(windows.items[present]))),
        c.TIME: pa.array(windows.timestamps),
    }
    if windows.noise_mask is not None:
        columns[c.NOISE_MASK] = lists(pa.array(windows.noise_mask[present].astype(np.int8)))
    if windows.clean_items is not None:
        clean = windows.clean_items[present]
        columns[c.CLEAN_ITEMS] = lists(item_ids.take(pa.array(clean, mask=clean < 0)))
    return pa.table(columns)
