"""The decision log, and its way to a session log that ingest accepts."""

from __future__ import annotations

import asyncio
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from deltalake import DeltaTable

from recfuse.behaviours import Vocabulary
from recfuse.logs.reading import ReadingConfig, read_log
from recfuse.serving import decision_log
from recfuse.serving.decision_log import DECISION, DecisionLog
from recfuse.serving.mover import MoveAccount, Mover

STATE = np.array([0.1, 1, 0, 0], np.float32)
# log N((.3, .4); (.1, .2), 1): −½ (.04 + .04) − ln 2π.
LOGP = -.04 - math.log(2 * math.pi)


def decision(request_id: str, ts: float, **changes: Any) -> dict[str, Any]:
    return {"request_id": request_id, "ts": ts, "user_id": "u", "session_id": None, "stage": "fine", "scene": "feed",
            "state": STATE, "mu": [0.1, 0.2], "sigma": [1.0, 1.0], "action": [0.3, 0.4], "action_logp": LOGP,
            "model_version": "fusion-1", **changes}


def event(request_id: str, ts: float, event_id: str = "e", session_end: bool = False,
          **feedback: float) -> dict[str, Any]:
    return {"request_id": request_id, "ts": ts, "event_id": event_id, "feedback": feedback, "session_end": session_end}


def write(directory: Path, *rows: tuple[str, dict[str, Any]]) -> None:
    async def append() -> None:
        log = DecisionLog(directory)
        await asyncio.gather(*[log.append(kind, row) for kind, row in rows])
        log.close()

    asyncio.run(append())


def move(directory: Path, output: Path, vocabulary: Vocabulary, now: float = 1e6) -> MoveAccount:
    return Mover(directory, output, vocabulary).move(now)


def test_many_requests_share_writes_and_none_is_lost(tmp_path: Path, vocabulary: Vocabulary) -> None:
    async def append() -> None:
        log = DecisionLog(tmp_path, segment_bytes=50_000)
        for start in range(0, 2_000, 100):  # a hundred at a time: a segment takes one of these and not two
            await asyncio.gather(*[log.append(DECISION, decision(f"r{i}", float(i)))
                                   for i in range(start, start + 100)])
        log.close()

    asyncio.run(append())
    assert len(list(tmp_path.glob("*.jsonl"))) > 1
    account = move(tmp_path, tmp_path / "out", vocabulary)
    assert (account.written, account.torn) == (2_000, 0)


def test_what_is_ready_together_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "_HOLD_SECONDS", 60.0)
    writes: list[int] = []
    write = os.pwrite

    def counted(file: int, payload: memoryview, place: int) -> int:
        writes.append(len(payload))
        return write(file, payload, place)

    async def append() -> None:
        log = DecisionLog(tmp_path)
        monkeypatch.setattr(os, "pwrite", counted)
        for _ in range(3):
            await asyncio.gather(*[log.append(DECISION, decision(str(i), 1.0)) for i in range(20)])
        log.close()

    asyncio.run(append())
    assert len(writes) == 3


def test_the_row_of_a_request_that_is_alone_is_written_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "_QUICK_SECONDS", 60.0)

    async def append() -> list[bool]:
        log = DecisionLog(tmp_path)
        done = []
        for request_id in ("a", "b", "c"):
            written = asyncio.ensure_future(log.append(DECISION, decision(request_id, 1.0)))
            done.append(written.done() and b'"%s"' % request_id.encode() in next(tmp_path.iterdir()).read_bytes())
            await asyncio.sleep(0.01)
        log.close()
        return done

    assert asyncio.run(append())[1:] == [True, True]  # The first knows of no pass before it.


def test_a_slow_disk_is_waited_for_by_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writers: list[str] = []
    write = os.pwrite

    def slow(file: int, payload: memoryview, place: int) -> int:
        writers.append(threading.current_thread().name)
        time.sleep(0.1)
        return write(file, payload, place)

    async def append() -> None:
        log = DecisionLog(tmp_path)
        monkeypatch.setattr(os, "pwrite", slow)
        for request_id in ("a", "b", "c"):
            await log.append(DECISION, decision(request_id, 1.0))
        log.close()

    asyncio.run(append())
    assert writers == ["MainThread", "decision-log", "decision-log"]


