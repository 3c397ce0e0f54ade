"""200,000 requests: what a replica holds in memory does not grow with what it has answered.

Our own code keeps no object, which is tested in process. A replica of a real Ray warms up for longer than that: for its
first 120,000 requests.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
from clusters import descendants

pytestmark = pytest.mark.load
REQUESTS, STEP, WARM_UP = int(os.environ.get("RECFUSE_TEST_REQUESTS", 200_000)), 10_000, 12
MOST_GROWTH = 1.0  # MiB per 100,000 requests


def resident(process: int) -> float:
    """MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def growth(steps: list[float]) -> float:
    """MiB per 100,000 requests, by least squares over what was resident after each step."""
    return float(np.polyfit(np.arange(len(steps)) * STEP / 100_000, steps, 1)[0])


def mixed(users: int) -> list[tuple[str, bytes]]:
    """Path and body: for each user 94 fusions, 4 feedbacks, a recommendation and a refusal."""
    from benchmarks.serving import ENDPOINTS, request_body

    items, requests = np.arange(1_000), []
    for number in range(users):
        user = {"user_id": number}
        fusion = {**request_body("fusion", items, 20), **user}
        recommend = {**request_body("recommend", items, 20), "user": user}
        feedback = [{"request_id": f"{number}-{k}", "feedback": {"like": 1.0}, **user, "items": [k]} for k in range(4)]
        requests += [*[(ENDPOINTS["fusion"], orjson.dumps({**fusion, "seed": k})) for k in range(94)],
                     *[("/v1/feedback", orjson.dumps(body)) for body in feedback],
                     (ENDPOINTS["recommend"], orjson.dumps(recommend)), (ENDPOINTS["recommend"], b"{}")]
    return requests


def test_no_object_is_kept(models: Path, tmp_path: Path, say: Callable[[str], None]) -> None:
    """The whole application in this process, without Ray: blocks of memory that Python holds."""
    from recfuse.serving.api import create_app
    from recfuse.serving.config import ServingConfig
    from recfuse.serving.gateway import Backends
    from recfuse.serving.meters import LocalMeters
    from recfuse.serving.replicas import FusionReplica, ScenesReplica

    meters = LocalMeters(lambda *_: None, lambda *_: None)
    config = ServingConfig(models=str(models), decision_log=str(tmp_path), fsync=False, poll_seconds=0)
    fusion, scenes = FusionReplica(config, meters), ScenesReplica(config, meters)
    application, requests = create_app(Backends(fusion, scenes), config), mixed(20)

    async def answer(path: str, body: bytes) -> None:
        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(_: object) -> None:
            return None
        headers = [(b"content-length", b"%d" % len(body))]
        await application({"type": "http", "method": "POST", "path": path, "headers": headers}, receive, send)

    async def load(count: int) -> int:
        for start in range(0, count, 8):
            await asyncio.gather(*[answer(*requests[(start + k) % len(requests)]) for k in range(8)])
        gc.collect()
        return sys.getallocatedblocks()

    async def both() -> tuple[int, int]:
        return await load(6_000), await load(12_000)

    before, after = asyncio.run(both())
    fusion.close()
    scenes.close()
    say(f"blocks of memory after 6,000 requests: {before}; after 12,000 more: {after}")
    assert after - before < 2_000


@pytest.mark.timeout(3_600)
def test_memory(models: Path, tmp_path: Path, say: Callable[[str], None]) -> None:
    from benchmarks.serving import started
    from benchmarks.serving_load import closed_loop, post

    (tmp_path / "models").symlink_to(models)
    with started("serve", tmp_path) as server:
        url = server.url
        requests = [post(url, path, body) for path, body in mixed(100)]
        replica, = [process for process, line in descendants(os.getpid()).items() if "ServeReplica:recfuse:" in line]
        steps: list[float] = []
        for step in range(WARM_UP + REQUESTS // STEP):
            load = closed_loop(url, requests, 8, 0.0, count=STEP)
            assert set(load.status.tolist()) == {200, 202, 422}
            if step >= WARM_UP - 1:
                steps.append(resident(replica))
                say(f"{(step + 1) * STEP:7d} requests: {steps[-1]:7.1f} MiB   {load}")
        measured = growth(steps)
    say(f"{measured:+.2f} MiB per 100,000 requests, after {WARM_UP * STEP} of warming up")
    assert measured < MOST_GROWTH


def test_growth_is_the_slope() -> None:
    """10 MiB more after every 10,000 requests are 100 MiB per 100,000."""
    assert growth([5.0, 15.0, 25.0, 35.0]) == pytest.approx(100.0)
