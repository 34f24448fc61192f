"""The documentation site: it builds strictly, fetches nothing from outside, and is accessible on desktop and phone."""

import functools
import http.server
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["index.html", "tutorial.html", "concepts/the-math.html", "notebooks/first-look.html"]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("material")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", ROOT / "mkdocs.yml", "-d", out]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


class Fetched(HTMLParser):
    """Addresses that a browser fetches when it shows a page. Links to follow are no part of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preconnect", "preload"):
            self.found.append(given["href"])
        self.found += [given[name] for name in ("src", "poster", "srcset") if given.get(name)]


def test_no_page_fetches_anything_from_outside(site):
    for page in site.rglob("*.html"):
        outside = [a for a in Fetched(page.read_text(encoding="utf-8")).found if re.match(r"(\w+:)?//", a)]
        assert not outside, page
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet


def test_formulas_are_math_and_graphs_are_tables(site):
    text = (site / "concepts" / "the-math.html").read_text(encoding="utf-8")
    assert text.count("<math ") > 20
    for page in site.rglob("*.html"):
        assert 'class="arithmatex"' not in page.read_text(encoding="utf-8"), page
        assert "--&gt;</code>" not in page.read_text(encoding="utf-8"), page
    assert "<td><code>cli</code></td>" in (site / "repository" / "ARCHITECTURE.html").read_text(encoding="utf-8")


def test_pages_from_outside_docs_link_to_each_other(site):
    overview = (site / "repository" / "index.html").read_text(encoding="utf-8")
    assert 'href="../concepts/how-it-works.html"' in overview
    assert 'href="benchmarks/RESULTS.html"' in overview
    study = (site / "studies" / "index.html").read_text(encoding="utf-8")
    assert 'href="../repository/benchmarks/RESULTS.html"' in study


def test_notebooks_show_their_outputs(site):
    text = (site / "notebooks" / "first-look.html").read_text(encoding="utf-8")
    assert "Noise probability of each item" in text
    assert (site / "notebooks" / "first-look.ipynb").is_file()


@pytest.fixture(scope="module")
def address(site):
    """The site behind a real server on this machine."""
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def open_page(browser, address):
    """Open a page; an error or a request to elsewhere fails the test."""
    contexts, problems = [], []

    def opened(name: str, width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: problems.append(r.url) if not r.url.startswith((address, "data:")) else None)
        page.goto(f"{address}/{name}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (360, "dark")])
@pytest.mark.parametrize("name", PAGES)
def test_pages_are_accessible(open_page, is_accessible, name, width, scheme):
    is_accessible(open_page(name, width, scheme), width)


def test_a_term_is_found(open_page):
    page = open_page("index.html")
    page.keyboard.press("/")
    page.keyboard.type("atypical share")
    page.locator(".md-search-result__item").first.wait_for()
    assert "glossary" in " ".join(
        page.locator(".md-search-result__link").evaluate_all("links => links.map(a => a.href)")
    )
