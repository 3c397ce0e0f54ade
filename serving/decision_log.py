"""Decisions and feedback on disk, before the client hears of them; and the way from there to a session log.

Each replica appends JSON lines to a file of its own, so that replicas never wait for each other. Requests that arrive
together share one write and one sync.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
import uuid
from collections.abc import Awaitable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from recfuse.behaviours import Vocabulary
from recfuse.bundle import BundleError, read_bundle
from recfuse.bundle.pointer import read_pointer
from recfuse.errors import InvalidFieldError
from recfuse.logs.schema import VOCABULARY_FILE, session_log_schema

logger = logging.getLogger("recfuse.serving")
SEGMENT_BYTES = 16 * 1024 * 1024
_ZEROS = bytes(1024 * 1024)
DECISION, FEEDBACK = "decision", "feedback"
Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]


class Appends(Protocol):
    """Takes rows of a decision log (DecisionLog)."""

    def append(self, kind: str, row: dict[str, Any]) -> Awaitable[None]: ...

    def close(self) -> None: ...


class DecisionLog:
    """Appends rows to this replica's segment files.

    Requests that arrive while the disk is busy share the next write and the next sync. A segment is filled with zeros
    ahead of its use: a sync then writes rows alone and no new size of the file, which takes about half the time. A
    segment that is done is cut to its rows; readers stop at the first zero of one whose replica was killed.

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
        self._file = self._open(0)
        self._next: Future[int] | None = None
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
            self._pending.append((line, (loop, future)))
            self._wake.notify()
        return future

    def close(self) -> None:
        """Writes what is pending and closes the file."""
        with self._wake:
            if self._closed:
                return
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout=10.0)
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
        file = os.open(self._path(segment), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640)
        if self._fsync:
            for start in range(0, self._size(segment), len(_ZEROS)):
                os.write(file, _ZEROS[: self._size(segment) - start])
            os.fsync(file)
            directory = os.open(self._directory, os.O_RDONLY)  # the name of the file is to be durable too
            os.fsync(directory)
            os.close(directory)
        return file

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
            if self._fsync:
                os.fdatasync(self._file)
            self._offset = place
        except OSError as error:
            logger.error("decision log: %s", error)
            return error
        return None

    def _rotate(self) -> None:
        following, self._next = self._next or self._ahead.submit(self._open, self._segment + 1), None
        try:
            file = following.result()
        except OSError:
            self._path(self._segment + 1).unlink(missing_ok=True)  # no room for it; the next write tries again
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


@dataclass(frozen=True)
class JoinAccount:
    """What became of the lines of a decision log.

    Attributes:
        decisions: distinct requests; written + open = decisions.
        written: requests in the session log.
        open: requests whose window for feedback has not passed yet.
        without_feedback: of those written, the ones that nobody answered (all behaviours 0).
        feedback: distinct feedback events; joined + late + orphan + waiting = feedback.
        joined: events added to a written request.
        late: events after the window of their request; kept in the log, not in the session log.
        orphan: events without a decision.
        waiting: events of open requests.
        duplicates: repeated decisions and events, ignored.
        torn: lines cut off by the death of a replica, before any client was answered.
        misfits: requests whose lists do not fit the vocabulary (another model wrote them).
    """

    decisions: int = 0
    written: int = 0
    open: int = 0
    without_feedback: int = 0
    feedback: int = 0
    joined: int = 0
    late: int = 0
    orphan: int = 0
    waiting: int = 0
    duplicates: int = 0
    torn: int = 0
    misfits: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:,}" for name, value in vars(self).items())


def export_session_log(directory: str | Path, output: str | Path, vocabulary: Vocabulary, *,
                       window_seconds: float = 3600.0, now: float | None = None) -> JoinAccount:
    """Joins feedback to decisions by request id and writes a native session log (DESIGN 3.1) for `jobs/ingest.py`.

    A request is written once its window for feedback has passed. Values of its events add up per behaviour; a behaviour
    that nobody reported is 0. Running it again writes the whole log again, in one file that replaces the former.

    Args:
        directory: of the decision log.
        output: directory of the session log; gets `serving.parquet` and `vocabulary.yaml`.
        window_seconds: feedback that comes later than this after its request is late.
        now: seconds since 1970; the clock where None.

    Raises:
        InvalidFieldError: the directory does not exist.
    """
    directory, output = Path(directory), Path(output)
    if not directory.is_dir():
        raise InvalidFieldError("decision_log", str(directory), "a directory that exists")
    joined = _Join(vocabulary, window_seconds, time.time() if now is None else now)
    for path in sorted(directory.glob("*.jsonl")):
        joined.read(path)
    table, account = joined.finish()
    output.mkdir(parents=True, exist_ok=True)
    temporary = output / f".serving-{uuid.uuid4().hex}"
    pq.write_table(table, temporary)
    os.replace(temporary, output / "serving.parquet")
    vocabulary.save(output / VOCABULARY_FILE)
    return account


