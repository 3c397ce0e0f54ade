"""Kills on a real cluster of three raylets: a worker process every 5 s for a minute, and once a whole raylet."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import clusters
import pytest
import samples as toy
import session_logs
from clusters import ROOT, LocalCluster, workers_of

from recfuse.bundle import newest_bundle

from .conftest import seconds

pytestmark = pytest.mark.chaos
EVERY = 5.0


@dataclass
class Killer:
    """Kills what the raylets run, until it is stopped.

    Attributes:
        raylet_at: seconds after which one worker node dies whole.
        killed: process ids of workers; raylets: of nodes.
    """

    cluster: LocalCluster
    duration: float
    raylet_at: float
    killed: list[int] = field(default_factory=list)
    raylets: list[int] = field(default_factory=list)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._run, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _run(self, stop: threading.Event) -> None:
        choose, begin = random.Random(1), time.monotonic()
        while not stop.wait(EVERY) and time.monotonic() - begin < self.duration:
            if not self.raylets and time.monotonic() - begin >= self.raylet_at:
                self.raylets.append(self.cluster.raylets[-1])
                os.kill(self.raylets[0], signal.SIGKILL)
                continue
            alive = [raylet for raylet in self.cluster.raylets if raylet not in self.raylets]
            busy = sorted(worker for raylet in alive for worker in workers_of(raylet))
            if busy:
                with suppress(ProcessLookupError):  # it ended by itself
                    self.killed.append(choose.choice(busy))
                    os.kill(self.killed[-1], signal.SIGKILL)


def job(cluster: LocalCluster, *arguments: str) -> str:
    """Runs a job's driver against the cluster; its output."""
    environment = cluster.environment | {"RAY_ADDRESS": cluster.gcs, "PYTHONPATH": "platform"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def account(samples: Path) -> dict:
    return json.loads((samples / "account.json").read_text())


def test_ingest_ends_with_the_same_samples(tmp_path: Path, say: Callable[[str], None]) -> None:
    rows = int(os.environ.get("RECFUSE_TEST_ROWS", 1_200_000))
    logs = session_logs.write_many(tmp_path / "logs", rows, files=24)
    with clusters.running() as cluster:
        begin = time.monotonic()
        job(cluster, "jobs/ingest.py", "--logs", str(logs), "--output", str(tmp_path / "calm"),
            "--quarantine-limit", "0.1")
        calm = time.monotonic() - begin
    with clusters.running() as cluster:
        killer = Killer(cluster, seconds(60), raylet_at=12)
        begin = time.monotonic()
        with killer.at_work():
            job(cluster, "jobs/ingest.py", "--logs", str(logs), "--output", str(tmp_path / "killed"),
                "--quarantine-limit", "0.1")
        say(f"ingest of {rows:,} rows: {calm:.0f} s undisturbed, {time.monotonic() - begin:.0f} s with "
            f"{len(killer.killed)} workers and {len(killer.raylets)} raylet killed")
    assert killer.killed
    assert killer.raylets
    undisturbed, disturbed = account(tmp_path / "calm"), account(tmp_path / "killed")
    assert disturbed["fingerprint"] == undisturbed["fingerprint"]
    assert disturbed["account"] == undisturbed["account"]
    assert disturbed["account"]["kept"] + disturbed["account"]["left_out"] == rows - rows // 10
    assert not list((tmp_path / "killed").rglob("_*")), "nothing half written is left"


def test_training_resumes_from_its_last_checkpoint(tmp_path: Path, say: Callable[[str], None]) -> None:
    samples = toy.write(tmp_path / "samples", toy.bandit(rows=120_000), files=4)
    arguments = ["jobs/train_fusion.py", "--samples", str(samples), "--learning.num-learners", "2",
                 "--learning.critics.iterations", "25", "--learning.critics.change-below", "0",
                 "--learning.critics.patience", "25"]
    with clusters.running() as cluster:
        begin = time.monotonic()
        job(cluster, *arguments, "--output", str(tmp_path / "calm"))
        calm = time.monotonic() - begin
    with clusters.running(cpus=2) as cluster:
        killer = Killer(cluster, seconds(60), raylet_at=25)
        begin = time.monotonic()
        with killer.at_work():
            printed = job(cluster, *arguments, "--output", str(tmp_path / "killed"))
        say(f"training: {calm:.0f} s undisturbed, {time.monotonic() - begin:.0f} s with {len(killer.killed)} workers "
            f"and {len(killer.raylets)} raylet killed, {printed.count('resuming:')} attempts cut off")
    assert killer.killed
    history = [[json.loads(line) for line in (tmp_path / name / "history.jsonl").read_text().splitlines()]
               for name in ("calm", "killed")]
    passes = [[(entry["phase"], entry["iteration"]) for entry in entries] for entries in history]
    assert passes[0] == passes[1], "every pass is there, and none twice"
    assert history[0] == history[1], "to the last bit"
    bundles = [newest_bundle(tmp_path / name, "fusion").name for name in ("calm", "killed")]
    assert bundles[0] == bundles[1], "the name is the hash of the content"
