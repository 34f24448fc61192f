"""Ids of users and items: whole numbers that pandas made floats, and why the ids of two tables do not match."""

from __future__ import annotations

from collections.abc import Callable, Collection
from shlex import quote
from typing import Final

import polars as pl

from llm4dsr import columns as c

_IDS: Final = (c.USER, c.ITEM, c.CLEAN_ITEM)
_LISTS: Final = (c.ITEMS, c.CLEAN_ITEMS)
_EXACT: Final = 2.0**53  # from here on a float no longer holds every whole number
_SAMPLE: Final = 10_000
# Text that is a whole number as Python writes it, or as pandas writes it in a column with gaps.
WHOLE_TEXT: Final = r"^(0|-?[1-9][0-9]{0,17})(\.0)?$"
_DECIMALS: Final = r"\.0+$"


def whole_numbers(ids: pl.Series) -> pl.Series:
    """Return floats as Int64 if all are whole numbers (61.0 is 61, NaN is null); anything else as it is."""
    if not ids.dtype.is_float():
        return ids
    known = ids.fill_nan(None)
    exact = (known == known.floor()) & (known.abs() < _EXACT)
    return known.cast(pl.Int64) if exact.all() else ids


def whole_number_ids(table: pl.LazyFrame) -> pl.LazyFrame:
    """Apply `whole_numbers` to the id columns of a table, and to its lists of item ids."""
    changes = []
    for name, kind in table.collect_schema().items():
        inner = kind.inner if isinstance(kind, pl.List) and name in _LISTS else kind if name in _IDS else pl.Null()
        if isinstance(inner, pl.DataType) and inner.is_float():
            ids = pl.col(name) if name in _IDS else pl.col(name).explode()
            if whole_numbers(table.select(ids).unique().collect()[name]).dtype == pl.Int64:
                whole = _whole(pl.col(name)) if name in _IDS else pl.col(name).list.eval(_whole(pl.element()))
                changes.append(whole)
    return table.with_columns(changes)


def _whole(ids: pl.Expr) -> pl.Expr:
    return ids.fill_nan(None).cast(pl.Int64)


def text_ids(ids: pl.Series) -> pl.Series:
    """Return ids of a file without types as Int64 if all are whole numbers without leading zeros, else as text."""
    if ids.dtype != pl.String:
        return ids
    known = ids.set(ids == "", None)
    return without_decimals(known).cast(pl.Int64) if known.str.contains(WHOLE_TEXT).all() else ids


def same_id_type(tables: dict[str, pl.LazyFrame], untyped: Collection[str]) -> dict[str, pl.LazyFrame]:
    """Return the tables with item ids as text where one has text; only those named in `untyped` are changed.

    A file without types has numbers for ids only because all of its ids look like numbers.
    """
    names = (c.ITEM, c.CLEAN_ITEM, *_LISTS)
    schemas = {name: table.collect_schema() for name, table in tables.items()}
    kinds = [kind for schema in schemas.values() for column, kind in schema.items() if column in names]
    if not any(kind in (pl.String, pl.List(pl.String)) for kind in kinds):
        return tables
    return {
        name: table.with_columns(
            pl.col(column).cast(pl.List(pl.String) if column in _LISTS else pl.String)
            for column, kind in schemas[name].items()
            if column in names and name in untyped and kind in (pl.Int64, pl.List(pl.Int64))
        )
        for name, table in tables.items()
    }


def without_decimals(ids: pl.Series) -> pl.Series:
    """Return text ids without a final `.0`."""
    return ids.str.replace(_DECIMALS, "")


def explain_mismatch(given: pl.Series, known: pl.Series, where: str, others: pl.DataFrame | None = None) -> str:
    """Say how the ids of two tables look, and the likely reason why they do not match.

    Parameters
    ----------
    given : Series
        Ids that should be among `known`.
    known : Series
        Ids of the items table.
    where : str
        What has the given ids, for the text.
    others : DataFrame, optional
        Further columns of the items table, which may hold the ids.

    Returns
    -------
    str
        Two or three sentences.

    Examples
    --------
    >>> explain_mismatch(pl.Series([61, 7]), pl.Series(["061", "007"]), "the log")
    "Ids of the log: 61, 7 (numbers). Ids of the items: '061', '007' (text). They match without leading zeros: \
a program that read the ids as numbers lost them. Read them as text and write the table again."
    """
    if not (_is_plain(given) and _is_plain(known)):
        return f"Ids of {where} have the type {given.dtype}, those of the items {known.dtype}. Give numbers or text."
    given, known = given.drop_nulls().unique(maintain_order=True).head(_SAMPLE), known.drop_nulls()
    looks = f"Ids of {where}: {_shown(given)}. Ids of the items: {_shown(known)}."
    ours, theirs = given.cast(pl.String, strict=False), known.cast(pl.String, strict=False)
    for change, reason in _REASONS:
        if _matches(change(ours), change(theirs)):
            return f"{looks} {reason}"
    for column in others.iter_columns() if others is not None else ():
        if _is_plain(column) and _matches(ours, column.cast(pl.String, strict=False)):
            return (
                f"{looks} The column {column.name!r} of the items matches them:  "
                f"llm4dsr data prepare DIR --column {quote(f'{c.ITEM}={column.name}')}  takes it."
            )
    return (
        f"{looks} No spelling of the ids makes them match. Are both tables of one dataset, is this the right column, "
        "and do these items have titles?"
    )


def _is_plain(ids: pl.Series) -> bool:
    return ids.dtype.is_numeric() or ids.dtype in (pl.String, pl.Categorical, pl.Enum)


def _matches(given: pl.Series, known: pl.Series) -> bool:
    return bool(2 * given.is_in(known.unique().implode()).sum() > len(given))


def _shown(ids: pl.Series) -> str:
    kind = "text" if ids.dtype in (pl.String, pl.Categorical, pl.Enum) else "numbers" if ids.dtype.is_integer() else ""
    kind = kind or ("numbers with decimals" if ids.dtype.is_float() else str(ids.dtype))
    return f"{', '.join(repr(value) for value in ids.head(3).to_list()) or 'none'} ({kind})"


_Change = Callable[[pl.Series], pl.Series]
_REASONS: Final[tuple[tuple[_Change, str], ...]] = (
    (lambda ids: ids, "They match as text: one table has numbers and the other text. Write both with one type; "
     "llm4dsr data prepare  compares them as text."),
    (lambda ids: ids.str.strip_chars(), "They match without the spaces around them. Remove the spaces."),
    (lambda ids: ids.str.to_lowercase(), "They match in lower case. Write the ids in one case."),
    (without_decimals, "They match without the decimals: a program made the ids of one table floats, such as 61.0. "
     "Write them as whole numbers."),
    (lambda ids: ids.str.replace(r"^(-?)0+([0-9])", "${1}${2}"), "They match without leading zeros: a program that "
     "read the ids as numbers lost them. Read them as text and write the table again."),
    (lambda ids: without_decimals(ids.str.strip_chars().str.to_lowercase()).str.replace(r"^(-?)0+([0-9])", "${1}${2}"),
     "They match without spaces, case, decimals and leading zeros. Write the ids in one way."),
)  # fmt: skip
