"""What notebooks show: a denoiser as a small table, and charts of its scores."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl
from markupsafe import escape

from llm4dsr import charts
from llm4dsr import columns as c
from llm4dsr.charts import Chart
from llm4dsr.config import Config
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.denoise.calibrate import Calibrator
from llm4dsr.denoise.curves import expected_precision, reliability, with_truth
from llm4dsr.denoise.tables import flagged_rows
from llm4dsr.errors import ConfigError, DataError

PLOTS = ("history", "precision", "precision_recall", "reliability")
SHOWN = 30  # most items of a history that are drawn


def configured(config: Config) -> list[tuple[str, str]]:
    """Return what is shown of a denoiser that is not fitted."""
    model = config.model
    return [
        ("State", "not fitted: call fit(histories, items)"),
        ("Language model", str(model.source)),
        ("Items, readout", f"{model.item_input}, {model.readout}"),
        ("Tuning", f"{config.train.epochs} epochs, {config.train.folds} fold(s), seed {config.seed}"),
    ]


def calibrated(calibrator: Calibrator) -> list[tuple[str, str]]:
    """Return what is shown of a calibration."""
    if calibrator.uncalibrated:
        return [("Calibration", f"none: {calibrator.uncalibrated}")]
    return [
        ("Calibration", f"error {calibrator.ece_before:.3f} before, {calibrator.ece_after:.3f} after"),
        ("Noise rate", f"{calibrator.noise_rate:.1%} ({calibrator.rate_low:.1%} to {calibrator.rate_high:.1%})"),
    ]


def as_html(lines: Sequence[tuple[str, str]]) -> str:
    """Return a small table of names and values, in the colors of the notebook."""
    cell = 'style="text-align:left;padding:2px 12px 2px 0"'
    rows = "".join(f"<tr><th {cell}>{escape(name)}</th><td {cell}>{escape(value)}</td></tr>" for name, value in lines)
    return f'<table style="border-collapse:collapse"><caption {cell}>Denoiser</caption>{rows}</table>'


def plot(
    scores: pl.DataFrame,
    windows: Windows,
    catalogue: Catalogue,
    rule: tuple[str, float, int],
    kind: str,
    window_id: int | None,
) -> Chart:
    """Draw scores; see `Denoiser.plot`. rule: policy, η and cap in force."""
    if kind not in PLOTS:
        raise ConfigError(f"kind = {kind!r}; expected one of {', '.join(PLOTS)}.")
    flagged = flagged_rows(scores, *rule)
    if kind == "history":
        return _history(scores, flagged, windows, catalogue, window_id)
    if kind == "reliability":
        return Chart(charts.reliability(reliability(with_truth(scores, windows))), "Reliability of noise probabilities")
    cap = rule[2]
    if kind == "precision_recall":
        curve = expected_precision(with_truth(scores, windows), cap)
        return Chart(charts.precision_recall(curve), "Precision and recall as η moves")
    if windows.noise_mask is not None:
        scores = with_truth(scores, windows)
    curve = expected_precision(scores, cap)
    title = "Stated precision at each rate of flags" + (", and the known truth" if "precision" in curve.columns else "")
    return Chart(charts.precision(curve, len(flagged) / max(1, len(scores))), title)


def _history(
    scores: pl.DataFrame, flagged: pl.DataFrame, windows: Windows, catalogue: Catalogue, window_id: int | None
) -> Chart:
    """Noise probability of each item of one history; by default the one with the most suspicious interaction."""
    if window_id is None:
        known = scores.filter(pl.col(c.LOG_ODDS).is_finite())
        if known.is_empty():
            raise DataError("No interaction has a score: histories of one item have none.")
        window_id = known.sort(c.LOG_ODDS, descending=True)[c.WINDOW][0]
    here = scores.filter(pl.col(c.WINDOW) == window_id).sort(c.POSITION)
    if here.is_empty():
        raise DataError(f"{c.WINDOW} {window_id} is not among the scores.")
    here = here.join(
        flagged.select(c.WINDOW, c.POSITION).with_columns(flagged=True), on=[c.WINDOW, c.POSITION], how="left"
    )
    titles = catalogue.titles_of(catalogue.index(here[c.ITEM], "the scores"))
    table = pl.DataFrame({
        "item": [f"{at + 1}. {title}" for at, title in zip(here[c.POSITION], titles, strict=True)],
        **{name: here[column] for name, column in zip(("p", "low", "high"), c.PROBABILITIES, strict=True)},
        "flagged": here["flagged"].fill_null(False),
    })  # fmt: skip
    return Chart(charts.history(table.tail(SHOWN)), f"Noise probability of each item, window {window_id}")
