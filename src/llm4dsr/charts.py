"""Charts: static SVG of Vega-Lite, with colors of the page, so that a dark page has dark charts.

The functions return SVG whose colors are CSS variables, as the report has them. `Chart` shows one where no page defines
these: in a notebook or a file.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from markupsafe import escape

from llm4dsr.core.io import as_output_error, write_bytes, write_text
from llm4dsr.errors import OutputError

WIDTH, HEIGHT = 300, 190  # of the plot; fits a phone
LINE, BAND, TRUTH, MUTED, BAD = (f"var(--{name})" for name in ("accent", "band", "truth", "muted", "bad"))
_ON_PAPER = {
    "accent": "#1858a8", "band": "#c9dcf3", "truth": "#b0430e", "muted": "#5d6166", "text": "#1c1d1f",
    "line": "#dcdedf", "more": "#5b7d16", "bad": "#b3261e",
}  # fmt: skip
_IN_NOTEBOOKS = {  # readable on light and on dark: a notebook does not tell which it is
    "accent": "#4a86d8", "band": "#4a86d855", "truth": "#d8713f", "muted": "#85898e", "text": "currentColor",
    "line": "#8888884d", "more": "#7fa32e", "bad": "#e0584e",
}  # fmt: skip
_CONFIG = {
    "background": None,
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--text)", "titleColor": "var(--text)", "gridColor": "var(--line)", "domainColor": MUTED,
        "tickColor": MUTED, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal", "labelLimit": 130,
    },
    "legend": {"labelColor": "var(--text)", "titleColor": "var(--text)", "orient": "bottom", "title": None},
    "font": "system-ui, sans-serif",
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class Chart:
    """A chart that a notebook shows, and that can be saved.

    Attributes
    ----------
    svg : str
        As the functions of this module return it.
    title : str
        What it shows, also for screen readers.
    """

    svg: str
    title: str

    def __repr__(self) -> str:
        return f"<Chart: {self.title}; save it with .save('chart.svg') or '.png'>"

    def _repr_html_(self) -> str:
        """For notebooks, in colors that suit a light and a dark page."""
        drawn = self._named(_colored(self.svg, _IN_NOTEBOOKS))
        return f'<figure style="margin:0"><figcaption>{escape(self.title)}</figcaption>{drawn}</figure>'

    def _repr_svg_(self) -> str:
        """On white, for programs that show no HTML."""
        drawn = self._named(_colored(self.svg, _ON_PAPER))
        begin = drawn.index(">") + 1
        return f'{drawn[:begin]}<rect width="100%" height="100%" fill="white"/>{drawn[begin:]}'

    def save(self, path: str | Path) -> Path:
        """Write the chart on white to a file.

        Parameters
        ----------
        path : str or Path
            Its name ends with .svg or .png. A file of that name is replaced.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        OutputError
            If the name ends otherwise, or the file cannot be written.
        """
        path = Path(path)
        with as_output_error(path.parent):
            if path.suffix == ".svg":
                write_text(path, self._repr_svg_())
            elif path.suffix == ".png":
                import vl_convert

                write_bytes(path, vl_convert.svg_to_png(self._repr_svg_(), scale=2))
            else:
                raise OutputError(f"{path.name}: a chart is saved as .svg or .png. Let the name end with one of them.")
        return path

    def _named(self, svg: str) -> str:
        """With a name for screen readers, since no table stands beside it. What an image holds has no roles."""
        svg = re.sub(r' (?:role|aria-label|aria-roledescription)="[^"]*"', "", svg)
        return svg.replace('aria-hidden="true"', f'role="img" aria-label="{escape(self.title)}"', 1)


def _colored(svg: str, colors: dict[str, str]) -> str:
    return re.sub(r"var\(--(\w+)\)", lambda found: colors[found[1]], svg)


def gains(table: pl.DataFrame, label: str) -> str:
    """Draw gains with their intervals. table: `row, gain, half`, in percent."""
    rows = table.with_columns(low=pl.col("gain") - pl.col("half"), high=pl.col("gain") + pl.col("half")).to_dicts()
    y = {"field": "row", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 150}}
    x = {"type": "quantitative", "title": label}
    return _svg(rows, [
        {"mark": {"type": "rule", "color": MUTED, "strokeDash": [3, 3]}, "encoding": {"x": {"datum": 0}}},
        {"mark": {"type": "rule", "color": LINE, "strokeWidth": 2},
         "encoding": {"y": y, "x": x | {"field": "low"}, "x2": {"field": "high"}}},
        {"mark": {"type": "point", "filled": True, "size": 70, "color": LINE, "opacity": 1},
         "encoding": {"y": y, "x": x | {"field": "gain"}}},
    ], height={"step": 26})  # fmt: skip


def gains_by_target(table: pl.DataFrame, k: int) -> str:
    """Draw gains for rare and frequent targets. table: `row, group, gain, half`; groups in order."""
    rows = table.with_columns(low=pl.col("gain") - pl.col("half"), high=pl.col("gain") + pl.col("half")).to_dicts()
    x = {"field": "group", "type": "nominal", "sort": None, "title": "users who have the target in training",
         "axis": {"labelAngle": 0}}  # fmt: skip
    color = {
        "field": "row", "type": "nominal", "sort": None,
        "scale": {"range": [LINE, TRUTH, MUTED, "var(--more)", "var(--text)"]},
    }  # fmt: skip
    shift = {"field": "row"}
    y = {"type": "quantitative", "title": f"gain in NDCG@{k}, %"}
    return _svg(rows, [
        {"mark": {"type": "rule", "color": MUTED, "strokeDash": [3, 3]}, "encoding": {"y": {"datum": 0}}},
        {"mark": {"type": "rule", "strokeWidth": 2},
         "encoding": {"x": x, "xOffset": shift, "color": color, "y": y | {"field": "low"}, "y2": {"field": "high"}}},
        {"mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
         "encoding": {"x": x, "xOffset": shift, "color": color, "y": y | {"field": "gain"}}},
    ])  # fmt: skip


def precision(table: pl.DataFrame, flagged: float | None = None) -> str:
    """Draw what flags promise at each rate. table: as `denoise.curves.expected_precision`; flagged: the run's rate."""
    table = table.with_columns(pl.lit("stated").alias("what"))
    x = {"field": "flagged", "type": "quantitative", "title": "flagged interactions", "axis": {"format": "%"}}
    y = {"type": "quantitative", "title": "precision", "axis": {"format": "%"}, "scale": {"domain": [0, 1]}}
    layers: list[dict[str, Any]] = [
        {"mark": {"type": "area", "color": BAND},
         "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}}},
        _line(x, y, "stated", LINE),
    ]  # fmt: skip
    if "precision" in table.columns:
        layers.append(_line(x, y, "precision", TRUTH))
    if flagged is not None:
        layers.append({"mark": {"type": "rule", "color": MUTED, "strokeDash": [3, 3]},
                       "encoding": {"x": {"datum": flagged, "type": "quantitative"}}})  # fmt: skip
    return _svg(table.to_dicts(), layers)


def precision_recall(table: pl.DataFrame) -> str:
    """Draw precision against recall, of the known truth."""
    x = {"field": "recall", "type": "quantitative", "title": "recall", "axis": {"format": "%"},
         "scale": {"domain": [0, 1]}}  # fmt: skip
    y = {"type": "quantitative", "title": "precision", "axis": {"format": "%"}, "scale": {"domain": [0, 1]}}
    return _svg(table.to_dicts(), [_line(x, y, "precision", TRUTH)])


def reliability(table: pl.DataFrame) -> str:
    """Draw the known truth against what was stated. table: as `denoise.curves.reliability`."""
    unit = {"scale": {"domain": [0, 1]}, "axis": {"format": "%"}, "type": "quantitative"}
    x, y = unit | {"title": "stated probability"}, unit | {"title": "noise among them"}
    return _svg(table.to_dicts(), [
        {"mark": {"type": "rule", "color": MUTED, "strokeDash": [3, 3]},
         "encoding": {"x": x | {"datum": 0}, "x2": {"datum": 1}, "y": y | {"datum": 0}, "y2": {"datum": 1}}},
        {"mark": {"type": "line", "color": TRUTH},
         "encoding": {"x": x | {"field": "stated"}, "y": y | {"field": "precision"}}},
        {"mark": {"type": "point", "filled": True, "color": TRUTH, "size": 50, "opacity": 1},
         "encoding": {"x": x | {"field": "stated"}, "y": y | {"field": "precision"}}},
    ])  # fmt: skip


def history(table: pl.DataFrame) -> str:
    """Draw the noise probability of each item of a history. table: `item, p, low, high, flagged`, oldest first."""
    y = {"field": "item", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 210}}
    x = {"type": "quantitative", "title": "noise probability", "axis": {"format": "%"}, "scale": {"domain": [0, 1]}}
    color = {"condition": {"test": "datum.flagged", "value": BAD}, "value": LINE}
    return _svg(table.to_dicts(), [
        {"mark": {"type": "bar", "opacity": 0.45}, "encoding": {"y": y, "x": x | {"field": "p"}, "color": color}},
        {"mark": {"type": "rule", "strokeWidth": 2, "color": MUTED},
         "encoding": {"y": y, "x": x | {"field": "low"}, "x2": {"field": "high"}}},
        {"mark": {"type": "point", "filled": True, "size": 60, "opacity": 1},
         "encoding": {"y": y, "x": x | {"field": "p"}, "color": color}},
    ], height={"step": 24}, left=70)  # fmt: skip


