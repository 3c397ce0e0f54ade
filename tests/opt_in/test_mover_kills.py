"""The process that moves the decision log, killed again and again while a log grows: every row is moved once."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from deltalake import DeltaTable

from recfuse.bundle import read_bundle
from recfuse.bundle.pointer import read_pointer
from recfuse.serving.decision_log import DECISION, FEEDBACK, DecisionLog
from recfuse.serving.meters import NoMeters
from recfuse.serving.mover_process import MoverProcess

from .conftest import seconds

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1_200)]
EVERY, RATE = 10.0, 20.0  # seconds between kills; decisions a second, each with two events, one of them sent twice


async def log_rows(log: DecisionLog, models: Path, until: float) -> int:
    """Decisions, each with its feedback; returns how many."""
    fusion = read_pointer(models).path(models, "fusion")
    assert fusion is not None
    vocabulary = read_bundle(fusion).manifest["vocabulary"]
    state, parameters = [0.0] * vocabulary["state_size"], len(vocabulary["fusion_parameters"])
    behaviour, count = vocabulary["behaviours"][0]["name"], 0
    while time.monotonic() < until:
        key, now = f"r{count}", time.time()
        row = {"request_id": key, "ts": now, "user_id": "u", "session_id": None, "stage": "fine", "scene": "1",
               "model_version": fusion.name, "state": state, "mu": [0.0] * parameters, "sigma": [1.0] * parameters,
               "action": [0.0] * parameters, "action_logp": 0.0, "state_source": "store"}
        events = [{"request_id": key, "ts": now, "event_id": name, "feedback": {behaviour: 1.0}, "session_end": False}
                  for name in ("a", "b", "b")]
        await asyncio.gather(log.append(DECISION, row), *(log.append(FEEDBACK, event) for event in events))
        count += 1
        await asyncio.sleep(1 / RATE)
    return count


def test_kills(models: Path, tmp_path: Path, say: Callable[[str], None]) -> None:
    log, deaths, long = DecisionLog(tmp_path / "log", segment_bytes=200_000), [0], seconds(180)
    process = MoverProcess(str(tmp_path / "log"), str(tmp_path / "out"), str(models), 1.0, 0.2, NoMeters())

    async def run() -> int:
        until = time.monotonic() + long
        kills = asyncio.create_task(kill(until))
        count = await log_rows(log, models, until)
        await kills
        return count

    async def kill(until: float) -> None:
        while time.monotonic() + EVERY < until:
            await asyncio.sleep(EVERY)
            running = process._process
            if running is not None and running.poll() is None:
                os.kill(running.pid, signal.SIGKILL)
                deaths[0] += 1

    begin = time.monotonic()
    count = asyncio.run(run())
    log.close()
    try:
        deadline = time.monotonic() + 300
        while process.state.waiting_bytes or process.state.error or process.state.heard < time.time() - 5:
            assert time.monotonic() < deadline, process.state
            time.sleep(0.5)
    finally:
        process.close()
    sessions = DeltaTable(str(tmp_path / "out" / "sessions")).to_pyarrow_table().to_pylist()
    events = DeltaTable(str(tmp_path / "out" / "events")).to_pyarrow_table().to_pylist()
    keys = Counter(row["request_id"] for row in sessions)
    statuses = Counter(row["status"] for row in events)
    say(f"{deaths[0]} kills in {long:.0f} s, {process.state.failures} deaths seen; {count} decisions, "
        f"{len(sessions)} moved, {len(keys)} different; "
        f"events {dict(statuses)}; {time.monotonic() - begin:.0f} s in all")
    assert deaths[0] > 0
    assert set(keys) == {f"r{number}" for number in range(count)}
    assert set(keys.values()) == {1}
    assert {next(iter(row["feedback"].values())) for row in sessions} == {2.0}
    assert statuses == {"joined": 2 * count, "duplicate": count}
