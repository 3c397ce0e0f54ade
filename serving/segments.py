"""The segments of a decision log, as whoever moves them reads them: lines with their places.

A segment is a file of JSON lines that one replica appends to (serving.decision_log) and holds a lock on while it does.
It is filled with zeros ahead of its rows, so that rows end at the first zero.
"""

from __future__ import annotations

import fcntl
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from recfuse.serving.decision_log import DECISION

Places = dict[str, int]
"""Name of a segment → byte up to which its rows have been taken."""
# As a replica names them (serving.decision_log); a file of another name is somebody's own and stays.
_WRITTEN = re.compile(r"[0-9a-f]{12}-[0-9]{5,}\.jsonl")
_DECISION_START = b'{"kind":"decision"'


@dataclass(frozen=True)
class Line:
    """One line of a segment, from byte `begin` to `end`; `row` is None where the line is torn."""

    segment: str
    begin: int
    end: int
    row: dict[str, Any] | None


def read_lines(directory: Path, places: Mapping[str, int], horizon: float) -> list[Line]:
    """What follows the places, in the order of each segment.

    Args:
        horizon: seconds since 1970. Behind the first decision of a segment that is younger, decisions are left out:
            they wait as well, and events alone are wanted from there.
    """
    lines: list[Line] = []
    for path in _paths(directory):
        start = places.get(path.name, 0)
        with open(path, "rb") as file:
            file.seek(start)
            lines += _parse(path.name, start, file.read(), horizon, finished=_is_finished(path))
    return lines


def waiting_bytes(directory: Path, places: Mapping[str, int]) -> int:
    """Size of the rows behind the places."""
    return sum(max(0, _rows_end(path) - places.get(path.name, 0)) for path in _paths(directory))


def delete_taken(directory: Path, places: Mapping[str, int], before: float) -> None:
    """Deletes the segments whose rows all lie before their places and that nobody has written since `before` (seconds
    since 1970)."""
    for path in _paths(directory):
        if _WRITTEN.fullmatch(path.name) is None:
            continue
        old = path.stat().st_mtime < before
        if old and _is_finished(path) and places.get(path.name, 0) >= _rows_end(path):
            path.unlink()


def _paths(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.jsonl"))


def _parse(segment: str, start: int, payload: bytes, horizon: float, finished: bool) -> Iterator[Line]:
    """Lines of a segment; what follows its last whole line is torn where nobody writes it any more."""
    rows = payload.split(b"\0", 1)[0]
    whole = rows.rfind(b"\n") + 1
    place, young = 0, False
    while place < whole:
        begin, place = place, rows.index(b"\n", place) + 1
        if young and rows.startswith(_DECISION_START, begin):
            continue
        try:
            row = orjson.loads(rows[begin:place])
            young = young or (row["kind"] == DECISION and row["ts"] > horizon)
        except orjson.JSONDecodeError:
            row = None
        yield Line(segment, start + begin, start + place, row)
    if finished and whole < len(rows):
        yield Line(segment, start + whole, start + len(rows), None)


def _rows_end(path: Path) -> int:
    """Where the rows of a segment end and the space ahead of others begins."""
    return len(path.read_bytes().split(b"\0", 1)[0])


def _is_finished(path: Path) -> bool:
    """Whether no replica writes the segment any more, which is when its lock is free."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
