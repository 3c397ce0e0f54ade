"""The files of the pages: our own, and those of libraries as their packages hold them, so that no network is needed."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from recfuse.serving.console.paths import STATIC

_OURS = Path(__file__).parent / "static"
_SWAGGER = ("swagger-ui.css", "swagger-ui-bundle.js")
# A year: whoever asks names the version of the file, so that a new one has another address.
CACHE = "public, max-age=31536000, immutable"


@dataclass(frozen=True)
class Asset:
    """A file of a page.

    Attributes:
        content: its bytes; packed: the same, compressed.
        kind: its type.
    """

    content: bytes
    packed: bytes
    kind: str


@cache
def files() -> dict[str, Path]:
    """Name → where the file lies."""
    from swagger_ui_bundle import swagger_ui_path  # type: ignore[import-untyped]

    # Importing plotly would take a while, and only its script is wanted.
    spec = find_spec("plotly")
    assert spec is not None
    assert spec.origin is not None
    named = {path.name: path for path in _OURS.iterdir() if path.is_file()}
    named |= {name: Path(str(swagger_ui_path)) / name for name in _SWAGGER}
    return {**named, "plotly.min.js": Path(spec.origin).parent / "package_data" / "plotly.min.js"}


@cache
def asset(name: str) -> Asset | None:
    """The file of a name; None where there is none."""
    path = files().get(name)
    if path is None:
        return None
    content = path.read_bytes()
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Asset(content, gzip.compress(content, 6), kind if kind.startswith("image/") and "svg" not in kind
                 else f"{kind}; charset=utf-8")


def file_address(name: str) -> str:
    """Where a page finds the file, relative to the root of the server."""
    return f"{STATIC}/{name}?{_tag(name)}"


@cache
def _tag(name: str) -> str:
    """A few letters that change with the file."""
    if name == "plotly.min.js":
        return version("plotly")
    return hashlib.sha256(files()[name].read_bytes()).hexdigest()[:12]
