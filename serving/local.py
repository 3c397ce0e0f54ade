"""The application on this machine's Ray: start it on loopback, ask it, time it, stop it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
from ray import serve

from recfuse.bundle.pointer import read_pointer
from recfuse.runtime.ray_compat import LOOPBACK
from recfuse.serving.app import build_app
from recfuse.serving.config import ServingConfig
from recfuse.serving.endpoints import MODELS, RANK_FUSION, RANK_SCENE, RECOMMEND
from recfuse.serving.starting import answering, is_ready


@dataclass(frozen=True)
class Latency:
    """Round trips of one endpoint, seen by one client over one connection.

    Attributes:
        endpoint: its path.
        milliseconds: of every request, after `WARM_UP` that were not timed.
    """

    endpoint: str
    milliseconds: tuple[float, ...]

    def percentile(self, share: float) -> float:
        """Milliseconds below which this share (0..100) of the requests stayed."""
        return float(np.percentile(self.milliseconds, share))


WARM_UP = 20
_READY_SECONDS = 60


@contextmanager
def running(served: ServingConfig | serve.Application, port: int = 0) -> Iterator[str]:
    """Serves a config's application, or another one, on loopback while the block runs; yields the base URL. Port 0
    takes a free one. Until the application is there the port answers 503 "starting"."""
    port = port or free_port()
    application = build_app(served) if isinstance(served, ServingConfig) else served
    try:
        with answering(LOOPBACK, port):
            serve.start(http_options={"host": LOOPBACK, "port": port})
            serve.run(application, name="recfuse", logging_config={"enable_access_log": False})
            if isinstance(served, ServingConfig):
                _wait_until_ready(port)
        yield f"http://{LOOPBACK}:{port}"
    finally:
        serve.shutdown()


def _wait_until_ready(port: int) -> None:
    """HAProxy hears of a replica a moment after Serve does."""
    deadline = time.monotonic() + _READY_SECONDS
    while not is_ready(LOOPBACK, port):
        if time.monotonic() > deadline:
            raise TimeoutError(f"no answer on port {port} {_READY_SECONDS} s after the replicas had started")
        time.sleep(0.05)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])


def example_request(models: str, candidates: int, seed: int) -> dict[str, Any]:
    """A recommend request of a known user for candidates of the catalogue."""
    pointer = read_pointer(models)
    catalogue = pointer.path(models, "catalogue")
    assert catalogue is not None
    item_ids = pq.read_table(catalogue, columns=["item_id"])["item_id"].to_numpy()
    rng = np.random.default_rng(seed)
    return {"user": {"user_id": int(rng.integers(100))},
            "candidates": {"item_id": rng.choice(item_ids, min(candidates, len(item_ids)), replace=False).tolist()}}


def measure(url: str, models: str, scene: str, *, requests: int = 200, candidates: int = 50) -> list[Latency]:
    """Times the three ranking endpoints with the requests that `example_request` makes.

    Raises:
        httpx.HTTPStatusError: an answer other than 2xx.
    """
    bodies = [example_request(models, candidates, seed) for seed in range(WARM_UP + requests)]
    with httpx.Client(base_url=url, timeout=30) as client:
        parameters = client.get(MODELS.path).raise_for_status().json()["fusion"]["fusion_parameters"]
        fusion = [_fusion_body(body, parameters, seed) for seed, body in enumerate(bodies)]
        return [
            _time(client, RANK_FUSION.path_of(stage="fine"), fusion),
            _time(client, RANK_SCENE.path_of(scene=scene), bodies),
            _time(client, RECOMMEND.path, [body | {"scene": scene, "stage": "fine", "top_n": 10} for body in bodies]),
        ]


def _fusion_body(body: dict[str, Any], parameters: list[str], seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    item_ids = body["candidates"]["item_id"]
    predictions = {name: rng.random(len(item_ids)).round(4).tolist() for name in parameters}
    return {"user_id": body["user"]["user_id"], "top_n": 10,
            "candidates": {"item_id": item_ids, "predictions": predictions}}


def _time(client: httpx.Client, path: str, bodies: list[dict[str, Any]]) -> Latency:
    seconds = []
    for body in bodies:
        begin = time.perf_counter()
        client.post(path, json=body).raise_for_status()
        seconds.append(time.perf_counter() - begin)
    return Latency(path, tuple(second * 1e3 for second in seconds[WARM_UP:]))
