"""The files of a data folder: which ones there are, by their names, and their tables with ids of one type."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

import polars as pl

from llm4dsr import columns as c
from llm4dsr.core.io import DELIMITED, FORMATS, read_table, read_text_table
from llm4dsr.core.manifest import MANIFEST, DamageError, read_manifest
from llm4dsr.data.atomic import ATOMIC, INTER, ITEM, ITEM_LIST, has_sequences, read_atomic
from llm4dsr.data.ids import same_id_type, text_ids, whole_number_ids
from llm4dsr.errors import DataError

_EXPECTED = (
    "Expected either ready windows (items, train, valid, test) or a log (items, interactions), "
    f"each as one file ending in {', '.join(FORMATS)}; all names may share one prefix, as in toys_items.parquet"
)


def find_files(path: Path) -> dict[str, Path]:
    """Find items and interactions, or items, train, valid and test, which come first. Raises DataError.

    Files of RecBole (`X.inter`, `X.item`) are taken where there are no tables named so.
    """
    if atomic := _find_atomic(path):
        return atomic
    folder, prefix = locate(path)
    found = {name: find_file(folder, prefix, name) for name in (c.ITEMS_FILE, *c.SPLITS, c.LOG_FILE)}
    missing = [name for name in c.SPLITS if found[name] is None]
    log = len(missing) == len(c.SPLITS) and found[c.LOG_FILE] is not None
    lacking = [c.ITEMS_FILE] if found[c.ITEMS_FILE] is None else [] if log else missing
    if lacking:
        names = ", ".join(f"{prefix}{name}" for name in lacking)
        raise DataError(f"{folder} lacks {names}; it holds {_listing(folder)}. {_EXPECTED}.")
    wanted = (c.ITEMS_FILE, c.LOG_FILE) if log else (c.ITEMS_FILE, *c.SPLITS)
    files = {name: file for name in wanted if (file := found[name]) is not None}
    _verify(folder, {file.name for file in files.values()})
    return files


def _verify(folder: Path, names: set[str]) -> None:
    """Check files that `llm4dsr data prepare` or `llm4dsr noise` wrote. Raises DataError."""
    if not (folder / MANIFEST).is_file():
        return
    try:
        read_manifest(folder, only=names)
    except DamageError as error:
        raise DataError(
            f"{error}. Make the folder again. If the files were changed on purpose, remove {folder / MANIFEST}."
        ) from None


def _find_atomic(path: Path) -> dict[str, Path]:
    """The files of RecBole by what they hold; empty if `path` names none. Raises DataError if they are no whole set."""
    folder = path if path.is_dir() else path.parent
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    sets = {_stem(file) for file in inside if file.suffix == INTER}
    ours = [file for file in inside if file.suffix in FORMATS and f"_{file.stem}".endswith(f"_{c.ITEMS_FILE}")]
    if not path.is_dir():
        sets &= {path.name, _stem(path)}
        ours = [file for file in ours if file.stem == f"{path.name}_{c.ITEMS_FILE}"]
    chosen = [] if ours else sorted(sets)
    if not chosen:
        return {}
    if len(chosen) > 1:
        raise DataError(
            f"{folder} holds several datasets: {', '.join(chosen)}. Name one, for example {folder / chosen[0]}."
        )
    (name,) = chosen
    parts = {c.LOG_FILE: folder / f"{name}{INTER}"}
    if not parts[c.LOG_FILE].is_file():
        parts = {split: folder / f"{name}.{split}{INTER}" for split in c.SPLITS}
    parts = {c.ITEMS_FILE: folder / f"{name}{ITEM}", **parts}
    if lacking := [file.name for file in parts.values() if not file.is_file()]:
        raise DataError(
            f"{folder} lacks {', '.join(lacking)}; it holds {_listing(folder)}. Expected {name}{ITEM} with the titles, "
            f"and {name}{INTER} or its parts train, valid and test. If {name}{INTER} has the titles itself,  "
            f"llm4dsr data prepare {quote(str(folder))}  reads it."
        )
    for part, file in parts.items():
        if part == c.LOG_FILE and has_sequences(file):
            raise DataError(
                f"{file} has sequences ({ITEM_LIST}) that are not split. Give {name}.train{INTER}, {name}.valid{INTER} "
                f"and {name}.test{INTER}, or single interactions in {name}{INTER}."
            )
        if part in c.SPLITS and not has_sequences(file):
            raise DataError(
                f"{file} has single interactions; a split needs sequences, with the history in {ITEM_LIST}. Give all "
                f"interactions in {name}{INTER}, from which windows are built."
            )
    return parts


def _stem(file: Path) -> str:
    """The name of a dataset of RecBole: `ml` of ml.inter, ml.item and ml.train.inter."""
    name = file.name.removesuffix(file.suffix) if file.suffix in ATOMIC else file.name
    return next((name.removesuffix(f".{split}") for split in c.SPLITS if name.endswith(f".{split}")), name)


def locate(path: Path) -> tuple[Path, str]:
    """Return (folder, prefix of the file names)."""
    if path.is_dir():
        if find_file(path, "", c.ITEMS_FILE) is not None:
            return path, ""
        ends = f"_{c.ITEMS_FILE}"
        prefixes = sorted({f.stem.removesuffix(c.ITEMS_FILE) for f in path.iterdir() if f.stem.endswith(ends)})
        sets = [p for p in prefixes if all(find_file(path, p, s) for s in c.SPLITS) or find_file(path, p, c.LOG_FILE)]
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
    """Return the file of this name in any format, or None. Raises DataError if there are several."""
    files = [f for f in (folder / f"{prefix}{name}{end}" for end in FORMATS) if f.is_file()]
    if len(files) > 1:
        raise DataError(f"{folder} holds {prefix}{name} more than once: {[f.name for f in files]}. Keep one of them.")
    return files[0] if files else None


def _listing(folder: Path, most: int = 12) -> str:
    names = sorted(f.name for f in folder.iterdir())
    return (", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")) or "nothing"


def read_files(files: dict[str, Path]) -> dict[str, pl.DataFrame]:
    """Read the files that `find_files` found, with item ids of one type where files without types allow it."""
    tables = {name: read_file(file).lazy() for name, file in files.items()}
    return {name: table.collect() for name, table in one_id_type(tables, files).items()}


def one_id_type(tables: dict[str, pl.LazyFrame], files: dict[str, Path]) -> dict[str, pl.LazyFrame]:
    """Return the tables of these files with item ids as text if one has text, where files have no types."""
    return same_id_type(tables, [name for name in tables if files[name].suffix in (*DELIMITED, *ATOMIC)])


def read_file(file: Path) -> pl.DataFrame:
    """Read one file of a data folder.

    Ids of files without types are whole numbers if all are written as such, else text. Floats that are whole numbers
    become integers.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    if file.suffix in ATOMIC:
        return read_atomic(read_text_table(file, "\t"), file)
    ids = (c.USER, c.ITEM, c.CLEAN_ITEM)
    table = read_table(file, as_text=ids)
    if file.suffix in DELIMITED:
        return table.with_columns(text_ids(table[name]) for name in ids if name in table.columns)
    return whole_number_ids(table.lazy()).collect()
