"""Times work on a machine that may not be quiet, and says how quiet it was. Needs the standard library alone."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Stopwatch:
    """Seconds by the clock and of this process' processor time, and which part of the processors others used meanwhile.

    On a machine without /proc/stat nobody is known to disturb.
    """

    def __init__(self) -> None:
        self._busy, self._processor, self._begin = _busy_seconds(), time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """`seconds`, `processor` and `others`, since the start."""
        seconds, processor = time.perf_counter() - self._begin, time.process_time() - self._processor
        others = max(_busy_seconds() - self._busy - processor, 0.0) / (seconds * (os.cpu_count() or 1))
        return {"seconds": seconds, "processor": processor, "others": others}


def _busy_seconds() -> float:
    """Of all processors together since the machine started, idle and waiting for disks apart; 0 where unknown."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _waiting, *rest = (int(part) for part in stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
