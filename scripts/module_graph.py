"""Draw the packages, their imports and their modules into ARCHITECTURE.md, from the code itself.

python scripts/module_graph.py           # writes the part between the markers
python scripts/module_graph.py --check   # exits with 1 if that part is out of date
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
SOURCE, PAGE = ROOT / "src" / "llm4dsr", ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- module graph -->", "<!-- end of module graph -->"
# From the command line down, as the import contract in pyproject.toml has them
LAYERS = (
    "__main__", "cli", "bench", "serve", "review", "report", "export", "pipeline", "denoiser", "evaluate",
    "recommenders", "denoise", "lm", "features", "data", "charts", "intervals", "metrics", "config", "core", "columns",
    "errors",
)  # fmt: skip


def imports() -> dict[str, set[str]]:
    """Package → the packages that it imports."""
    graph = grimp.build_graph("llm4dsr")
    out: dict[str, set[str]] = {name: set() for name in LAYERS if name != "__main__"}
    for module in graph.modules:
        parts = module.split(".")
        for other in graph.find_modules_directly_imported_by(module):
            target = other.split(".")
            if len(parts) > 1 and len(target) > 1 and parts[1] != target[1] and parts[1] in out:
                out[parts[1]].add(target[1])
    return out


def reduced(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the arrows that follow from others: if A imports B and B imports C, A → C is not drawn."""

    def below(name: str) -> set[str]:
        return set().union(*({n} | below(n) for n in edges[name])) if edges[name] else set()

    return {name: {n for n in to if not any(n in below(other) for other in to - {n})} for name, to in edges.items()}


def summary(module: Path) -> str:
    """The first sentence of a module's docstring."""
    text = (ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    return " ".join(text.split()).split(". ")[0].rstrip(".")


def tree(folder: Path, indent: int = 0) -> list[str]:
    """Files and folders with what they are for, in the order of the data's way at the top."""
    names = list(LAYERS)[::-1]
    entries = [p for p in folder.iterdir() if p.is_dir() or p.suffix == ".py"]
    entries = [p for p in entries if p.name not in ("__init__.py", "__pycache__", "recipes", "templates")]
    entries.sort(key=lambda p: (names.index(p.stem) if not indent else 0, p.is_dir(), p.name))
    lines = []
    for path in entries:
        shown = path.name + "/" * path.is_dir()
        about = summary(path / "__init__.py" if path.is_dir() else path)
        lines.append(f"{'  ' * indent}{shown:<{34 - 2 * indent}}{about}".rstrip())
        if path.is_dir():
            lines += tree(path, indent + 1)
    return lines


def generated() -> str:
    edges = reduced(imports())
    arrows = [f"    {name} --> {to}" for name in edges for to in edges if to in edges[name]]
    return "\n".join([
        BEGIN, "", "```mermaid", "flowchart TD", *arrows, "```", "", "```text", *tree(SOURCE), "```", "", END
    ])  # fmt: skip


def main() -> int:
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    made = before + generated() + rest.split(END)[1]
    if "--check" in sys.argv:
        if made != page:
            print("ARCHITECTURE.md is out of date. Run:  python scripts/module_graph.py", file=sys.stderr)
        return int(made != page)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
