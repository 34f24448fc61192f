"""Known noise in a data folder, interaction log or ready windows, with the truth beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from llm4dsr import columns as c
from llm4dsr.core.arrays import PAD, BoolArray, IntArray, ranges
from llm4dsr.core.io import as_data_error, check_new_folder, write_parquet
from llm4dsr.core.manifest import sealed_folder
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.files import find_files, read_files
from llm4dsr.data.noise.kinds import Noisy, corrupt, same_category, similar_titles
from llm4dsr.data.read import to_windows
from llm4dsr.data.times import readable_microseconds
from llm4dsr.errors import DataError, OutputError


def noise_folder(data: Path, out: Path, kind: str, rate: float, seed: int = 0, per: str = "user") -> dict[str, Any]:
    """Inject noise into a data folder, written in the same form with the truth beside it.

    A log gets the columns `noise_mask` and `clean_item_id` (null where an item was inserted, with the time of the
    interaction that follows). Rows without user, item or time stay as they are. Windows get the lists `noise_mask` and
    `clean_item_ids`. Removed interactions are in `<file>_deleted`, with their position in the history or window.
    `noise.json` holds what this function returns.

    Ready windows of a user are taken in the order of the files. A window that begins inside the one before it shares
    its interactions. The target of a valid or test window is never touched in that window; it may be noise in a later
    one, where it is history. With shuffle it keeps its position everywhere. A window keeps at least two items.

    Parameters
    ----------
    data : Path
        Items and an interaction log, or items and ready windows (`read_data`).
    out : Path
        A new or empty folder. It appears complete, or not at all.
    kind, rate
        See `kinds.py`. near-miss uses the column `category` of the items if there is one.
    seed : int, default 0
        Seed of the draws.
    per : {"user", "window"}, default "user"
        Once per user, so that an interaction is noise in every window that holds it; or separately for each window.

    Returns
    -------
    dict
        kind, rate, seed, per, form, and for each file the numbers of interactions, noise, inserted and removed.

    Raises
    ------
    DataError
        If the data or arguments cannot be used.
    OutputError
        If `out` exists or cannot be written.
    """
    if per not in ("user", "window"):
        raise DataError(f"Noise is made per {per!r}; expected 'user' or 'window'.")
    check_new_folder(out)
    frames = read_files(find_files(data))
    items = frames.pop(c.ITEMS_FILE)
    catalogue = Catalogue.from_frame(items)

    def make(flat: IntArray, lengths: IntArray, **more: Any) -> Noisy:
        similar = None
        if kind == "near-miss":
            by_category = c.CATEGORY in items.columns
            similar = same_category(items[c.CATEGORY].to_list()) if by_category else similar_titles(catalogue.titles)
        return corrupt(flat, lengths, len(catalogue), kind, rate, seed, similar, **more)

    if c.LOG_FILE not in frames:
        tables = _noisy_windows(frames, catalogue, make, per)
    elif per == "window":
        raise DataError("An interaction log has no windows yet. Make its noise per user, or prepare windows first.")
    else:
        tables = _noisy_log(frames[c.LOG_FILE], catalogue, make)

    facts: dict[str, Any] = {"kind": kind, "rate": rate, "seed": seed, "per": per}
    facts |= {
        "form": "log" if c.LOG_FILE in frames else "windows",
        "files": {name: t.counts for name, t in tables.items()},
    }
    try:
        with sealed_folder(out) as part:
            write_parquet(items, part / f"{c.ITEMS_FILE}.parquet")
            for name, table in tables.items():
                write_parquet(table.frame, part / f"{name}.parquet")
                if kind == "deletion":
                    write_parquet(table.deleted, part / f"{name}_deleted.parquet")
            (part / "noise.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}. Choose another folder.") from None
    return facts


@dataclass
class _Table:
    """frame: a noisy table. deleted: what was removed from it. counts: for noise.json."""

    frame: pl.DataFrame
    deleted: pl.DataFrame
    counts: dict[str, int]


def _counts(mask: BoolArray, clean: IntArray, deleted: pl.DataFrame) -> dict[str, int]:
    inserted = int((clean == PAD).sum())
    return {"interactions": len(mask), "noise": int(mask.sum()), "inserted": inserted, "removed": len(deleted)}


def _untouched(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """Return the frame. Raises DataError if it is noisy or corrected already."""
    known = [k for k in (c.NOISE_MASK, c.CLEAN_ITEM, c.CLEAN_ITEMS, c.WEIGHTS) if k in frame.columns]
    if known:
        raise DataError(
            f"{name} has the column {known[0]!r}: it is noisy or corrected already, so the truth of new noise "
            "would be unknown. Start from the clean data, without such columns."
        )
    return frame


def _noisy_log(log: pl.DataFrame, catalogue: Catalogue, make: Callable[..., Noisy]) -> dict[str, _Table]:
    needed = [c.USER, c.ITEM, c.TIME]
    for name in needed:
        if name not in log.columns:
            raise DataError(f"The interactions have the columns {', '.join(log.columns)}, but {name!r} is missing.")
    _untouched(log, c.LOG_FILE)
    # Rows of a user with one time keep the order of the file.
    order = (
        log.select(c.USER, c.ITEM, when=readable_microseconds(log[c.TIME], "the interactions"))
        .with_row_index("row")
        .drop_nulls()
        .sort(c.USER, "when", maintain_order=True)
    )
    rows = order["row"].to_numpy().astype(np.int64)
    lengths = order[c.USER].rle().struct.field("len").to_numpy().astype(np.int64)
    noisy = make(catalogue.index(order[c.ITEM], "the interactions"), lengths)
    del order

    # Back in the order of the file; an inserted item comes before the interaction whose time it has.
    rest = np.setdiff1d(np.arange(len(log)), rows, assume_unique=True)
    place = np.concatenate([rows[noisy.source], rest])
    ordered = np.argsort(place, kind="stable")
    ids, clean = catalogue.ids_of(noisy.items), catalogue.ids_of(noisy.clean)
    untouched = log[c.ITEM].gather(rest).cast(ids.dtype)
    frame = log[place[ordered]].with_columns(
        pl.concat([ids, untouched]).gather(ordered).alias(c.ITEM),
        pl.Series(c.NOISE_MASK, np.concatenate([noisy.mask, np.zeros(len(rest), dtype=bool)])[ordered].astype(np.int8)),
        pl.concat([clean, untouched]).gather(ordered).alias(c.CLEAN_ITEM),
    )
    gone = np.flatnonzero(noisy.removed)
    position = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    deleted = log[rows[gone]].with_columns(pl.Series(c.POSITION, position[gone]))
    return {c.LOG_FILE: _Table(frame, deleted, _counts(noisy.mask, noisy.clean, deleted))}


def _noisy_windows(
    frames: dict[str, pl.DataFrame], catalogue: Catalogue, make: Callable[..., Noisy], per: str
) -> dict[str, _Table]:
    """Noise in the windows of all files at once, so that they share interactions; returned file by file."""
    given = [to_windows(_untouched(frame, name), catalogue, name) for name, frame in frames.items()]
    sizes = [len(windows) for windows in given]
    with as_data_error(f"{c.USER!r} differs in type between the files", "Give it the same type in all."):
        users = pl.concat([windows.user_ids for windows in given])
    first = pl.DataFrame({"user": users}).with_row_index("row").select(pl.col("row").first().over("user"))["row"]
    user = np.unique(first.to_numpy(), return_inverse=True)[1].astype(np.int64)
    lengths = np.concatenate([windows.lengths for windows in given])
    items, starts = np.concatenate([windows.items for windows in given]), np.cumsum(lengths) - lengths
    evaluated = np.repeat([name != c.TRAIN for name in frames], sizes)

    order = np.argsort(user, kind="stable")  # user by user, each in the order of the files
    begin = np.empty(len(user), dtype=np.int64)
    ordered = items[ranges(starts[order], lengths[order])]
    begin[order], flat = _laid_out(ordered, lengths[order], user[order], share=per == "user")
    fixed = np.zeros(len(flat), dtype=bool)
    fixed[(begin + lengths)[evaluated] - 1] = True
    if per == "user":
        ends = np.append(begin[order][np.flatnonzero(np.diff(user[order])) + 1], len(flat))
        noisy = make(flat, np.diff(ends, prepend=0), fixed=fixed)
    else:
        noisy = make(flat, lengths[order], users=user[order], fixed=fixed)

    # Places in what is there now, followed by what was there before.
    after = np.concatenate([noisy.items, flat]), np.concatenate([noisy.clean, flat])
    source = np.concatenate([noisy.source, np.arange(len(flat))])
    place, count = _places(noisy, begin, lengths, evaluated)
    window = np.repeat(np.arange(len(user)), count)
    here = np.zeros(len(items), dtype=bool)  # which interactions of the given windows are still there
    kept = after[1][place] != PAD
    here[(starts[window] + source[place] - begin[window])[kept]] = True

    out, cuts, ends = {}, np.cumsum([0, *sizes]), np.append(0, np.cumsum(count))
    for i, (name, frame) in enumerate(frames.items()):
        first, last = cuts[i], cuts[i + 1]
        there, clean = (values[place[ends[first] : ends[last]]] for values in after)
        offsets = pa.array(ends[first : last + 1] - ends[first])
        lists = {
            c.ITEMS: catalogue.ids_of(there),
            c.NOISE_MASK: pl.Series((there != clean).astype(np.int8)),
            c.CLEAN_ITEMS: catalogue.ids_of(clean),
        }
        noisy_frame = frame.with_columns(**{
            column: pl.Series(pa.LargeListArray.from_arrays(offsets, values.to_arrow()))
            for column, values in lists.items()
        })  # fmt: skip
        gone = np.flatnonzero(~here[starts[first] :][: len(given[i].items)])
        deleted = frame[given[i].owners[gone]].select(c.WINDOW, c.USER).with_columns(
            pl.Series(c.POSITION, given[i].positions[gone]), catalogue.ids_of(given[i].items[gone]).alias(c.ITEM)
        )  # fmt: skip
        out[name] = _Table(noisy_frame, deleted, _counts(there != clean, clean, deleted))
    return out


def _laid_out(items: IntArray, lengths: IntArray, users: IntArray, share: bool) -> tuple[IntArray, IntArray]:
    """(first interaction of each window [W], catalogue rows of the interactions [n]).

    items: of the windows, user by user. share: a window that begins inside the one before it shares its interactions.
    """
    step = lengths[:-1].copy()  # from a window's begin to the next one's
    if share:
        starts, same = np.cumsum(lengths) - lengths, users[1:] == users[:-1]
        for shift in reversed(range(int(lengths[:-1].max(initial=0, where=same)))):
            overlap = lengths[:-1] - shift
            some = np.flatnonzero(same & (overlap > 0) & (lengths[1:] >= overlap))
            some = some[items[starts[some] + shift] == items[starts[some + 1]]]
            size = overlap[some]
            differs = items[ranges(starts[some] + shift, size)] != items[ranges(starts[some + 1], size)]
            step[np.delete(some, np.repeat(np.arange(len(some)), size)[differs])] = shift
    begin = np.append(0, np.cumsum(step))
    flat = np.empty(int(begin[-1] + lengths[-1]), dtype=np.int64)
    flat[ranges(begin, lengths)] = items
    return begin, flat


def _places(noisy: Noisy, begin: IntArray, lengths: IntArray, evaluated: BoolArray) -> tuple[IntArray, IntArray]:
    """(positions of the interactions of all windows [m], interactions of each window [W]).

    A position is one of noisy.source, or, from len(noisy.source) on, one of what was there before. evaluated: [W] True
    where the last item is an evaluation target, which stays clean.
    """
    before, end = len(noisy.source), begin + lengths
    low, high = np.searchsorted(noisy.source, begin), np.searchsorted(noisy.source, end)
    # What was inserted before a target stays: of two with one source, the inserted one comes first.
    upto_target = np.searchsorted(2 * noisy.source + (noisy.clean != PAD), 2 * end - 1)
    count = np.where(evaluated, upto_target - low + 1, high - low)
    few = count < 2
    low, count = np.where(few, before + end - 2, low), np.where(few, 2, count)
    ends = np.cumsum(count)
    place = np.arange(int(ends[-1])) + np.repeat(low - ends + count, count)
    place[ends[evaluated] - 1] = before + end[evaluated] - 1
    return place, count
