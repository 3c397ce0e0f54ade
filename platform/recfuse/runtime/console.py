"""What every job shares: read a config, show it, report progress, end with a table.

The library itself prints nothing; it logs. `start` sends those lines to the terminal.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import rich.progress
import tyro
import yaml
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from recfuse.config import Config, InputError, InvalidFieldError, load, read, reference, renamed
from recfuse.runtime.interrupts import keep_interrupts

T = TypeVar("T")
logger = logging.getLogger("recfuse")
PRINT_CONFIG = "--print-config"
# Beside the fields of its config every job has these options.
_COMMON = (f"--config FILE: the options come from this YAML file, and those of the command line go before them.\n"
           f"{PRINT_CONFIG}: prints the options as such a file, each below its sentence, and ends.")


def start(
    config_class: type[T], argv: Sequence[str] | None = None, description: str | None = None,
    choose: Callable[[type[T], Any, Sequence[str], str], T] | None = None, show: bool = True,
) -> T:
    """Parses `--config FILE` (YAML) and overrides over it, prints the result, and turns on progress lines.

    A bad field ends the process with exit code 2 and one line that names it; bad input that the job finds later, with
    exit code 1 and such a line instead of a traceback. Ctrl-C ends the process wherever it arrives.

    Args:
        choose: makes the config that the arguments override from the class, the file's plain values, the arguments and
            the file's name; where they decide which fields there are.
        show: print the config here; a job with a screen of its own prints it there (`print_config`).
    """
    log_to_terminal()
    keep_interrupts()
    _show_bad_input_in_a_line()
    arguments = list(sys.argv[1:] if argv is None else argv)
    printing = PRINT_CONFIG in arguments
    arguments = [argument for argument in arguments if argument != PRINT_CONFIG]
    if printing and not arguments and choose is None and issubclass(config_class, Config):
        print(reference(config_class), end="")  # also of a config that asks for something
        raise SystemExit(0)
    try:
        config = _parse(config_class, arguments, description, choose)
    except InvalidFieldError as error:
        raise SystemExit(_complain(error)) from None
    if printing and isinstance(config, Config):
        print(reference(config), end="")
        raise SystemExit(0)
    if show:
        print_config(config)
    return config


def program() -> str:
    """What the user called: `recfuse train`, or the file of the job."""
    return sys.argv[0] if sys.argv[0].startswith("recfuse ") else Path(sys.argv[0]).name


def print_config(config: Any) -> None:
    """Prints a config in YAML, as `--config FILE` takes it."""
    print(f"# config of {program().removesuffix('.py')}, as `--config FILE` takes it")
    plain = config.to_dict() if isinstance(config, Config) else TypeAdapter(type(config)).dump_python(
        config, mode="json")
    print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).rstrip())


def _complain(error: InputError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2


def _show_bad_input_in_a_line() -> None:
    before = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, InputError):
            _complain(error)
        else:
            before(kind, error, trace)

    sys.excepthook = show


def _parse(
    config_class: type[T], arguments: list[str], description: str | None,
    choose: Callable[[type[T], Any, Sequence[str], str], T] | None,
) -> T:
    file, rest = _take_config(renamed(config_class, arguments))
    if choose is not None:
        default = choose(config_class, {} if file is None else read(file), rest, Path(file or "").name)
        return _parsed(config_class, rest, description, default)
    if file is None:
        return _parsed(config_class, rest, description)
    return _parsed(config_class, rest, description, load(config_class, file))


def _parsed(config_class: type[T], arguments: list[str], description: str | None, *default: T) -> T:
    """What the arguments say. The parser draws a frame around what is wrong with them; its first words become a line.

    Raises:
        SystemExit: as the parser does, for errors and for `--help`.
    """
    frame, width = io.StringIO(), os.environ.get("COLUMNS")
    keywords: dict[str, Any] = {"default": default[0]} if default else {}
    try:
        with contextlib.redirect_stderr(frame):
            if not {"-h", "--help"} & set(arguments):
                os.environ["COLUMNS"] = "10000"  # In so wide a frame no value is broken.
            return tyro.cli(config_class, prog=program(), args=arguments,
                            description=f"{(description or '').strip()}\n\n{_COMMON}".strip(), **keywords)
    except SystemExit as end:
        words = _first_words(frame.getvalue())
        if end.code and words:
            words = re.sub(r"^Error parsing ([A-Za-z]+: )?", "", words)
            print(f"error: {words}; --help tells all options", file=sys.stderr)
        else:
            sys.stderr.write(frame.getvalue())
        raise
    finally:
        if width is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = width


def _first_words(frame: str) -> str:
    """What a frame says between its title and its first rule, be it drawn with lines or with hyphens."""
    def is_rule(line: str) -> bool:
        return set(line) <= set("─-")

    lines = [line.strip("╭╮╰╯│ ") for line in frame.splitlines()[1:]]
    return " ".join(itertools.takewhile(lambda line: not is_rule(line), itertools.dropwhile(is_rule, lines)))


def _take_config(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Splits `--config FILE` or `--config=FILE` from the other arguments."""
    rest, file = [], None
    iterator = iter(arguments)
    for argument in iterator:
        if argument == "--config":
            file = next(iterator, "")
        elif argument.startswith("--config="):
            file = argument.split("=", 1)[1]
        else:
            rest.append(argument)
    return file, rest


