"""What notebooks show of a denoiser and its results."""

import re
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest

from llm4dsr import Config, Denoiser
from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.windows import Windows
from llm4dsr.errors import ConfigError, DataError

from .tiny_run import CONFIG

HOSTILE = '</li><script>alert(1)</script> & "quoted"'


@pytest.fixture(scope="module")
def data(tiny_demo):
    """The tiny demo with markup in every title."""
    items = tiny_demo.catalogue.to_frame().drop("canonical_id")
    titles = [f"{title} {HOSTILE}" for title in items["title"]]
    return Catalogue.from_frame(items.with_columns(title=pl.Series(titles))), tiny_demo.splits


@pytest.fixture(scope="module")
def denoiser(data) -> Denoiser:
    catalogue, splits = data
    return Denoiser(CONFIG).fit(splits["train"], catalogue, splits["valid"].histories())


@pytest.fixture(scope="module")
def scores(denoiser, data) -> pl.DataFrame:
    return denoiser.score(data[1]["test"], has_target=True)


def words(html: str) -> str:
    """The text of well-formed HTML."""
    return " ".join(ElementTree.fromstring(html.replace("<br>", "<br/>")).itertext())


def test_an_unfitted_denoiser_shows_its_configuration():
    text = words(Denoiser(Config.from_dict({"model": {"source": "<b>&"}}))._repr_html_())
    assert "not fitted" in text
    assert "<b>&" in text


def test_a_fitted_one_shows_what_it_learned(denoiser, data, tmp_path):
    catalogue, splits = data
    text = words(denoiser._repr_html_())
    assert f"{len(catalogue)} items" in text
    assert f"{len(splits['train']):,} histories of {splits['train'].user_ids.n_unique():,} users" in text
    denoiser.save_pretrained(tmp_path)
    assert Denoiser.from_pretrained(tmp_path)._repr_html_() == denoiser._repr_html_()


@pytest.mark.parametrize("action", ["replace", "drop", "downweight"])
def test_corrected_histories_show_their_edits(denoiser, scores, data, action):
    decisions = denoiser.decide(scores, "rate", 0.1)
    result = denoiser.correct(data[1]["test"], decisions, action=action, has_target=True)
    html = result._repr_html_()
    text = words(html)
    assert "<script>" not in html
    assert HOSTILE in text
    assert text.startswith(f"{len(result.edits)} of {len(data[1]['test'].items):,} interactions changed")
    first = result.edits.sort("noise_probability", descending=True, maintain_order=True).row(0, named=True)
    assert f"window {first['window_id']}" in text
    shown = {"replace": f"→ {first['suggested_title']}", "drop": "dropped", "downweight": "lower weight"}
    assert shown[action] in text
    assert len(re.findall("<ol ", html)) <= 5


def test_nothing_flagged_is_shown_as_such(denoiser, scores, data):
    result = denoiser.correct(data[1]["test"], scores.head(0), action="drop", has_target=True)
    assert words(result._repr_html_()).startswith("0 of ")


@pytest.mark.parametrize("kind", ["history", "precision", "precision_recall", "reliability"])
def test_scores_are_drawn(denoiser, scores, data, kind):
    chart = denoiser.plot(scores, data[1]["test"], kind)
    ElementTree.fromstring(chart._repr_html_())


def test_a_history_is_drawn_with_its_own_items(denoiser, scores, data):
    window = scores["window_id"][-1]
    chart = denoiser.plot(scores, data[1]["test"], window_id=window)
    assert chart.title.endswith(f"window {window}")
    for at in range(scores.filter(pl.col("window_id") == window).height):
        assert f">{at + 1}. " in chart.svg


def test_what_cannot_be_drawn_is_refused(denoiser, scores, data):
    with pytest.raises(ConfigError, match="expected one of history"):
        denoiser.plot(scores, data[1]["test"], "pie")
    with pytest.raises(DataError, match="not among the scores"):
        denoiser.plot(scores, data[1]["test"], window_id=-5)
    unknown = Windows.from_lists([np.array([0, 1, 2])])
    with pytest.raises(DataError, match="not known"):
        denoiser.plot(denoiser.score(unknown), unknown, "reliability")
    assert denoiser.plot(denoiser.score(unknown), unknown, "precision").title.endswith("rate of flags")


def test_true_shows_progress(denoiser, data, capsys, monkeypatch):
    monkeypatch.setattr("llm4dsr.core.progress_bar.LINE_SECONDS", 0.001)
    denoiser.score(data[1]["test"], progress=True, has_target=True)
    assert "score" in capsys.readouterr().err
