"""Pages that GitHub shows as they are, in the dialect of the documentation's builder: links, lists, anchors."""

from __future__ import annotations

import posixpath
import re

# Pages beside docs/, and what they are called within the documentation.
AT_THE_ROOT = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md",
               "SECURITY.md": "security.md", "LICENSE": "licence.md"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_ITEM = re.compile(r"(?:[-*]|\d+\.) ")
_INDENT = 2


def anchor(heading: str, separator: str = "-") -> str:
    """What GitHub makes of a heading: lower case, no punctuation, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def linked(text: str, source: str, page: str) -> str:
    """The text with links that lead where the builder puts their targets.

    Args:
        source: path of the page in the repository; page: its path within the documentation.
    """
    def rewritten(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        name, hash_sign, rest = target.partition("#")
        if not name or re.match(r"[a-z]+:", target):
            return match[0]
        where = posixpath.normpath(posixpath.join(posixpath.dirname(source), name))
        inside = AT_THE_ROOT.get(where) or (where.removeprefix("docs/") if where.startswith("docs/") else None)
        if inside is None:  # a file of the code, which the documentation does not hold
            return f"`{where}`"
        inside = inside.replace(".ipynb", ".md")  # a notebook becomes a page
        return f"{mark}[{words}]({posixpath.relpath(inside, posixpath.dirname(page) or '.')}{hash_sign}{rest})"

    return _LINK.sub(rewritten, text)


def spaced(text: str) -> str:
    """The text with the empty lines and the four spaces that the builder wants of lists, and one title alone."""
    lines: list[str] = []
    fenced, depth, titles = False, 0, 0
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            titles += line.startswith("# ")
            if line.startswith("# ") and titles > 1:
                line = f"#{line}"
            indent = len(line) - len(line.lstrip(" "))
            is_item = _ITEM.match(line.lstrip(" ")) is not None
            if is_item and not depth and lines and lines[-1].strip():
                lines.append("")
            if is_item:
                depth = indent // _INDENT + 1
            elif line.strip() and not indent:
                depth = 0
            line = " " * (_INDENT * min(depth, indent // _INDENT)) + line
        lines.append(line)
    return "\n".join(lines) + "\n"
