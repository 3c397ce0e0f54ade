"""Files that jobs leave in their directories, for people and for the report: written whole, read with one error."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from recfuse.config import InvalidFieldError

METRICS = "metrics.json"


def write_whole(path: Path, text: str) -> None:
    """Writes a file, whole or not at all; its directory is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is no file.

    Raises:
        InvalidFieldError: it is no JSON.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidFieldError(path.name, str(path), f"a JSON file ({error})") from None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """What the lines of a file hold; none where there is no file.

    Raises:
        InvalidFieldError: a line is no JSON.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    except ValueError as error:
        raise InvalidFieldError(path.name, str(path), f"a file of JSON lines ({error})") from None
