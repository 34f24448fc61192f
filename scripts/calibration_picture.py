"""Draw docs/images/calibration.svg: scores of injected noise and of unlabeled interactions, and the noise probability.

llm4dsr demo && python scripts/calibration_picture.py demo-run
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import vl_convert

from llm4dsr.pipeline import Run

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "calibration.svg"
BINS = 40
NAMES = ("injected noise", "unlabeled interactions")


def main() -> None:
    """Write the picture from the test histories of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run = Run(parser.parse_args().run)
    calibrator, scores = run.maps()["test"], run.scores()["test"]["log_odds"].to_numpy()
    injected = np.array(calibrator.injected)
    unlabeled = scores[np.isfinite(scores)]
    injected = injected[np.isfinite(injected)]
    edges = np.linspace(np.quantile(unlabeled, 0.001), max(injected.max(), unlabeled.max()), BINS + 1)
    rows = [
        {"log": float(x), "density": float(y), "what": name}
        for name, values in zip(NAMES, (injected, unlabeled), strict=True)
        for x, y in zip((edges[:-1] + edges[1:]) / 2, np.histogram(values, edges)[0] / len(values), strict=True)
    ]
    at = np.linspace(edges[0], edges[-1], 200)
    low, high = calibrator.interval(at)
    curve = [{"log": float(x), "p": float(p), "low": float(a), "high": float(b)}
             for x, p, a, b in zip(at, calibrator(at), low, high, strict=True)]  # fmt: skip
    x = {"field": "log", "type": "quantitative", "title": "log-odds"}
    share = {"field": "density", "type": "quantitative", "title": "share of each", "axis": {"format": "%"}}
    color = {"field": "what", "scale": {"domain": list(NAMES), "range": ["#b0430e", "#1858a8"]},
             "legend": {"orient": "top", "title": None}}  # fmt: skip
    p = {"type": "quantitative", "title": "noise probability", "axis": {"format": "%"}, "scale": {"domain": [0, 1]}}
    size = {"width": 300, "height": 190}
    spec = {
        "background": "white", "hconcat": [
            {**size, "data": {"values": rows}, "mark": {"type": "area", "interpolate": "step", "opacity": 0.5},
             "encoding": {"x": x, "y": {**share, "stack": None}, "color": color}},
            {**size, "data": {"values": curve}, "layer": [
                {"mark": {"type": "area", "color": "#c9dcf3"},
                 "encoding": {"x": x, "y": {**p, "field": "low"}, "y2": {"field": "high"}}},
                {"mark": {"type": "line", "color": "#1858a8"}, "encoding": {"x": x, "y": {**p, "field": "p"}}},
            ]},
        ], "config": {"font": "system-ui, sans-serif"},
    }  # fmt: skip
    PICTURE.write_text(vl_convert.vegalite_to_svg(spec), encoding="utf-8")
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
