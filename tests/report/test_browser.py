"""The report in a real browser: it works without a network, follows η, and is accessible."""

import csv

import pytest

from llm4dsr.config import Config
from llm4dsr.data.demo import make_demo
from llm4dsr.pipeline import Run
from llm4dsr.report import write_report

from ..tiny_run import make_run

CONFIG = Config.from_dict({
    "threads": 1,
    "model": {"hidden_size": 32, "layers": 1, "vector_size": 32},
    "train": {"epochs": 8, "folds": 2, "batch_windows": 32},
    "decide": {"policy": "rate", "eta": 0.1},
    "evaluate": {"backbone": "itemknn"},
})  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    data = make_demo(size="tiny", users=400).data
    run = make_run(tmp_path_factory.mktemp("browser") / "run", data, config=CONFIG)
    write_report(run, count=60)
    return run


@pytest.fixture
def open_page(browser, run):
    """Open the report; an error or a request of the page fails the test."""
    contexts, problems = [], []

    def opened(width: int = 1200, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: problems.append(r.url) if r.url.startswith("http") else None)
        page.goto(f"file://{run.folder / 'report.html'}")
        page.wait_for_selector("#examples > li")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (360, "dark")])
def test_it_is_accessible_on_desktop_and_phone(open_page, is_accessible, width, scheme):
    page = open_page(width, scheme)
    page.locator("#examples details summary").first.click()
    is_accessible(page, width)


def test_keys_move_eta_and_the_counts_follow(open_page, run):
    page = open_page()
    page.locator("#eta").evaluate("slider => { slider.value = 9; slider.dispatchEvent(new Event('input')); }")
    page.locator("#eta").focus()
    page.keyboard.press("ArrowRight")
    flagged = len(run.decided("probability", 0.10)["test"])
    assert page.locator("#flagged").inner_text().startswith(f"{flagged:,} of ")
    page.locator("#split").select_option("train")
    flagged = len(run.decided("probability", 0.10)["train"])
    assert page.locator("#flagged").inner_text().startswith(f"{flagged:,} of ")


def test_examples_are_found_by_title_and_user(open_page, run):
    page = open_page()
    page.locator("#all").check()
    titles = page.locator("#examples > li ol.strip li").all_inner_texts()
    word = titles[0].split()[0]
    page.locator("#search").fill(word)
    for text in page.locator("#examples > li").all_inner_texts():
        assert word.lower() in text.lower()
    page.locator("#search").fill("no such title anywhere")
    assert page.locator("#count").inner_text().startswith("0 of ")


def test_downloads_are_safe_in_a_spreadsheet(open_page, run, tmp_path):
    """A title that begins like a formula is text; numbers stay numbers."""
    page = open_page()
    page.evaluate("data.edits.rows[0][5] = '=1+1'; data.edits.rows[1][5] = 'a \"b\", c'")
    with page.expect_download() as waiting:
        page.locator("button[data-csv=edits]").click()
    waiting.value.save_as(tmp_path / "edits.csv")
    with (tmp_path / "edits.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(len(t) for t in run.edits().values())
    assert rows[0]["title"] == "'=1+1"
    assert rows[1]["title"] == 'a "b", c'
    assert float(rows[0]["noise_probability"]) >= float(rows[1]["noise_probability"])
    with page.expect_download() as waiting:
        page.locator("button[data-csv=ranking]").click()
    waiting.value.save_as(tmp_path / "ranking.csv")
    assert "original" in (tmp_path / "ranking.csv").read_text(encoding="utf-8-sig")