class _OutputHandler(logging.StreamHandler[Any]):
    """Writes to what standard output is when a line comes: while bars are drawn, rich stands there and keeps order."""

    @property
    def stream(self) -> Any:
        return sys.stdout

    @stream.setter
    def stream(self, value: Any) -> None:
        pass


def log_to_terminal() -> None:
    """Shows the library's log lines (progress, accounts, warnings) on standard output."""
    if not logger.handlers:
        handler = _OutputHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


# Called when work has gone on, whichever it is.
listeners: list[Callable[[], None]] = []


def moved() -> None:
    """Tells whoever listens that work has gone on."""
    for listener in tuple(listeners):
        listener()


class Progress:
    """How far a piece of work is: a bar where somebody sits at a terminal, elsewhere a line every few seconds.

    Either says the share done, the rate and the time left. The closing line is logged in both cases.

    Args:
        what: begins the line.
        total: units of the whole work; 0 where it is unknown.
        unit: what is counted.
        every: seconds between two lines; 0 gives each `advance` its line, at a terminal too.
    """

    def __init__(self, what: str, total: int = 0, unit: str = "rows", every: float = 3.0) -> None:
        self._what, self._total, self._unit, self._every = what, total, unit, every
        self._start = self._last = time.monotonic()
        self._done = 0
        self._bar = _BARS.add(what, total) if every > 0 and _at_terminal() else None
        # Work that is given up takes its bar along, also with the process.
        self._end = None if self._bar is None else weakref.finalize(self, _BARS.remove, self._bar)

    def advance(self, units: int, note: str = "") -> None:
        """Counts work done; `note` (losses, metrics) ends the line where one is due."""
        self._done += units
        if units:
            moved()
        now = time.monotonic()
        if self._bar is not None:
            _BARS.update(self._bar, self._done, self._state(now, note))
        elif now - self._last >= self._every:
            self._last = now
            logger.info("%s: %s", self._what, self._state(now, note))

    def finish(self, note: str = "") -> None:
        """Logs the closing line."""
        if self._end is not None:
            self._end()
        logger.info("%s: %s", self._what, self._state(time.monotonic(), note))

    def _state(self, now: float, note: str) -> str:
        seconds = max(now - self._start, 1e-9)
        rate = self._done / seconds
        pace = f", {rate:,.0f}/s" if rate >= 1 else f", {1 / rate:,.1f} s each" if rate else ""
        share = f" of {self._total:,} ({self._done / self._total:.0%})" if self._total else ""
        remaining = (self._total - self._done) / rate if self._total and self._done else 0.0
        left = f", {remaining:.0f} s left" if remaining > 0.5 else ""
        return f"{self._done:,}{share} {self._unit}{pace}{left}{'; ' + note if note else ''}"


def _at_terminal() -> bool:
    """Whether the job's lines go to a terminal that can draw."""
    return any(isinstance(handler, _OutputHandler) for handler in logger.handlers) and Console().is_interactive


class _Bars:
    """The bars of this process, below its lines; they are drawn while there is one."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._drawn: rich.progress.Progress | None = None

    def add(self, what: str, total: int) -> rich.progress.TaskID:
        with self._lock:
            if self._drawn is None:
                self._drawn = rich.progress.Progress(
                    rich.progress.TextColumn("{task.description}", markup=False), rich.progress.BarColumn(24),
                    rich.progress.TextColumn("{task.fields[state]}", markup=False), transient=True)
                self._drawn.start()
            return self._drawn.add_task(what, total=total or None, state="")

    def update(self, bar: rich.progress.TaskID, done: int, state: str) -> None:
        with self._lock:
            if self._drawn is not None and bar in self._drawn.task_ids:
                self._drawn.update(bar, completed=done, state=state)

    def remove(self, bar: rich.progress.TaskID) -> None:
        with self._lock:
            if self._drawn is None or bar not in self._drawn.task_ids:
                return
            self._drawn.remove_task(bar)
            if not self._drawn.task_ids:
                self._drawn.stop()
                self._drawn = None


_BARS = _Bars()


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Prints a table; the first column is left-aligned, the others right-aligned."""
    # Job logs have no terminal, where rich would wrap at 80 columns.
    console = Console(width=None if sys.stdout.isatty() else max(120, int(os.environ.get("COLUMNS", "120"))))
    _print_table(console, title, columns, rows)


def to_text(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], width: int = 120) -> str:
    """The same as text, without colours."""
    out = io.StringIO()
    _print_table(Console(file=out, width=width, color_system=None), title, columns, rows)
    return out.getvalue().rstrip("\n")


def _print_table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    view = Table()
    for index, column in enumerate(columns):
        view.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        view.add_row(*[str(cell) for cell in row])
    console.print(f"\n{title}", style="bold", markup=False, highlight=False)
    console.print(view)
