"""Replicas killed under load: a client that tries once more is answered, and what it saw stands in the log."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import orjson
import pytest

from .conftest import seconds

pytestmark = [pytest.mark.chaos, pytest.mark.usefixtures("local_ray")]
NAME = f"recfuse-kills-{os.getpid()}"


def replicas() -> list[int]:
    """Process ids of this test's replicas, by the title that Ray gives them."""
    processes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if f"ServeReplica:{NAME}:".encode() in path.read_bytes():
                processes.append(int(path.parent.name))
        except OSError:  # it has ended meanwhile
            continue
    return processes


def test_kills(models: Path, tmp_path: Path, say: Callable[[str], None]) -> None:
    from ray import serve

    from recfuse.serving.config import ServingConfig
    from recfuse.serving.deployments import ApplicationDeployment
    from recfuse.serving.local import free_port

    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    config = ServingConfig(models=str(models), decision_log=str(tmp_path)).absolute()
    serve.run(ApplicationDeployment.options(num_replicas=2, health_check_period_s=1).bind(config), name=NAME)
    body = {"user": {"user_id": 7}, "scene": "1", "candidates": {"item_id": [1, 2, 3]}}
    seen: list[str] = []
    retried, lost, kills = [0], [0], 0
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            while not stop.is_set():
                for attempt in range(2):
                    try:
                        response = client.post("/v1/recommend", json=body)
                    except httpx.HTTPError:
                        response = None
                    if response is not None and response.status_code == 200:
                        answer = response.json()
                        assert len(answer["items"]) == 3
                        seen.append(answer["request_id"])
                        break
                    (retried if attempt == 0 else lost)[0] += 1
                    time.sleep(0.5)

    try:
        clients = [threading.Thread(target=ask) for _ in range(4)]
        for client in clients:
            client.start()
        until = time.monotonic() + seconds(60)
        while time.monotonic() < until:
            time.sleep(10)
            both = replicas()
            if len(both) == 2:
                os.kill(both[kills % 2], signal.SIGKILL)
                kills += 1
        time.sleep(5)
        stop.set()
        for client in clients:
            client.join()
    finally:
        serve.shutdown()
    logged = {orjson.loads(line)["request_id"] for path in tmp_path.glob("*.jsonl")
              for line in path.read_bytes().splitlines() if line.endswith(b"}")}
    say(f"{kills} kills, {len(seen)} answered, {retried[0]} retried, {lost[0]} lost")
    assert kills > 0
    assert set(seen) <= logged
    assert lost[0] <= 0.001 * (len(seen) + lost[0])
