"""What a person sees of a run of many steps, and what goes to its file; in a process whose descriptors move."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, os, sys
from recfuse.config import InvalidFieldError
from recfuse.runtime.console import log_to_terminal
from recfuse.runtime.screen import screened
log_to_terminal()
print("before")
with screened(sys.argv[1], 2, verbose="verbose" in sys.argv) as screen:
    with screen.step("first") as step:
        print("of python"); print("an error's", file=sys.stderr)
        os.write(2, b"of C++\\n"); os.system("echo of a child")
        logging.getLogger("recfuse").info("of the library")
        step.figure = "7 rows"
    with screen.step("second") as step:
        step.kept = True
        {body}
    screen.say("closing\\nwords")
print("after")
"""
NOISE = ("of python", "an error's", "of C++", "of a child", "of the library")


def run(tmp_path: Path, body: str = "pass", *arguments: str) -> tuple[subprocess.CompletedProcess[str], str]:
    path = tmp_path / "log.txt"
    done = subprocess.run([sys.executable, "-c", PROGRAM.replace("{body}", body), str(path), *arguments], text=True,
                          capture_output=True, timeout=60)
    return done, path.read_text()


def test_the_screen_has_a_line_a_step_and_the_file_has_everything(tmp_path: Path) -> None:
    done, log = run(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["before", "1/2 first · 7 rows · 0 s", "2/2 second · kept, 0 s", "closing",
                                        "words", "after"]
    for line in (*NOISE, *done.stdout.splitlines()[1:-1]):
        assert line in log
    assert "before" not in log
    assert "after" not in log


def test_a_terminal_shows_how_far_a_step_is_in_a_line_that_passes(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "30"}
    subprocess.run([sys.executable, "-c", PROGRAM.replace("{body}", "pass"), str(tmp_path / "log.txt")], check=True,
                   stdout=theirs, stderr=subprocess.STDOUT, timeout=60, env=environment)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # what Linux raises at the end of a terminal
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    passing, *rest = shown.decode().split("\x1b[K1/2 first · 7 rows · 0 s")
    assert "\x1b[K1/2 first … of the library" in passing
    assert "of C++" not in shown.decode()
    # What stands at the end of each line is what came after the last clearing of it.
    lines = [line.split("\x1b[K")[-1].strip() for line in "".join(rest).split("\r\n")]
    assert lines == ["", "2/2 second · kept, 0 s", "closing", "words", "after", ""]


def test_verbose_shows_all_of_it_in_its_order(tmp_path: Path) -> None:
    done, log = run(tmp_path, "pass", "verbose")
    assert done.stdout == f"before\n{log}after\n"
    places = [log.index(line) for line in ("── 1/2 first", *NOISE, "1/2 first · 7 rows", "── 2/2 second", "closing")]
    assert places == sorted(places)


@pytest.mark.parametrize("arguments", [(), ("verbose",)])
def test_an_error_is_one_line_that_names_the_step_and_its_traceback_is_in_the_file(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    done, log = run(tmp_path, "raise KeyError('no such thing')", *arguments)
    assert done.returncode == 1
    assert done.stderr == f"error in 2/2 second: KeyError: 'no such thing'; more in {tmp_path / 'log.txt'}\n"
    assert "Traceback" in log
    assert "closing" not in log


def test_bad_input_stays_what_it_is(tmp_path: Path) -> None:
    done, _ = run(tmp_path, "raise InvalidFieldError('logs', 'x', 'a directory')")
    assert done.stderr.splitlines()[-1].endswith("logs: got 'x'; allowed: a directory")
    assert "more in" not in done.stderr


def test_an_interrupt_passes(tmp_path: Path) -> None:
    done, _ = run(tmp_path, "raise KeyboardInterrupt")
    assert "KeyboardInterrupt" in done.stderr
    assert "more in" not in done.stderr
