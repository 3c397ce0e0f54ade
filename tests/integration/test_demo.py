"""The main job as a user runs it: to its end, and interrupted; either way no process is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import left_behind, marked_environment

from recfuse.bundle import read_bundle
from recfuse.bundle.pointer import read_pointer

ROOT = Path(__file__).parents[2]
MOMENTS = ("config of", "workers starting", "serving on")
pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc to find the processes that are left")


def demo(output: Path, *arguments: str) -> list[str]:
    # Fewer people than by default, in the logs and in the search: a run of minutes passes through the same code.
    return [sys.executable, "-u", "-m", "jobs.demo", "--output", str(output), "--persons", "2000",
            "--cem.persons", "200", *arguments]


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def finished(output):
    """A demo that ran to its end, and what it left running."""
    mark, environment = marked_environment()
    done = subprocess.run(demo(output, "--requests", "20"), cwd=ROOT, env=environment, text=True, capture_output=True,
                          timeout=580)
    return done, left_behind(mark)


def test_the_main_job_runs_to_its_end(finished, output):
    done, left = finished
    assert done.returncode == 0, done.stdout + done.stderr
    assert left == []
    report = (output / "report" / "report.html").read_text()
    assert "Not measured in this run" not in report
    pointer = read_pointer(output / "models")
    for kind in ("fusion", "scenes"):
        assert read_bundle(pointer.path(output / "models", kind), kind=kind).version
    account = json.loads((output / "samples" / "account.json").read_text())["account"]
    assert account["rows_in"] == account["kept"] + sum(account["quarantined"].values())


def test_its_screen_is_understood_at_a_glance(finished, output):
    """A line a step with its figure and seconds, one table, what was gained and paid, three commands; no chatter."""
    done, _ = finished
    screen = done.stdout + done.stderr
    lines = screen.splitlines()
    assert len(lines) <= 45, screen
    for chatter in ("0/s", "WARNING", "(pid=", "INFO", "Traceback", "\x1b["):
        assert chatter not in screen
    steps = [line for line in lines if re.match(r"\d/8 ", line)]
    assert [line[:3] for line in steps] == [f"{number}/8" for number in range(1, 9)]
    assert all(re.fullmatch(r"\d/8 [\w/ ]+ · .*\d.* · \d+ s", line) for line in steps), screen
    assert screen.count("verdict") == 1
    assert re.search(r"two_stage brings \S+ \[.*\] watch time relative to cem\.", screen)
    assert re.search(r"cem, which searched [\d,]+ lives inside the simulator, gains .*; it pays ", screen)
    assert sum(line.startswith("  ") for line in lines[-4:]) == 3


def test_what_its_screen_leaves_out_is_in_its_log(finished, output):
    done, _ = finished
    log = (output / "log.txt").read_text()
    for line in done.stdout.splitlines():
        assert line in log
    for said in ("# config of", "Scorer on 2", "Session logs", "Samples in ", "Fusion policy in ",
                 "Smallest difference", "Published in ", "Serving, 20 requests", "Started Serve"):
        assert said in log
    assert " 0/s" not in log


def test_the_python_page_ranks_and_reads_on_its_output(finished, output, capsys):
    """The page's blocks but the one that learns, literally, on this demo in place of runs/demo."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "python.md").read_text(), re.M | re.S)
    assert len(blocks) == 3
    assert "train(" in blocks[2]
    for block in blocks[:2]:
        exec(block.replace("runs/demo", str(output)), {})
    assert "Log(" in capsys.readouterr().out


@pytest.fixture(scope="module")
def interrupted(finished, output, tmp_path_factory):
    """What a demo said that Ctrl-C ended at each moment, its code, and what it left running.

    What is finished is taken up, so that a rerun soon serves.
    """
    return {when: interrupt(output if when == "serving on" else tmp_path_factory.mktemp("demo") / "demo", when)
            for when in MOMENTS}


def interrupt(where, when):
    mark, environment = marked_environment()
    # All that is said is on the screen, so that the moment can be seen.
    process = subprocess.Popen(demo(where, "--verbose"), cwd=ROOT, text=True, env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, start_new_session=True,
                               # A shell's background jobs ignore Ctrl-C and hand that on.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    assert process.stdout is not None
    seen = []
    try:
        for line in process.stdout:
            seen.append(line)
            if when in line:
                break
        time.sleep(1.0)
        # As a terminal does: to every process of the foreground group.
        os.killpg(process.pid, signal.SIGINT)
        rest, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, "".join(seen) + rest, left_behind(mark)


@pytest.mark.parametrize("when", MOMENTS)
def test_ctrl_c_leaves_nothing_behind(interrupted, when):
    code, said, left = interrupted[when]
    # A shell calls both 130. Python ends by the signal itself where it interrupted an `exec`, as imports have some.
    assert code in (130, -signal.SIGINT), said
    assert "interrupted" in said
    assert left == []


def test_what_is_finished_is_said_to_be_kept(interrupted):
    _, said, _ = interrupted["serving on"]
    kept = [line for line in said.splitlines() if re.match(r"\d/8 .* · kept, \d+ s", line)]
    assert [line[0] for line in kept] == ["1", "2", "3", "4"]
