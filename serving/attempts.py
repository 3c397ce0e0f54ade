"""When something that was refused is tried again: at once where it has changed, and else ever later."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_LONGEST_SECONDS = 30.0


class Attempts:
    """Attempts at what a key stands for.

    Args:
        seconds: from the first failed attempt to the second; each further pause is twice as long, up to half a minute.
            0 makes no pauses.
    """

    def __init__(self, seconds: float) -> None:
        self._first = self._pause = min(seconds, _LONGEST_SECONDS)
        self._key: Any = None
        self._next: float | None = None

    @property
    def succeeded(self) -> bool:
        """Whether the last attempt did."""
        return self._next is None

    def due(self, key: Any) -> bool:
        """Whether to try: the last attempt was at another key, or failed so long ago."""
        return key != self._key or (self._next is not None and time.monotonic() >= self._next)

    def forget(self) -> None:
        """Makes the next attempt due."""
        self._key = None

    def ended(self, key: Any, succeeded: bool) -> None:
        """Takes down how the attempt at a key ended."""
        self._pause = self._first if key != self._key else min(2 * self._pause, _LONGEST_SECONDS)
        self._key, self._next = key, None if succeeded else time.monotonic() + self._pause


def fingerprint(paths: Iterable[Path | None]) -> tuple[Any, ...]:
    """Changes when a file, or one in a directory, appears, grows or is replaced."""
    return tuple(_of(path) for path in paths if path is not None)


def _of(path: Path) -> tuple[Any, ...]:
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return path, *((file.name, status.st_size, status.st_mtime_ns)
                       for file, status in ((file, file.stat()) for file in files))
    except OSError as error:
        return path, error.errno
