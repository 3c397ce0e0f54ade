"""Decisions and feedback on disk, before the client hears of them (and from there, serving.mover).

Each replica appends JSON lines to a file of its own (recfuse.runtime.durable), so that replicas never wait for each
other. Requests that arrive together share one synchronous write.

What a decision had to rank is the largest part of its row. Its predictions are a base64 string of half precision, in a
sixth of the bytes that their digits would take.
"""

from __future__ import annotations

import asyncio
import binascii
import logging
import threading
import time
import uuid
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from recfuse.runtime.durable import DurableFile

logger = logging.getLogger("recfuse.serving")
SEGMENT_BYTES = 16 * 1024 * 1024
_FIRST_BYTES = 1024 * 1024
_HOLD_SECONDS = 0.002
# Beyond this mean of about so many writes the loop leaves the disk, or a busy CPU, to the thread for a while: ever
# longer where that comes again soon.
_QUICK_SECONDS, _RECENT_WRITES, _SLOW_SECONDS, _LONGEST_SECONDS = 0.0005, 16, 1.0, 32.0
DECISION, FEEDBACK = "decision", "feedback"
Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


@dataclass(frozen=True)
class Keeping:
    """How many candidates of a request its row keeps: all of `best + others` at most; of more, the `best` by their
    score, and `others` at random of the rest."""

    best: int
    others: int

    def fields(self, item_ids: Sequence[int | str], predictions: np.ndarray, seen: np.ndarray | None,
               ranked: np.ndarray, top_n: int | None, rng: np.random.Generator) -> dict[str, Any]:
        """The fields `candidates`, `candidates_total` and `shown` of a decision's row.

        Args:
            item_ids: N of them.
            predictions: [M, N], which half precision holds exactly.
            seen: bool[N]; None where nothing was seen.
            ranked: positions of all that could be shown, best first.
            top_n: so many of them were shown; None where all were. Places behind the `best` are not kept.
            rng: draws the rest.
        """
        total, shown = len(item_ids), ranked[:top_n]
        if total > self.best + self.others:
            kept = np.zeros(total, bool)
            kept[ranked[: self.best]] = True
            rest = np.flatnonzero(~kept)
            kept[rng.choice(rest, min(self.others, len(rest)), replace=False, shuffle=False)] = True
            places = np.flatnonzero(kept)
            # Where the kept ones stand among themselves.
            shown = (np.cumsum(kept) - 1)[shown[: self.best]]
            item_ids, predictions = [item_ids[place] for place in places.tolist()], predictions[:, places]
            seen = None if seen is None else seen[places]
        halves = predictions.astype("<f2").tobytes()
        candidates = {"item_ids": item_ids, "predictions": binascii.b2a_base64(halves, newline=False).decode(),
                      "seen": None if seen is None else np.flatnonzero(seen)}
        return {"candidates": candidates, "candidates_total": total, "shown": shown}


