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
    for line in ("In the simulator, on users", "Scorer on the last day", "Serving, 20 requests", "report: "):
        assert line in done.stdout
    assert re.search(r"two_stage brings \S+ \[.*\] watch time relative to cem, which searched [\d,]+ ", done.stdout)
    assert "hand-tuned's (logged)" in done.stdout
    report = (output / "report" / "report.html").read_text()
    assert "Not measured in this run" not in report
    pointer = read_pointer(output / "models")
    for kind in ("fusion", "scenes"):
        assert read_bundle(pointer.path(output / "models", kind), kind=kind).version
    account = json.loads((output / "samples" / "account.json").read_text())["account"]
    assert account["rows_in"] == account["kept"] + sum(account["quarantined"].values())


@pytest.mark.usefixtures("finished")
@pytest.mark.parametrize("when", ["config of", "workers starting", "serving on"])
def test_ctrl_c_leaves_nothing_behind(output, tmp_path, when):
    mark, environment = marked_environment()
    # What is finished is taken up, so that a rerun soon serves.
    where = output if when == "serving on" else tmp_path / "demo"
    process = subprocess.Popen(demo(where), cwd=ROOT, text=True, env=environment, stdout=subprocess.PIPE,
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
    # A shell calls both 130. Python ends by the signal itself where it interrupted an `exec`, as imports have some.
    assert process.returncode in (130, -signal.SIGINT), "".join(seen) + rest
    assert "interrupted" in rest
    assert left_behind(mark) == []
