"""Programs under test: one in this process, and what another one left running."""

from __future__ import annotations

import os
import runpy
import sys
import time
import uuid
from pathlib import Path

MARK = "RECFUSE_TEST_RUN"


def marked_environment() -> tuple[str, dict[str, str]]:
    """A mark, and an environment that carries it; every process that a program starts inherits it."""
    mark = uuid.uuid4().hex
    return mark, {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {MARK: mark}


def alive(mark: str) -> list[str]:
    """Command lines of the processes that inherited the mark, Ray's daemons and workers among them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment = (process / "environ").read_bytes()
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:  # it ended while we looked
            continue
        if f"{MARK}={mark}".encode() in environment and state != "Z":
            found.append(line)
    return found


def left_behind(mark: str, seconds: float = 20.0) -> list[str]:
    """What is still alive after so many seconds; returns as soon as nothing is."""
    deadline = time.monotonic() + seconds
    while (left := alive(mark)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left


def run_file(file: Path, arguments: list[str], errors: str) -> None:
    """A Python file with its arguments, in this process, which it ends; stdout is dropped, stderr goes to a file."""
    os.dup2(os.open(errors, os.O_WRONLY), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = [str(file), *arguments]
    code: object = 0
    try:
        runpy.run_path(str(file), run_name="__main__")
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)
