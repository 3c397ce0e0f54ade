"""A notebook as a page: its text, its code, and what its cells said when it was last run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docs.site.text import code


def cells(path: Path) -> list[dict[str, Any]]:
    """Of a notebook, in order."""
    return list(json.loads(path.read_text())["cells"])


def page(path: Path) -> str:
    """Markdown of the whole."""
    return "\n\n".join(_cell(cell) for cell in cells(path)) + "\n"


def text(path: Path) -> str:
    """Its prose alone."""
    return "\n\n".join("".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "markdown") + "\n"


def _cell(cell: dict[str, Any]) -> str:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return source
    said = "".join("".join(output["text"]) for output in cell["outputs"])
    return code(source, "python") + ("\n" + code(said, "text") if said else "")
