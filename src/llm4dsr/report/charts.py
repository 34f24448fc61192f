"""Charts of the report: static SVG of Vega-Lite, with colors of the page, so that a dark page has dark charts."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

WIDTH, HEIGHT = 300, 190  # of the plot; fits a phone
LINE, BAND, TRUTH, MUTED = "var(--accent)", "var(--band)", "var(--truth)", "var(--muted)"
_CONFIG = {
    "background": None,
    "padding": {"left": 16, "right": 12, "top": 5, "bottom": 5},  # the page's font may be wider than the one measured
    "view": {"stroke": None},
    "axis": {
        "labelColor": "var(--text)", "titleColor": "var(--text)", "gridColor": "var(--line)", "domainColor": MUTED,
        "tickColor": MUTED, "labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal", "labelLimit": 130,
    },
    "legend": {"labelColor": "var(--text)", "titleColor": "var(--text)", "orient": "bottom", "title": None},
    "font": "system-ui, sans-serif",
}  # fmt: skip


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
    """Draw what flags promise at each rate. table: as `contents.expected_precision`; flagged: the run's rate."""
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
    """Draw the known truth against what was stated. table: as `contents.reliability`."""
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


def bars(table: pl.DataFrame) -> str:
    """Draw flag rates. table: `group, rate`, in order."""
    y = {"field": "group", "type": "nominal", "sort": None, "title": None}
    x = {"field": "rate", "type": "quantitative", "title": "flagged", "axis": {"format": "%", "tickCount": 4}}
    return _svg(table.to_dicts(), [{"mark": {"type": "bar", "color": LINE}, "encoding": {"x": x, "y": y}}],
                height={"step": 17})  # fmt: skip


def _line(x: dict[str, Any], y: dict[str, Any], field: str, color: str) -> dict[str, Any]:
    return {"mark": {"type": "line", "color": color, "strokeWidth": 2}, "encoding": {"x": x, "y": y | {"field": field}}}


def _svg(rows: list[dict[str, Any]], layers: list[dict[str, Any]], height: Any = HEIGHT) -> str:
    import vl_convert

    known = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in r.items()} for r in rows]
    spec = {"data": {"values": known}, "width": WIDTH, "height": height, "layer": layers, "config": _CONFIG}
    svg = str(vl_convert.vegalite_to_svg(spec))
    # The table beside each chart says the same in words
    return svg.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
