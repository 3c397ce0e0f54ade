"""Decisions and feedback on disk, before the client hears of them (and from there, serving.mover).

Each replica appends JSON lines to a file of its own, so that replicas never wait for each other. Requests that arrive
together share one synchronous write.

What a decision had to rank is the largest part of its row. Its predictions are a base64 string of half precision, in a
sixth of the bytes that their digits would take.
"""

from __future__ import annotations

import asyncio
import binascii
import fcntl
import logging
import os
import threading
import time
import uuid
from collections.abc import Awaitable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

logger = logging.getLogger("recfuse.serving")
SEGMENT_BYTES = 16 * 1024 * 1024
_ZEROS = bytes(1024 * 1024)
_HOLD_SECONDS, _PAUSE_SECONDS = 0.002, 0.05
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

    Rows go to the writing thread when the event loop has run all that was ready, at most `_HOLD_SECONDS` after the
    first: requests that arrive together share one write, and the thread does not contend with their computation for the
    interpreter. A segment is filled with zeros ahead of its use: a write then brings rows alone and no new size of the
    file. A segment that is done is cut to its rows; rows of one whose replica was killed end where zeros alone follow.

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
        self._segment, self._offset = 0, 0
        self._ahead = ThreadPoolExecutor(1, "decision-log-ahead")
        self._needed = threading.Event()
        self._file = self._open(0)
        self._next: Future[int] | None = None
        self._held: list[tuple[bytes, Waiter]] = []
        self._held_since = 0.0
        self._pending: list[tuple[bytes, Waiter]] = []
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._write_forever, name="decision-log", daemon=True)
        self._thread.start()

    def append(self, kind: str, row: dict[str, Any]) -> Awaitable[None]:
        """Hands the row on at once; what it returns is done when the row is durable.

        Raises:
            OSError: from the call or from what is awaited, where the row could not be written.
        """
        line = orjson.dumps({"kind": kind, **row}, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with self._wake:
            if self._closed:
                raise OSError("the decision log is closed")
            self._held.append((line, (loop, future)))
            if len(self._held) == 1:
                self._held_since = time.monotonic()
                loop.call_soon(self._hand_on)
            elif time.monotonic() - self._held_since > _HOLD_SECONDS:
                self._hand_on()
        return future

    def _hand_on(self) -> None:
        with self._wake:
            self._pending += self._held
            self._held.clear()
            self._wake.notify()

    def close(self) -> None:
        """Writes what is pending and closes the file."""
        with self._wake:
            if self._closed:
                return
            self._closed = True
            self._hand_on()
        self._thread.join(timeout=10.0)
        self._needed.set()
        self._finish_segment()
        self._ahead.shutdown()
        if self._next is not None and self._next.exception() is None:
            os.close(self._next.result())
            self._path(self._segment + 1).unlink()

    def _path(self, segment: int) -> Path:
        return self._directory / f"{self._replica}-{segment:05d}.jsonl"

    def _size(self, segment: int) -> int:
        # The first ones are small, so that a start is quick.
        return min(self._segment_bytes, len(_ZEROS) << min(segment, 16))

    def _open(self, segment: int) -> int:
        # Durable when a write returns: one call, after which the thread waits for the interpreter once.
        durable = os.O_DSYNC if self._fsync else 0
        file = os.open(self._path(segment), os.O_CREAT | os.O_EXCL | os.O_WRONLY | durable, 0o640)
        try:
            # Until the file is closed this says that somebody writes here (serving.segments).
            fcntl.flock(file, fcntl.LOCK_EX)
            if self._fsync:
                self._reserve(segment)
        except OSError:
            os.close(file)
            raise
        return file

    def _reserve(self, segment: int) -> None:
        with open(self._path(segment), "r+b", buffering=0) as file:
            for start in range(0, self._size(segment), len(_ZEROS)):
                file.write(_ZEROS[: self._size(segment) - start])
                os.fsync(file)
                # Piece by piece, with room between for the rows that requests wait for.
                self._needed.wait(_PAUSE_SECONDS if segment else 0.0)
        directory = os.open(self._directory, os.O_RDONLY)  # The name of the file is to be durable too.
        os.fsync(directory)
        os.close(directory)

    def _finish_segment(self) -> None:
        os.ftruncate(self._file, self._offset)
        os.close(self._file)

    def _write_forever(self) -> None:
        while True:
            with self._wake:
                while not self._pending and not self._closed:
                    self._wake.wait()
                batch, self._pending = self._pending, []
                if not batch and self._closed:
                    return
            error = self._write(b"".join(line for line, _ in batch))
            _settle([waiter for _, waiter in batch], error)

    def _write(self, payload: bytes) -> OSError | None:
        try:
            size = self._size(self._segment)
            if self._offset and self._offset + len(payload) > size:
                self._rotate()
            elif self._next is None and 2 * self._offset > size:
                self._next = self._ahead.submit(self._open, self._segment + 1)
            view, place = memoryview(payload), self._offset
            while view:
                done = os.pwrite(self._file, view, place)
                view, place = view[done:], place + done
            self._offset = place
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
        self._finish_segment()
        self._file, self._offset, self._segment = file, 0, self._segment + 1


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
