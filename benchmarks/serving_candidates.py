"""What logging the candidates of a decision costs: bytes a request, and requests per second.

The application runs in this process, without network and without a disk's waiting, so that little else is measured.
Requests per second of CPU time, in short turns, and the median of each side; ratios are medians over the rounds.
`alone` logs decisions without candidates, `logged` with them, as is the default, and `read` has a policy that reads
candidate features too. Bytes are those of a decision's line in the log, and of its row in the session table.

    python -m benchmarks.serving_candidates --seconds 0.2 --rounds 21
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import orjson
import tyro

from benchmarks.serving import ENDPOINTS, PARAMETERS, encoded, request_body, write_models
from benchmarks.serving_admission import measured
from recfuse.serving.api import create_app
from recfuse.serving.config import ServingConfig
from recfuse.serving.gateway import Backends
from recfuse.serving.mover import Mover, served_vocabulary
from recfuse.serving.replicas import FusionReplica, ScenesReplica

SIDES = ("alone", "logged", "read")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Attributes:
        seconds: of CPU time, of each measurement.
        rounds: each measurement is repeated, the sides in turn.
        endpoints: fusion, recommend.
        candidates: of a request.
        formats: of bodies: json, msgpack.
    """

    seconds: float = 0.2
    rounds: int = 21
    endpoints: tuple[str, ...] = ("fusion", "recommend")
    candidates: tuple[int, ...] = (50, 200, 1_000)
    formats: tuple[str, ...] = ("json", "msgpack")


def main(config: BenchmarkConfig) -> None:
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        work = Path(directory)
        items = write_models(work / "models")
        write_models(work / "wide", page=10)
        sides = {side: stack.enter_context(application(side, work)) for side in SIDES}
        for endpoint in config.endpoints:
            for count in config.candidates:
                for name in config.formats:
                    body = encoded(request_body(endpoint, items, count), name)
                    rates = alternated(sides, ENDPOINTS[endpoint], body, name, config)
                    report(f"{endpoint:10}{count:6}{name:>8}", rates)
        for count in config.candidates:
            body = orjson.dumps(request_body("fusion", items, count))
            sizes = {side: bytes_of(side, work, body) for side in SIDES[:2]}
            print(f"{count} candidates x {len(PARAMETERS)} predictions, bytes a decision: " + ", ".join(
                f"{side} {line:.0f} in the log, {row:.0f} in the table" for side, (line, row) in sizes.items()))


@contextlib.contextmanager
def application(side: str, work: Path, log: str = "") -> Iterator[Any]:
    """A side with a decision log of its own."""
    models = work / ("wide" if side == "read" else "models")
    config = ServingConfig(models=str(models), decision_log=str(work / (log or side)), fsync=False, poll_seconds=0,
                           log_candidates=side != "alone")
    fusion, scenes = FusionReplica(config), ScenesReplica(config)
    try:
        yield create_app(Backends(fusion, scenes), config)
    finally:
        fusion.close()
        scenes.close()


def alternated(sides: dict[str, Any], path: str, body: bytes, name: str,
               config: BenchmarkConfig) -> dict[str, list[float]]:
    """Side → requests per second of CPU time, a number a round."""
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(config.rounds):
        for side, served in sides.items():
            rates[side].append(asyncio.run(measured(served, path, body, config.seconds, f"application/{name}")))
    return rates


def report(what: str, rates: dict[str, list[float]]) -> None:
    alone = rates["alone"]
    print(what + "".join(f"{side:>9} {median(each):6.0f}/s" + (
        "" if side == "alone" else f" {median(a / b for a, b in zip(each, alone, strict=True)):.3f}")
        for side, each in rates.items()), flush=True)


def bytes_of(side: str, work: Path, body: bytes, requests: int = 400) -> tuple[float, float]:
    """A decision in the log and in the table, each of other predictions."""
    log, rng, asked = f"log-{side}-{len(body)}", np.random.default_rng(0), orjson.loads(body)

    async def ask(served: Any) -> None:
        for _ in range(requests):
            candidates = asked["candidates"]
            columns = {key: rng.beta(1, 8, len(column)) for key, column in candidates["predictions"].items()}
            sent = {**asked, "candidates": {**candidates, "predictions": columns}}
            await answered(served, orjson.dumps(sent, option=orjson.OPT_SERIALIZE_NUMPY))

    with application(side, work, log) as served:
        asyncio.run(ask(served))
    lines = sum(path.stat().st_size for path in (work / log).glob("*.jsonl"))
    Mover(work / log, work / f"{log}-table", served_vocabulary(work / "models")).move(now=4e9)
    table = sum(path.stat().st_size for path in (work / f"{log}-table" / "sessions").glob("*.parquet"))
    return lines / requests, table / requests


async def answered(served: Any, body: bytes) -> None:
    """One fusion request."""
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        assert message.get("status", 200) == 200, message

    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await served({"type": "http", "method": "POST", "path": ENDPOINTS["fusion"], "root_path": "", "headers": headers},
                 receive, send)


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
