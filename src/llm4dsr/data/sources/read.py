"""`read_source`: find the publisher's files in a folder, and read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llm4dsr import columns as c
from llm4dsr.data.atomic import ATOMIC, INTER, ITEM_LIST, title_column
from llm4dsr.data.sources import amazon, goodreads, lastfm, movielens, steam, tables, yelp
from llm4dsr.data.sources.source import Source
from llm4dsr.errors import DataError

TABLE: Final = "table"
RECBOLE: Final = "recbole"
RECBOLE_FILES: Final = "X.inter and X.item, or X.inter alone if it has titles"


@dataclass(frozen=True)
class Form:
    """File names and reader of one publisher's release.

    Attributes
    ----------
    name : str
        For `read_source(form=…)`.
    files : str
        File names, for messages.
    log, items : str
        Patterns of the file names; the group `x` must match the same text in both.
    read : callable
        The reader.
    """

    name: str
    files: str  # for people
    log: str
    items: str
    read: Callable[[Path, Path], Source]


_GZ: Final = r"(\.gz)?"
_ANY: Final = rf"(\.({'|'.join(kind[1:] for kind in tables.KINDS)}){_GZ})?"
FORMS: Final = (
    Form("amazon-2014", "reviews_X.json.gz or reviews_X_5.json.gz, and meta_X.json.gz",
         rf"reviews_(?P<x>.+?)(_5)?\.json{_GZ}", rf"meta_(?P<x>.+)\.json{_GZ}", amazon.read_2014),
    Form("amazon-2018", "X.json.gz or X_5.json.gz, and meta_X.json.gz",
         rf"(?!meta_)(?P<x>.+?)(_5)?\.json{_GZ}", rf"meta_(?P<x>.+)\.json{_GZ}", amazon.read_2018),
    Form("amazon-2023", "X.jsonl.gz and meta_X.jsonl.gz",
         rf"(?!meta_)(?P<x>.+)\.jsonl{_GZ}", rf"meta_(?P<x>.+)\.jsonl{_GZ}", amazon.read_2023),
    Form("movielens-100k", "u.data and u.item", r"u\.data", r"u\.item", movielens.read_100k),
    Form("movielens-dat", "ratings.dat and movies.dat (1M, 10M)", r"ratings\.dat", r"movies\.dat", movielens.read_dat),
    Form("movielens-csv", "ratings.csv and movies.csv (20M, 25M, 32M, latest)",
         r"ratings\.csv", r"movies\.csv", movielens.read_csv),
    Form("lastfm-1k", "userid-timestamp-artid-artname-traid-traname.tsv",
         r"userid-timestamp-artid-artname-traid-traname\.tsv",
         r"userid-timestamp-artid-artname-traid-traname\.tsv", lastfm.read_1k),
    Form("lastfm-2k-tags", "user_taggedartists-timestamps.dat and artists.dat",
         r"user_taggedartists-timestamps\.dat", r"artists\.dat", lastfm.read_2k_tags),
    Form("lastfm-2k-plays", "user_artists.dat and artists.dat (no times; only if asked for by name)",
         r"user_artists\.dat", r"artists\.dat", lastfm.read_2k_plays),
    Form("steam", "steam_reviews.json.gz and steam_games.json.gz",
         rf"steam_reviews\.json{_GZ}", rf"steam_games\.json{_GZ}", steam.read),
    Form("yelp", "yelp_academic_dataset_review.json and yelp_academic_dataset_business.json",
         rf"yelp_academic_dataset_review\.json{_GZ}", rf"yelp_academic_dataset_business\.json{_GZ}", yelp.read),
    Form("goodreads", "goodreads_interactions_X.json.gz and goodreads_books_X.json.gz",
         rf"goodreads_interactions(_dedup|(?P<x>_.+?))?\.json{_GZ}", rf"goodreads_books(?P<x>_.+)?\.json{_GZ}",
         goodreads.read),
)  # fmt: skip
_LOG: Final = rf"(?P<x>.*?)interactions{_ANY}"
_ITEMS: Final = rf"(?P<x>.*?)items{_ANY}"
# (log, items) of tables, by the form that they are asked for with.
_TABLES: Final = {
    TABLE: (_LOG, _ITEMS),
    RECBOLE: (rf"(?P<x>.+)\.inter{_GZ}", rf"(?P<x>.+)\.item{_GZ}"),
}


def read_source(path: str | Path, form: str | None = None, columns: Mapping[str, str] | None = None) -> Source:
    """Read the log and the catalogue of a published data set, or of tables of your own.

    Parameters
    ----------
    path : str or Path
        The folder; or the file with the interactions, if the folder holds several data sets. A folder that holds only
        one folder with the files works too.
    form : str, optional
        A name of `FORMS`, "recbole" or "table". Default: recognized by the names of the files. A table is
        `interactions` with `items` beside it, each a .csv, .tsv, .txt, .jsonl (also .gz) or .parquet file, or a folder
        of such part files; or a single table with a title in each row.
    columns : dict, optional
        For tables: our names → yours, as in {"user_id": "visitor", "timestamp": "when"}.

    Returns
    -------
    Source

    Raises
    ------
    DataError
        If files are missing or cannot be used, or if the form is not recognized.
    """
    path = Path(path)
    forms = [known for known in FORMS if form in (None, known.name)]
    if form not in (None, *_TABLES) and not forms:
        names = ", ".join([*(known.name for known in FORMS), *reversed(_TABLES)])
        raise DataError(f"There is no form {form!r}. Known: {names}.")
    if columns and form in (None, *_TABLES):
        forms = []  # only tables have columns to be named
    elif columns:
        raise DataError(f"Columns are named for tables of one's own; those of {form} are known. Leave out --column.")
    if not path.exists():
        raise DataError(f"There is no file or folder {path}. Give the folder with the files of a data set.")

    for folder in _folders(path):
        pairs = [(known, *pair) for known in forms for pair in _pairs(folder, path, known.log, known.items)]
        if form is None and any(known.name == "lastfm-2k-tags" for known, *_ in pairs):
            pairs = [pair for pair in pairs if pair[0].name != "lastfm-2k-plays"]
        if len(pairs) > 1:
            raise DataError(
                f"{folder} holds several data sets: {', '.join(f'{log.name} ({f.name})' for f, log, _ in pairs)}. "
                f"Give the path of one file with interactions, for example {pairs[0][1]}."
            )
        if pairs:
            known, log, items = pairs[0]
            return known.read(log, items)
    if form in (None, *_TABLES):
        found = _table(path, form, columns)
        if found is not None:
            return tables.read(*found, columns)
    raise _unknown(path, form)


def _folders(path: Path) -> list[Path]:
    """The folder, and the only folder in it, as archives unpack."""
    if not path.is_dir():
        return [path.parent]
    inner = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith((".", "__"))]
    return [path, *inner[:1]] if len(inner) == 1 else [path]


def _pairs(folder: Path, path: Path, log: str, items: str) -> list[tuple[Path, Path]]:
    """Files of `folder` whose names match; only pairs with `path` itself if it is a file."""
    entries = sorted(folder.iterdir())
    beside: dict[str, list[Path]] = {}
    for entry in entries:
        if found := re.fullmatch(items, entry.name):
            beside.setdefault(_x(found), []).append(entry)
    pairs = []
    for entry in entries:
        found = re.fullmatch(log, entry.name)
        if found and (path.is_dir() or entry == path) and _x(found) in beside:
            partners = beside[_x(found)]
            same = [p for p in partners if (p.suffix == ".gz") == (entry.suffix == ".gz")] or partners
            if len(same) > 1:
                raise DataError(f"{folder} holds the items more than once: {[p.name for p in same]}. Keep one of them.")
            pairs.append((entry, same[0]))
    return pairs


def _x(found: re.Match[str]) -> str:
    return found.groupdict().get("x") or ""


def _table(path: Path, form: str | None, columns: Mapping[str, str] | None) -> tuple[Path, Path | None] | None:
    """(interactions, items) by their names, (path, None) if `path` is a table itself; else None."""
    for folder in _folders(path):
        asked = [patterns for name, patterns in _TABLES.items() if form in (None, name)]
        pairs = [pair for patterns in asked for pair in _pairs(folder, path, *patterns)]
        if len(pairs) > 1:
            raise DataError(
                f"{folder} holds several data sets: {', '.join(log.name for log, _ in pairs)}. Give the path of one."
            )
        if pairs:
            return pairs[0]
        inter = [file for file in sorted(folder.iterdir()) if tables.kind_of(file) == INTER and path in (file, folder)]
        if inter:
            return _alone(inter, columns), None
    parts = tables.parts_of(path)
    alone = [part for part in parts if tables.kind_of(part)]
    return (path, None) if alone and len(alone) == len(parts) and _titled(alone[0], columns) else None


def _alone(inter: list[Path], columns: Mapping[str, str] | None) -> Path:
    """The only file with interactions of RecBole, which has the titles too. Raises DataError."""
    names = tables.columns_of(inter[0])
    if ITEM_LIST in names:
        raise DataError(
            f"{inter[0]} holds sequences ({ITEM_LIST}), which are windows already. Give X.train.inter, X.valid.inter, "
            "X.test.inter and X.item to  llm4dsr run --data DIR."
        )
    if len(inter) > 1:
        raise DataError(
            f"{inter[0].parent} holds several datasets: {', '.join(file.name for file in inter)}. Give the path of one."
        )
    if not _titled(inter[0], columns):
        raise DataError(
            f"{inter[0]} has no titles, and there is no {inter[0].stem}.item beside it. The method reads titles: add "
            f"that file, or name a column of {', '.join(names)} with --column {c.TITLE}=NAME."
        )
    return inter[0]


def tables_at(path: Path) -> tuple[Path, Path | None]:
    """Return the tables (interactions, items) that `read_source` takes from a folder; else the path itself alone."""
    return (_table(path, None, {}) if path.exists() else None) or (path, None)


def _titled(part: Path, columns: Mapping[str, str] | None) -> bool:
    names = tables.columns_of(part)
    atomic = tables.kind_of(part) in ATOMIC and title_column(names) is not None
    return atomic or any(name in names for name in (c.TITLE, (columns or {}).get(c.TITLE)))


def _unknown(path: Path, form: str | None) -> DataError:
    folder = path if path.is_dir() else path.parent
    names = sorted(entry.name for entry in folder.iterdir())
    found = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    known = [f"{f.name}: {f.files}" for f in FORMS if form in (None, f.name)]
    if form in (None, RECBOLE):
        known.append(f"{RECBOLE}: {RECBOLE_FILES}")
    if form in (None, TABLE):
        known.append(f"{TABLE}: interactions and items (or one table with titles), each {', '.join(tables.KINDS)}")
    return DataError(
        f"{path} is not recognized. {folder} holds {found or 'nothing'}. Expected one of these:\n  "
        + "\n  ".join(known)
    )
