"""The segments of a decision log, as whoever moves them reads them: lines with their places.

A segment is a file of JSON lines that one replica appends to (serving.decision_log) and holds a lock on while it does.
It is filled with zeros ahead of its rows, so that rows end where nothing but zeros follows.
"""

from __future__ import annotations

import fcntl
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recfuse.serving.decision_log import DECISION
from recfuse.serving.logged_rows import parse

logger = logging.getLogger("recfuse.serving")

Places = dict[str, int]
"""Name of a segment → byte up to which its rows have been taken."""
# As a replica names them (serving.decision_log); a file of another name is somebody's own and stays.
_WRITTEN = re.compile(r"[0-9a-f]{12}-[0-9]{5,}\.jsonl")
_HOLE = re.compile(rb"\0+")
_DECISION_START = b'{"kind":"decision"'
TORN = "torn"


@dataclass(frozen=True)
class Line:
    """One line of a segment, from byte `begin` to `end`.

    Attributes:
        row: None where the line is no row.
        damage: why it is none; `TORN` at the end of a segment whose replica died.
        text: what stands there then.
    """

    segment: str
    begin: int
    end: int
    row: dict[str, Any] | None
    damage: str = ""
    text: bytes = b""


@dataclass
class Reading:
    """Lines of all segments, in the order of each, and the segments that could not be read (→ why)."""

    lines: list[Line] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)


def read_lines(directory: Path, places: Mapping[str, int], horizon: float, now: float) -> Reading:
    """What follows the places; a segment that cannot be read holds up no other.

    Args:
        horizon: seconds since 1970. Behind the first decision of a segment that is younger, decisions are left out:
            they wait as well, and events alone are wanted from there.
        now: seconds since 1970; rows that are stamped much later are damaged.
    """
    reading = Reading()
    for path in _paths(directory):
        start = places.get(path.name, 0)
        try:
            finished = _is_finished(path)
            payload = _read(path, start, finished)
        except FileNotFoundError:  # Somebody has deleted it meanwhile.
            continue
        except OSError as error:
            logger.error("segment %s cannot be read: %s", path.name, error)
            reading.unreadable[path.name] = str(error)
            continue
        reading.lines += _parse(path.name, start, payload, horizon, now, finished)
    return reading


def waiting_bytes(directory: Path, places: Mapping[str, int]) -> int:
    """Size of the rows behind the places."""
    return sum(max(0, end - places.get(path.name, 0)) for path in _paths(directory)
               if (end := _rows_end(path)) is not None)


def delete_taken(directory: Path, places: Mapping[str, int], before: float) -> None:
    """Deletes the segments whose rows all lie before their places and that nobody has written since `before` (seconds
    since 1970)."""
    for path in _paths(directory):
        if _WRITTEN.fullmatch(path.name) is None:
            continue
        with suppress(OSError):  # The next pass tries again.
            old, end = path.stat().st_mtime < before, _rows_end(path)
            if old and end is not None and _is_finished(path) and places.get(path.name, 0) >= end:
                path.unlink()


def _paths(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.jsonl"))


def _read(path: Path, start: int, finished: bool) -> bytes:
    """The rows from a place on, with the holes between them and without the space ahead of others."""
    with open(path, "rb") as file:
        file.seek(start)
        payload = file.read().rstrip(b"\0")
        if not finished and (hole := _HOLE.search(payload)) is not None:
            # Rows may have been written while they were read, from the front to the back: what was a hole in front of
            # them then is none any more.
            file.seek(start + hole.start())
            payload = payload[: hole.start()] + file.read(len(payload) - hole.start())
    return payload


def _parse(segment: str, start: int, payload: bytes, horizon: float, now: float, finished: bool) -> Iterator[Line]:
    """Lines of a segment and the holes between them; what follows the last whole line is torn where nobody writes it
    any more."""
    begin, young = 0, False
    while begin < len(payload):
        if hole := _HOLE.match(payload, begin):
            yield Line(segment, start + begin, start + hole.end(), None, f"a hole of {len(hole[0])} zeros")
            begin = hole.end()
            continue
        end, whole = _end_of_line(payload, begin)
        if end == len(payload) and not whole:
            if finished:
                yield Line(segment, start + begin, start + end, None, TORN, payload[begin:end])
            return
        if not (young and payload.startswith(_DECISION_START, begin)):
            row, damage = parse(payload[begin:end], now)
            young = young or (row is not None and row["kind"] == DECISION and row["ts"] > horizon)
            yield Line(segment, start + begin, start + end, row, damage, b"" if row is not None else payload[begin:end])
        begin = end


def _end_of_line(payload: bytes, begin: int) -> tuple[int, bool]:
    """Where the line that begins there ends, at the latest at a hole; and whether it is whole."""
    newline = payload.find(b"\n", begin)
    zero = payload.find(b"\0", begin, newline if newline >= 0 else len(payload))
    if zero >= 0:
        return zero, False
    return (newline + 1, True) if newline >= 0 else (len(payload), False)


def _rows_end(path: Path) -> int | None:
    """Where the rows of a segment end and the space ahead of others begins; None where it cannot be read."""
    try:
        return len(path.read_bytes().rstrip(b"\0"))
    except OSError:
        return None


def _is_finished(path: Path) -> bool:
    """Whether no replica writes the segment any more, which is when its lock is free."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
