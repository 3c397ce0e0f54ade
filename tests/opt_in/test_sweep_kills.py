"""A sweep whose driver is killed twice goes on where it stood, repeats no finished trial, ends with the same rows."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import samples as toy
import yaml
from clusters import ROOT
from processes import MARK, marked_environment

pytestmark = pytest.mark.chaos
TOTALS = [0.01, 0.1, 1.0, 10.0, 100.0]


def end(mark: str) -> None:
    """Ends what is left of the Ray that a killed driver had started: the agent of its dashboard outlives it."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


def rows(output: Path) -> dict[str, dict]:
    """Key → row, of the whole lines; a key that is there twice fails."""
    file = output / "trials.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    assert len({row["key"] for row in found}) == len(found)
    return {row["key"]: row for row in found}


def command(directory: Path, samples: Path, output: str) -> list[str]:
    few = {"iterations": 6}
    config = {"samples": str(samples), "output": str(directory / output), "judge": "off_policy",
              "learning": {"network": {"hidden": [32], "sigma_min": 0.2}, "critics": few, "stage_one": few,
                           "stage_two": few, "cloning": {"iterations": 2}, "minibatch_size": 256},
              "space": [{"multipliers.total": TOTALS}], "search": {"cpus": 1.0}}
    (directory / f"{output}.yaml").write_text(yaml.safe_dump(config))
    return [sys.executable, "-m", "tune.sweep", "--config", str(directory / f"{output}.yaml")]


def killed_after(trials: int, arguments: list[str], output: Path) -> dict[str, dict]:
    """The rows that a driver leaves which is SIGKILLed when so many are there."""
    mark, environment = marked_environment()
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while len(rows(output)) < trials and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert process.poll() is None, "it ended before it was killed"
        process.kill()
        process.wait()
    finally:
        end(mark)
    return rows(output)


def test_a_killed_sweep_resumes(tmp_path: Path, say: Callable[[str], None]) -> None:
    samples, output = toy.write(tmp_path / "samples", toy.bandit(rows=30_000)), tmp_path / "killed"
    arguments = command(tmp_path, samples, "killed")
    first = killed_after(1, arguments, output)
    second = killed_after(len(first) + 1, arguments, output)
    begin = time.monotonic()
    done = subprocess.run(arguments, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    last = rows(output)
    say(f"driver killed after {len(first)} and {len(second)} of {len(last)} trials; the rest in "
        f"{time.monotonic() - begin:.0f} s")
    assert 0 < len(first) < len(second) < len(last) == len(TOTALS) + 1
    assert f"{len(second)} trials are there already" in done.stdout + done.stderr
    assert all(second[key] == row for key, row in first.items()), "a finished trial keeps its row, times and all"
    assert all(last[key] == row for key, row in second.items())
    assert pq.read_metadata(output / "trials.parquet").num_rows == len(last)
    assert (output / "report.html").is_file()

    calm = subprocess.run(command(tmp_path, samples, "calm"), cwd=ROOT, text=True, capture_output=True)
    assert calm.returncode == 0, calm.stdout + calm.stderr
    undisturbed = rows(tmp_path / "calm")
    assert undisturbed.keys() == last.keys()
    for key, row in undisturbed.items():
        assert all(last[key][name] == row[name] for name in ("number", "status", "passes", "bundle"))
        measures = [name for name, value in row.items() if isinstance(value, float) and name != "seconds"]
        assert np.allclose([last[key][name] for name in measures], [row[name] for name in measures], rtol=1e-6)
