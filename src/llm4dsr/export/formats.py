"""Corrected data in the formats of other libraries. Each function takes plain tables, so a pipeline may call it, too.

A table of interactions has a row for each: `user_id, item_id, timestamp`, and optionally `weight` in [0, 1], `rating`,
and `split`. `Denoiser.transform` gives such a table for a long table. Times are dates, numbers of seconds (or, by their
size, of milli-, micro- or nanoseconds), or text of either.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.io import as_data_error, as_frame, write_bytes, write_parquet, write_text
from llm4dsr.data.atomic import INTER, ITEM, ITEM_LIST
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.histories import WEIGHT
from llm4dsr.data.times import readable_microseconds
from llm4dsr.data.windows import Windows, locate
from llm4dsr.errors import DataError, ModelError

LENGTH: Final = "item_length"  # in RecBole's sequences: items of the history
_CARD: Final = """---
configs:
- config_name: default
  data_files:
{files}---

# {name}

Corrected histories, written by llm4dsr. A row is a window: `item_ids` are oldest first, and the last one is the target.
"""


def interactions_table(interactions: Any, times: bool, ratings: bool = True) -> pl.DataFrame:
    """Check a table of interactions, and convert its columns.

    Parameters
    ----------
    interactions : table
        The interactions.
    times : bool
        Whether `timestamp` is needed.
    ratings : bool, default True
        Whether `rating`, if it is there, has to be numbers.

    Returns
    -------
    DataFrame
        `timestamp` is a date in UTC without time zone; null where it is missing. `weight` and `rating` are Float64.

    Raises
    ------
    DataError
        If a column is missing, or a time or number cannot be read.
    """
    table = as_frame(interactions, "The interactions")
    for name in (c.USER, c.ITEM, *((c.TIME,) if times else ())):
        if name not in table.columns:
            raise DataError(f"The interactions have the columns {', '.join(table.columns)}, but {name!r} is missing.")
    if WEIGHT not in table.columns:
        table = table.with_columns(pl.lit(1.0).alias(WEIGHT))
    numbers = [WEIGHT, c.RATING] if ratings and c.RATING in table.columns else [WEIGHT]
    with as_data_error("The interactions cannot be read", f"Give numbers as {' and '.join(numbers)}."):
        table = table.with_columns(pl.col(numbers).cast(pl.Float64).fill_nan(None))
    return table.with_columns(_dates(table[c.TIME])) if c.TIME in table.columns else table


def _dates(times: pl.Series) -> pl.Series:
    """Dates in UTC without time zone. Raises DataError that names a value which is no time."""
    return readable_microseconds(times, "the interactions").cast(pl.Datetime("us"))


def to_recbole(interactions: Any, items: Any, folder: str | Path, name: str = "corrected") -> None:
    """Write NAME.inter and NAME.item for RecBole, which reads the folder `data_path/NAME`.

    RecBole loads `weight` as a number of each interaction, if `load_col` names it. Its own losses do not read it.

    Parameters
    ----------
    interactions : table
        The interactions; `rating` is written if it is there.
    items : Catalogue or table
        `item_id, title`.
    folder : str or Path
        Where to write.
    name : str, default "corrected"
        Name of the dataset.

    Raises
    ------
    DataError
        If the interactions cannot be used, or an id has a tab or line break.
    """
    table = interactions_table(interactions, times=False)
    if c.TIME in table.columns:
        table = table.with_columns(pl.col(c.TIME).dt.epoch("us") / 10**6)
    kinds = {c.USER: "token", c.ITEM: "token", c.TIME: "float", c.RATING: "float", WEIGHT: "float"}
    known = [column for column in kinds if column in table.columns]
    table = table.select(known).rename({column: f"{column}:{kinds[column]}" for column in known})
    _write_atomic(table, Path(folder) / f"{name}{INTER}")
    _write_items(items, Path(folder) / f"{name}{ITEM}")


def to_recbole_splits(splits: Mapping[str, Windows], catalogue: Catalogue, folder: str | Path, name: str) -> None:
    """Write windows as RecBole's benchmark files: NAME.train.inter, NAME.valid.inter, NAME.test.inter and NAME.item.

    Each window is a sequence `item_id_list` with its target `item_id`. Windows with weights have `weight_list`, one
    number for each item of the sequence, and `weight` of the target.

    Parameters
    ----------
    splits : mapping of str to Windows
        "train", "valid" and "test".
    catalogue : Catalogue
        The items.
    folder, name
        As in `to_recbole`.

    Raises
    ------
    DataError
        If an item id is empty or has white space, which separates the items of a sequence.
    """
    _check_ids(catalogue.ids, r"^$|[ \t\r\n]", "is empty or has white space, which separates the items of a sequence")
    for split, windows in splits.items():
        frame = windows.to_frame(catalogue)
        text, size = pl.col(c.ITEMS).cast(pl.List(pl.String)), pl.col(c.ITEMS).list.len() - 1
        columns = [
            pl.col(c.USER).cast(pl.String).alias(f"{c.USER}:token"),
            text.list.head(size).list.join(" ").alias(f"{ITEM_LIST}:token_seq"),
            text.list.last().alias(f"{c.ITEM}:token"),
            size.alias(f"{LENGTH}:float"),
            pl.col(c.TIME).alias(f"{c.TIME}:float"),
        ]
        if windows.weights is not None:
            weights = pl.col(c.WEIGHTS).list.eval(pl.element().round_sig_figs(6).cast(pl.String))
            columns.append(
                weights.list.head(pl.col(c.ITEMS).list.len() - 1).list.join(" ").alias("weight_list:float_seq")
            )
            columns.append(pl.col(c.WEIGHTS).list.last().alias("weight:float"))
        _write_atomic(frame.select(columns), Path(folder) / f"{name}.{split}{INTER}")
    _write_items(catalogue, Path(folder) / f"{name}{ITEM}")


def _write_items(items: Any, path: Path) -> None:
    frame = items.to_frame() if isinstance(items, Catalogue) else as_frame(items, "The items")
    title = pl.col(c.TITLE).cast(pl.String).alias(f"{c.TITLE}:token_seq")
    _write_atomic(frame.select(pl.col(c.ITEM).alias(f"{c.ITEM}:token"), title), path)


def _check_ids(ids: pl.Series, unfit: str, why: str) -> None:
    """Raise DataError if an id has the pattern `unfit`."""
    text = ids.cast(pl.String)
    for bad in text.filter(text.str.contains(unfit)).head(1):
        raise DataError(
            f"The id {bad!r} {why} in RecBole's files. Change the ids, or choose another format, such as rectools or "
            "datasets."
        )


def _write_atomic(table: pl.DataFrame, path: Path) -> None:
    """Write tab-separated text without quotes, which these files do not have; titles lose tabs and line breaks."""
    for name in table.columns:
        if name.endswith(":token"):
            _check_ids(table[name], r"[\t\r\n]", "has a tab or line break, which separates columns and rows")
    text = table.with_columns(pl.col(pl.String).str.replace_all(r"[\t\r\n]+", " "))
    write_bytes(path, text.write_csv(separator="\t", quote_style="never").encode())


def to_rectools(interactions: Any) -> Any:
    """Return the interactions as RecTools' `Dataset.construct` takes them.

    Parameters
    ----------
    interactions : table
        The interactions, with times.

    Returns
    -------
    pandas.DataFrame
        `user_id, item_id, weight, datetime`. RecTools' models read `weight` as the strength of an interaction.

    Raises
    ------
    DataError
        If the interactions cannot be used.
    ModelError
        If pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError:
        raise ModelError("A table for RecTools needs pandas. Install it with:  pip install pandas") from None
    table = interactions_table(interactions, times=True, ratings=False)
    columns = {name: table[name].to_list() for name in (c.USER, c.ITEM)} | {WEIGHT: table[WEIGHT].to_numpy()}
    return pd.DataFrame(columns | {"datetime": table[c.TIME].to_numpy()})


