"""CPU seconds and private memory of a program with all that it starts. Linux."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_EVERY, _MEMORY_EVERY = .1, 5


@dataclass(frozen=True)
class Used:
    """Attributes:
        output: what the program printed.
        seconds: by the clock; processor: of all of its processes.
        private: bytes that they have for themselves, all together, at most; largest: of one of them.
    """

    output: str
    seconds: float
    processor: float
    private: int
    largest: int


def watch(command: Sequence[str], environment: dict[str, str] | None = None) -> Used:
    """Runs a program to its end and looks at its processes ten times a second, at their memory twice.

    Raises:
        RuntimeError: it failed; with the end of what it printed.
    """
    begin, look = time.perf_counter(), 0
    known: set[int] = set()
    processor: dict[int, float] = {}
    private = largest = 0
    with tempfile.TemporaryFile("w+") as output:
        program = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        known.add(program.pid)
        running = True
        while running:
            running = program.poll() is None
            _look(known, processor)
            if look % _MEMORY_EVERY == 0:
                sizes = [_private(process) for process in known]
                private, largest = max(private, sum(sizes)), max([largest, *sizes])
            look += 1
            time.sleep(_EVERY)
        output.seek(0)
        text = output.read()
    if program.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{text[-3000:]}")
    return Used(text, time.perf_counter() - begin, sum(processor.values()), private, largest)


def _look(known: set[int], processor: dict[int, float]) -> None:
    """Adds the processes that those which are known have started, and what all have used so far."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            process = int(path.parent.name)
            parents[process] = int(fields[1])
            if process in known or parents[process] in known:
                processor[process] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    while new := {child for child, parent in parents.items() if parent in known} - known:
        known |= new


def _private(process: int) -> int:
    with suppress(OSError):
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))
    return 0
