"""The screen of a run of many steps: a line a step. Whatever else this process and its children say goes to a file.

Output is moved at the level of file descriptors, so that lines of C++ and of child processes move along.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from recfuse.config import InputError

_CLEAR, _WIDEST = "\r\x1b[K", 120


class Step:
    """What a step's line says.

    Attributes:
        what: the step does, in a word or two.
        figure: its one result; nothing is said where it is empty.
        kept: the result of an earlier run was taken up.
    """

    def __init__(self, what: str) -> None:
        self.what, self.figure, self.kept = what, "", False


class Screen:
    """Lines for a person; made by `screened`.

    Args:
        out: where they go; `path` is of the file that everything else goes to.
        steps: how many there are.
    """

    def __init__(self, out: TextIO, path: Path, steps: int) -> None:
        self._out, self.path, self._steps, self._step = out, path, steps, 0
        self._title = ""

    def say(self, text: str = "") -> None:
        """One line or more, on the screen and in the file."""
        self._clear()
        for line in text.split("\n"):
            self._out.write(f"{line}\n")
        self._out.flush()
        if not self.is_verbose:
            _say_in_file(text)

    @property
    def is_verbose(self) -> bool:
        """Whether everything is on the screen as well."""
        return False

    @property
    def width(self) -> int:
        """Columns of its tables: those of the terminal, 120 at most and elsewhere."""
        columns = os.get_terminal_size(self._out.fileno()).columns if self._out.isatty() else 0
        return min(columns or _WIDEST, _WIDEST)  # Some terminals do not say how wide they are.

    @contextmanager
    def step(self, what: str) -> Iterator[Step]:
        """Frames a step: its line comes when it ends. On a terminal one says meanwhile how far it is."""
        self._step += 1
        self._title = f"{self._step}/{self._steps} {what}"
        step, begin = Step(what), time.monotonic()
        _say_in_file(f"\n── {self._title}")
        self.show("")
        yield step
        seconds = f"{time.monotonic() - begin:.0f} s"
        self.say(" · ".join(part for part in (self._title, step.figure, f"kept, {seconds}" if step.kept else seconds)
                            if part))
        self._title = ""

    def failed(self, error: BaseException) -> str:
        """The line about an error that ended the run; its traceback is in the file."""
        self._clear()
        lines = [line for line in str(error).strip().splitlines() if line.strip()]
        where = f"in {self._title}: " if self._title else ""
        return f"error {where}{type(error).__name__}: {(lines or [''])[-1].strip()[:300]}; more in {self.path}"

    def show(self, state: str) -> None:
        """How far the step is, in a line of a terminal that the next one replaces."""
        if self._title and not self.is_verbose and self._out.isatty():
            line = f"{self._title} … {state}"
            self._out.write(_CLEAR + line[:shutil.get_terminal_size().columns - 1])
            self._out.flush()

    def _clear(self) -> None:
        if self._out.isatty():
            self._out.write(_CLEAR)


class _Verbose(Screen):
    """Everything is on the screen already, in its order."""

    def say(self, text: str = "") -> None:
        _say_in_file(text)

    @property
    def is_verbose(self) -> bool:
        return True


class _Watcher(logging.Handler):
    """Shows the library's progress lines in the screen's passing line."""

    def __init__(self, screen: Screen) -> None:
        super().__init__(logging.INFO)
        self._screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        self._screen.show(record.getMessage().split("\n")[0])


@contextmanager
def screened(path: str | Path, steps: int, verbose: bool = False) -> Iterator[Screen]:
    """Inside, standard output and errors of this process and of those that it starts go to a file.

    An error leaves it as it is where it is bad input, else as one line that names the step; its traceback is in the
    file.

    Args:
        path: of the file, which is appended to.
        verbose: all that goes to the file is on the screen as well.

    Raises:
        SystemExit: with that line.
    """
    path = Path(path)
    with _moved(path, verbose) as out:
        screen = (_Verbose if verbose else Screen)(out, path, steps)
        watcher, logger = _Watcher(screen), logging.getLogger("recfuse")
        logger.addHandler(watcher)
        try:
            yield screen
        except InputError:
            screen._clear()
            raise
        except Exception as error:
            traceback.print_exc()
            line = screen.failed(error)
            raise SystemExit(line) from None
        except BaseException:
            screen._clear()
            raise
        finally:
            logger.removeHandler(watcher)


@contextmanager
def _moved(path: Path, verbose: bool) -> Iterator[TextIO]:
    """Descriptors 1 and 2 write to the file inside; yields what 1 was."""
    _flush()
    before = [os.dup(descriptor) for descriptor in (1, 2)]
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    target, copying = _copied(file, before[0]) if verbose else (file, None)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # Whoever replaced it has no such buffer.
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for descriptor in (1, 2):
        os.dup2(target, descriptor)
    out = os.fdopen(os.dup(before[0]), "w", encoding=sys.stdout.encoding or "utf-8", errors="replace")
    try:
        yield out
    finally:
        _flush()
        out.flush()
        for descriptor, old in zip((1, 2), before, strict=True):
            os.dup2(old, descriptor)
        os.close(target)
        if copying is not None:
            copying.join(2.0)  # A child that is left holds the pipe open; its lines are lost then.
        out.close()
        for old in before:
            os.close(old)


def _copied(file: int, screen: int) -> tuple[int, threading.Thread]:
    """A descriptor, and the thread that copies what is written there to both."""
    source, target = os.pipe()
    screen = os.dup(screen)

    def copy() -> None:
        while part := os.read(source, 1 << 16):
            for where in (file, screen):
                with suppress(OSError):  # A screen that has gone keeps nobody from the file.
                    os.write(where, part)
        for descriptor in (source, file, screen):
            os.close(descriptor)

    thread = threading.Thread(target=copy, name="screen", daemon=True)
    thread.start()
    return target, thread


def _say_in_file(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(ValueError, OSError):
            stream.flush()