def to_replay(interactions: Any) -> pl.DataFrame:
    """Return the interactions with the columns that RePlay's examples and defaults use.

    Parameters
    ----------
    interactions : table
        The interactions, with times.

    Returns
    -------
    DataFrame
        `query_id, item_id, timestamp` (a date), `rating`: the weight, times the rating if there are ratings.

    Raises
    ------
    DataError
        If the interactions cannot be used, or only some have a rating.
    """
    table = interactions_table(interactions, times=True)
    missing = table[c.RATING].null_count() if c.RATING in table.columns else len(table)
    if 0 < missing < len(table):
        raise DataError(
            f"{missing:,} of {len(table):,} interactions have no {c.RATING}, which RePlay needs of all or none. Leave "
            "them out, as  llm4dsr data prepare --min-rating  does, or leave out the column."
        )
    strength = pl.col(WEIGHT) * (1.0 if missing else pl.col(c.RATING))
    return table.select(pl.col(c.USER).alias("query_id"), c.ITEM, c.TIME, strength.alias(c.RATING))


def to_datasets(splits: Mapping[str, Windows], catalogue: Catalogue) -> Any:
    """Return windows as a `DatasetDict` of Hugging Face's `datasets`.

    Parameters
    ----------
    splits : mapping of str to Windows
        By the name of the split.
    catalogue : Catalogue
        The items.

    Returns
    -------
    datasets.DatasetDict
        A row is a window, with the columns of corrected/.

    Raises
    ------
    ModelError
        If `datasets` is not installed.
    """
    try:
        from datasets import Dataset, DatasetDict
    except ImportError:
        raise ModelError("This needs the library datasets. Install it with:  pip install datasets") from None
    return DatasetDict({name: Dataset(w.to_frame(catalogue).to_arrow()) for name, w in splits.items()})


def write_datasets(splits: Mapping[str, Windows], catalogue: Catalogue, folder: Path) -> None:
    """Write windows so that `datasets.load_dataset(folder)` reads them: Parquet, and a card that names the splits.

    Parameters
    ----------
    splits, catalogue
        As in `to_datasets`.
    folder : Path
        Where to write; items are in items.parquet.
    """
    names = {c.VALID: "validation"}
    for name, windows in splits.items():
        write_parquet(windows.to_frame(catalogue), folder / "data" / f"{name}.parquet")
    write_parquet(catalogue.to_frame(), folder / f"{c.ITEMS_FILE}.parquet")
    files = "".join(f"  - split: {names.get(name, name)}\n    path: data/{name}.parquet\n" for name in splits)
    write_text(folder / "README.md", _CARD.format(files=files, name=folder.name.strip(".").split(".")[0]))


def soft_weights(windows: Windows, scores: pl.DataFrame) -> Any:
    """Return [n] the weight 1 - noise probability of each interaction; 1 for targets, which have no score."""
    weights = np.ones(len(windows.items))
    probability = scores[c.NOISE_PROBABILITY].fill_nan(0.0).to_numpy()
    weights[locate(scores, windows)] = 1 - probability
    return weights
