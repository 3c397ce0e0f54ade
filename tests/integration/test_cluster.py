"""The Ray that jobs start for themselves, and what they do when a worker dies."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import ray
from clusters import LOOPBACK_ADDRESSES, ROOT, token_environment

from recfuse.runtime.cluster import resuming

# All that a local Ray starts: what it listens on, by the process that does.
LOOK = """
import json, os, sys
sys.path.insert(0, "tests")
import clusters, ray
from pathlib import Path
from recfuse.runtime.cluster import cluster
with cluster():
    ray.get(ray.remote(lambda: None).remote())
    session = ray._private.worker._global_node.get_session_dir_path()
    open_sockets = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\\0", b" ").decode(errors="replace")
            ours = session in line or line.startswith("ray::") or int(process.name) == os.getpid()
            if ours and sys.argv[1].encode() in (process / "environ").read_bytes():
                name = Path(line.split(" ")[0]).name + " " + process.name
                open_sockets[name] = sorted(clusters.listening(int(process.name)))
        except OSError:
            continue
print(json.dumps(open_sockets))
"""


def test_a_local_ray_listens_on_loopback_alone(tmp_path):
    mark = f"RECFUSE_MARK={tmp_path.name}-{id(tmp_path)}"
    name, value = mark.split("=")
    environment = token_environment(tmp_path) | {name: value, "PYTHONPATH": "platform"}
    del environment["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"]  # as on a user's machine
    done = subprocess.run([sys.executable, "-c", LOOK, mark], cwd=ROOT, env=environment, text=True,
                          capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    open_sockets = json.loads(done.stdout.strip().splitlines()[-1])
    for what in ("gcs_server", "raylet"):
        assert any(what in line and addresses for line, addresses in open_sockets.items()), (what, open_sockets)
    beyond = {line: addresses for line, addresses in open_sockets.items() if not set(addresses) <= LOOPBACK_ADDRESSES}
    assert not beyond


@pytest.mark.usefixtures("local_ray")
def test_workers_outlive_a_pause():
    @ray.remote(num_cpus=0.5)
    def process() -> int:
        import os

        time.sleep(0.3)
        return os.getpid()

    def burst() -> set[int]:
        return set(ray.get([process.remote() for _ in range(4)]))

    burst()  # A worker may start so slowly that another one does its task.
    before = burst()
    time.sleep(2.5)
    assert len(before) > 2
    assert burst() & before == before


@pytest.mark.usefixtures("local_ray")
def test_what_a_dead_worker_cut_off_is_called_again_and_our_own_errors_are_not(tmp_path):
    @ray.remote(max_retries=0)
    def die(calls: int) -> int:
        import os

        if calls < 3:
            os.kill(os.getpid(), 9)
        return calls

    calls = []

    def work() -> int:
        calls.append(1)
        return ray.get(die.remote(len(calls)))

    assert resuming(work) == 3
    with pytest.raises(ray.exceptions.RayError):
        resuming(lambda: ray.get(die.remote(0)), attempts=2)

    mistakes = []

    def wrong() -> None:
        mistakes.append(1)
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        resuming(wrong)
    assert len(mistakes) == 1
