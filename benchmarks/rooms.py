"""Counts which room of the code imports which: one pair for every two rooms with an import between them.

A room is a folder of the repository's top level (`jobs`, `tune`, `serving`, `benchmarks`), or a package or module right
beneath `platform/recfuse`. Tests are no room. `python -m benchmarks.rooms` prints the pairs.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "platform" / "recfuse"
TOP = ("jobs", "tune", "serving", "benchmarks")


def rooms() -> dict[str, list[Path]]:
    """Room → its Python files."""
    files = {name: sorted((ROOT / name).rglob("*.py")) for name in TOP}
    for entry in sorted(PACKAGE.iterdir()):
        # The links to the rooms of the top level are no second ones.
        if entry.is_dir() and not entry.is_symlink() and any(entry.glob("*.py")):
            files[f"recfuse.{entry.name}"] = sorted(entry.rglob("*.py"))
        elif entry.suffix == ".py" and entry.name != "__init__.py":
            files[f"recfuse.{entry.stem}"] = [entry]
    return files


def pairs() -> set[tuple[str, str]]:
    """(importing room, imported room), each once."""
    known = rooms()
    return {(room, other) for room, files in known.items() for file in files for name in _imports(file)
            if (other := _room_of(name, known)) and other != room}


def _imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room_of(name: str, known: dict[str, list[Path]]) -> str | None:
    parts = name.removeprefix("recfuse.").split(".")
    return next((room for room in (parts[0], f"recfuse.{parts[0]}") if room in known), None)


if __name__ == "__main__":
    edges = sorted(pairs())
    for importer in sorted({importer for importer, _ in edges}):
        print(f"{importer:22} → {', '.join(imported for room, imported in edges if room == importer)}")
    print(f"{len(edges)} pairs between {len(rooms())} rooms")
