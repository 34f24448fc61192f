"""The report: its numbers are those of the tables, and the page holds all it needs."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest

from llm4dsr.data.catalogue import Catalogue
from llm4dsr.data.dataset import Dataset
from llm4dsr.errors import OutputError
from llm4dsr.evaluate.popularity import ndcg_by_target, popularity_groups
from llm4dsr.pipeline import REPORT, Run
from llm4dsr.report import contents, write_report
from llm4dsr.report.examples import choose

from ..scored import scores
from ..tiny_run import CONFIG, make_run

HOSTILE = '</script><script>alert(1)</script> & "quoted" <b>title</b>'


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_demo) -> Run:
    """A finished run on items with categories, one of which has markup in its title."""
    items = tiny_demo.catalogue.to_frame().drop("canonical_id")
    titles = [HOSTILE, *items["title"].to_list()[1:]]
    kinds = ["games" if i % 2 else "books" for i in range(len(items))]
    catalogue = Catalogue.from_frame(items.with_columns(title=pl.Series(titles), category=pl.Series(kinds)))
    return make_run(tmp_path_factory.mktemp("report") / "shop", Dataset(catalogue, tiny_demo.splits))


@pytest.fixture(scope="module")
def page(run) -> str:
    return write_report(run, count=60).read_text(encoding="utf-8")


class Page(HTMLParser):
    """Tables by id, as rows of text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.links: list[str] = []
        self.scripts, self._rows, self._cell = 0, None, None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.links += [given[k] for k in ("src", "href", "xlink:href") if k in given]
        self.scripts += tag == "script"
        if tag == "table":
            self._rows = self.tables.setdefault(given["id"], [])
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif tag in ("td", "th") and self._rows:
            self._cell = []

    def handle_data(self, data):
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag):
        if tag in ("td", "th") and self._cell is not None:
            self._rows[-1].append("".join(self._cell).strip())
            self._cell = None
        elif tag == "table":
            self._rows = None


