"""Draw one history before and after, from a finished run: what was flagged, how surely, and what was suggested.

    python scripts/before_after.py --run demo-run --out docs/images/before-after.svg

The history is the first of test whose only flag is known noise and whose suggestion is of the same kind as its other
items, so the picture shows what a right correction looks like. How often corrections are right is in the run's tables.
"""

from __future__ import annotations

import argparse
from html import escape
from pathlib import Path

import polars as pl

from llm4dsr import columns as c

ITEMS, WIDTH, LINE = 7, 430, 30  # items shown, width of a column, height of an item
LONGEST = 50  # characters of a title


def pick(run: Path) -> tuple[list[str], int, float, str]:
    """(titles of the newest items before the target, flagged position, its noise probability, suggested title)."""
    titles = dict(pl.read_parquet(run / "windows" / "items.parquet").select(c.ITEM, c.TITLE).iter_rows())
    windows = pl.read_parquet(run / "windows" / "test.parquet")
    flags = pl.read_parquet(run / "decisions" / "test.parquet").join(
        pl.read_parquet(run / "suggestions" / "test.parquet"), on=[c.WINDOW, c.POSITION]
    )
    single = flags.filter(pl.len().over(c.WINDOW) == 1)
    for row in single.join(windows, on=c.WINDOW).sort(c.NOISE_PROBABILITY, descending=True).iter_rows(named=True):
        history, position = row[c.ITEMS][:-1], row[c.POSITION]
        begin = max(0, len(history) - ITEMS)
        shown = [titles[item] for item in history[begin:]]
        others = {word for i, title in enumerate(shown) if i != position - begin for word in title.split()}
        kin = len(others & set(row[c.SUGGESTED_TITLE].split()))
        if position >= begin and len(shown) == ITEMS and row[c.NOISE_MASK][position] and kin >= 4:
            return shown, position - begin, row[c.NOISE_PROBABILITY], row[c.SUGGESTED_TITLE]
    raise SystemExit("No history of test has a single right flag with a suggestion of its kind.")


def column(x: int, heading: str, titles: list[str], marked: int, color: str, note: str) -> list[str]:
    """One list of titles, with one of them marked and a note beside it."""
    lines = [f'<text x="{x}" y="28" class="h">{heading}</text>']
    for i, title in enumerate(titles):
        y = 48 + i * LINE
        fill, kind = (color, "m") if i == marked else ("none", "t")
        short = title if len(title) <= LONGEST else title[: LONGEST - 1] + "…"
        lines.append(f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{LINE - 4}" rx="5" fill="{fill}" class="b"/>')
        lines.append(f'<text x="{x + 10}" y="{y + 18}" class="{kind}">{escape(short)}</text>')
        if i == marked:
            lines.append(f'<text x="{x + WIDTH - 8}" y="{y + 18}" class="n" text-anchor="end">{escape(note)}</text>')
    return lines


def draw(titles: list[str], flagged: int, probability: float, suggestion: str) -> str:
    after = [suggestion if i == flagged else title for i, title in enumerate(titles)]
    height = 60 + len(titles) * LINE
    style = (
        "text{font:13px system-ui,sans-serif;fill:#24292f}.h{font-weight:600;font-size:15px}"
        ".b{stroke:#d0d7de}.m,.n{fill:#fff;font-weight:600}.bg{fill:#fff}"
    )
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH + 90} {height}" role="img" '
        'aria-label="One history before and after correction">',
        f"<style>{style}</style>",
        '<rect class="bg" width="100%" height="100%"/>',
        *column(15, "Before: oldest item first", titles, flagged, "#cf222e", f"noise: {probability:.0%}"),
        f'<text x="{WIDTH + 45}" y="{height // 2}" font-size="24" text-anchor="middle">→</text>',
        *column(WIDTH + 75, "After", after, flagged, "#1a7f37", "suggested"),
        "</svg>",
        "",
    ])  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, required=True, help="a finished run folder whose noise is known")
    options.add_argument("--out", type=Path, required=True, help="the SVG to write")
    given = options.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(draw(*pick(given.run)), encoding="utf-8")


if __name__ == "__main__":
    main()
