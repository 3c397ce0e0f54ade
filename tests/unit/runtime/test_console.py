"""Configs of jobs: file, overrides, and one line of error."""

from __future__ import annotations

import contextlib
import logging
import os
import pty
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from recfuse.behaviours import Behaviour
from recfuse.config import InvalidFieldError, require
from recfuse.runtime.console import Progress, start


@pytest.fixture(autouse=True)
def excepthook(monkeypatch):
    """`start` replaces it; each test gives it back."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


@dataclass(frozen=True, kw_only=True)
class Config:
    """A job's config."""

    logs: str = "somewhere"
    rate: float = 0.5
    behaviours: tuple[Behaviour, ...] = ()

    def __post_init__(self) -> None:
        require(0 <= self.rate <= 1, "rate", self.rate, "a number in [0, 1]")


def test_overrides_win_over_the_file(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("logs: there\nrate: 0.25\nbehaviours: [{name: w, kind: long_term}]\n")
    assert start(Config, []) == Config()
    found = start(Config, ["--config", str(file), "--rate", "0.75"])
    assert (found.logs, found.rate, found.behaviours[0].name) == ("there", 0.75, "w")
    assert start(Config, [f"--config={file}"]).rate == 0.25


BAD = [
    ("rate: 2\n", "rate: got 2"),
    ("speed: 2\n", "speed: got 2"),
    ("rate: [\n", "a YAML file"),
    ("behaviours: [{name: w, kind: no_term}]\n", "behaviours.0.kind: got 'no_term'"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_a_bad_file_ends_with_one_line(tmp_path, capsys, text, message):
    file = tmp_path / "job.yaml"
    file.write_text(text)
    with pytest.raises(SystemExit) as exit_:
        start(Config, ["--config", str(file)])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_bad_override_ends_with_one_line(capsys):
    with pytest.raises(SystemExit) as exit_:
        start(Config, ["--rate", "3"])
    assert exit_.value.code == 2
    assert "a number in [0, 1]" in capsys.readouterr().err


def test_bad_input_that_a_job_finds_is_one_line_and_a_mistake_of_ours_a_traceback(capsys, monkeypatch):
    others = []
    monkeypatch.setattr(sys, "excepthook", lambda *error: others.append(error))
    start(Config, [])
    bad = InvalidFieldError("samples.state", "nan", "finite numbers")
    sys.excepthook(type(bad), bad, None)
    assert capsys.readouterr().err == "error: samples.state: got 'nan'; allowed: finite numbers\n"
    assert others == []
    ours = ValueError("ours")
    sys.excepthook(ValueError, ours, None)
    assert others == [(ValueError, ours, None)]


def test_errors_cross_processes():
    make, arguments = InvalidFieldError("field", 3, "4").__reduce__()
    error = make(*arguments)
    assert (error.field, error.value, error.allowed, str(error)) == ("field", 3, "4", "field: got 3; allowed: 4")


def test_progress_counts(caplog, monkeypatch):
    log = logging.getLogger("recfuse")
    monkeypatch.setattr(log, "propagate", True)
    with caplog.at_level(logging.INFO, logger="recfuse"):
        progress = Progress("work", total=10, every=0.0)
        progress.advance(4, note="loss 1")
        progress.finish()
    assert "work: 4 of 10 (40%) rows" in caplog.messages[0]
    assert caplog.messages[0].endswith("; loss 1")


@pytest.mark.parametrize(("done", "pace"), [
    (0, None), (1, "10.0 s each"), (9, "1.1 s each"), (10, "1/s"), (25_000, "2,500/s")])
def test_a_rate_below_one_a_second_is_said_as_seconds_of_each(caplog, monkeypatch, done, pace):
    monkeypatch.setattr(logging.getLogger("recfuse"), "propagate", True)
    now = iter([0.0, *[10.0] * 5])
    monkeypatch.setattr("recfuse.runtime.console.time.monotonic", lambda: next(now))
    with caplog.at_level(logging.INFO, logger="recfuse"):
        progress = Progress("work", unit="iterations")
        progress.advance(done)
    assert caplog.messages[0] == (f"work: {done:,} iterations{f', {pace}' if pace else ''}")


WORK = """
import time
from recfuse.runtime.console import Progress, log_to_terminal, logger
log_to_terminal()
outer, given_up = Progress("persons", total=4), Progress("given up")
inner = Progress("rows [of] this", total=2, unit="rows")
for done in range(2):
    inner.advance(1, "loss 1")
    outer.advance(2)
    logger.info("a line of its own %d", done)
    time.sleep(.3)
inner.finish("loss 1")
del given_up
outer.finish()
print("the end")
"""


def run(stdout, environment):
    return subprocess.run([sys.executable, "-c", WORK], stdout=stdout, stderr=subprocess.STDOUT, check=True,
                          env=os.environ | {"PYTHONPATH": "platform", "COLUMNS": "120"} | environment,
                          cwd=Path(__file__).parents[3])


def test_a_terminal_shows_bars_below_the_lines():
    ours, theirs = pty.openpty()
    run(theirs, {"TERM": "xterm"})
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # what Linux raises at the end of a terminal
        while part := os.read(ours, 1 << 16):
            shown += part
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert "\u2501" in text, "a bar"
    assert "given up" in text
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if re.match(r"\d\d:\d\d:\d\d ", line.strip())]
    assert [re.sub(r"^\S+ |, [\d,]+/s", "", line) for line in lines] == [
        "a line of its own 0", "a line of its own 1", "rows [of] this: 2 of 2 (100%) rows; loss 1",
        "persons: 4 of 4 (100%) rows"]
    assert text.rstrip().endswith("the end")
    assert shown.rstrip().endswith(b"the end"), "no bar is left, and the cursor is back before it"
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h")


@pytest.mark.parametrize("environment", [{"TERM": "xterm"}, {"TERM": "dumb"}])
def test_elsewhere_there_are_lines_alone(tmp_path, environment):
    with open(tmp_path / "log", "wb") as log:
        run(log, environment)
    text = (tmp_path / "log").read_text()
    assert "\x1b" not in text
    assert "\u2501" not in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize(("arguments", "line"), [
    (["--rate", "-1"], "error: rate: got -1.0; allowed: a number in [0, 1]"),
    (["--rate", "fast"], "error: --rate: could not convert string to float: 'fast'"),
    (["--rate", "x" * 300], f"error: --rate: could not convert string to float: '{'x' * 300}'"),
    (["--rat", "2"], "error: Unrecognized options: --rat, 2")])
def test_arguments_that_are_wrong_are_said_in_a_line(capsys, monkeypatch, arguments, line):
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit) as end:
        start(Config, arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"{line}; --help tells all options\n"
    assert os.environ["COLUMNS"] == "40"
