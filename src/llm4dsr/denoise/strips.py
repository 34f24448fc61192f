"""Histories as strips of items with their edits, for notebooks. Pages draw theirs by script."""

from __future__ import annotations

from typing import Any

import polars as pl
from markupsafe import escape

from llm4dsr import columns as c
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows

HISTORIES, ITEMS = 5, 30  # most histories, and items of one, that are shown
STRIP = "display:flex;flex-wrap:wrap;gap:5px;list-style:none;padding:0;margin:2px 0 10px"
CELL = (
    "width:9.5em;box-sizing:border-box;margin:0;padding:4px 6px;border:1px solid #8888;border-radius:6px;"
    "overflow-wrap:anywhere"
)
FLAGGED = "border:2px solid #e0584e;background:#e0584e26"
DONE = {"drop": "dropped", "downweight": "lower weight", c.KEEP: "kept"}


def summary(windows: Windows, edits: pl.DataFrame) -> str:
    """Return how much was changed, in words."""
    changed = edits.filter(pl.col(c.ACTION) != c.KEEP)
    histories = changed[c.WINDOW].n_unique()
    return f"{len(changed):,} of {len(windows.items):,} interactions changed, in {histories:,} histories"


def edited_histories(windows: Windows, edits: pl.DataFrame, catalogue: Catalogue) -> str:
    """Draw the most suspicious edited histories as HTML. All text is escaped.

    Parameters
    ----------
    windows : Windows
        As they were before correction.
    edits : DataFrame
        As `Corrected.edits`.
    catalogue : Catalogue
        The items.
    """
    most = edits.sort(c.NOISE_PROBABILITY, descending=True, nulls_last=True, maintain_order=True)
    user = pl.coalesce(pl.format("user {}", c.USER), pl.format("window {}", c.WINDOW))  # windows of a user overlap
    chosen = most.unique(user, keep="first", maintain_order=True)[c.WINDOW].head(HISTORIES).to_list()
    row_of = {int(w): i for i, w in enumerate(windows.window_ids)} if chosen else {}
    strips = [_strip(windows, row_of[w], edits.filter(pl.col(c.WINDOW) == w), catalogue) for w in chosen]
    return f'<div style="font-size:.85em;line-height:1.35"><p>{summary(windows, edits)}.</p>{"".join(strips)}</div>'


def _strip(windows: Windows, row: int, edits: pl.DataFrame, catalogue: Catalogue) -> str:
    edit_of = {line[c.POSITION]: line for line in edits.iter_rows(named=True)}
    items = windows.row(row)
    begin = max(0, min(min(edit_of) - ITEMS // 2, len(items) - ITEMS))
    cells = []
    for at in range(begin, min(begin + ITEMS, len(items))):
        title, edit = escape(catalogue.original_titles[items[at]]), edit_of.get(at)
        if edit is None:
            cells.append(f'<li style="{CELL}">{title}</li>')
        else:
            name = f"<s>{title}</s>" if edit[c.ACTION] in ("replace", "drop") else title
            noise = f"noise {edit[c.NOISE_PROBABILITY]:.0%}"
            cells.append(f'<li style="{CELL};{FLAGGED}">{name}<br>{noise}<br><b>{_done(edit)}</b></li>')
    user = windows.user_ids[row]
    named = f"{'unknown user' if user is None else f'user {escape(user)}'}, window {windows.window_ids[row]}"
    shown = f", {len(cells)} of {len(items)} items" if len(cells) < len(items) else ""
    return (
        f"<div>{named}{shown}, oldest first</div>"
        f'<ol aria-label="History of {named}" style="{STRIP}">{"".join(cells)}</ol>'
    )


def _done(edit: dict[str, Any]) -> str:
    if edit[c.ACTION] == "replace":
        return f"→ {escape(edit[c.SUGGESTED_TITLE])}"
    return DONE[edit[c.ACTION]]
