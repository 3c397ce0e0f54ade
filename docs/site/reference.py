"""The reference: every page of it by its path, made of the code alone. Nothing of this is committed."""

from __future__ import annotations

from docs.site import commands, interface, serving, tables


def pages() -> dict[str, str]:
    """Path within the documentation → text."""
    made = {
        "reference/commands.md": commands.listing(),
        "reference/algorithms.md": commands.algorithms(),
        "reference/http.md": serving.page(),
        "reference/logs.md": tables.logs(),
        "reference/bundles.md": serving.bundles(),
        "reference/metrics.md": tables.metrics(),
        "reference/python.md": interface.page(),
    }
    return made | {f"reference/commands/{name}.md": text for name, text in commands.pages().items()}
