"""The review page in a real browser, by keyboard, against a real server."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from llm4dsr.errors import OutputError
from llm4dsr.pipeline import Run
from llm4dsr.review import Review, create_app, serve_review

from ..tiny_run import make_run

playwright = pytest.importorskip("playwright.sync_api")
uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_demo) -> Run:
    return make_run(tmp_path_factory.mktemp("review") / "run", tiny_demo, "correct")


@pytest.fixture
def address(run):
    """A server on a free port of this machine, with no answers yet."""
    shutil.rmtree(run.folder / "review", ignore_errors=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    review = Review(run, 12)
    config = uvicorn.Config(create_app(review), host="127.0.0.1", port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)
    review.answers.close()


def test_a_port_in_use_is_said(run):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        review = Review(run, 3)
        with pytest.raises(OutputError, match=r"Port \d+ cannot be used: .*--port"):
            serve_review(review, other.getsockname()[1])
        review.answers.close()


def answer_of(address: str) -> bytes:
    """Ask again until the server is up, for ten seconds."""
    for _ in range(100):
        try:
            return urllib.request.urlopen(address, timeout=5).read()
        except ConnectionError:
            time.sleep(0.1)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            time.sleep(0.1)
    raise TimeoutError(address)


def test_the_command_serves_until_it_is_interrupted(run):
    """As a user would: start it, ask for the page, and stop it with Ctrl-C."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("llm4dsr")
    command = [program, "review", "--run", run.folder, "--port", port, "--questions", 3]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as server:
        try:
            told = next(line for line in server.stderr if "http://" in line)
            assert f"http://127.0.0.1:{port}" in told
            text = answer_of(f"http://127.0.0.1:{port}/api/next")
            server.send_signal(signal.SIGINT)
            assert server.wait(20) in (0, 130)
        finally:
            server.kill()
    assert b'"question"' in text


@pytest.fixture
def page(browser, address):
    page = browser.new_page(viewport={"width": 360, "height": 760}, color_scheme="dark")
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    page.wait_for_selector("#question ol.strip")
    yield page
    page.close()
    assert problems == []


def answered(page, count: int) -> str:
    """Wait for the page to show so many answers, and return all of its line."""
    playwright.expect(page.locator("#state")).to_contain_text(re.compile(f"^{count} answers"))
    return page.locator("#state").inner_text()


def test_a_review_by_keyboard(page, run):
    first = page.locator("#asked").inner_text()
    for count, key in enumerate("nbts", 1):
        page.keyboard.press(key)
        line = answered(page, count)
    assert "1 noise, 1 belong, 1 not their taste, 1 unclear" in line
    assert "flags are noise (95 %:" in line
    for count in (3, 2, 1, 0):
        page.keyboard.press("u")
        answered(page, count)
    assert page.locator("#asked").inner_text() == first
    lines = (run.folder / "review" / "answers.jsonl").read_text().splitlines()
    assert [sum(kind in line for line in lines) for kind in ("answers", "undo")] == [4, 4]


def test_another_item_is_chosen(page, run):
    title = run.data().catalogue.original_titles[3]
    page.locator("#replace summary").click()
    page.locator("#title").fill(title)
    page.locator("#found button", has_text=title).first.click()
    assert title in page.locator("#chosen").inner_text()
    page.locator("[data-answer=noise]").click()
    answered(page, 1)
    line = json.loads((run.folder / "review" / "answers.jsonl").read_text().splitlines()[-1])
    (answer,) = line["answers"]
    assert run.data().catalogue.original_titles[run.data().catalogue.index([int(answer["replacement"])])[0]] == title


def test_letters_in_a_search_are_no_answers(page):
    page.locator("#replace summary").click()
    page.locator("#title").press_sequentially("nbts")
    assert page.locator("#state").inner_text().startswith("0 answers")


def test_the_other_orders(page, run):
    worst = max((t["log_odds"].max(), n, *t.sort("log_odds").row(-1)[:2]) for n, t in run.scores().items())
    page.locator("#order").select_option("worst")
    playwright.expect(page.locator("#question .muted").first).to_contain_text(f"{worst[1]}, user")
    playwright.expect(page.locator("#question .muted").first).to_contain_text(f"window {worst[2]}")


def test_the_top_of_the_list_is_accepted_at_once(page):
    assert page.locator("#accept").is_disabled()  # the random sample is answered one by one
    page.locator("#order").select_option("worst")
    playwright.expect(page.locator("#accept")).to_be_enabled()
    first = page.locator("#asked").inner_text()
    page.locator("#count").fill("5")
    page.locator("#accept").click()
    assert "5 accepted without a look" in answered(page, 5)
    page.keyboard.press("u")
    answered(page, 0)
    assert page.locator("#asked").inner_text() == first


def test_the_page_is_accessible(page, is_accessible):
    page.locator("#question details summary").first.click()
    is_accessible(page, 360)
