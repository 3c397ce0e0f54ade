"""What `make docs` does beside rendering: the pages at the root, and a reference that is read off the code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "platform")]

from docs.site import notebook, reference  # noqa: E402
from docs.site.markdown import AT_THE_ROOT, anchor, linked, spaced  # noqa: E402

_made: dict[str, str] = {}


def on_config(config: Any) -> Any:
    """Adds the generated pages to the part of the navigation that is theirs."""
    _made.update(reference.pages())
    config["mdx_configs"]["toc"] = {**config["mdx_configs"].get("toc", {}), "slugify": anchor}
    part = next(part for part in config["nav"] if "Reference" in part)
    part["Reference"] += [*(page for page in _made if page.count("/") == 1),
                          {"Commands": [page for page in _made if page.count("/") == 2]}]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages at the root and the generated ones."""
    for name, page in AT_THE_ROOT.items():
        text = (ROOT / name).read_text()
        files.append(File.generated(config, page, content=text if name.endswith(".md") else
                                    f"# Licence\n\n```text\n{text}```\n"))
    for file in sorted((ROOT / "docs").glob("*.ipynb")):
        files.append(File.generated(config, f"{file.stem}.md", content=notebook.page(file)))
    for page, text in _made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """In the builder's dialect."""
    source = next((name for name, made in AT_THE_ROOT.items() if made == page.file.src_uri), "")
    return spaced(linked(markdown, source or f"docs/{page.file.src_uri}", page.file.src_uri))
