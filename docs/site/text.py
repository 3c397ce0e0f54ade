"""Small parts of generated pages: tables, code, docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

_HEADS = ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; bars within cells are escaped."""
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)]) + "\n"


def code(text: str, language: str = "") -> str:
    """A fenced block."""
    return f"```{language}\n{text.rstrip()}\n```\n"


def docstring(thing: Any) -> str:
    """A docstring as prose, with a list for each of its parts."""
    lines: list[str] = []
    item_indent: int | None = None
    for line in (inspect.getdoc(thing) or "").splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() in _HEADS:
            lines += ["", f"*{line.strip().removesuffix(':')}*", ""]
            item_indent = indent + 4
        elif item_indent is not None and line.strip():
            match = re.match(r"([\w, ]+): (.*)", line.strip()) if indent == item_indent else None
            lines.append(f"- `{match[1]}`: {match[2]}" if match else f"  {line.strip()}")
        else:
            lines.append(line)
            item_indent = None
    return "\n".join(lines).strip() + "\n"