def bars(table: pl.DataFrame) -> str:
    """Draw flag rates. table: `group, rate`, in order."""
    y = {"field": "group", "type": "nominal", "sort": None, "title": None}
    x = {"field": "rate", "type": "quantitative", "title": "flagged", "axis": {"format": "%", "tickCount": 4}}
    return _svg(table.to_dicts(), [{"mark": {"type": "bar", "color": LINE}, "encoding": {"x": x, "y": y}}],
                height={"step": 17})  # fmt: skip


def _line(x: dict[str, Any], y: dict[str, Any], field: str, color: str) -> dict[str, Any]:
    return {"mark": {"type": "line", "color": color, "strokeWidth": 2}, "encoding": {"x": x, "y": y | {"field": field}}}


def _svg(rows: list[dict[str, Any]], layers: list[dict[str, Any]], height: Any = HEIGHT, left: int = 16) -> str:
    import vl_convert

    known = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()} for r in rows]
    config = _CONFIG | {"padding": {"left": left, "right": 12, "top": 5, "bottom": 5}}  # a page's font may be wider
    spec = {"data": {"values": known}, "width": WIDTH, "height": height, "layer": layers, "config": config}
    svg = str(vl_convert.vegalite_to_svg(spec))
    # The table beside each chart says the same in words
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
