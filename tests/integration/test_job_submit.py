"""`ray job submit` with runtime_env.yaml against a real local cluster, a head and two workers, with its dashboard."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import clusters
import httpx
import pyarrow.parquet as pq
import pytest
import session_logs
import yaml
from clusters import LOOPBACK_ADDRESSES, ROOT, LocalCluster, descendants, listening, sockets_of, submit
from session_logs import loose_table, random_rows, row, table

# In a process of its own, which has the cluster's token: the address, then the command.
CLIENT = """
import sys, time, yaml
from ray.job_submission import JobStatus, JobSubmissionClient
client = JobSubmissionClient(sys.argv[1])
environment = yaml.safe_load(open("runtime_env.yaml")) | {"working_dir": "."}
job = client.submit_job(entrypoint=sys.argv[2], runtime_env=environment)
while not client.get_job_status(job).is_terminal():
    time.sleep(0.2)
said = client.get_job_info(job)
assert said.status == JobStatus.SUCCEEDED, f"{said.status}: {said.message} {client.get_job_logs(job)}"
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with clusters.running() as cluster:
        yield cluster


def test_ingest_by_cli_and_client_gives_the_same_samples_from_one_and_eight_blocks(
        cluster: LocalCluster, tmp_path: Path) -> None:
    """The code travels to every node, and all of them run it."""
    rows, bad = random_rows(240, seed=3), loose_table([row(999, state=[1.0])])
    logs = [session_logs.write(tmp_path / f"logs-{blocks}", *(table(rows[::-1][k::blocks]) for k in range(blocks)),
                               *([bad] if blocks == 1 else [])) for blocks in (1, 8)]
    samples = [tmp_path / path.name.replace("logs", "samples") for path in logs]

    by_cli = submit(cluster, "jobs/ingest.py", "--cut", "bootstrap", "--logs", str(logs[0]),
                    "--output", str(samples[0]))
    assert by_cli.returncode == 0, by_cli.stdout + by_cli.stderr
    assert re.search(r"in 241 = kept 240 \+ quarantined 1", by_cli.stdout), by_cli.stdout
    parts = sorted(samples[0].glob("part-*.parquet"))
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 240

    command = f"python jobs/ingest.py --cut bootstrap --logs {logs[1]} --output {samples[1]}"
    by_client = subprocess.run([sys.executable, "-c", CLIENT, cluster.dashboard, command], cwd=ROOT,
                               env=cluster.environment, text=True, capture_output=True, timeout=300)
    assert by_client.returncode == 0, by_client.stdout + by_client.stderr
    saved = [json.loads((path / "account.json").read_text()) for path in samples]
    assert [account["account"]["kept"] for account in saved] == [240] * 2
    assert len({(account["fingerprint"], account["sessions"]) for account in saved}) == 1
    assert all(packages > 0 for packages in cluster.unpacked()), cluster.unpacked()
    assert len(cluster.unpacked()) == 2


def test_a_job_that_fails_says_so(cluster: LocalCluster, tmp_path: Path) -> None:
    failed = submit(cluster, "jobs/ingest.py", "--logs", str(tmp_path / "nowhere"))
    assert failed.returncode != 0
    said = failed.stdout + failed.stderr
    assert re.search(r"^error: logs: got .*nowhere.*; allowed: a directory that exists", said, re.M)
    assert "Traceback" not in said


def test_nothing_listens_beyond_loopback(cluster: LocalCluster) -> None:
    for raylet in cluster.raylets:
        assert listening(raylet)
        assert listening(raylet) <= LOOPBACK_ADDRESSES


def test_the_probes_of_the_manifests_need_no_token_and_the_jobs_do(cluster: LocalCluster) -> None:
    spec = yaml.safe_load((ROOT / "serving" / "kubernetes" / "ray-cluster.yaml").read_text())["spec"]
    [head] = spec["headGroupSpec"]["template"]["spec"]["containers"]
    paths = {head[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")}

    def statuses(port: int) -> list[int]:
        answers = []
        for path in (*paths, "/api/job_agent/jobs/"):
            with suppress(httpx.HTTPError):  # it speaks something else
                answers.append(httpx.get(f"http://127.0.0.1:{port}{path}", timeout=5).status_code)
        return answers

    for raylet in cluster.raylets:
        ports = {port for process in descendants(raylet) for _, port in sockets_of(process)}
        # One server answers both: the agent of the node. (That of the metrics answers every path.)
        assert [*[200] * len(paths), 401] in [statuses(port) for port in ports]
