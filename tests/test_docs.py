"""Docs stay right: generated parts are up to date, links lead somewhere, the README stays short."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/**/*.md"),
    *ROOT.glob("docs/**/*.ipynb"),
    *ROOT.glob("benchmarks/**/*.md"),
]


def text_of(page: Path) -> str:
    """The text of a page or notebook, without code in fences."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        text = "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    return re.sub(r"```.*?```", "", text, flags=re.S)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.M)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("script", ["module_graph.py", "reference_pages.py"])
def test_generated_pages_are_up_to_date(script):
    done = subprocess.run([sys.executable, ROOT / "scripts" / script, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text_of(page)) if "://" not in t]
    broken = []
    for target in targets:
        file, _, anchor = target.partition("#")
        to = page.parent / file if file else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            broken.append(target)
    assert not broken


def test_every_page_is_in_the_index():
    index = ROOT / "docs" / "README.md"
    listed = {
        (index.parent / t.split("#")[0]).resolve()
        for t in re.findall(r"\]\(([^)\s]+)\)", text_of(index))
        if "://" not in t
    }
    pages = {page for page in PAGES if page.is_relative_to(ROOT / "docs") and page.parent.name != "studies"}
    assert {page.relative_to(ROOT) for page in pages - {index} - listed} == set()


@pytest.mark.parametrize("page", ["reference/paper.md", "concepts/the-math.md"])
def test_named_functions_and_options_exist(page):
    """Names such as `denoise.train.tune` are below llm4dsr, names such as `train.epochs` are options."""
    from llm4dsr.config import Config

    names = set(re.findall(r"`([a-z_]+(?:\.\w+)+)`", (ROOT / "docs" / page).read_text(encoding="utf-8")))
    assert len(names) > 10
    missing = [name for name in names if not _is_option(Config(), name) and not _is_ours(name)]
    assert not missing


def _is_option(config: object, name: str) -> bool:
    for part in name.split("."):
        if not hasattr(config, part):
            return False
        config = getattr(config, part)
    return True


def _is_ours(name: str) -> bool:
    parts = ["llm4dsr", *name.split(".")]
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        return _is_option(found, ".".join(parts[end:])) if end < len(parts) else True
    return False


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130


def test_architecture_names_files_that_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text[text.index("## Where to change what") :]
    table = table[: table.index("\n## ", 1)]
    rows = [line for line in table.splitlines() if line.startswith("|")][2:]
    assert len(rows) >= 12
    for row in rows:
        for name in re.findall(r"`([\w/]+\.(?:py|yaml|md))`", row):
            assert (ROOT / "src" / "llm4dsr" / name).exists() or (ROOT / name).exists(), name


def test_source_files_stay_short():
    long = {
        str(path.relative_to(ROOT)): count
        for folder in ("src", "tests", "scripts")
        for path in (ROOT / folder).rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long
