"""A cluster of its own for tests: a head and workers, each a real raylet, with dashboard and Jobs API, all on loopback.

`ray start` and `ray stop` would act on every Ray of the machine and share its ports; here every port is a free one.
Run as a program, the module is such a cluster: `python clusters.py TEMPORARY HEAD_CPUS WORKERS CPUS`.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOOPBACK = "127.0.0.1"
# The same in IPv4 and as an IPv6-mapped address, as /proc/net writes them.
LOOPBACK_ADDRESSES = {"0100007F", "0000000000000000FFFF00000100007F"}
CODE = "code"
_MEMORY = 192 << 20


@dataclass(frozen=True)
class LocalCluster:
    """A running cluster.

    Attributes:
        gcs: address for `ray.init` and RAY_ADDRESS; dashboard: URL of the Jobs API.
        raylets: process ids, the head's first.
        environment: for programs that use the cluster: its token among others.
        process: of the program that holds it.
        temporary: directory of its sessions.
    """

    gcs: str
    dashboard: str
    raylets: tuple[int, ...]
    environment: dict[str, str]
    process: int
    temporary: Path

    def unpacked(self) -> list[int]:
        """How many packages of uploaded code each worker node has unpacked so far."""
        return [len([one for one in place.glob("working_dir_files/_ray_pkg_*") if one.is_dir()])
                for place in sorted(self.temporary.glob(f"session_2*/{CODE}_*"))]


def token_environment(directory: Path) -> dict[str, str]:
    """With a dashboard Ray 2.60 asks for a token. It lies in a file: RAY_AUTH_TOKEN itself does not reach a job."""
    token = directory / "token"
    token.write_text(uuid.uuid4().hex)
    token.chmod(0o600)
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH", "RAY_AUTH_TOKEN")}
    # As in an activated environment: the job's `python` is the cluster's.
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    return kept | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "PATH": path,
                   # See recfuse.runtime.ray_compat.on_loopback.
                   "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "OMP_NUM_THREADS": "1",
                   # See recfuse.runtime.ray_compat.idle_environment.
                   "RAY_idle_worker_killing_time_threshold_ms": "60000"}


@contextmanager
def running(head_cpus: int = 1, workers: int = 2, cpus: int = 1, path: str = "") -> Iterator[LocalCluster]:
    """Starts the cluster and ends it, with everything in it.

    Args:
        path: where its workers find what is not installed.
    """
    temporary = Path(tempfile.mkdtemp(prefix="ray-"))  # short: the paths of Ray's sockets have a limit
    environment = token_environment(temporary) | ({"PYTHONPATH": path} if path else {})
    process = subprocess.Popen([sys.executable, __file__, str(temporary), *map(str, (head_cpus, workers, cpus))],
                               text=True, stdout=subprocess.PIPE, env=environment, start_new_session=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("{"), f"the cluster did not start: {line}"
        started = json.loads(line)
        yield LocalCluster(started["gcs"], started["dashboard"], tuple(started["raylets"]), environment, process.pid,
                           temporary)
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(temporary, ignore_errors=True)


def submit(cluster: LocalCluster, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """`ray job submit … -- python ARGUMENTS` by the CLI, waiting for its end."""
    ray = Path(sys.executable).with_name("ray")
    command = [str(ray), "job", "submit", "--address", cluster.dashboard, "--working-dir", ".",
               "--runtime-env", "runtime_env.yaml", "--", "python", *arguments]
    for _ in range(30):
        done = subprocess.run(command, cwd=ROOT, env=cluster.environment, text=True, capture_output=True,
                              timeout=seconds)
        # The node's job agent comes up some seconds after the dashboard.
        if "No available agent" not in done.stderr:
            break
        time.sleep(1)
    return done


def workers_of(raylet: int) -> list[int]:
    """Process ids of the task and actor processes of a node."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError, ValueError):
            parent = int(path.read_text().rsplit(")", 1)[1].split()[1])
            line = (path.parent / "cmdline").read_bytes()
            # Ray titles its workers `ray::NAME`; the raylet's two agents carry titles of their own.
            if parent == raylet and line.startswith(b"ray::") and b"Agent" not in line:
                found.append(int(path.parent.name))
    return found


@contextmanager
def killing(raylet: int, *tasks: str) -> Iterator[list[str]]:
    """Inside, one worker of the node is SIGKILLed in the middle of each of these tasks, in this order.

    Args:
        tasks: part of the title that a worker bears while it runs the task.

    Returns:
        titles of the killed ones so far.
    """
    killed: list[str] = []
    stop = threading.Event()

    def run() -> None:
        while len(killed) < len(tasks) and not stop.wait(0.01):
            for worker in workers_of(raylet):
                with suppress(OSError):
                    title = Path(f"/proc/{worker}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                    if tasks[len(killed)] in title:
                        os.kill(worker, signal.SIGKILL)
                        killed.append(title)
                        break

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        return int(sock.getsockname()[1])


def sockets_of(process: int) -> set[tuple[str, int]]:
    """What a process listens on: address, in hexadecimal as in /proc/net/tcp, and port."""
    sockets = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):
            sockets.add(os.readlink(link))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


def listening(process: int) -> set[str]:
    """Addresses that a process listens on."""
    return {address for address, _ in sockets_of(process)}


def descendants(process: int) -> dict[int, str]:
    """Command lines of the processes that it started, and of theirs."""
    parents, lines = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(path.name)] = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            lines[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    found = {process}
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return {child: lines[child] for child in found - {process}}


def _hold(temporary: str, head_cpus: int, workers: int, cpus: int) -> None:
    import ray._private.utils
    from ray.cluster_utils import Cluster

    # Cluster writes its address where every Ray of the machine looks for one; a job looks in the cluster's own place.
    write = functools.partial(ray._private.utils.write_ray_address, temp_dir=temporary)
    ray._private.utils.write_ray_address = write
    common = {"node_ip_address": LOOPBACK, "temp_dir": temporary, "object_store_memory": _MEMORY}
    cluster = Cluster()
    nodes = [cluster.add_node(num_cpus=head_cpus, include_dashboard=True, dashboard_host=LOOPBACK,
                              dashboard_port=free_port(), dashboard_agent_listen_port=0, **common)]
    # Each unpacks uploaded code into a directory of its own, as on machines of their own: in a shared one the last to
    # come empties what the others run from.
    nodes += [cluster.add_node(num_cpus=cpus, runtime_env_dir_name=f"{CODE}_{number}", **common)
              for number in range(1, workers + 1)]
    sys.stdout.write(json.dumps({
        "gcs": cluster.gcs_address, "dashboard": f"http://{cluster.webui_url}",
        "raylets": [node.all_processes["raylet"][0].process.pid for node in nodes]}) + "\n")
    sys.stdout.flush()
    signal.sigwait([signal.SIGTERM, signal.SIGINT])
    for node in reversed(nodes):
        node.kill_all_processes(check_alive=False, allow_graceful=False)


if __name__ == "__main__":
    # Blocked before Ray starts threads and processes, so that `sigwait` is the one who gets it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGINT])
    _hold(sys.argv[1], *map(int, sys.argv[2:]))
