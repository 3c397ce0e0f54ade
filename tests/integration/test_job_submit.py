"""`ray job submit` with runtime_env.yaml against a real local cluster, a head and two workers, with its dashboard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import clusters
import pyarrow.parquet as pq
import pytest
import session_logs
from clusters import LocalCluster, listening, submit
from session_logs import loose_table, random_rows, row, table

# 127.0.0.1 in IPv4 and as an IPv6-mapped address, as /proc/net writes them.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with clusters.running() as cluster:
        yield cluster


def test_ingest_runs_as_a_submitted_job(cluster: LocalCluster, tmp_path: Path) -> None:
    good = random_rows(60)
    logs = session_logs.write(tmp_path / "logs", table(good), loose_table([row(99, state=[1.0])]))
    done = submit(cluster, "jobs/ingest.py", "--logs", str(logs), "--output", str(tmp_path / "samples"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"in 61 = kept 60 \+ quarantined 1", done.stdout), done.stdout
    saved = json.loads((tmp_path / "samples" / "account.json").read_text())
    assert saved["account"]["kept"] == 60
    parts = sorted((tmp_path / "samples").glob("part-*.parquet"))
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 60


def test_a_job_that_fails_says_so(cluster: LocalCluster, tmp_path: Path) -> None:
    failed = submit(cluster, "jobs/ingest.py", "--logs", str(tmp_path / "nowhere"))
    assert failed.returncode != 0
    assert "a YAML file that travels with the log" in failed.stdout + failed.stderr


def test_nothing_listens_beyond_loopback(cluster: LocalCluster) -> None:
    for raylet in cluster.raylets:
        assert listening(raylet)
        assert listening(raylet) <= LOOPBACK
