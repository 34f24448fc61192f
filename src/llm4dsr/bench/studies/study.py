"""What the studies share: where they run, what they return, and the page that shows it.

A study is one module with a QUESTION and a function `study(context) -> Found`. What it computes is cached below
`context.folder`, so that it resumes after an interruption. Its page has a generated part (tables, plot, command), and
findings written by people, which are kept when the page is made again.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from llm4dsr.bench.datasets import BenchDataset
from llm4dsr.bench.ours import SUGGESTIONS, our_run, run_name
from llm4dsr.config import Config
from llm4dsr.core.cache import PartCache
from llm4dsr.core.hashing import versions
from llm4dsr.core.io import write_parquet, write_text
from llm4dsr.core.progress import Progress
from llm4dsr.errors import ModelError, OutputError
from llm4dsr.evaluate.rows import DecisionTables, Splits
from llm4dsr.evaluate.train_and_evaluate import train_and_evaluate
from llm4dsr.pipeline import Run

FINDINGS, END = "<!-- findings -->", "<!-- end of findings -->"
UNWRITTEN = "*Not written yet.*"
DIGITS = 4  # of numbers on a page


@dataclass
class Context:
    """Where a study runs.

    Attributes
    ----------
    dataset : BenchDataset
        The windows.
    folder : Path
        Of this dataset; shared by studies and benchmark.
    config : Config
        Options of the denoiser and of the recommenders.
    quick : bool
        Smallest sizes that still run everything.
    progress : Progress or None
    targets : list of Path
        Folders of windows of other domains, for transfer.
    """

    dataset: BenchDataset
    folder: Path
    config: Config
    quick: bool = False
    progress: Progress | None = None
    targets: list[Path] = field(default_factory=list)

    def run(self) -> Run:
        """Return our run on the dataset, up to the suggestions; made once, and shared with the benchmark."""
        return our_run(self.dataset.data, self.folder / run_name(self.config.seed), self.config, self.progress)

    def variant(self, name: str, config: Config) -> Run:
        """Return a run with another configuration, kept under `name`."""
        return our_run(self.dataset.data, self.folder / "variants" / name, config, self.progress)

    def suggested(self, run: Run, decisions: dict[str, pl.DataFrame]) -> DecisionTables:
        """Return decisions with the suggestions of the run's model, which are kept."""
        found = dict(run.suggested(decisions, self.progress, self.folder / SUGGESTIONS))
        return DecisionTables(decisions, found)

    def compare(self, compared: dict[str, Splits], config: Config | None = None) -> pl.DataFrame:
        """Return `train_and_evaluate` with the cells of the benchmark."""
        settings = (config or self.config).evaluate
        return train_and_evaluate(
            compared, self.dataset.data.catalogue, settings, self.config.seed, self.progress, self.folder / "cells"
        )

    def cache(self, study: str) -> PartCache:
        """Return the cache of a study."""
        return PartCache(self.folder / "studies" / f".{study}")


@dataclass
class Found:
    """What a study found.

    Attributes
    ----------
    tables : dict of str to DataFrame
        Title → what was measured.
    plot : callable
        Draws on a Matplotlib figure.
    notes : list of str
        What a reader must know to read the numbers: sizes, seeds, what was left out.
    """

    tables: dict[str, pl.DataFrame]
    plot: Callable[[Any], None]
    notes: list[str] = field(default_factory=list)


def check_page(name: str, dataset: str, docs: Path) -> None:
    """Raise OutputError if the page there has findings on another dataset."""
    page = docs / f"{name}.md"
    if not page.is_file():
        return
    text = page.read_text(encoding="utf-8")
    if _findings(text) != UNWRITTEN and f"- Dataset {dataset}:" not in text:
        raise OutputError(f"{page} has findings on another dataset than {dataset}. Choose another --docs.")


def _findings(page: str) -> str:
    kept = re.search(f"{FINDINGS}(.*?){END}", page, re.S)
    return kept[1].strip() if kept else UNWRITTEN


def write_page(
    name: str, question: str, found: Found, context: Context, docs: Path, command: str, seconds: float
) -> Path:
    """Write DOCS/NAME.md with its plot NAME.png, and the tables as Parquet beside them. Raises OutputError."""
    page = docs / f"{name}.md"
    findings = _findings(page.read_text(encoding="utf-8")) if page.is_file() else UNWRITTEN
    windows = ", ".join(f"{len(w):,} {split}" for split, w in context.dataset.data.splits.items())
    lines = [f"# {question}", "", FINDINGS, findings, END, "", f"![{question}]({name}.png)", ""]
    for title, table in found.tables.items():
        lines += [f"## {title}", "", markdown(table), ""]
    lines += [f"- {note}" for note in found.notes]
    lines += [f"- Dataset {context.dataset.name}: {windows} windows, {len(context.dataset.data.catalogue):,} items; "
              f"seed {context.config.seed}.",
              f"- Took {seconds / 60:.1f} minutes without cached results; llm4dsr {versions()['llm4dsr']}, "
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
    """Render a table with few digits; unknown values are empty."""

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
    """Return the configuration of --quick: a model and recommenders that take seconds on the tiny demo."""
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, hidden_size=32, layers=1, heads=2, vector_size=32),
        train=dataclasses.replace(config.train, epochs=4, folds=2, batch_windows=32),
        evaluate=dataclasses.replace(
            config.evaluate,
            seeds=2,
            recommender=dataclasses.replace(config.evaluate.recommender, hidden_size=16, blocks=1, epochs=3),
        ),
    )
