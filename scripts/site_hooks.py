"""What `mkdocs build` does to our pages, so that the same Markdown reads well in the repository and on the site.

- README.md, ARCHITECTURE.md and the pages of benchmarks/ lie outside docs/. They become pages below repository/, and
  links to and from them are rewritten. A link to a file that is no page becomes plain text.
- Notebooks become pages with their saved outputs (notebook_page.py).
- Formulas become MathML here, so that no script has to be fetched. The module graph, which the repository draws with
  Mermaid, becomes a table for the same reason.
"""

from __future__ import annotations

import html
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
from notebook_page import as_markdown

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("benchmarks/**/*.md"))]
OURS = "repository/"  # where they are on the site
MEASUREMENTS = OURS + "benchmarks/results"
NOTEBOOKS = "docs/notebooks/"
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
FENCE = re.compile(r"(^```.*?^```$)", re.S | re.M)


def on_config(config: Any) -> Any:
    """Leave pages that do not exist out of the navigation, and list all measurements."""
    config.nav = _existing(config.nav)
    return config


def _existing(nav: list[Any]) -> list[Any]:
    out: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            ((title, inside),) = entry.items()
            kept = _existing(inside if isinstance(inside, list) else [inside])
            if kept:
                out.append({title: kept if isinstance(inside, list) else kept[0]})
        elif entry == MEASUREMENTS:
            out += [OURS + str(path.relative_to(ROOT)) for path in OUTSIDE if "results/" in str(path.relative_to(ROOT))]
        elif (ROOT / _source(entry)).is_file():
            out.append(entry)
    return out


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside docs/, and one for each notebook."""
    for path in OUTSIDE:
        name = OURS + str(path.relative_to(ROOT))
        files.append(File.generated(config, name, content=path.read_text(encoding="utf-8")))
    for path in sorted((ROOT / NOTEBOOKS).glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=as_markdown(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite links that leave docs/, and draw the module graph as a table."""
    here = _source(page.file.src_uri)
    known = {_source(file.src_uri): file.src_uri for file in files}

    def rewritten(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        file, hash_, anchor = target.partition("#")
        if "://" in target or not file:
            return found[0]
        to = posixpath.normpath(posixpath.join(posixpath.dirname(here), file))
        if to not in known and (ROOT / to).exists():  # a file or folder that is no page
            return text
        uri = known.get(to)
        if uri is None:
            return found[0]  # the build reports it
        return f"{mark}[{text}]({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri))}{hash_}{anchor})"

    parts = FENCE.split(markdown)
    return "".join(
        _table(part) if part.startswith("```mermaid") else part if part.startswith("```") else LINK.sub(rewritten, part)
        for part in parts
    )


def _source(uri: str) -> str:
    """The file in the repository behind a page of the site."""
    if uri.startswith(OURS):
        return uri.removeprefix(OURS)
    source = f"docs/{uri}"
    if source.startswith(NOTEBOOKS) and (ROOT / source).with_suffix(".ipynb").is_file():
        return source.removesuffix(".md") + (".ipynb" if source.endswith(".md") else "")
    return source


def _table(graph: str) -> str:
    """The arrows of a Mermaid graph as a table."""
    below: dict[str, list[str]] = {}
    for begin, end in re.findall(r"(\w+) --> (\w+)", graph):
        below.setdefault(begin, []).append(end)
    rows = [f"| `{begin}` | {', '.join(f'`{end}`' for end in ends)} |" for begin, ends in below.items()]
    return "\n".join(["| package | imports |", "|---|---|", *rows])


def on_page_content(content: str, **_: Any) -> str:
    """Turn formulas into MathML, and let wide tables and pictures scroll, by keyboard too."""

    def formula(found: re.Match[str]) -> str:
        display = "block" if found[1] == "div" else "inline"
        tex = html.unescape(found[2]).strip().removeprefix("\\(").removesuffix("\\)")
        tex = tex.removeprefix("\\[").removesuffix("\\]").strip()
        made = convert(tex, display=display)
        if display == "inline":
            return made
        return f'<div class="formula" tabindex="0" role="group" aria-label="Formula">{made}</div>'

    content = re.sub(r'<(div|span) class="arithmatex">(.*?)</\1>', formula, content, flags=re.S)
    content = re.sub(
        r'<p>(<img alt="([^"]*)" src="[^"]*\.svg" />)</p>',
        r'<div class="wide picture" tabindex="0" role="group" aria-label="\2">\1</div>',
        content,
    )
    opened = '<div class="wide" tabindex="0" role="region" aria-label="Table">'
    return re.sub(r"<table>.*?</table>", lambda found: f"{opened}{found[0]}</div>", content, flags=re.S)


def on_post_page(output: str, **_: Any) -> str:
    """Name what the theme leaves without a name for screen readers."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
