"""Redis dies, hangs and comes back while requests arrive: all are answered, and each says what its state came from."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import orjson
import pytest

from .conftest import seconds

redis = pytest.importorskip("redis", reason="the package redis is not installed")
pytestmark = pytest.mark.load
RATE = 100.0  # requests per second


@contextmanager
def redis_server(directory: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Starts a Redis on a socket in this directory; called again, after a death, with the same data."""
    processes: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(directory / "redis.sock"), "--dir", str(directory),
             "--appendonly", "yes", "--appendfsync", "always"], stdout=subprocess.DEVNULL))
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                redis.Redis(unix_socket_path=str(directory / "redis.sock")).ping()
                return processes[-1]
            except redis.RedisError:
                time.sleep(0.02)
        raise AssertionError("redis-server did not start")

    try:
        yield start
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Watcher:
    """Asks all the time and notes where the state of each answer came from."""

    def __init__(self, url: str, body: bytes) -> None:
        self.seen: list[tuple[float, str]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(url, body))
        self._thread.start()

    def _watch(self, url: str, body: bytes) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not self._stop.wait(0.02):
                answer = client.post("/v1/fusion/fine/rank", content=body)
                source = answer.json()["state_source"] if answer.status_code == 200 else str(answer.status_code)
                self.seen.append((time.monotonic(), source))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def between(self, begin: float, end: float) -> Counter[str]:
        return Counter(source for moment, source in self.seen if begin <= moment < end)

    def first(self, source: str, since: float) -> float:
        """Seconds from then to the first answer with this source."""
        return next(moment - since for moment, seen in self.seen if moment >= since and seen == source)


def test_redis_stops_under_load(models: Path, tmp_path: Path, say: Callable[[str], None]) -> None:
    from benchmarks.serving import ENDPOINTS, request_body, started
    from benchmarks.serving_load import Load, open_loop, post
    from recfuse.state.redis import RedisUserStates
    from recfuse.state.store import UserState

    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed")
    (tmp_path / "models").symlink_to(models)
    address, long = f"unix://{tmp_path}/redis.sock", seconds(10)
    body = orjson.dumps(request_body("fusion", np.arange(1_000), 100))  # of user 7, without a state
    with redis_server(tmp_path) as start:
        process = start()
        users = RedisUserStates(address, timeout_seconds=2.0)
        users.put_many([("7", UserState(features={"f0": 1.0}, history=(1, 2)))])
        users.close()
        with started("serve", tmp_path, users=address) as server:
            url = server.url
            requests = [post(url, ENDPOINTS["fusion"], body)]
            open_loop(url, requests, RATE, 1.0)
            watcher = Watcher(url, body)

            def phase(name: str, at_once: Callable[[], object]) -> tuple[float, float]:
                begin = time.monotonic()
                threading.Timer(1.0, at_once).start()
                load: Load = open_loop(url, requests, RATE, long)
                end = time.monotonic()
                p50, _, p99 = load.percentiles()
                say(f"{name}: {len(load.status)} requests, {int((load.status != 200).sum())} failed, p50 {p50:.1f} ms, "
                    f"p99 {p99:.1f} ms; state from {dict(watcher.between(begin + 1.0, end))}")
                assert set(load.status.tolist()) == {200}
                return begin + 1.0, end

            try:
                up = phase("Redis answers", lambda: None)
                killed = phase("Redis is killed", process.kill)
                restarted: list[subprocess.Popen[bytes]] = []
                back = phase("Redis is back", lambda: restarted.append(start()))
                hung = phase("Redis hangs", lambda: restarted[0].send_signal(signal.SIGSTOP))
                again = phase("Redis goes on", lambda: restarted[0].send_signal(signal.SIGCONT))
            finally:
                watcher.close()
    assert set(watcher.between(*up)) == {"store"}
    say(f"degraded {watcher.first('degraded', killed[0]):.2f} s after the kill, "
        f"from the store {watcher.first('store', back[0]):.2f} s after the start; "
        f"degraded {watcher.first('degraded', hung[0]):.2f} s after the stop, "
        f"from the store {watcher.first('store', again[0]):.2f} s after it went on")
    for begin, end in (killed, hung):
        assert set(watcher.between(begin + 2.0, end)) == {"degraded"}
    for begin, end in (back, again):
        assert set(watcher.between(begin + 4.0, end)) == {"store"}
