"""Load on an HTTP server from one thread over raw sockets, light enough to share the machine with the server.

An open loop sends at moments fixed beforehand and counts a request's time from the moment it should have been sent, so
that a server which stalls does not slow the asking down and thereby hide it (coordinated omission). A closed loop sends
over each connection when its last answer is there.
"""

from __future__ import annotations

import heapq
import selectors
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

_READ = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a load brought, one entry a request in each array.

    Attributes:
        status: of the answer; 0 where the connection broke or no answer came.
        milliseconds: until the last byte of the answer: in an open loop from the intended moment, in a closed one from
            the sending.
        since_sent: milliseconds from the sending in either loop: without what the generator itself was late.
        waits: the number in Retry-After, −1 without one.
        seconds: how long the load went on.
        cpu_seconds: of this process meanwhile: what asking itself took of the machine.
        late_ms: in an open loop, the 99th percentile of what the generator itself was late.
    """

    status: np.ndarray
    milliseconds: np.ndarray
    since_sent: np.ndarray
    waits: np.ndarray
    seconds: float
    cpu_seconds: float
    late_ms: float = 0.0

    def percentiles(self, status: int | None = None) -> tuple[float, float, float]:
        """p50, p95, p99 in milliseconds, of all answers or of those with this status."""
        times = self.milliseconds if status is None else self.milliseconds[self.status == status]
        p50, p95, p99 = np.percentile(times, [50, 95, 99]) if len(times) else [np.nan] * 3
        return float(p50), float(p95), float(p99)

    def rate(self, status: int | None = None) -> float:
        """Answers per second, of all or of those with this status."""
        count = len(self.status) if status is None else int((self.status == status).sum())
        return count / self.seconds

    def __str__(self) -> str:
        p50, p95, p99 = self.percentiles()
        return f"{self.rate():.0f} requests/s, p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms"


def post(url: str, path: str, body: bytes, content_type: str = "application/json", **headers: str) -> bytes:
    """A request ready to be sent; `accept="…"` adds a header."""
    more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = (f"POST {path} HTTP/1.1\r\nhost: {urlsplit(url).netloc}\r\ncontent-type: {content_type}\r\n"
            f"content-length: {len(body)}\r\n{more}\r\n")
    return head.encode() + body


def closed_loop(url: str, requests: Sequence[bytes], connections: int, seconds: float, *, count: int = 0,
                pause: float = 0.0) -> Load:
    """Each connection asks again when it has its answer.

    Args:
        url: of the server.
        requests: from `post`, sent in turn.
        connections: how many ask at a time.
        seconds: how long; in the end what is under way is waited for.
        count: ends after so many requests instead, where it is > 0.
        pause: seconds between a connection's answer and its next request.
    """
    return _Generator(url, requests).run_closed(connections, seconds, count, pause)


def open_loop(url: str, requests: Sequence[bytes], rate: float, seconds: float, *, seed: int = 0,
              most_connections: int = 1_000) -> Load:
    """Requests at random moments (a Poisson process), whether or not answers come.

    Args:
        url: of the server.
        requests: from `post`, sent in turn.
        rate: per second.
        seconds: how long.
        seed: of the moments.
        most_connections: requests that find all of them busy wait, and their time runs.
    """
    rng = np.random.default_rng(seed)
    moments = np.cumsum(rng.exponential(1.0 / rate, int(rate * seconds)))
    return _Generator(url, requests).run_open(moments, most_connections)


@dataclass(eq=False)
class _Connection:
    socket: socket.socket
    begin: float = 0.0
    sent: float = 0.0
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    answer: bytes = b""
    length: int = 0  # of the whole answer, 0 while its head is not there


class _Generator:
    def __init__(self, url: str, requests: Sequence[bytes]) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname, parts.port)
        self._requests, self._sent = requests, 0
        self._selector = selectors.DefaultSelector()
        self._open: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._busy = 0
        self._results: list[tuple[int, float, float, int]] = []

    def run_closed(self, connections: int, seconds: float, count: int, pause: float) -> Load:
        begin, cpu = time.perf_counter(), time.process_time()
        end = begin + seconds
        due: list[float] = [begin] * connections
        while True:
            now = time.perf_counter()
            over = now >= end if count == 0 else self._sent >= count
            while due and due[0] <= now and not over:
                heapq.heappop(due)
                self._send(time.perf_counter())
                over = count > 0 and self._sent >= count
            if over and not self._busy:
                break
            before = len(self._results)
            self._wait(0.05 if not due else min(0.05, max(0.0, due[0] - now)), end + 30 if count == 0 else now + 30)
            now = time.perf_counter()
            for _ in range(len(self._results) - before):
                heapq.heappush(due, now + pause)
        return self._finish(begin, cpu, [0.0])

    def run_open(self, moments: np.ndarray, most_connections: int) -> Load:
        begin, cpu = time.perf_counter(), time.process_time()
        intended = (begin + moments).tolist()
        place, late = 0, []
        while place < len(intended) or self._busy:
            now = time.perf_counter()
            while place < len(intended) and intended[place] <= now and self._busy < most_connections:
                self._send(intended[place])
                late.append(now - intended[place])
                place += 1
            timeout = 0.05 if place == len(intended) else max(0.0, intended[place] - time.perf_counter())
            self._wait(min(0.05, timeout), intended[-1] + 30)
        return self._finish(begin, cpu, late)

    def _finish(self, begin: float, cpu: float, late: list[float]) -> Load:
        seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
        for connection in list(self._open):
            self._close(connection)
        self._selector.close()
        status, times, since_sent, waits = (np.array(column) for column in zip(*self._results, strict=True))
        return Load(status=status, milliseconds=times * 1e3, since_sent=since_sent * 1e3, waits=waits, seconds=seconds,
                    cpu_seconds=cpu, late_ms=float(np.percentile(late, 99)) * 1e3)

    def _send(self, begin: float) -> None:
        request = self._requests[self._sent % len(self._requests)]
        self._sent += 1
        self._busy += 1
        connection = self._idle.pop() if self._idle else self._connect()
        connection.begin, connection.sent = begin, time.perf_counter()
        connection.answer, connection.length = b"", 0
        connection.unsent = memoryview(request)
        self._push(connection)

    def _connect(self) -> _Connection:
        opened = socket.socket()
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.connect_ex(self._address)  # what is sent before the handshake ends waits for writability
        connection = _Connection(opened)
        self._open.add(connection)
        self._selector.register(opened, selectors.EVENT_READ, connection)
        return connection

    def _push(self, connection: _Connection) -> None:
        """Sends what the socket takes."""
        try:
            sent = connection.socket.send(connection.unsent)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            if error.errno not in (107, 115):  # not connected yet
                self._done(connection, 0, keep=False)
                return
            sent = 0
        waited = len(connection.unsent) > 0 and self._selector.get_key(connection.socket).events != selectors.EVENT_READ
        connection.unsent = connection.unsent[sent:]
        events = selectors.EVENT_READ | selectors.EVENT_WRITE if connection.unsent else selectors.EVENT_READ
        if waited or connection.unsent:
            self._selector.modify(connection.socket, events, connection)

    def _wait(self, timeout: float, give_up: float) -> None:
        for key, events in self._selector.select(timeout):
            connection: _Connection = key.data
            if events & selectors.EVENT_WRITE and connection.unsent:
                self._push(connection)
            if events & selectors.EVENT_READ and connection in self._open:
                self._pull(connection)
        if self._busy and time.perf_counter() > give_up:
            for connection in [each for each in self._open if each.begin]:
                self._done(connection, 0, keep=False)

    def _pull(self, connection: _Connection) -> None:
        try:
            part = connection.socket.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            part = b""
        if not part:
            if connection.begin:
                self._done(connection, 0, keep=False)
            else:
                self._idle.remove(connection)
                self._close(connection)
            return
        connection.answer = connection.answer + part if connection.answer else part
        if not connection.length:
            head = connection.answer.find(b"\r\n\r\n")
            if head < 0:
                return
            connection.length = head + 4 + _number(connection.answer[:head].lower(), b"\r\ncontent-length: ", 0)
        if len(connection.answer) >= connection.length:
            head = connection.answer[:connection.answer.find(b"\r\n\r\n")].lower()
            self._done(connection, int(connection.answer[9:12]), keep=b"\r\nconnection: close" not in head,
                       wait=_number(head, b"\r\nretry-after: ", -1))

    def _done(self, connection: _Connection, status: int, keep: bool, wait: int = -1) -> None:
        now = time.perf_counter()
        self._results.append((status, now - connection.begin, now - connection.sent, wait))
        self._busy -= 1
        connection.begin = 0.0
        if keep and not connection.unsent:
            self._idle.append(connection)
        else:
            self._close(connection)

    def _close(self, connection: _Connection) -> None:
        self._open.discard(connection)
        with suppress(KeyError):
            self._selector.unregister(connection.socket)
        connection.socket.close()


def _number(head: bytes, name: bytes, missing: int) -> int:
    place = head.find(name)
    if place < 0:
        return missing
    return int(head[place + len(name):].split(b"\r\n", 1)[0])
