"""Two hosts on one machine: network, processes and temporary directory of their own, one Ray over both.

A host is a process in namespaces of its own, which end with it: nothing is left behind. Needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from clusters import ROOT, token_environment

PORT = 6379
_MEMORY = 192 << 20


def why_not() -> str:
    """Why no hosts can be made here; "" where they can."""
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    missing = [name for name in ("ip", "unshare", "nsenter", "mount") if shutil.which(name) is None]
    if missing:
        return f"there is no {', '.join(missing)}"
    made = subprocess.run(["unshare", "-n", "-m", "-p", "--fork", "true"], capture_output=True, text=True, check=False)
    return f"no namespace can be made: {made.stderr.strip()}" if made.returncode else ""


@dataclass
class Host:
    """One of the hosts.

    Attributes:
        name: of its end of the cable too; address: its own.
        temporary: what it sees as /tmp/ray.
        environment: of its programs.
        cpus: of its Ray.
    """

    name: str
    address: str
    temporary: Path
    environment: dict[str, str]
    cpus: int
    _holder: subprocess.Popen[bytes] | None = None
    _ray: subprocess.Popen[bytes] | None = None

    def boot(self) -> None:
        """The host is there, without a cable."""
        self._holder = subprocess.Popen(["unshare", "-n", "-m", "-p", "--fork", "--kill-child", "--mount-proc", "sleep",
                                         "infinity"])
        while not self._children():
            time.sleep(0.05)
        time.sleep(0.2)
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir()
        Path("/tmp/ray").mkdir(exist_ok=True)
        self.run("mount", "--bind", str(self.temporary), "/tmp/ray")
        self.run("ip", "link", "set", "lo", "up")

    def _children(self) -> list[str]:
        assert self._holder is not None
        return Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()

    @property
    def process(self) -> str:
        """Of its first program, seen from outside."""
        return self._children()[0]

    def inside(self, *command: str) -> list[str]:
        """The command, run on the host."""
        return ["nsenter", "-t", self.process, "-n", "-m", "-p", *command]

    def run(self, *command: str) -> None:
        subprocess.run(self.inside(*command), check=True, capture_output=True)

    def start(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """A program that writes to a file."""
        with log.open("ab") as output:
            return subprocess.Popen(self.inside(*command), cwd=ROOT, env=self.environment, stdout=output,
                                    stderr=subprocess.STDOUT)

    def start_ray(self, head: Host) -> None:
        """Its node of the cluster; the first one is the head."""
        where = ["--head", f"--port={PORT}", "--include-dashboard=false"] if head is self else [
            f"--address={head.address}:{PORT}"]
        ray = str(Path(sys.executable).with_name("ray"))
        self._ray = self.start(ray, "start", *where, f"--node-ip-address={self.address}", f"--num-cpus={self.cpus}",
                               f"--object-store-memory={_MEMORY}", "--disable-usage-stats", "--block",
                               log=self.temporary.with_suffix(".log"))

    def link(self, state: str) -> None:
        """Plugs the cable in (`up`), or pulls it out (`down`)."""
        self.run("ip", "link", "set", self.name, state)

    def kill(self) -> None:
        """The host is gone, with all that ran on it."""
        for process in filter(None, (self._holder, self._ray)):
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait(30)
        self._holder = self._ray = None


@dataclass
class Hosts:
    """Both hosts, and a job on the first.

    Attributes:
        first: the head; second: the other one.
    """

    first: Host
    second: Host
    jobs: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def connect(self) -> None:
        """Lays the cable, after either was booted."""
        first, second = self.first, self.second
        subprocess.run(["ip", "link", "add", first.name, "netns", first.process, "type", "veth", "peer", "name",
                        second.name, "netns", second.process], check=True)
        for host in (self.first, self.second):
            host.run("ip", "addr", "add", f"{host.address}/24", "dev", host.name)
            host.link("up")

    def revive(self) -> None:
        """The second host comes back after `kill`, with a new node."""
        self.second.boot()
        self.connect()
        self.second.start_ray(self.first)

    def start_job(self, log: Path, *arguments: str) -> subprocess.Popen[bytes]:
        """A job's driver on the first host."""
        job = self.first.start(sys.executable, "-u", *arguments, log=log)
        self.jobs.append(job)
        return job

    def wait_for_nodes(self, count: int) -> None:
        program = ("import ray, time; ray.init(address='auto', log_to_driver=False)\n"
                   f"while sum(node['Alive'] for node in ray.nodes()) < {count}: time.sleep(.5)")
        for _ in range(30):
            done = subprocess.run(self.first.inside(sys.executable, "-c", program), env=self.first.environment,
                                  timeout=180, check=False, capture_output=True)
            if done.returncode == 0:
                return
            time.sleep(1)
        raise AssertionError(done.stderr.decode()[-2000:])


@contextmanager
def running(cpus: int = 1) -> Iterator[Hosts]:
    """Two hosts with a node of so many CPUs each."""
    place = Path(tempfile.mkdtemp(prefix="m-"))
    environment = token_environment(place) | {"PYTHONPATH": f"{ROOT}/platform:{ROOT}:{ROOT}/tests"}
    first, second = (Host(f"rf{place.name[-4:]}{number}", f"10.77.0.{number}", place / str(number), environment, cpus)
                     for number in (1, 2))
    environment["RAY_ADDRESS"] = f"{first.address}:{PORT}"
    environment.pop("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
    hosts = Hosts(first, second)
    try:
        first.boot()
        second.boot()
        hosts.connect()
        first.start_ray(first)
        time.sleep(5)
        second.start_ray(first)
        hosts.wait_for_nodes(2)
        yield hosts
    finally:
        for host in (first, second):
            host.kill()
        for job in hosts.jobs:
            job.kill()
            job.wait(30)
        shutil.rmtree(place, ignore_errors=True)
