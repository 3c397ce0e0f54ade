"""What tokens and limits cost a request: Starlette's middleware against the same checks by hand.

The application runs in this process, without network and without a disk's waiting, so that little else is measured.
Requests per second of CPU time, in short turns, and the median of each side; the ratio is the median over the rounds.
`starlette` is the application as it is served; `by_hand` compares the token in a class of ours; `open` asks for none.

    python -m benchmarks.serving_admission --seconds 0.2 --rounds 41
"""

from __future__ import annotations

import asyncio
import hmac
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import orjson
import tyro
from starlette.types import ASGIApp, Receive, Scope, Send

from benchmarks.serving import ENDPOINTS, request_body, write_models
from recfuse.serving.api import create_app
from recfuse.serving.config import ServingConfig
from recfuse.serving.gateway import Backends
from recfuse.serving.replicas import FusionReplica, ScenesReplica

TOKEN = "token-of-the-benchmark"
AT_A_TIME = 8


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Attributes:
        seconds: of CPU time, of each measurement.
        rounds: each measurement is repeated, the sides in turn.
        candidates: of a request.
    """

    seconds: float = 0.2
    rounds: int = 41
    candidates: int = 20


class ByHand:
    """The least that a check of one token takes."""

    def __init__(self, application: ASGIApp) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != "/healthz":
            scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
            assert hmac.compare_digest(given.strip(), TOKEN.encode())
            assert scheme.lower() == b"bearer"
        await self._application(scope, receive, send)


def main(config: BenchmarkConfig) -> None:
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        items = write_models(work / "models")
        base = ServingConfig(models=str(work / "models"), decision_log=str(work / "log"), fsync=False, poll_seconds=0)
        fusion, scenes = FusionReplica(base), ScenesReplica(base)
        backends = Backends(fusion, scenes)
        bare = create_app(backends, base)
        sides = {"starlette": create_app(backends, base.replace(tokens=(TOKEN,))), "by_hand": ByHand(bare),
                 "open": bare}
        requests = {name: (ENDPOINTS[name], orjson.dumps(request_body(name, items, config.candidates)))
                    for name in ("fusion", "recommend")}
        requests["feedback"] = ("/v1/feedback", orjson.dumps({"request_id": "r", "feedback": {"like": 1.0}}))
        for name, (path, body) in requests.items():
            rates: dict[str, list[float]] = {side: [] for side in sides}
            for _ in range(config.rounds):
                for side, application in sides.items():
                    rates[side].append(asyncio.run(measured(application, path, body, config.seconds)))
            middle = {side: median(each) for side, each in rates.items()}
            ratio = median(a / b for a, b in zip(rates["starlette"], rates["by_hand"], strict=True))
            print(f"{name:10}" + "".join(f"{side:>10} {rate:7.0f}/s" for side, rate in middle.items()) +
                  f"   starlette / by_hand {ratio:.3f}", flush=True)
        fusion.close()
        scenes.close()


async def measured(application: Callable[..., Awaitable[None]], path: str, body: bytes, seconds: float,
                   content_type: str = "application/json") -> float:
    """Requests per second of this process's CPU time."""
    headers = [(b"host", b"localhost"), (b"user-agent", b"benchmark"), (b"accept", b"*/*"),
               (b"authorization", f"Bearer {TOKEN}".encode()), (b"content-type", content_type.encode()),
               (b"content-length", b"%d" % len(body))]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        assert message.get("status", 200) in (200, 202), message

    async def ask() -> None:
        await application({"type": "http", "method": "POST", "path": path, "root_path": "", "headers": headers},
                          receive, send)

    begin, count = time.process_time(), 0
    while (spent := time.process_time() - begin) < seconds:
        await asyncio.gather(*[ask() for _ in range(AT_A_TIME)])
        count += AT_A_TIME
    return count / spent


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
