"""Turn a notebook with saved outputs into a Markdown page."""

from __future__ import annotations

import base64
import json
import re
import sys
from pathlib import Path
from typing import Any


def as_markdown(path: Path) -> str:
    """Return the cells in order: text as it is, code in fences, outputs as HTML or text."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for number, cell in enumerate(cells):
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            if number == 0:
                parts.append(f"[Download this notebook]({path.name})")
        else:
            parts.append(f"```python\n{text}\n```")
            parts += [shown for output in cell["outputs"] if (shown := _output(output))]
    return "\n\n".join(parts) + "\n"


def _output(output: dict[str, Any]) -> str:
    """One output; the richest form that a page can show without scripts."""
    data = output.get("data", {})
    opened = '<div class="output" tabindex="0" role="region" aria-label="Output">'
    if "text/html" in data:
        flat = re.sub(r"\s*\n\s*", " ", "".join(data["text/html"]))  # a blank line would end the HTML
        return f"{opened}{flat}</div>"
    if "image/png" in data:
        content = "".join(data["image/png"]).strip()
        base64.b64decode(content, validate=False)
        return f'{opened}<img alt="Output of the cell above" src="data:image/png;base64,{content}"></div>'
    text = "".join(data.get("text/plain", output.get("text", ""))).rstrip()
    return f"```text\n{text}\n```" if text else ""


if __name__ == "__main__":
    print(as_markdown(Path(sys.argv[1])))
