"""Five times more clients than a replica takes: the others hear so at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from .conftest import seconds

pytestmark = [pytest.mark.load, pytest.mark.usefixtures("local_ray")]
LIMIT = 8


def test_overload(models: Path, tmp_path: Path, say: Callable[[str], None]) -> None:
    from benchmarks.serving import PARAMETERS
    from serving.config import ServingConfig
    from serving.local import running

    body = {"user_id": 7, "candidates": {"item_id": list(range(100)),
                                         "predictions": {name: [0.1] * 100 for name in PARAMETERS}}}
    answers: list[tuple[int, float, str | None]] = []

    def ask(url: str, until: float, patient: bool) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while time.monotonic() < until:
                begin = time.monotonic()
                response = client.post("/v1/fusion/fine/rank", json=body)
                answers.append((response.status_code, time.monotonic() - begin, response.headers.get("retry-after")))
                if response.status_code == 503 and patient:
                    time.sleep(0.05)

    def load(url: str, clients: int) -> list[tuple[int, float, str | None]]:
        answers.clear()
        until = time.monotonic() + seconds(10)
        threads = [threading.Thread(target=ask, args=(url, until, True)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return list(answers)

    config = ServingConfig(models=str(models), decision_log=str(tmp_path), max_concurrent=LIMIT)
    with running(config) as url:
        load(url, 1)
        full = np.array([took for _, took, _ in load(url, LIMIT)])
        crowded = load(url, 5 * LIMIT)
        assert httpx.get(f"{url}/healthz").status_code == 200
    admitted = np.array([took for status, took, _ in crowded if status == 200])
    refused = np.array([took for status, took, _ in crowded if status == 503])
    assert {status for status, _, _ in crowded} == {200, 503}
    assert all(retry == "1" for status, _, retry in crowded if status == 503)
    for name, times in (("full", full), ("admitted", admitted), ("refused", refused)):
        p50, p99 = np.percentile(times, [50, 99]) * 1e3
        say(f"{name}: {len(times)} requests, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