def served_vocabulary(models: str | Path) -> Vocabulary:
    """The vocabulary of the fusion bundle that a models directory points to.

    Raises:
        InvalidFieldError: there is none that can be read.
    """
    try:
        path = read_pointer(models).path(models, "fusion")
        if path is None:
            raise BundleError("current.json: fusion is null")
        return Vocabulary.from_dict(read_bundle(path, kind="fusion").manifest["vocabulary"])
    except BundleError as error:
        raise InvalidFieldError("models", str(models), f"a directory with a fusion bundle ({error})") from None


class _Join:
    def __init__(self, vocabulary: Vocabulary, window_seconds: float, now: float) -> None:
        self._vocabulary, self._window, self._now = vocabulary, window_seconds, now
        self._decisions: dict[str, dict[str, Any]] = {}
        self._events: dict[tuple[str, str], dict[str, Any]] = {}
        self._duplicates = self._torn = self._misfits = 0

    def read(self, path: Path) -> None:
        for row in self._lines(path):
            if row["kind"] == DECISION:
                self._keep(self._decisions, row["request_id"], row)
            else:
                self._keep(self._events, (row["request_id"], row["event_id"]), row)

    def _lines(self, path: Path) -> Iterator[dict[str, Any]]:
        with open(path, "rb") as file:
            for line in file:
                if line.startswith(b"\0"):
                    return  # space ahead of rows that never came
                try:
                    yield orjson.loads(line)
                except orjson.JSONDecodeError:
                    self._torn += 1

    def _keep(self, rows: dict[Any, dict[str, Any]], key: Any, row: dict[str, Any]) -> None:
        known = rows.get(key)
        if known is not None:
            self._duplicates += 1
        if known is None or row["ts"] < known["ts"]:
            rows[key] = row

    def finish(self) -> tuple[pa.Table, JoinAccount]:
        misfits = {key for key, row in self._decisions.items() if not self._fits(row)}
        closed = {key for key, row in self._decisions.items()
                  if key not in misfits and row["ts"] + self._window <= self._now}
        feedback = {key: dict.fromkeys(self._vocabulary.behaviour_names, 0.0) for key in closed}
        ended: set[str] = set()
        answered: set[str] = set()
        joined = late = orphan = waiting = 0
        for (key, _), event in self._events.items():
            if key not in self._decisions or key in misfits:
                orphan += 1
            elif event["ts"] > self._decisions[key]["ts"] + self._window:
                late += 1
            elif key not in closed:
                waiting += 1
            else:
                joined += 1
                answered.add(key)
                for name, value in event["feedback"].items():
                    if name in feedback[key]:
                        feedback[key][name] += value
                if event["session_end"]:
                    ended.add(key)
        rows = sorted((self._decisions[key] for key in closed), key=lambda row: (row["ts"], row["request_id"]))
        table = self._table(rows, feedback, ended)
        return table, JoinAccount(
            decisions=len(self._decisions), written=len(rows), open=len(self._decisions) - len(rows) - len(misfits),
            without_feedback=len(closed - answered), feedback=len(self._events), joined=joined, late=late,
            orphan=orphan, waiting=waiting, duplicates=self._duplicates, torn=self._torn, misfits=len(misfits))

    def _fits(self, row: dict[str, Any]) -> bool:
        vocabulary = self._vocabulary
        return len(row["state"]) == vocabulary.state_size and all(
            len(row[name]) == vocabulary.action_size for name in ("mu", "sigma", "action"))

    def _table(self, rows: list[dict[str, Any]], feedback: dict[str, dict[str, float]], ended: set[str]) -> pa.Table:
        schema = session_log_schema(self._vocabulary)
        columns: dict[str, pa.Array] = {}
        for field in schema:
            if field.name == "feedback":
                values: list[Any] = [feedback[row["request_id"]] for row in rows]
            elif field.name == "last":
                values = [row["request_id"] in ended for row in rows]
            elif field.name == "ts":
                values = (np.array([row["ts"] for row in rows], np.float64) * 1e6).round().astype(np.int64).tolist()
            else:
                values = [row[field.name] for row in rows]
            columns[field.name] = pa.array(values, field.type)
        return pa.table(columns, schema=schema)
