"""What the studies share: where they run, what they leave behind, and the page that shows it.

A study is one module with a QUESTION and a function `study(context) -> Found`. What it computes is cached below
`context.folder`, so that it goes on where it was stopped. Its page has a generated part (tables, plot, command) and
findings that people write; the latter are kept when the page is made again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from llm4dsr import evaluate
from llm4dsr.batch import Progress
from llm4dsr.bench.denoised import SUGGESTIONS, our_run
from llm4dsr.bench.suite import Suite
from llm4dsr.config import Config
from llm4dsr.data import write_parquet, write_text
from llm4dsr.errors import ModelError, OutputError
from llm4dsr.pipeline import Run
from llm4dsr.shards import Shards, versions

FINDINGS, END = "<!-- findings -->", "<!-- end of findings -->"
UNWRITTEN = "*Not written yet.*"
DIGITS = 4  # of numbers on a page


@dataclass
class Context:
    """suite: the windows. folder: of this suite; studies and the benchmark share what is in it. config: of the denoiser
    and of the recommenders. quick: smallest sizes that still go all the way. targets: folders of windows of other
    domains, for transfer."""

    suite: Suite
    folder: Path
    config: Config
    quick: bool = False
    progress: Progress | None = None
    targets: list[Path] = field(default_factory=list)

    def run(self) -> Run:
        """Our run on the suite, up to the suggestions; made once, and shared by studies and benchmark."""
        return our_run(self.suite.data, self.folder / "llm4dsr", self.config, self.progress)

    def variant(self, name: str, config: Config) -> Run:
        """A run with another configuration; kept under `name`."""
        return our_run(self.suite.data, self.folder / "variants" / name, config, self.progress)

    def suggested(self, run: Run, decisions: dict[str, pl.DataFrame]) -> evaluate.Tables:
        """Decisions with what the run's model suggests for them, which is kept."""
        found = dict(run.suggested(decisions, self.progress, self.folder / SUGGESTIONS))
        return evaluate.Tables(decisions, found)

    def compare(self, compared: dict[str, evaluate.Splits], config: Config | None = None) -> pl.DataFrame:
        """`evaluate.compare` with the cells of the benchmark: row, seed, ndcg, hit_rate, …"""
        settings = (config or self.config).evaluate
        return evaluate.compare(
            compared, self.suite.data.catalogue, settings, self.config.seed, self.progress, self.folder / "cells"
        )

    def shards(self, study: str) -> Shards:
        """For whatever else a study should not compute twice."""
        return Shards(self.folder / "studies" / f".{study}")


@dataclass
class Found:
    """tables: title → what was measured. plot: draws on a Matplotlib figure. notes: what the reader must know to read
    the numbers (sizes, seeds, what was left out)."""

    tables: dict[str, pl.DataFrame]
    plot: Callable[[Any], None]
    notes: list[str] = field(default_factory=list)


def check_page(name: str, suite: str, docs: Path) -> None:
    """Findings are of a suite. Raises OutputError where the page there has some of another one."""
    page = docs / f"{name}.md"
    if not page.is_file():
        return
    text = page.read_text(encoding="utf-8")
    if _findings(text) != UNWRITTEN and f"- Suite {suite}:" not in text:
        raise OutputError(f"{page} has findings on another suite than {suite}. Choose another --docs.")


def _findings(page: str) -> str:
    kept = re.search(f"{FINDINGS}(.*?){END}", page, re.S)
    return kept[1].strip() if kept else UNWRITTEN


def write_page(name: str, question: str, found: Found, context: Context, docs: Path, command: str,
               seconds: float) -> Path:  # fmt: skip
    """DOCS/NAME.md with its plot NAME.png, and the tables as Parquet beside them. Raises OutputError."""
    page = docs / f"{name}.md"
    findings = _findings(page.read_text(encoding="utf-8")) if page.is_file() else UNWRITTEN
    windows = ", ".join(f"{len(w):,} {split}" for split, w in context.suite.data.splits.items())
    lines = [f"# {question}", "", FINDINGS, findings, END, "", f"![{question}]({name}.png)", ""]
    for title, table in found.tables.items():
        lines += [f"## {title}", "", markdown(table), ""]
    lines += [f"- {note}" for note in found.notes]
    lines += [f"- Suite {context.suite.name}: {windows} windows, {len(context.suite.data.catalogue):,} items; "
              f"seed {context.config.seed}.",
              f"- Took {seconds / 60:.1f} minutes, less what was there already; llm4dsr {versions()['llm4dsr']}, "
              f"torch {versions()['torch']}{_gpu()}.", "", f"    {command}", ""]  # fmt: skip
    try:
        docs.mkdir(parents=True, exist_ok=True)
        _draw(found, docs / f"{name}.png")
        for title, table in found.tables.items():
            write_parquet(
                table, docs / "tables" / f"{name}-{re.sub('[^a-z0-9]+', '-', title.lower()).strip('-')}.parquet"
            )
        write_text(page, "\n".join(lines))
    except OSError as error:
        raise OutputError(f"Cannot write to {docs}: {error}.") from None
    return page


def _gpu() -> str:
    return f" on {gpu}" if (gpu := versions().get("gpu")) else ""


def markdown(table: pl.DataFrame) -> str:
    """A table for people: numbers with few digits, nothing for what is not known."""

    def cell(value: Any) -> str:
        if value is None or value != value:
            return ""
        if isinstance(value, bool):
            return "yes" if value else "no"
        return f"{value:.{DIGITS}g}" if isinstance(value, float) else str(value)

    rows = [[cell(v) for v in row] for row in table.iter_rows()]
    return "\n".join(f"| {' | '.join(r)} |" for r in [table.columns, ["---"] * table.width, *rows])


def _draw(found: Found, path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        raise ModelError(
            "Studies draw with Matplotlib, which is not there. Install it with:  pip install 'llm4dsr[studies]'"
        ) from None
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    found.plot(figure)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def smaller(config: Config) -> Config:
    """For --quick: a model and recommenders that take seconds on the tiny demo."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, hidden_size=32, layers=1, heads=2, vector_size=32),
        train=dataclasses.replace(config.train, epochs=2, folds=2),
        evaluate=dataclasses.replace(
            config.evaluate,
            seeds=2,
            recommender=dataclasses.replace(config.evaluate.recommender, hidden_size=16, blocks=1, epochs=3),
        ),
    )
