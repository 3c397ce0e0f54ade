"""Parts of a request, each as it is and as it was, call by call in turn: no server, no network.

Columns of numbers from JSON into arrays, and by the decoder of all other fields. Entries of an answer's ten items as
ready JSON, and of an arrow table. A user's state read in the event loop, and by a thread. A decision's row written by
the loop, and by the log's thread; and its write past the page cache and through it.

Microseconds of the clock at the lower quartile and the 99th percentile. Where other programs run, the quartile moves
least; the disk's own figures move with whoever else writes.

    python -m benchmarks.serving_parts --calls 1000
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import orjson
import tyro
import uvloop

from benchmarks.serving import PARAMETERS, request_body
from recfuse.runtime.durable import DurableFile
from recfuse.serving import decision_log
from recfuse.serving.catalogue import Catalogue
from recfuse.serving.decision_log import DECISION, DecisionLog
from recfuse.serving.formats import Body, decode, encode
from recfuse.serving.schemas import FusionRequest
from recfuse.simulation.exposures import generate
from recfuse.state.remembered import RememberedUsers
from recfuse.state.store import UserState, UserStateStore

Call = Callable[[], Awaitable[Any]]
IDS, NUMBERS = ("candidates.item_id",), ("candidates.predictions", "state")


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Attributes:
        calls: of each side of each part.
    """

    calls: int = 1_000


def main(config: BenchmarkConfig) -> None:
    print(f"{'part':42}{'was p25':>9}{'p99':>9}{'is p25':>9}{'p99':>9}   was/is")
    with tempfile.TemporaryDirectory(dir=".") as directory, ExitStack() as stack:
        for part, (was, now) in sides(Path(directory), stack).items():
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                before, after = runner.run(in_turn(was, now, config.calls))
            figures = [np.percentile(times, share) for times in (before, after) for share in (25, 99)]
            print(f"{part:42}" + "".join(f"{figure:9.0f}" for figure in figures) +
                  f"{figures[0] / figures[2]:9.2f}", flush=True)


def sides(work: Path, stack: ExitStack) -> dict[str, tuple[Call, Call]]:
    """Part → as it was, as it is."""
    return {**{f"decode {count} candidates × 8, JSON": decoding(count) for count in (100, 1_000)},
            "10 entries into an answer": entries(), "state of a user": user(work, stack),
            "row until it is durable": row(work, stack), "write of 1,300 bytes": write(work, stack)}


async def in_turn(was: Call, now: Call, calls: int) -> tuple[list[float], list[float]]:
    """Microseconds of each call; the first tenth of the calls is not timed."""
    times: tuple[list[float], list[float]] = [], []
    for number in range(calls + calls // 10):
        for side, call in enumerate((was, now)):
            begin = time.perf_counter()
            await call()
            if number >= calls // 10:
                times[side].append((time.perf_counter() - begin) * 1e6)
    return times


def plain(act: Callable[[], Any]) -> Call:
    async def call() -> None:
        act()
    return call


def decoding(count: int) -> tuple[Call, Call]:
    body = Body(orjson.dumps(request_body("fusion", np.arange(5_000), count)))

    def arrays(*paths: Any) -> np.ndarray:
        predictions = decode(FusionRequest, body, *paths).candidates.predictions
        return np.array([np.asarray(predictions[name], np.float64) for name in PARAMETERS])

    assert (arrays() == arrays(IDS, NUMBERS)).all()
    return plain(arrays), plain(lambda: arrays(IDS, NUMBERS))


def entries() -> tuple[Call, Call]:
    catalogue = Catalogue(generate(seed=0, users=200, items=2_000, rows=20_000).items)
    rng = np.random.default_rng(0)

    def with_entries(of: Callable[[list[int]], Any]) -> Call:
        def answer() -> bytes:
            return encode({"items": of(rng.choice(len(catalogue), 10, replace=False).tolist())}, packed=False)
        return plain(answer)

    return with_entries(catalogue.entries), with_entries(catalogue.ready_entries)


def user(work: Path, stack: ExitStack) -> tuple[Call, Call]:
    store = stack.enter_context(UserStateStore(work / "users.sqlite"))
    store.put_many([("7", UserState(features={f"f{k}": 0.1 * k for k in range(61)}, history=tuple(range(20))))])
    now, was = RememberedUsers(store), RememberedUsers(store)
    was._near = None
    return lambda: was.get("7"), lambda: now.get("7")


def row(work: Path, stack: ExitStack) -> tuple[Call, Call]:
    log = stack.enter_context(closing(DecisionLog(work / "log")))
    rng = np.random.default_rng(0)
    content = {"request_id": "r" * 32, "user_id": "7", "ts": 1.0, "state": rng.random(64, np.float32),
               **{name: rng.random(8) for name in ("mu", "sigma", "action")}}

    def appended(quick_seconds: float) -> Call:
        async def call() -> None:
            with mock.patch.object(decision_log, "_QUICK_SECONDS", quick_seconds):
                log._slow_until = time.monotonic() + 60.0 if quick_seconds == 0 else 0.0
                await log.append(DECISION, content)
        return call

    return appended(0.0), appended(60.0)


def write(work: Path, stack: ExitStack) -> tuple[Call, Call]:
    def opened(name: str, flag: int) -> DurableFile:
        with mock.patch("os.O_DIRECT", flag):  # A flag of 0 leaves the page cache in between.
            file = DurableFile(work / name, 4 << 20, True, threading.Event(), False)
        if not flag:
            file._buffer = None
        stack.callback(file.finish)
        return file

    files, payload = (opened("cached", 0), opened("direct", os.O_DIRECT)), b"x" * 1_300
    was, now = (plain(lambda file=file: file.append(payload)) for file in files)
    return was, now


if __name__ == "__main__":
    main(tyro.cli(BenchmarkConfig, description=__doc__))
