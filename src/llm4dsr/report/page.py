"""Write the report: numbers, charts and examples in one HTML file."""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from llm4dsr import charts
from llm4dsr import columns as c
from llm4dsr.core.io import as_output_error, write_text
from llm4dsr.core.progress import Progress
from llm4dsr.denoise.curves import expected_precision, reliability
from llm4dsr.evaluate.rows import ORIGINAL
from llm4dsr.pipeline import REPORT, STAGES, Run
from llm4dsr.recommenders import NAMES
from llm4dsr.report import contents
from llm4dsr.report.examples import examples
from llm4dsr.report.summary import summary

EXAMPLES = 240  # histories shown, a third from each split
NEEDED = ("prepare", "train", "score", "decide")


def write_report(
    run: Run, out: str | Path | None = None, count: int = EXAMPLES, progress: Progress | None = None
) -> Path:
    """Write the report of a run: one HTML file that needs no network.

    It holds user ids, item titles and parts of histories, so share it as you would share those.

    Parameters
    ----------
    run : Run
        Decided, at least; what later stages made is shown if it is there.
    out : str or Path, optional
        The file. Default: `report.html` in the run folder.
    count : int, default 240
        Example histories.
    progress : Progress, optional
        Called with (windows done, all windows, what is being done).

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OutputError
        If a stage is missing or damaged, or the file cannot be written.
    ModelError
        If the model is damaged.
    """
    run.need(*NEEDED)
    path = Path(out) if out is not None else run.folder / REPORT
    environment = Environment(
        loader=PackageLoader("llm4dsr.report"), autoescape=select_autoescape(default=True), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "signed": signed, "number": number}
    page = environment.get_template("report.html.j2").render(**_values(run, count, progress))
    with as_output_error(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)
    return path


def _values(run: Run, count: int, progress: Progress | None) -> dict[str, Any]:
    """All that the template shows."""
    data, scores, decisions, card = run.data(), run.scores(), run.decisions(), run.card()
    facts = {name: contents.with_facts(scores[name], decisions[name], data, name) for name in c.SPLITS}
    everything = pl.concat([f.with_columns(pl.lit(n).alias(c.SPLIT)) for n, f in facts.items()], how="diagonal_relaxed")
    edited = contents.edits(run) if run.done("correct") else None
    files = resources.files("llm4dsr.report") / "templates"
    shown = examples(run, count, progress)
    payload = {
        "histogram": {n: contents.histogram(scores[n], run.cap(n)) for n in c.SPLITS},
        "examples": shown,
        "edits": None if edited is None else {"columns": edited.columns, "rows": [list(r) for r in edited.iter_rows()]},
    }
    return {
        "name": run.folder.resolve().name,
        "summary": summary(run, facts),
        "gain": _gain(run),
        "detection": _detection(run, facts),
        "rates": {n: (t, LABELS[n], Markup(charts.bars(t))) for n, t in contents.rates(everything).items()},
        "most": contents.most_flagged(everything, data),
        "stages": [(n, card["stages"][n]) for n in STAGES if n in card.get("stages", {})],
        "card": card,
        "config": run.config.to_yaml(),
        "has_edits": edited is not None and len(edited) > 0,
        "examples": len(shown),
        "eta": contents.first_eta(decisions[c.TEST]),
        "css": Markup((files / "report.css").read_text(encoding="utf-8")),
        "js": Markup("".join((files / name).read_text(encoding="utf-8") for name in ("history.js", "report.js"))),
        "payload": Markup(contents.as_json(payload)),
    }


LABELS = {
    "position": "Position in the history; 1 is the newest item.",
    "popularity": "Users who have the item in training.",
    "time": "Day of the target from which each twelfth of the windows begins.",
    "category": "The largest categories.",
}


def _gain(run: Run) -> dict[str, Any] | None:
    """Tables and charts of what the recommender gained; None if it was not evaluated."""
    if not run.done("evaluate"):
        return None
    folder, settings = run.verified("evaluate"), run.config.evaluate
    lines = pl.read_parquet(folder / "summary.parquet", glob=False)
    results = pl.read_parquet(folder / "results.parquet", glob=False)
    spread = results.group_by("row", maintain_order=True).agg(pl.col("coverage", "gini").mean())
    lines = lines.join(spread, on="row", how="left", maintain_order="left")
    compared = lines.filter(pl.col("row") != ORIGINAL)
    table = compared.select("row", gain="ndcg_gain_percent", half="ndcg_gain_half_width").drop_nans("gain")
    out = {
        "recommender": NAMES[settings.backbone], "k": settings.k, "lines": lines.to_dicts(), "original": ORIGINAL,
        "chart": Markup(charts.gains(table, f"gain in NDCG@{settings.k}, %")), "targets": None, "target_chart": "",
    }  # fmt: skip
    if (targets := contents.by_target(run)) is not None:
        group = pl.format("{} to {}", "least_users", "most_users")
        drawn = targets.filter(pl.col("row") != ORIGINAL).select(
            "row", group=group, gain="gain_percent", half="gain_half_width"
        )
        out["targets"] = targets.to_dicts()
        out["target_chart"] = Markup(charts.gains_by_target(drawn, settings.k))
    return out


def _detection(run: Run, facts: dict[str, pl.DataFrame]) -> dict[str, Any]:
    """How precise flags are: as stated, and as the known truth has it."""
    test = facts[c.TEST]
    curve = expected_precision(test, run.cap(c.TEST))
    out: dict[str, Any] = {
        "curve": curve.to_dicts(), "chart": Markup(charts.precision(curve, float(test["flagged"].mean() or 0))),  # type: ignore[arg-type]
        "recall_chart": "", "reliability_chart": "", "reliability": [], "measured": {},
    }  # fmt: skip
    if "noise" in test.columns:
        reliable = reliability(test)
        out["recall_chart"] = Markup(charts.precision_recall(curve))
        out["reliability_chart"] = Markup(charts.reliability(reliable))
        out["reliability"] = reliable.to_dicts()
        out["measured"] = run.facts("evaluate").get("detection", {})
    return out


def percent(value: float | None, digits: int = 1) -> str:
    """Format a fraction as percent; a dash if it is unknown."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.{digits}f} %"


def signed(value: float | None, digits: int = 1) -> str:
    """Format a number with its sign; a dash if it is unknown."""
    return "–" if value is None or math.isnan(value) else f"{value:+.{digits}f}".replace("-", "−")


def number(value: float | None, digits: int = 4) -> str:
    """Format a number; a dash if it is unknown."""
    return "–" if value is None or math.isnan(value) else f"{value:,.{digits}f}"
