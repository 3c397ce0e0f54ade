"""What is stored of users can be read: feedback is checked against both models, counted once, and overrides nothing."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from recfuse.serving.api import create_app
from recfuse.serving.config import ServingConfig
from recfuse.serving.gateway import Backends
from recfuse.serving.replicas import FusionReplica, ScenesReplica
from recfuse.state.clock import clock_features
from recfuse.state.remembered import RememberedUsers, ReopenedUsers
from recfuse.state.store import UnreadableFileError, UserState, UserStateError, UserStateStore

from .test_api import (
    FEEDBACK,
    FEEDBACK_BODY,
    FUSION,
    FUSION_BODY,
    RECOMMEND,
    RECOMMEND_BODY,
    SCENES,
    SCENES_BODY,
    with_,
)

STATELESS = with_(FUSION_BODY, state=None, user_id=7, explore=False)


@pytest.mark.parametrize(("features", "field"), [
    ({"city": 3}, "features.city"),  # the scorer's
    ({"age": "old"}, "features.age"),  # the policy's
    ({"age": 1e300}, "features.age"),
    ({"age": 2**62, "city": 1}, "features.city"),
    *(({name: "4"}, f"features.{name}") for name in ("scene", "stage", "hour", "weekday", "user_id", "history")),
])
def test_feedback_that_a_model_could_not_read_later_is_refused(
    application: Any, features: dict[str, Any], field: str
) -> None:
    answer = application.post(FEEDBACK, {**FEEDBACK_BODY, "user_id": 7, "features": features})
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field)
    assert application.users.get("7") == UserState(features={"age": 50}, history=(1, 2))
    for path, body in ((FUSION, STATELESS), (SCENES, SCENES_BODY), (RECOMMEND, RECOMMEND_BODY)):
        assert application.post(path, body).status_code == 200


@pytest.mark.parametrize("features", [{"age": "old"}, {"city": 3}, {"age": [1]}])
def test_a_stored_value_that_cannot_be_read_costs_nobody_an_answer(application: Any, features: dict[str, Any]) -> None:
    with sqlite3.connect(next(application.log_directory.parent.rglob("users.sqlite"))) as other:
        other.execute("UPDATE users SET features = ? WHERE user_id = '7'", (json.dumps(features),))
    assert application.post(SCENES, SCENES_BODY).status_code == 200
    answer = application.post(RECOMMEND, RECOMMEND_BODY)
    assert (answer.status_code, answer.json()["state_source"]) == (200, "degraded")
    assert application.post(FUSION, {**STATELESS, "context": {"age": 3}}).json()["state_source"] == "context"


def test_the_same_event_counts_once_in_a_history(application: Any) -> None:
    body = {**FEEDBACK_BODY, "user_id": "new", "items": [11, 12]}
    for _ in range(3):
        assert application.post(FEEDBACK, {**body, "event_id": "e1"}).json()["state_source"] == "store"
    assert application.users.get("new").history == (11, 12)
    application.post(FEEDBACK, {**body, "event_id": "e2", "items": [13]})
    application.post(FEEDBACK, {**body, "event_id": "e1", "request_id": "another", "items": [14]})
    assert application.users.get("new").history == (11, 12, 13, 14)
    for _ in range(2):  # without an id, equal bodies are one event
        application.post(FEEDBACK, {**body, "items": [15]})
    assert application.users.get("new").history == (11, 12, 13, 14, 15)


def test_a_history_is_as_long_as_the_scorer_reads(application: Any) -> None:
    application.scorer.history_length = 80
    application.post(FEEDBACK, {**FEEDBACK_BODY, "user_id": "new", "items": list(range(100))})
    assert application.users.get("new").history == tuple(range(20, 100))


def test_a_stored_feature_is_not_what_the_request_says(application: Any) -> None:
    def mean(path: str, body: dict[str, Any]) -> Any:
        return application.post(path, {**body, "explore": False}).json()["mu"]

    before = mean(RECOMMEND, RECOMMEND_BODY), mean(FUSION, {**STATELESS, "scene": "feed"})
    application.users.record("7", features={"scene": "shop", "hour": 99, "stage": "mix", "user_id": 1, "history": "x"})
    assert (mean(RECOMMEND, RECOMMEND_BODY), mean(FUSION, {**STATELESS, "scene": "feed"})) == before
    application.post(SCENES, SCENES_BODY)
    assert application.scorer.seen[-1][1] == {"user_id": 7, "age": 50, "history": [1, 2], **clock_features()}
    assert mean(RECOMMEND, {**RECOMMEND_BODY, "scene": "shop"}) != before[0]


def test_the_clock_speaks_where_the_client_does_not(start: Callable[..., Any]) -> None:
    application = start(time_zone="Asia/Shanghai")
    application.post(SCENES, SCENES_BODY)
    assert application.scorer.seen[-1][1].items() >= clock_features("Asia/Shanghai").items()
    application.post(SCENES, with_(SCENES_BODY, user={"user_id": 7, "hour": 3}))
    assert application.scorer.seen[-1][1]["hour"] == 3


class Stuck:
    """A store that answers when it is let."""

    def __init__(self) -> None:
        self.free, self.asked = threading.Event(), 0

    def get(self, user_id: str) -> UserState | None:
        self.asked += 1
        self.free.wait(10)
        return UserState(features={"age": 1})

    def record(self, user_id: str, *_: Any, **__: Any) -> bool:
        self.free.wait(10)
        return True

    def close(self) -> None:
        return None


def test_a_store_that_hangs_holds_up_nobody() -> None:
    store = Stuck()
    users = RememberedUsers(store, read_seconds=0.05, write_seconds=0.05)

    async def ask() -> list[str]:
        begin, ticks = time.monotonic(), 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.005)
                ticks += 1

        ticking = asyncio.create_task(tick())
        sources = [(await users.get("7")).source for _ in range(50)]
        sources.append(await users.record("7", [1], None, event="e", history_size=0))
        assert time.monotonic() - begin < 5.0
        assert ticks > 5, "the event loop goes on"
        ticking.cancel()
        store.free.set()
        await asyncio.sleep(0.2)
        return [*sources, (await users.get("7")).source]

    sources = asyncio.run(ask())
    assert sources == ["degraded"] * 51 + ["store"]
    assert store.asked < 10, "nobody waits while all threads are stuck"


@pytest.mark.parametrize("trouble", ["slow", "locked"])
def test_a_near_store_is_read_by_the_loop_while_that_is_quick(tmp_path: Path, trouble: str) -> None:
    readers: list[str] = []

    class Noted(UserStateStore):
        troubled = False

        def get(self, user_id: str) -> UserState | None:
            readers.append(threading.current_thread().name.partition("_")[0])
            return super().get(user_id)

        def get_at_once(self, user_id: str) -> UserState | None:
            readers.append(threading.current_thread().name)
            if self.troubled and trouble == "locked":
                raise UserStateError("database is locked")
            time.sleep(0.05 * self.troubled)
            return super().get_at_once(user_id)

    store = Noted(tmp_path / "users.sqlite")
    store.put_many([("7", UserState(features={"age": 1}))])
    users = RememberedUsers(ReopenedUsers(lambda: store))

    async def ask() -> None:
        assert (await users.get("7")).state.features == {"age": 1}
        store.troubled = True
        for _ in range(3):
            assert (await users.get("7")).state.features == {"age": 1}

    asyncio.run(ask())
    store.close()
    assert readers == ["MainThread", "MainThread", *["users-read"] * (2 + (trouble == "locked"))]


def test_a_store_that_cannot_be_opened_is_opened_later(tmp_path: Path) -> None:
    path = tmp_path / "users.sqlite"
    path.write_bytes(b"damaged" * 1_000)
    users = ReopenedUsers(lambda: UserStateStore(path), retry_seconds=0.0)
    with pytest.raises(UserStateError):
        users.get("7")
    path.unlink()
    assert users.get("7") is None
    assert users.record("7", [1])
    users.close()


def test_replicas_start_and_answer_with_a_damaged_store(models: Path, tmp_path: Path) -> None:
    (models / "users.sqlite").write_bytes(b"damaged" * 1_000)
    for name in ("users.sqlite-wal", "users.sqlite-shm"):
        (models / name).unlink(missing_ok=True)
    with pytest.raises(UnreadableFileError):
        UserStateStore(models / "users.sqlite")
    config = ServingConfig(models=str(models), decision_log=str(tmp_path / "log"), poll_seconds=0)
    fusion, scenes = FusionReplica(config), ScenesReplica(config)

    async def ask() -> Any:
        transport = httpx.ASGITransport(app=create_app(Backends(fusion, scenes), config))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.post(FUSION, json=STATELESS), await client.get("/readyz")]

    try:
        answer, ready = asyncio.run(ask())
        assert (answer.status_code, answer.json()["state_source"]) == (200, "degraded")
        assert (ready.status_code, ready.json()["status"], ready.json()["session_table"]) == (200, "ready", None)
    finally:
        fusion.close()
        scenes.close()
