"""The Redis store, against a real server of its own."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from recfuse.config import InvalidFieldError
from recfuse.serving import publish as serving
from recfuse.state.redis import RedisUserStates, is_redis_url
from recfuse.state.store import REMEMBERED_EVENTS, UserState, UserStateError

redis = pytest.importorskip("redis", reason="the package redis is not installed")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a Redis on a socket in the test's directory; called again, after a stop, with the same data."""
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(tmp_path / "redis.sock"), "--dir", str(tmp_path),
             "--appendonly", "yes", "--appendfsync", "always"], stdout=subprocess.DEVNULL)
        started.append(process)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                redis.Redis(unix_socket_path=str(tmp_path / "redis.sock")).ping()
                return process
            except redis.RedisError:
                time.sleep(0.02)
        raise AssertionError("redis-server did not start")

    yield start
    for process in started:
        process.kill()
        process.wait()


def store(tmp_path: Path, **options: float) -> RedisUserStates:
    return RedisUserStates(f"unix://{tmp_path}/redis.sock", timeout_seconds=2.0, **options)  # type: ignore[arg-type]


def test_states_come_back(tmp_path: Path, server: Callable[[], object]) -> None:
    server()
    users = store(tmp_path, history_size=3)
    assert users.get("7") is None
    state = UserState(features={"age": 50, "city": "a:b", "new": True, "none": None, "x": 0.1}, history=(1, 2, 3))
    assert users.put_many([("7", state), ("8", UserState(history=(9,)))]) == 2
    assert users.get("7") == state
    assert users.get("8") == UserState(history=(9,))
    users.record("7", items=[4, 5], features={"age": 51})
    found = users.get("7")
    assert found is not None
    assert (found.features["age"], found.features["city"], found.history) == (51, "a:b", (3, 4, 5))
    assert users.put_many([("7", UserState())]) == 1
    assert users.get("7") is None
    users.close()


def test_export_brings_users_up_to_date_but_for_later_feedback(tmp_path: Path, server: Callable[[], object]) -> None:
    """As with the SQLite file (tests/unit/serving/test_publish.py); no users are in the directory then."""
    server()
    url, models = f"unix://{tmp_path}/redis.sock", tmp_path / "models"

    def publish(time: float | None, **users: UserState) -> None:
        assert serving.publish(models, users=users, users_time=time, users_at=url).users is None

    publish(None, a=UserState(features={"age": "old", "gone": 1}, history=(1,)), b=UserState(features={"age": "old"}))
    users, before = store(tmp_path), time.time() - 1
    users.record("b", [5], {"age": "told"})
    new = UserState(features={"age": "new"})
    publish(before, a=new, b=new, c=UserState(history=(9,)))
    assert users.get("a") == UserState(features={"age": "new"}, history=(1,))
    assert users.get("b") == UserState(features={"age": "told"}, history=(5,)), "feedback came later"
    assert users.get("c") == UserState(history=(9,))
    publish(time.time() + 1, b=UserState(features={"age": "new"}, history=(7, 8)))
    assert users.get("b") == UserState(features={"age": "new"}, history=(7, 8))
    publish(None, b=UserState(features={"age": "newest"}))
    assert users.get("b").features == {"age": "new"}, "a table without a time is before all feedback"  # type: ignore[union-attr]
    redis.Redis(unix_socket_path=str(tmp_path / "redis.sock")).rpush("recfuse:d:told", "of another type")
    with pytest.raises(InvalidFieldError, match=r"users: got .*WRONGTYPE"):
        publish(None, d=UserState(features={"age": 1}, history=(1,)))


def test_export_without_its_redis_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidFieldError, match=r"users: got 'unix:.*; allowed: a Redis that answers"):
        serving.publish(tmp_path / "models", users={"a": UserState()}, users_at=f"unix://{tmp_path}/nowhere.sock")
    assert not (tmp_path / "models" / "current.json").exists()


def test_without_redis_users_are_unknown_and_it_recovers_by_itself(
    tmp_path: Path, server: Callable[[], subprocess.Popen[bytes]]
) -> None:
    process = server()
    users = store(tmp_path, retry_seconds=0.05)
    users.record("7", items=[1])
    process.kill()
    process.wait()
    with pytest.raises(UserStateError, match="does not answer"):
        users.get("7")
    begin = time.monotonic()
    for _ in range(100):
        with pytest.raises(UserStateError):  # lost, without waiting
            users.record("7", items=[2])
    assert time.monotonic() - begin < 20.0  # of 100 timeouts of 2 s
    assert users.failures == 101
    server()
    time.sleep(0.1)
    assert users.get("7") == UserState(history=(1,))


def test_an_event_counts_once_and_histories_keep_what_the_model_reads(
    tmp_path: Path, server: Callable[[], object]
) -> None:
    server()
    users = store(tmp_path, history_size=2)
    assert [users.record("7", [1], {"n": 1}, event="a") for _ in range(3)] == [True, False, False]
    assert users.record("7", [2, 3], event="b", history_size=3)
    assert users.get("7") == UserState(features={"n": 1}, history=(1, 2, 3))
    for number in range(300):
        users.record("8", event=str(number))
    assert redis.Redis(unix_socket_path=str(tmp_path / "redis.sock")).llen("recfuse:8:events") == REMEMBERED_EVENTS


def test_what_is_wrong_with_one_user_concerns_no_other(tmp_path: Path, server: Callable[[], object]) -> None:
    server()
    users, raw = store(tmp_path), redis.Redis(unix_socket_path=str(tmp_path / "redis.sock"))
    users.put_many([("7", UserState(features={"age": 50}))])
    raw.set("recfuse:type:features", "x")
    raw.hset("recfuse:json:features", "age", "{x")
    raw.hset("recfuse:bytes:features", b"\xff", b"\xfe")
    raw.rpush("recfuse:history:history", b"\xff")
    for name in ("type", "json", "bytes", "history"):
        with pytest.raises(UserStateError):
            users.get(name)
        assert users.get("7") == UserState(features={"age": 50})
    with pytest.raises(UserStateError, match="WRONGTYPE"):
        users.record("type", features={"age": 1})
    raw.config_set("maxmemory", 1)
    with pytest.raises(UserStateError, match=r"OOM|memory"):
        users.record("7", [1])
    assert users.get("7") == UserState(features={"age": 50})


def test_bad_values_are_refused_before_they_are_sent() -> None:
    users = RedisUserStates("redis://127.0.0.1:1")
    with pytest.raises(InvalidFieldError, match=r"features\.age"):
        users.record("7", features={"age": [1]})
    with pytest.raises(InvalidFieldError, match="finite"):
        users.record("7", features={"age": float("nan")})
    with pytest.raises(InvalidFieldError, match="redis://"):
        RedisUserStates("http://127.0.0.1")
    assert [is_redis_url(url) for url in ("rediss://x", "users.sqlite")] == [True, False]
