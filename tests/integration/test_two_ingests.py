"""Two ingests with one output, as processes that start at once: one finishes whole, the other ends with a line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import session_logs
from processes import marked_environment
from session_logs import random_rows, table

from recfuse.logs.config import IngestConfig
from recfuse.logs.ingest import ingest
from recfuse.runtime.outputs import LOCK, MARKER

ROOT = Path(__file__).parents[2]


def start(logs: Path, output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "jobs/ingest.py", "--logs", str(logs), "--output", str(output)], cwd=ROOT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=marked_environment()[1],
                            start_new_session=True)


def written(output: Path) -> tuple[set[str], int]:
    """Request ids of the samples, and how many the account says were kept."""
    kept = json.loads((output / "account.json").read_text())["account"]["kept"]
    ids = [name for path in sorted(output.glob("part-*.parquet"))
           for name in pq.read_table(path)["request_id"].to_pylist()]
    assert len(ids) == kept
    return set(ids), kept


def log(directory: Path, prefix: str, seed: int) -> Path:
    rows = [{**row, "request_id": f"{prefix}{row['request_id']}"} for row in random_rows(200, seed=seed)]
    return session_logs.write(directory / prefix, table(rows))


def test_one_finishes_whole_and_the_other_ends_with_a_line(tmp_path):
    jobs = {name: start(log(tmp_path, name, seed), tmp_path / "samples") for seed, name in enumerate(("a", "b"))}
    said = {name: job.communicate(timeout=300) for name, job in jobs.items()}
    codes = {name: job.returncode for name, job in jobs.items()}
    assert sorted(codes.values()) == [0, 1], said
    winner, loser = sorted(codes, key=lambda name: codes[name])
    [line] = said[loser][1].strip().splitlines()
    assert line.startswith(f"error: output: got '{tmp_path}/samples'; allowed: a directory that no other job is")
    ids, kept = written(tmp_path / "samples")
    assert kept > 100
    assert all(name.startswith(winner) for name in ids)
    assert f"{kept:,}" in said[winner][0]


@pytest.mark.usefixtures("local_ray")
def test_the_lock_dies_with_its_holder(tmp_path):
    output = tmp_path / "samples"
    killed = start(log(tmp_path, "a", 0), output)
    deadline = time.monotonic() + 120
    while not (output / LOCK).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (output / LOCK).exists()
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=60)
    assert not (output / "account.json").exists()
    ingest(IngestConfig(logs=str(log(tmp_path, "b", 1)), output=str(output)))
    assert all(name.startswith("b") for name in written(output)[0])
    assert json.loads((output / MARKER).read_text())["state"] == "finished"