def packed_size(numbers: int) -> int:
    """Length of the string of so many predictions."""
    return 4 * (-(-2 * numbers // 3))


def unpacked(text: str) -> np.ndarray:
    """The predictions of a row, float16[M · N], one fusion parameter after the other."""
    return np.frombuffer(binascii.a2b_base64(text), "<f2")


class LogWriter(Protocol):
    """Takes rows of a decision log (DecisionLog)."""

    def append(self, kind: str, row: dict[str, Any]) -> Awaitable[None]: ...

    def close(self) -> None: ...


class DecisionLog:
    """LogWriter rows to this replica's segment files.

    A request that is alone has its row written within `append`: the event loop does not come back to it for that. Of
    requests that arrive together, which is expected where the loop's last pass brought several rows, the rows are
    written at once when the loop has run all that was ready, at most `_HOLD_SECONDS` after the first. While the disk is
    slow, or the next segment is not there yet, a thread writes, so that the loop computes meanwhile.

    A segment that is done is cut to its rows; rows of one whose replica was killed end where zeros alone follow.

    Args:
        directory: created where it is missing; shared by all replicas.
        fsync: wait for the disk, not only for the operating system.
        segment_bytes: a file is at most about so large.

    Raises:
        OSError: the directory cannot be written to.
    """

    def __init__(self, directory: str | Path, fsync: bool = True, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._directory, self._fsync, self._segment_bytes = Path(directory), fsync, segment_bytes
        self._directory.mkdir(parents=True, exist_ok=True)
        self._replica = uuid.uuid4().hex[:12]
        self._segment, self._needed = 0, threading.Event()
        self._ahead = ThreadPoolExecutor(1, "decision-log-ahead")
        self._file = self._open(0)
        self._next: Future[DurableFile] | None = None
        self._pass = _Pass(None)
        self._alone = False
        self._pending: list[tuple[bytes, Waiter]] = []
        self._thread_writes = self._closed = False
        self._write_seconds, self._slow_until, self._pause = 0.0, 0.0, _SLOW_SECONDS
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._write_forever, name="decision-log", daemon=True)
        self._thread.start()

    def append(self, kind: str, row: dict[str, Any]) -> Awaitable[None]:
        """Writes the row or hands it on; what it returns is done when the row is durable.

        Raises:
            OSError: from the call or from what is awaited, where the row could not be written.
        """
        line = orjson.dumps({"kind": kind, **row}, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._wake:
            if self._closed:
                raise OSError("the decision log is closed")
            first = self._pass.loop is not loop or self._pass.rows == 0
            if first:
                self._begin_pass(loop)
            self._pass.rows += 1
            if first and self._alone and self._is_quick(len(line)):
                if (error := self._write_here(line)) is not None:
                    raise error
                future.set_result(None)
                return future
            self._pass.held.append((line, (loop, future)))
            if time.monotonic() - self._pass.since > _HOLD_SECONDS:
                self._write_held()
        return future

    def _begin_pass(self, loop: asyncio.AbstractEventLoop) -> None:
        self._hand_on()  # What another loop has not come to.
        self._pass = _Pass(loop, time.monotonic())
        loop.call_soon(self._end_pass, self._pass)

    def _end_pass(self, ended: _Pass) -> None:
        """The loop has run all that was ready."""
        with self._wake:
            if ended is self._pass:
                self._alone = ended.rows <= 1
                self._write_held()
                ended.rows = 0

    def _write_held(self) -> None:
        held = self._pass.held
        payload = b"".join(line for line, _ in held)
        if held and self._is_quick(len(payload)):
            self._pass.held = []
            _finish([future for _, (_, future) in held], self._write_here(payload))
        else:
            self._hand_on()

    def _hand_on(self) -> None:
        self._pending += self._pass.held
        self._pass.held = []
        if self._pending:
            self._wake.notify()

    def _is_quick(self, size: int) -> bool:
        """Whether the event loop itself writes so many bytes: it is not to wait for a slow disk or a new segment."""
        waits = self._thread_writes or self._pending or time.monotonic() < self._slow_until
        return not waits and (self._fits(size) or (self._next is not None and self._next.done()))

    def _fits(self, size: int) -> bool:
        return self._file.offset == 0 or self._file.offset + size <= self._file.size

    def close(self) -> None:
        """Writes what is pending and closes the file."""
        with self._wake:
            if self._closed:
                return
            self._closed = True
            self._hand_on()
            self._wake.notify()
        self._thread.join(timeout=10.0)
        self._needed.set()
        self._file.finish()
        self._ahead.shutdown()
        if self._next is not None and self._next.exception() is None:
            self._next.result().discard()

    def _path(self, segment: int) -> Path:
        return self._directory / f"{self._replica}-{segment:05d}.jsonl"

    def _open(self, segment: int) -> DurableFile:
        # The first ones are small, so that a start is quick.
        size = min(self._segment_bytes, _FIRST_BYTES << min(segment, 16))
        return DurableFile(self._path(segment), size, self._fsync, self._needed, pauses=segment > 0)

    def _write_forever(self) -> None:
        while True:
            with self._wake:
                while not self._pending and not self._closed:
                    self._wake.wait()
                batch, self._pending = self._pending, []
                if not batch and self._closed:
                    return
                self._thread_writes = True
            error = self._write(b"".join(line for line, _ in batch))
            with self._wake:
                self._thread_writes = False
            _settle([waiter for _, waiter in batch], error)

    def _write_here(self, payload: bytes) -> OSError | None:
        """In the event loop, which keeps in mind how long that took."""
        begin = time.monotonic()
        error, now = self._write(payload), time.monotonic()
        self._write_seconds += (now - begin - self._write_seconds) / _RECENT_WRITES
        if self._write_seconds > _QUICK_SECONDS:
            soon = now - self._slow_until < self._pause
            self._pause = min(2 * self._pause, _LONGEST_SECONDS) if soon else _SLOW_SECONDS
            self._slow_until, self._write_seconds = now + self._pause, 0.0
        return error

    def _write(self, payload: bytes) -> OSError | None:
        """By one at a time: the loop, with the lock, or the thread while `_thread_writes` says so."""
        try:
            if not self._fits(len(payload)):
                self._rotate()
            elif self._next is None and 2 * self._file.offset > self._file.size:
                self._next = self._ahead.submit(self._open, self._segment + 1)
            self._file.append(payload)
        except OSError as error:
            logger.error("decision log: %s", error)
            return error
        return None

    def _rotate(self) -> None:
        self._needed.set()
        following, self._next = self._next or self._ahead.submit(self._open, self._segment + 1), None
        try:
            file = following.result()
            self._needed.clear()
        except OSError:
            # There is no room for it; the next write tries again.
            self._path(self._segment + 1).unlink(missing_ok=True)
            raise
        self._file.finish()
        self._file, self._segment = file, self._segment + 1


@dataclass(eq=False)
class _Pass:
    """What an event loop brings until it has run all that is ready.

    Attributes:
        since: monotonic seconds of the first row.
        rows: so many.
        held: those that are not handed on yet.
    """

    loop: asyncio.AbstractEventLoop | None
    since: float = 0.0
    rows: int = 0
    held: list[tuple[bytes, Waiter]] = field(default_factory=list)


def _settle(waiters: list[Waiter], error: OSError | None) -> None:
    """Wakes the waiting requests, one call into each event loop."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for loop, future in waiters:
        loops.setdefault(loop, []).append(future)
    for loop, futures in loops.items():
        try:
            loop.call_soon_threadsafe(_finish, futures, error)
        except RuntimeError:  # The loop has ended, and with it everybody who waited.
            logger.warning("decision log: %d rows written for a closed event loop", len(futures))


def _finish(futures: list[asyncio.Future[None]], error: OSError | None) -> None:
    for future in futures:
        if not future.done():
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)
