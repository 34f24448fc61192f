"""Charts outside the report: colors are plain, titles are escaped, files are SVG or PNG."""

from xml.etree import ElementTree

import polars as pl
import pytest

from llm4dsr import charts
from llm4dsr.charts import Chart
from llm4dsr.errors import OutputError

HOSTILE = "<script>alert(1)</script> & b"


@pytest.fixture(scope="module")
def chart() -> Chart:
    table = pl.DataFrame({"item": [f"1. {HOSTILE}", "2. a"], "p": [0.9, 0.1], "low": [0.5, 0.0], "high": [1.0, 0.2],
                          "flagged": [True, False]})  # fmt: skip
    return Chart(charts.history(table), HOSTILE)


@pytest.mark.parametrize("shown", [Chart._repr_html_, Chart._repr_svg_])
def test_a_chart_shows_without_a_page_that_defines_its_colors(chart, shown):
    text = shown(chart)
    assert "var(" not in text
    assert "<script>" not in text
    ElementTree.fromstring(text)
    assert 'role="img" aria-label="&lt;script&gt;' in text


def test_it_is_saved_as_svg_or_png(chart, tmp_path):
    assert chart.save(tmp_path / "a.svg").read_text(encoding="utf-8").startswith("<svg ")
    assert chart.save(str(tmp_path / "a.png")).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match=r"\.svg or \.png"):
        chart.save(tmp_path / "a.pdf")
