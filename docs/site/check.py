"""Looks through a built documentation: `python -m docs.site.check runs/site`.

Every link within it must lead somewhere, and nothing may be loaded from a network.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself, unlike a link that somebody clicks.
_LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "srcset")}
# The theme's own script loads these where a page asks for a diagram of theirs.
_ASKING = ("mermaid",)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.names.add(value)
            if name == "class" and value:
                self.classes |= set(value.split())
            if (tag, name) in _LOADED and value:
                self.loaded.append(value)
            if (tag, name) == ("a", "href") and value:
                self.links.append(value)


def complaints(site: Path) -> list[str]:
    """What is wrong with the pages beneath a directory, a line each."""
    pages = {}
    for file in sorted(site.resolve().rglob("*.html")):
        pages[file] = page = _Page()
        page.feed(file.read_text())
    found = []
    for file, page in pages.items():
        where = file.relative_to(site.resolve())
        found += [f"{where} asks for a script of {name}" for name in _ASKING if name in page.classes]
        found += [f"{where} loads {link}" for link in page.loaded if urlsplit(link).netloc]
        if where.name != "404.html":  # its links are absolute, since it is shown at any address
            found += [f"{where} links {link}" for link in page.links + page.loaded if not _leads(link, file, pages)]
    return found


def _leads(link: str, file: Path, pages: dict[Path, _Page]) -> bool:
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return True
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if target.is_dir():
        target /= "index.html"
    return target.exists() and (not parts.fragment or target not in pages
                                or unquote(parts.fragment) in pages[target].names)


def main() -> None:
    """Exit code 1 where something is wrong."""
    found = complaints(Path(sys.argv[1]))
    print("\n".join(found) or f"{sys.argv[1]}: every link leads somewhere, nothing is loaded from a network")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
