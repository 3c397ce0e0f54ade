"""The simulator's persons as HTTP clients of a server that runs: requests, feedback, sessions, returns.

A person's session goes on in simulated time: what the server ranked is shown, the simulator answers, the answer goes
back as feedback, and the person leaves, stays or comes back days later. All persons who are due ask at once over
connections that are kept; the simulator answers for them in one call of numpy.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

import msgpack
import numpy as np
import orjson
from numpy.typing import NDArray

from recfuse.fusion.policies import FixedGaussian
from recfuse.simulation.sessions import DAY, SessionEngine, Sessions
from recfuse.simulation.uniform import mix
from recfuse.simulation.world import World

STAGE = "fine"
_READ = 1 << 16
_PATIENCE, _PAUSE = 600.0, 0.05  # seconds until a request that is not answered ends all, and before it is sent again
_MOST = 1_024  # persons who ask at once


@dataclass(eq=False)
class _Line:
    """A connection that is kept, and what is under way on it."""

    socket: socket.socket
    place: int = -1
    answer: bytearray = field(default_factory=bytearray)


class Connections:
    """Many requests at once over few connections; one that is refused for want of room, or cut off, is sent again.

    Attributes:
        sent, again: requests that were answered, and how often one was sent once more. seconds: that answers took.
    """

    def __init__(self, url: str, count: int) -> None:
        parts = urlsplit(url)
        self._address, self._count = (str(parts.hostname), int(parts.port or 80)), count
        self._idle: list[_Line] = []
        self._selector = selectors.DefaultSelector()
        self.sent, self.again, self.seconds = 0, 0, 0.0

    def ask(self, requests: Sequence[bytes]) -> list[bytes]:
        """Answers' bodies, in the order of the requests.

        Raises:
            RuntimeError: the server refuses a request, or has not answered one for ten minutes.
        """
        answers: list[bytes] = [b""] * len(requests)
        waiting, busy = list(range(len(requests) - 1, -1, -1)), set[_Line]()
        begin = heard = time.monotonic()
        while waiting or busy:
            while waiting and len(busy) < self._count:
                line = self._take()
                if line is None:
                    time.sleep(_PAUSE)
                    break
                line.place = waiting.pop()
                busy.add(line)
                if not self._send(line, requests[line.place]):
                    self._lose(line, busy, waiting)
            for key, _ in self._selector.select(.5):
                line = key.data
                if line not in busy:  # The server has closed what nobody needs just now.
                    self._idle.remove(line)
                    self._close(line)
                    continue
                status, body = self._receive(line)
                if status is None:
                    continue
                if status in (200, 202):
                    answers[line.place], heard = body, time.monotonic()
                    busy.discard(line)
                    self._idle.append(line)
                elif status in (0, 404, 500, 502, 503, 504):  # HAProxy says 404 while no replica is there.
                    self._lose(line, busy, waiting)
                else:
                    raise RuntimeError(f"the server answers {status}: {body[:500]!r}")
            if time.monotonic() - heard > _PATIENCE:
                raise RuntimeError(f"no answer for {_PATIENCE:.0f} s; {len(waiting) + len(busy)} requests wait")
        self.sent += len(requests)
        self.seconds += time.monotonic() - begin
        return answers

    def close(self) -> None:
        """Closes what is kept."""
        for line in self._idle:
            line.socket.close()
        self._selector.close()

    def _take(self) -> _Line | None:
        if self._idle:
            return self._idle.pop()
        try:
            opened = socket.create_connection(self._address, 5)
        except OSError:
            return None
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line = _Line(opened)
        self._selector.register(opened, selectors.EVENT_READ, line)
        return line

    @staticmethod
    def _send(line: _Line, request: bytes) -> bool:
        try:
            line.socket.sendall(request)
        except OSError:
            return False
        return True

    def _lose(self, line: _Line, busy: set[_Line], waiting: list[int]) -> None:
        """Closes a connection, and lets its request wait."""
        self._close(line)
        busy.discard(line)
        waiting.append(line.place)
        self.again += 1
        time.sleep(_PAUSE)

    def _close(self, line: _Line) -> None:
        self._selector.unregister(line.socket)
        line.socket.close()

    @staticmethod
    def _receive(line: _Line) -> tuple[int | None, bytes]:
        """Status and body of an answer that is whole; None while it is not, 0 where the connection broke."""
        try:
            part = line.socket.recv(_READ)
        except OSError:
            part = b""
        if not part:
            return 0, b""
        line.answer += part
        end = line.answer.find(b"\r\n\r\n")
        if end < 0:
            return None, b""
        head = bytes(line.answer[:end]).lower()
        place = head.find(b"\r\ncontent-length: ")
        length = int(head[place + 18:].split(b"\r\n", 1)[0]) if place >= 0 else 0
        if len(line.answer) < end + 4 + length:
            return None, b""
        body = bytes(line.answer[end + 4:])
        line.answer.clear()
        return int(head[9:12]), body


def user_ids(world: World, persons: NDArray[np.int64]) -> list[str]:
    """Of persons: the first with a user's tastes has the user's id, the next ones `ID.1`, `ID.2`, …"""
    users, twins = world.user_ids[persons % world.users], persons // world.users
    return [f"{user}.{twin}" if twin else str(user) for user, twin in zip(users, twins, strict=True)]


def seeds(sessions: Sessions) -> NDArray[np.int64]:
    """What the policy's draw of every next request hangs on, as all of the person's luck does."""
    drawn: NDArray[np.int64] = (mix(sessions.key, sessions.request, 0x5EED) >> np.uint64(1)).astype(np.int64)
    return drawn


class Clients:
    """Persons who ask a server, and tell it what they did.

    Args:
        engine: answers for them. connections: to the server. start: simulated time of day 0, seconds since 1970.
    """

    def __init__(self, engine: SessionEngine, connections: Connections, start: float) -> None:
        self._engine, self._world, self._connections, self._start = engine, engine.world, connections, start
        self._head = "POST {} HTTP/1.1\r\nhost: loop\r\nx-request-id: {:.6f}\r\ncontent-type: {}\r\naccept: {}\r\n"
        self._request_ids: list[str] = []

    def rank(self, sessions: Sessions) -> NDArray[np.int64]:
        """Asks for a page for each of the sessions; int64[B, page], places among what is offered."""
        engine, world = self._engine, self._world
        offset, seen = engine.offered(sessions)
        items = world.item_ids[world.item[sessions.entry[:, None], engine.places_in_pool(offset)]].astype("<i8")
        predictions = engine.predictions(sessions.entry, offset).astype("<f8")
        states = engine.observe(sessions)[:, :world.vocabulary.context_size].astype("<f8")
        times = self._start + sessions.clock * DAY
        names, path = world.vocabulary.fusion_parameters, f"/v1/fusion/{STAGE}/rank"
        who, drawn = user_ids(world, sessions.person), seeds(sessions)
        requests = []
        for row in range(len(who)):
            body = msgpack.packb({
                "user_id": who[row], "state": states[row].tobytes(), "scene": world.scenes[self._scene(sessions, row)],
                "session_id": f"{who[row]}-{sessions.number[row]}", "explore": True, "top_n": world.config.page,
                "seed": int(drawn[row]), "candidates": {
                    "item_id": items[row].tobytes(), "seen": seen[row].tolist() if seen[row].any() else None,
                    "predictions": {name: column.tobytes() for name, column in
                                    zip(names, predictions[row], strict=True)}}})
            requests.append(self._post(path, times[row], body, "application/msgpack"))
        answers = [msgpack.unpackb(answer) for answer in self._connections.ask(requests)]
        self._request_ids = [answer["request_id"] for answer in answers]
        shown = np.array([[item["item_id"] for item in answer["items"]] for answer in answers])
        places: NDArray[np.int64] = (items[:, None, :] == shown[:, :, None]).argmax(2)
        return places

    def tell(self, sessions: Sessions, feedback: NDArray[np.float32], last: NDArray[np.bool_]) -> None:
        """Says what came of the pages that were asked for last."""
        names = self._world.vocabulary.behaviour_names
        columns = feedback[:, self._world.columns(names)].astype(np.float64).tolist()
        times = self._start + sessions.clock * DAY
        self._connections.ask([self._post("/v1/feedback", times[row], orjson.dumps({
            "request_id": request_id, "feedback": dict(zip(names, columns[row], strict=True)),
            "session_end": bool(last[row])}), "application/json") for row, request_id in enumerate(self._request_ids)])

    def _scene(self, sessions: Sessions, row: int) -> int:
        return int(self._world.entry_scene[sessions.entry[row]])

    def _post(self, path: str, at: float, body: bytes, kind: str) -> bytes:
        return f"{self._head.format(path, at, kind, kind)}content-length: {len(body)}\r\n\r\n".encode() + body


def draws(sessions: Sessions, size: int) -> NDArray[np.float32]:
    """float32[B, size], what a server draws of a standard normal distribution by the seeds of these requests."""
    return np.stack([np.random.default_rng(seed).standard_normal((1, size), np.float32)[0]
                     for seed in seeds(sessions).tolist()])


def ranked(engine: SessionEngine, sessions: Sessions, action: NDArray[np.float32]) -> NDArray[np.int64]:
    """int64[B, page], places among what is offered, fused by `action` [B, M]."""
    offset, seen = engine.offered(sessions)
    scores = engine.scores(sessions.entry, offset, seen, action)
    places: NDArray[np.int64] = np.argsort(-scores, axis=1, kind="stable")[:, :engine.config.page]
    return places


class Server(Protocol):
    """Who ranks for persons, and is told what they did."""

    def rank(self, sessions: Sessions) -> NDArray[np.int64]:
        """A page for each of the sessions."""
        ...

    def tell(self, sessions: Sessions, feedback: NDArray[np.float32], last: NDArray[np.bool_]) -> None:
        """What came of the pages that were asked for last, as the sessions stand after them."""
        ...


class Local:
    """One policy that serves for ever, in this process."""

    def __init__(self, engine: SessionEngine, policy: FixedGaussian) -> None:
        self._engine, self._policy = engine, policy

    def rank(self, sessions: Sessions) -> NDArray[np.int64]:
        """As `Clients.rank`."""
        policy = self._policy
        return ranked(self._engine, sessions, policy.mu + policy.sigma * draws(sessions, len(policy.mu)))

    def tell(self, sessions: Sessions, feedback: NDArray[np.float32], last: NDArray[np.bool_]) -> None:
        """Nobody listens."""


class Life:
    """Persons who live on.

    Args:
        width: days of a piece of time. pieces: so many, the last of which has no end.

    Attributes:
        brought: float64[pieces, F + 1], what all persons brought in each, then how many requests they made.
    """

    def __init__(self, engine: SessionEngine, persons: int, width: float, pieces: int) -> None:
        self._engine, self._width = engine, width
        everyone = np.arange(persons)
        self._sessions = engine.first(everyone % engine.world.users, everyone)
        self.brought = np.zeros((pieces, len(engine.world.feedback) + 1))

    def until(self, day: float, server: Server, before_each: Callable[[], None] | None = None) -> None:
        """Everybody's requests before this day.

        Args:
            server: ranks and is told.
            before_each: called before each round of requests.
        """
        while len(due := np.flatnonzero(self._sessions.clock < day)):
            for first in range(0, len(due), _MOST):
                if before_each is not None:
                    before_each()
                self._ask(due[first:first + _MOST], server)

    def _ask(self, who: NDArray[np.intp], server: Server) -> None:
        some = self._sessions.take(who)
        piece = np.minimum((some.clock / self._width).astype(np.int64), len(self.brought) - 1)
        page = self._engine.show(some, server.rank(some))
        last = page.left | page.cut
        server.tell(some, page.feedback, last)
        np.add.at(self.brought, piece, np.column_stack([page.feedback, np.ones(len(who))]))
        over = np.flatnonzero(last)
        if len(over):
            some.put(over, self._engine.next(some.take(over)))
        self._sessions.put(who, some)
