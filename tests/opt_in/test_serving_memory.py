"""200,000 requests: what a replica holds in memory does not grow with what it has answered."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson
import pytest
from clusters import descendants

pytestmark = pytest.mark.load
REQUESTS, STEP, WARM_UP = int(os.environ.get("RECFUSE_TEST_REQUESTS", 200_000)), 10_000, 4
MOST_GROWTH = 1.0  # MiB per 100,000 requests


def resident(process: int) -> float:
    """MiB."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def growth(steps: list[float]) -> float:
    """MiB per 100,000 requests, by least squares over what was resident after each step."""
    return float(np.polyfit(np.arange(len(steps)) * STEP / 100_000, steps, 1)[0])


@pytest.mark.timeout(3_600)
def test_memory(models: Path, tmp_path: Path, say: Callable[[str], None]) -> None:
    """Each hundred requests: 94 fusions, 4 feedbacks, a recommendation and a refusal, of many users and items."""
    from benchmarks.serving import ENDPOINTS, request_body, started
    from benchmarks.serving_load import closed_loop, post

    (tmp_path / "models").symlink_to(models)
    items = np.arange(1_000)

    def bodies(url: str, number: int) -> list[bytes]:
        user = {"user_id": number}
        fusion = {**request_body("fusion", items, 20), **user}
        recommend = {**request_body("recommend", items, 20), "user": user}
        feedback = [{"request_id": f"{number}-{k}", "feedback": {"like": 1.0}, **user, "items": [k]} for k in range(4)]
        return [*[post(url, ENDPOINTS["fusion"], orjson.dumps({**fusion, "seed": k})) for k in range(94)],
                *[post(url, "/v1/feedback", orjson.dumps(body)) for body in feedback],
                post(url, ENDPOINTS["recommend"], orjson.dumps(recommend)), post(url, ENDPOINTS["recommend"], b"{}")]

    with started("serve", tmp_path) as url:
        requests = [request for number in range(100) for request in bodies(url, number)]
        replica, = [process for process, line in descendants(os.getpid()).items() if "ServeReplica:recfuse:" in line]
        steps: list[float] = []
        for step in range(WARM_UP + REQUESTS // STEP):
            load = closed_loop(url, requests, 8, 0.0, count=STEP)
            assert set(load.status.tolist()) == {200, 202, 422}
            if step >= WARM_UP - 1:
                steps.append(resident(replica))
                say(f"{(step + 1) * STEP:7d} requests: {steps[-1]:7.1f} MiB   {load}")
        found = growth(steps)
    say(f"{found:+.2f} MiB per 100,000 requests, after {WARM_UP * STEP} of warming up")
    assert found < MOST_GROWTH


def test_growth_is_the_slope() -> None:
    """10 MiB more after every 10,000 requests are 100 MiB per 100,000."""
    assert growth([5.0, 15.0, 25.0, 35.0]) == pytest.approx(100.0)