def test_requests_of_several_loops_share_a_log(tmp_path: Path, vocabulary: Vocabulary) -> None:
    log = DecisionLog(tmp_path / "log", segment_bytes=8_000)

    async def append(first: int) -> None:
        for start in range(first, first + 60, 3):
            await asyncio.gather(*[log.append(DECISION, decision(f"r{i}", 1.0)) for i in range(start, start + 3)])
            await log.append(DECISION, decision(f"alone{start}", 1.0))

    threads = [threading.Thread(target=lambda first=first: asyncio.run(append(first))) for first in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    log.close()
    account = move(tmp_path / "log", tmp_path / "out", vocabulary)
    assert (account.written, account.duplicates, account.damaged, account.torn) == (3 * 80, 0, 0, 0)


def test_no_room_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    async def append() -> int:
        log = DecisionLog(tmp_path, segment_bytes=1_000)
        await log.append(DECISION, decision("a", 1.0, state=[0.0] * 200))  # the next row needs the next segment
        monkeypatch.setattr(os, "fsync", full)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with pytest.raises(OSError, match="No space left"):
                await log.append(DECISION, decision("b", 1.0, state=[0.0] * 200))
        after = len(os.listdir("/proc/self/fd"))
        monkeypatch.undo()
        await log.append(DECISION, decision("c", 1.0))
        log.close()
        return after - before

    assert asyncio.run(append()) == 0


def test_a_line_cut_by_the_death_of_a_replica_is_counted(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path, (DECISION, decision("a", 1.0)), (DECISION, decision("b", 2.0)))
    path = next(tmp_path.glob("*.jsonl"))
    path.write_bytes(path.read_bytes()[:-20])
    account = move(tmp_path, tmp_path / "out", vocabulary)
    assert (account.written, account.torn) == (1, 1)


@pytest.mark.parametrize("together", [1, 5])
def test_what_was_awaited_survives_the_kill_of_its_process(tmp_path: Path, vocabulary: Vocabulary,
                                                           together: int) -> None:
    script = """
import asyncio, os, signal, sys
from recfuse.serving.decision_log import DecisionLog
async def main():
    log = DecisionLog(sys.argv[1], segment_bytes=2_000)
    row = {"user_id": "u", "session_id": None, "stage": "fine", "scene": "feed", "state": [0, 0, 0, 0], "mu": [0, 0],
           "sigma": [1, 1], "action": [0, 0], "action_logp": 0.0, "model_version": "x"}
    async def one(i):
        await log.append("decision", {**row, "request_id": str(i), "ts": float(i)})
        print(i, flush=True)
    together = int(sys.argv[2])
    for i in range(0, 25, together):
        await asyncio.gather(*[one(i + k) for k in range(together)])
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), str(together)], capture_output=True, text=True,
                          timeout=60, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.stdout.split() == [str(i) for i in range(25)], done.stderr
    account = move(tmp_path, tmp_path / "out", vocabulary)
    assert (account.written, account.damaged, account.torn) == (25, 0, 0)


def test_a_full_disk_is_an_error_for_every_waiting_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    async def append() -> list[Any]:
        log = DecisionLog(tmp_path)
        monkeypatch.setattr(os, "pwrite", full)
        results = await asyncio.gather(*[log.append(DECISION, decision(str(i), 1.0)) for i in range(3)],
                                       return_exceptions=True)
        monkeypatch.undo()
        await log.append(DECISION, decision("later", 1.0))  # once there is room again, it goes on
        log.close()
        return results

    assert all("No space left" in str(result) for result in asyncio.run(append()))
    assert [orjson.loads(line)["request_id"] for path in tmp_path.glob("*.jsonl") for line in
            path.read_bytes().splitlines()] == ["later"]


def test_rows_stand_before_the_space_that_is_reserved_for_more(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """A replica that lives, or was killed, leaves zeros behind its rows; one that closes leaves none."""
    async def append() -> int:
        log = DecisionLog(tmp_path / "log", segment_bytes=1 << 20)
        await log.append(DECISION, decision("a", 1.0))
        account = move(tmp_path / "log", tmp_path / "out", vocabulary)
        assert (account.written, account.torn) == (1, 0)
        sizes = [path.stat().st_size for path in (tmp_path / "log").iterdir()]
        log.close()
        return max(sizes)

    assert asyncio.run(append()) == 1 << 20
    [only] = (tmp_path / "log").glob("*.jsonl")
    assert orjson.loads(only.read_bytes())["request_id"] == "a"


def test_answers_and_feedback_reach_the_session_log(application: Any, tmp_path: Path, vocabulary: Vocabulary) -> None:
    """Through HTTP: what the answer says stands in the log, with the feedback that named its request id."""
    body = {"user_id": 7, "scene": "shop", "session_id": "s", "seed": 3, "explore": True,
            "candidates": {"item_id": [1, 2], "predictions": {"click": [.1, .2], "long_view": [.3, .4]}}}
    answer = application.post("/v1/fusion/coarse/rank", body).json()
    feedback = {"request_id": answer["request_id"], "feedback": {"watch_time": 4.0}, "user_id": 7, "items": [9],
                "features": {"age": 51}, "session_end": True}
    for _ in range(2):  # a client's retry
        response = application.post("/v1/feedback", feedback)
        assert (response.status_code, response.json()["accepted"]) == (202, True)
    user = application.users.get("7")
    assert (user.features, user.history[:3]) == ({"age": 51}, (1, 2, 9))
    account = move(application.log_directory, tmp_path / "out", vocabulary, now=4e9)
    assert (account.written, account.joined, account.duplicates) == (1, 1, 1)
    [row] = DeltaTable(tmp_path / "out" / "sessions").to_pyarrow_table().to_pylist()
    assert (row["user_id"], row["stage"], row["scene"], row["session_id"]) == ("7", "coarse", "shop", "s")
    assert (row["feedback"], row["last"]) == ({"watch_time": 4.0, "like": 0.0}, True)
    for name in ("mu", "sigma", "action"):  # in the log in the vocabulary's order, in the answer by their names
        named = [answer[name][parameter] for parameter in vocabulary.fusion_parameters]
        np.testing.assert_array_equal(np.array(row[name], np.float32), np.array(named, np.float32))
    assert (row["action_logp"], row["model_version"]) == (answer["action_logp"], answer["model_version"])


def test_recommendations_are_decisions_too(start: Callable[..., Any], tmp_path: Path, vocabulary: Vocabulary) -> None:
    application = start()
    application.post("/v1/recommend", {"user": {"user_id": 7}, "scene": "feed", "candidates": {"item_id": [1, 2]}})
    application.post("/v1/scenes/feed/rank", {"user": {"user_id": 7}, "candidates": {"item_id": [1, 2]}})
    assert move(application.log_directory, tmp_path / "out", vocabulary, now=4e9).written == 1


def test_a_decision_says_whether_it_was_drawn_and_what_its_numbers_mean(
    start: Callable[..., Any], tmp_path: Path, vocabulary: Vocabulary
) -> None:
    application = start(explore=False)
    body = {"user_id": 7, "candidates": {"item_id": [1], "predictions": {"click": [.1], "long_view": [.3]}}}
    ranked = {"user": {"user_id": 7}, "candidates": {"item_id": [1]}, "scene": "feed", "explore": True}
    answers = [application.post(path, sent).json()["request_id"] for path, sent in [
        ("/v1/fusion/fine/rank", body), ("/v1/fusion/fine/rank", body | {"explore": True}), ("/v1/recommend", ranked)]]
    move(application.log_directory, tmp_path / "out", vocabulary, now=4e9)
    # The log ends while the user is there, so the last request would be left out otherwise.
    log = read_log(str(tmp_path / "out"), ReadingConfig(cut="bootstrap"))
    rows = {row["request_id"]: row for row in log.sessions.rows.to_pylist()}
    assert [rows[answer]["explored"] for answer in answers] == [False, True, True]
    assert [rows[answer]["scorer_version"] for answer in answers] == [None, None, "scenes-fake"]
    assert {row["vocabulary_hash"] for row in rows.values()} == {vocabulary.meaning}
    assert log.account.not_drawn == 1
