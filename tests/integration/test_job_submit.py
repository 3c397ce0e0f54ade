"""`ray job submit` with runtime_env.yaml against a real local cluster with its dashboard."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import session_logs
from session_logs import loose_table, random_rows, row, table

ROOT = Path(__file__).parents[2]
AGENT_PORT = 52365
# A cluster of its own: `ray start` and `ray stop` would act on every Ray of the machine.
HEAD = """
import ray, signal, sys
from ray._private.utils import write_ray_address
port, temporary = int(sys.argv[1]), sys.argv[2]
context = ray.init(address="local", _node_ip_address="127.0.0.1", num_cpus=2, include_dashboard=True,
                   dashboard_host="127.0.0.1", dashboard_port=port, log_to_driver=False,
                   object_store_memory=256 << 20, _temp_dir=temporary)
# As `ray start` does: without it a submitted job looks for whatever other Ray runs on this machine.
write_ray_address(context.address_info["gcs_address"], temporary)
print("ready", context.address_info["webui_url"], flush=True)
signal.sigwait([signal.SIGTERM, signal.SIGINT])
ray.shutdown()
"""



@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """With a dashboard Ray 2.60 asks for a token. It lies in a file: RAY_AUTH_TOKEN itself does not reach the job."""
    token = tmp_path / "token"
    token.write_text(uuid.uuid4().hex)
    auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}
    # As in an activated environment: the job's `python` is the cluster's.
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    return kept | auth | {"PATH": path}


def agent_port_is_free(seconds: float = 15.0) -> bool:
    """Whether another Ray has left the agent's port by then; `ray.init` cannot choose another one."""
    for _ in range(int(seconds * 2)):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", AGENT_PORT))
            except OSError:
                time.sleep(0.5)
            else:
                return True
    return False


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def dashboard(environment):
    if not agent_port_is_free():
        pytest.skip(f"port {AGENT_PORT} of Ray's job agent is taken by another Ray on this machine")
    temporary = tempfile.mkdtemp(prefix="ray-")  # short: the paths of Ray's sockets have a limit
    process = subprocess.Popen([sys.executable, "-c", HEAD, str(free_port()), temporary], text=True,
                               stdout=subprocess.PIPE, env=environment, start_new_session=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline().split()
        assert line[:1] == ["ready"], line
        yield f"http://{line[1]}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


def submit(address: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    ray = Path(sys.executable).with_name("ray")
    for _ in range(30):
        done = _submit_once(ray, address, environment, *arguments)
        # The node's job agent comes up some seconds after the dashboard.
        if "No available agent" not in done.stderr:
            break
        time.sleep(1)
    return done


def _submit_once(
    ray: Path, address: str, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ray), "job", "submit", "--address", address, "--working-dir", ".", "--runtime-env", "runtime_env.yaml",
         "--", "python", *arguments], cwd=ROOT, env=environment, text=True, capture_output=True, timeout=300)


def test_ingest_runs_as_a_submitted_job(dashboard, environment, tmp_path):
    good = random_rows(60)
    logs = session_logs.write(tmp_path / "logs", table(good), loose_table([row(99, state=[1.0])]))
    done = submit(dashboard, environment, "jobs/ingest.py", "--logs", str(logs), "--output", str(tmp_path / "samples"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"in 61 = kept 60 \+ quarantined 1", done.stdout), done.stdout
    saved = json.loads((tmp_path / "samples" / "account.json").read_text())
    assert saved["account"]["kept"] == 60
    parts = sorted((tmp_path / "samples").glob("part-*.parquet"))
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 60

    failed = submit(dashboard, environment, "jobs/ingest.py", "--logs", str(tmp_path / "nowhere"))
    assert failed.returncode != 0
    assert "a directory that exists" in failed.stdout + failed.stderr or "vocabulary" in failed.stdout + failed.stderr