def payload(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_the_page_needs_nothing_else(page):
    found = Page(page)
    assert all(link.startswith("#") for link in found.links)
    assert "@import" not in page
    assert "url(" not in page
    assert found.scripts == 2  # the data and the code: no title has become markup
    assert HOSTILE not in page


def test_titles_with_markup_arrive_as_they_are(page):
    titles = {item["title"] for example in payload(page)["examples"] for item in example["items"]}
    assert HOSTILE in titles


def test_its_table_is_that_of_the_run(run, page):
    lines = pl.read_parquet(run.path("evaluate") / "summary.parquet")
    rows = Page(page).tables["ranking"][1:]
    assert [r[0] for r in rows] == lines["row"].to_list()
    assert [float(r[1]) for r in rows] == pytest.approx(lines["ndcg"].to_list(), abs=5e-5)


def test_the_slider_counts_what_eta_would_flag(run, page):
    """At each η on a border of bins, the page counts the flags of the policy `probability`."""
    for split, table in run.scores().items():
        counts = payload(page)["histogram"][split]
        assert counts["total"] == table["log_odds"].is_finite().sum()
        for eta in (1, 10, 50):
            flagged = run.decided("probability", eta / 100)[split]
            assert sum(counts["n"][eta:]) == len(flagged)
            assert sum(counts["p"][eta:]) == pytest.approx(flagged["noise_probability"].sum(), abs=0.1)


def test_examples_show_histories_with_edits_and_reasons(run, page):
    examples = payload(page)["examples"]
    assert {e["split"] for e in examples} == {"train", "valid", "test"}
    assert [e["p"] for e in examples] == sorted((e["p"] for e in examples), reverse=True)
    edits = {(n, w, p) for n, t in run.edits().items() for w, p in t.select("window_id", "position").iter_rows()}
    shown = {
        (e["split"], int(e["window"]), at) for e in examples for at, item in enumerate(e["items"]) if "edit" in item
    }  # fmt: skip
    assert shown
    assert shown <= edits
    for example in examples:
        why = example["items"][example["explained"]]["why"]
        assert why["others"] == example["of"] - (example["split"] != "train") - 1
    for example in examples:  # the target of an evaluation window was not scored
        assert ("p" in example["items"][-1]) == (example["split"] == "train")


def test_flags_are_counted_by_group(run, page):
    flags = sum(len(t) for t in run.decisions().values())
    tables = Page(page).tables
    for name in ("by-position", "by-popularity", "by-category"):
        assert sum(int(row[2].replace(",", "")) for row in tables[name][1:]) == flags
    assert {row[0] for row in tables["by-category"][1:]} == {"books", "games"}


def test_a_decided_run_has_a_report_already(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    decided = Run(tmp_path / "run")
    decided.decide(overwrite=True)
    text = write_report(decided, tmp_path / "other.html", count=6).read_text(encoding="utf-8")
    assert "No recommender was trained." in text
    assert "llm4dsr correct --run run" in text
    assert "ranking" not in Page(text).tables


def test_an_undecided_run_is_refused(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "decisions")
    with pytest.raises(OutputError, match="llm4dsr decide"):
        write_report(Run(tmp_path / "run"))


def test_making_a_stage_again_removes_the_report(run, page, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    assert (tmp_path / "run" / REPORT).is_file()
    Run(tmp_path / "run").decide(eta=0.2, policy="rate", overwrite=True)
    assert not (tmp_path / "run" / REPORT).exists()


def test_a_histogram_counts_what_the_cap_allows():
    """Two of three interactions of a window may be flagged: one always stays."""
    found = contents.histogram(scores([0.905, 0.5, 0.1], [1, 1, 1]), cap=3)
    assert found["total"] == 3
    assert {i: n for i, n in enumerate(found["n"]) if n} == {90: 1, 50: 1}
    assert found["p"][90] == 0.905
    assert contents.histogram(scores([0.905, 0.5, 0.1], [1, 1, 1]), cap=1)["n"][50] == 0


def test_the_page_opens_at_the_lowest_flagged_probability():
    assert contents.first_eta(scores([0.9, 0.625])) == 62
    assert contents.first_eta(scores([0.0])) == 1
    assert contents.first_eta(scores([0.5]).head(0)) == 50


def test_examples_are_the_most_suspicious_and_some_of_all_others():
    table = scores(np.linspace(1, 0, 101).tolist())
    found = choose(table, table.filter(pl.col("window_id") == 100), 10)
    assert found["window_id"][0] == 100  # flagged, however unsuspicious
    assert found["window_id"].to_list()[1:6] == [0, 1, 2, 3, 4]
    assert found["noise_probability"].min() < 0.05
    assert found["window_id"].n_unique() == len(found) == 10
    assert choose(table.head(0), table.head(0), 10).is_empty()


def test_a_gain_over_nothing_has_no_percentage():
    """No target of the rare group was found by the original row."""
    ranks = {"original": [30, 30, 1, 1], "corrected": [1, 30, 1, 30]}
    results = pl.DataFrame({"row": list(ranks), "seed": 0, "ranks": list(ranks.values()), "users": [[0, 1, 2, 3]] * 2})
    found = ndcg_by_target(results, np.array([1, 1, 9, 9]), 20).filter(pl.col("row") == "corrected")
    assert found["least_users"].to_list() == [1, 9]
    assert np.isnan(found["gain_percent"][0])
    assert found["gain_percent"][1] == pytest.approx(-50)
    assert popularity_groups(np.empty(0, dtype=np.int64)).tolist() == []


def test_ids_that_a_browser_would_round_are_text(run):
    table = contents.edits(run)
    assert {table.schema[name] for name in ("window_id", "user_id", "item_id", "suggested_item_id")} == {pl.String}


def test_long_histories_are_counted_in_groups_of_positions():
    facts = pl.DataFrame(
        {"from_end": [1, 10, 11, 20, 21, 100, 101, 5000], "flagged": True, "users": 1, "timestamp": -1}
    )
    found = contents.rates(facts)["position"]
    assert found.select("group", "interactions").rows() == [
        ("1", 1), ("10", 1), ("11 to 20", 2), ("21 to 50", 1), ("51 to 100", 1), ("over 100", 2),
    ]  # fmt: skip


def test_json_cannot_end_its_element():
    text = contents.as_json({"a": [HOSTILE, float("nan"), None, 1.5]})
    assert "<" not in text
    assert json.loads(text) == {"a": [HOSTILE, None, None, 1.5]}


def test_no_correction_is_said_so(run, tmp_path):
    """Where validation chose none, the first screen says that nothing was corrected."""
    shutil.copytree(run.folder, tmp_path / "run")
    config = dataclasses.replace(CONFIG, decide=dataclasses.replace(CONFIG.decide, policy="validation"))
    other = Run(tmp_path / "run")
    other.config = config
    other.decide(policy="validation", overwrite=True)
    text = write_report(other, tmp_path / "r.html", count=3).read_text(encoding="utf-8")
    tried = other.facts("decide")["tried"]
    assert ("No correction ranked validation better than none" in text) == tried[0]["chosen"]
