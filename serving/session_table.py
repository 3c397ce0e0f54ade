"""From the decision log to the session-log table: decisions joined with their feedback, moved exactly once.

A pass reads each segment from where the last one ended. A decision is moved when its window for feedback has passed,
with every event that named its request id until then, to the Delta table `sessions`; each event follows a little later
to the table `events`, with what became of it. Before a commit the new places go to `moving.json`; the commit carries
the same number as a Delta transaction. So after a death in between the table itself says whether the commit took place,
and nothing is moved twice or left out. Many machines may write to the same tables.

Run as a module it moves for the replicas of one machine, in a process of its own, until its standard input ends.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import yaml

from recfuse.behaviours import Vocabulary
from recfuse.bundle import BundleError, read_bundle
from recfuse.bundle.pointer import read_pointer
from recfuse.config import InvalidFieldError, require
from recfuse.logs.schema import VOCABULARY_FILE, session_log_schema
from serving.decision_log import DECISION
from serving.logs import log_as_json
from serving.meters import Meters

logger = logging.getLogger("recfuse.serving")
SESSIONS, EVENTS, STATE = "sessions", "events", "moving.json"
_LOCK = ".moving.lock"
_MARGIN = 60.0  # seconds by which events follow decisions, more than clocks of one machine ever disagree
_DECISION_LINE = b'{"kind":"decision"'
_LOOK_BACK = 7 * 86_400.0
_COMPACT_EVERY = 50  # commits
Status = Literal["joined", "late", "orphan", "duplicate", "misfit"]
_PLURAL: dict[str, str] = {"misfit": "misfits", "duplicate": "duplicates"}
_EVENT_SCHEMA = pa.schema([
    pa.field("request_id", pa.string()), pa.field("event_id", pa.string()), pa.field("ts", pa.timestamp("us", "UTC")),
    pa.field("status", pa.string()), pa.field("row", pa.string()),
])
Places = dict[str, int]


@dataclass
class MoveAccount:
    """What became of the rows of a decision log; counts of one pass, or of several added up.

    Attributes:
        written: decisions moved to `sessions`.
        without_feedback: of those, the ones that nobody answered (all behaviours 0).
        joined: events that belong to a moved decision.
        late: events after the window of their request.
        orphan: events without a decision.
        duplicates: repeated decisions and events.
        misfits: decisions whose lists do not fit the table's vocabulary (another model wrote them). Like late, orphan
            and repeated events they are kept in `events`, with the whole row.
        torn: lines cut off by the death of a replica, before any client was answered.
        waiting_bytes: of rows that are not moved yet, after the last pass.
        oldest: seconds since 1970 of the oldest of them, None where there is none.
    """

    written: int = 0
    without_feedback: int = 0
    joined: int = 0
    late: int = 0
    orphan: int = 0
    duplicates: int = 0
    misfits: int = 0
    torn: int = 0
    waiting_bytes: int = 0
    oldest: float | None = None


@dataclass(frozen=True)
class _Line:
    """One line of a segment: from `begin` to `end`; no row where it is torn."""

    file: str
    begin: int
    end: int
    row: dict[str, Any] | None


@dataclass
class _Progress:
    """Of one table: its last commit and the places in the segments before and after it."""

    version: int = 0
    before: Places = field(default_factory=dict)
    after: Places = field(default_factory=dict)


class Mover:
    """Moves one decision log.

    Args:
        directory: of the decision log.
        output: directory or URL of the tables, whose vocabulary lies beside them; the first pass writes it.
        vocabulary: of the model that serves; the table's own counts where there is one.
        window_seconds: feedback that comes later than this after its request is late.
        keep_seconds: how long a moved segment stays.

    Raises:
        InvalidFieldError: the directory does not exist, or another mover works in it.
    """

    def __init__(self, directory: str | Path, output: str | Path, vocabulary: Vocabulary, *,
                 window_seconds: float = 3600.0, keep_seconds: float = 86_400.0) -> None:
        self._directory, self._output = Path(directory), str(output).rstrip("/")
        require(self._directory.is_dir(), "decision_log", str(directory), "a directory that exists")
        self._window, self._keep = window_seconds, keep_seconds
        self._vocabulary = _table_vocabulary(self._output, vocabulary)
        self._app, self._progress = self._load()

    def move(self, now: float | None = None) -> MoveAccount:
        """One pass; `now` (seconds since 1970) is the clock's where None."""
        now = time.time() if now is None else now
        account, lines = MoveAccount(), self._lines(now - self._window)
        self._move_decisions(lines, now - self._window, account)
        self._move_events(lines, now - self._window - _MARGIN, account)
        self._describe_waiting(lines, account)
        self._drop_moved(now)
        return account

    # -- decisions

    def _move_decisions(self, lines: list[_Line], horizon: float, account: MoveAccount) -> None:
        progress = self._progress[SESSIONS]
        taken, after = _take(lines, progress.after, horizon, lambda row: row["kind"] == DECISION)
        decisions: dict[str, dict[str, Any]] = {}
        for row in taken:
            if self._fits(row) and row["request_id"] not in decisions:
                decisions[row["request_id"]] = row
        events: dict[tuple[str, str], dict[str, Any]] = {}
        for row in _rows(lines):
            if row["kind"] != DECISION and row["request_id"] in decisions:
                event_key = (row["request_id"], row["event_id"])
                if event_key not in events or row["ts"] < events[event_key]["ts"]:
                    events[event_key] = row
        feedback = {key: dict.fromkeys(self._vocabulary.behaviour_names, 0.0) for key in decisions}
        ended, answered = set[str](), set[str]()
        for (key, _), event in events.items():
            if event["ts"] <= decisions[key]["ts"] + self._window:
                answered.add(key)
                for name, value in event["feedback"].items():
                    if name in feedback[key]:
                        feedback[key][name] += value
                if event["session_end"]:
                    ended.add(key)
        rows = sorted(decisions.values(), key=lambda row: (row["ts"], row["request_id"]))
        self._commit(SESSIONS, self._sessions(rows, feedback, ended), after)
        account.written += len(rows)
        account.without_feedback += len(decisions) - len(answered)

    def _fits(self, row: dict[str, Any]) -> bool:
        vocabulary = self._vocabulary
        return len(row["state"]) == vocabulary.state_size and all(
            len(row[name]) == vocabulary.action_size for name in ("mu", "sigma", "action"))

    def _sessions(self, rows: list[dict[str, Any]], feedback: dict[str, dict[str, float]], ended: set[str]) -> pa.Table:
        schema = session_log_schema(self._vocabulary)
        columns: dict[str, pa.Array] = {}
        for column in schema:
            if column.name == "feedback":
                values: list[Any] = [feedback[row["request_id"]] for row in rows]
            elif column.name == "last":
                values = [row["request_id"] in ended for row in rows]
            elif column.name == "ts":
                values = _microseconds(row["ts"] for row in rows)
            else:
                values = [row[column.name] for row in rows]
            columns[column.name] = pa.array(values, column.type)
        return pa.table(columns, schema=schema)

    # -- events

    def _move_events(self, lines: list[_Line], horizon: float, account: MoveAccount) -> None:
        progress = self._progress[EVENTS]
        start = dict(progress.after)
        taken, after = _take(lines, progress.after, horizon, lambda _: True)
        account.torn += sum(line.row is None and start.get(line.file, 0) <= line.begin < after.get(line.file, 0)
                            for line in lines)
        known = self._known({row["request_id"] for row in taken}, min((row["ts"] for row in taken), default=0.0))
        decisions, seen = set[str](), self._seen({row["request_id"] for row in taken})
        kept: list[tuple[dict[str, Any], Status]] = []
        for row in sorted(taken, key=lambda row: float(row["ts"])):
            status = self._status(row, known, decisions, seen)
            if status is not None:
                kept.append((row, status))
        self._commit(EVENTS, pa.table({
            "request_id": [row["request_id"] for row, _ in kept],
            "event_id": [row.get("event_id") for row, _ in kept],
            "ts": pa.array(_microseconds(row["ts"] for row, _ in kept), pa.timestamp("us", "UTC")),
            "status": [status for _, status in kept],
            "row": [orjson.dumps(row).decode() for row, _ in kept],
        }, schema=_EVENT_SCHEMA), after)
        for _, became in kept:
            name = _PLURAL.get(became, became)
            setattr(account, name, getattr(account, name) + 1)

    def _status(self, row: dict[str, Any], known: dict[str, float], decisions: set[str],
                seen: set[tuple[str, str]]) -> Status | None:
        """What becomes of a row in `events`; None for a decision that is in `sessions`."""
        if row["kind"] == DECISION:
            repeated = row["request_id"] in decisions
            decisions.add(row["request_id"])
            return "duplicate" if repeated else None if self._fits(row) else "misfit"
        key = (row["request_id"], row["event_id"])
        if key in seen:
            return "duplicate"
        seen.add(key)
        if row["request_id"] not in known:
            return "orphan"
        return "joined" if row["ts"] <= known[row["request_id"]] + self._window else "late"

    def _known(self, request_ids: set[str], oldest: float) -> dict[str, float]:
        """request id → ts of those that are in `sessions`."""
        since = pa.scalar(round((oldest - _LOOK_BACK) * 1e6), pa.int64()).cast(pa.timestamp("us", "UTC"))
        found = self._read(SESSIONS, ["request_id", "ts"], request_ids, pc.field("ts") >= since)
        seconds = found["ts"].cast(pa.int64()).to_numpy() / 1e6
        return dict(zip(found["request_id"].to_pylist(), seconds.tolist(), strict=True))

    def _seen(self, request_ids: set[str]) -> set[tuple[str, str]]:
        found = self._read(EVENTS, ["request_id", "event_id"], request_ids, pc.scalar(True))
        return set(zip(found["request_id"].to_pylist(), found["event_id"].to_pylist(), strict=True))

    def _read(self, name: str, columns: list[str], request_ids: set[str], condition: Any) -> pa.Table:
        table = self._table(name)
        if table is None or not request_ids:
            schema = _EVENT_SCHEMA if name == EVENTS else session_log_schema(self._vocabulary)
            return schema.empty_table().select(columns)
        wanted = pc.field("request_id").isin(pa.array(sorted(request_ids), pa.string()))
        return table.to_pyarrow_dataset().to_table(columns, filter=wanted & condition)

    # -- segments

    def _lines(self, horizon: float) -> list[_Line]:
        """What is not in both tables yet, in the order of each segment; of what follows its first decision that is
        younger than the horizon the events alone."""
        lines: list[_Line] = []
        for path in sorted(self._directory.glob("*.jsonl")):
            start = min(self._progress[name].after.get(path.name, 0) for name in (SESSIONS, EVENTS))
            with open(path, "rb") as file:
                file.seek(start)
                lines += _parse(path.name, start, file.read(), horizon, finished=_is_free(path))
        return lines

    def _describe_waiting(self, lines: list[_Line], account: MoveAccount) -> None:
        places = self._progress[EVENTS].after
        waiting = [line.row["ts"] for line in lines if line.row is not None and line.end > places.get(line.file, 0)]
        account.oldest = min(waiting, default=None)
        account.waiting_bytes = sum(max(0, _rows_end(path) - places.get(path.name, 0))
                                    for path in self._directory.glob("*.jsonl"))

    def _drop_moved(self, now: float) -> None:
        for path in list(self._directory.glob("*.jsonl")):
            old = path.stat().st_mtime + max(self._keep, self._window) < now
            if old and _is_free(path) and all(
                    self._progress[name].after.get(path.name, 0) >= _rows_end(path) for name in (SESSIONS, EVENTS)):
                path.unlink()

    # -- commits

    def _table(self, name: str) -> Any:
        from deltalake import DeltaTable

        uri = f"{self._output}/{name}"
        return DeltaTable(uri) if DeltaTable.is_deltatable(uri) else None

    def _commit(self, name: str, rows: pa.Table, after: Places) -> None:
        from deltalake import CommitProperties, Transaction, write_deltalake

        progress = self._progress[name]
        if after == progress.after:
            return
        progress.before, progress.after = progress.after, after
        if rows.num_rows:
            progress.version += 1
            self._save()
            write_deltalake(f"{self._output}/{name}", rows, mode="append", commit_properties=CommitProperties(
                app_transactions=[Transaction(self._app, progress.version)],
                custom_metadata={"recfuse.log": self._app, "recfuse.places": json.dumps(after)}))
            if progress.version % _COMPACT_EVERY == 0:
                self._table(name).optimize.compact()
        progress.before = after
        self._save()

    def _load(self) -> tuple[str, dict[str, _Progress]]:
        path = self._directory / STATE
        if not path.exists():
            return uuid.uuid4().hex, {SESSIONS: _Progress(), EVENTS: _Progress()}
        state = json.loads(path.read_text())
        progress = {name: _Progress(**state[name]) for name in (SESSIONS, EVENTS)}
        for name, one in progress.items():
            if one.before != one.after:  # died between the two: the table knows
                table = self._table(name)
                committed = table is not None and (table.transaction_version(state["app"]) or 0) >= one.version
                if committed:
                    one.before = one.after
                else:
                    one.after, one.version = one.before, one.version - 1
        return state["app"], progress

    def _save(self) -> None:
        path = self._directory / STATE
        temporary = path.with_suffix(".writing")
        with open(temporary, "w") as file:
            json.dump({"app": self._app, **{name: asdict(one) for name, one in self._progress.items()}}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def _take(lines: Iterable[_Line], places: Places, horizon: float, wanted: Any) -> tuple[list[dict[str, Any]], Places]:
    """Wanted rows from the places on, of each segment until its first wanted row that is younger; and where it ends."""
    taken, after, stopped = [], dict(places), set[str]()
    for line in lines:
        if line.file in stopped or line.begin < after.get(line.file, 0):
            continue
        if line.row is not None and wanted(line.row):
            if line.row["ts"] > horizon:
                stopped.add(line.file)
                continue
            taken.append(line.row)
        after[line.file] = line.end
    return taken, after


def _rows(lines: Iterable[_Line]) -> Iterator[dict[str, Any]]:
    return (line.row for line in lines if line.row is not None)


def _parse(file: str, start: int, payload: bytes, horizon: float, finished: bool) -> Iterator[_Line]:
    """Lines of a segment; what follows its last whole line is torn where nobody writes it any more."""
    rows = payload.split(b"\0", 1)[0]
    whole = rows.rfind(b"\n") + 1
    place, young = 0, False
    while place < whole:
        begin, place = place, rows.index(b"\n", place) + 1
        if young and rows.startswith(_DECISION_LINE, begin):
            continue
        try:
            row = orjson.loads(rows[begin:place])
            young = young or (row["kind"] == DECISION and row["ts"] > horizon)
        except orjson.JSONDecodeError:
            row = None
        yield _Line(file, start + begin, start + place, row)
    if finished and whole < len(rows):
        yield _Line(file, start + whole, start + len(rows), None)


def _rows_end(path: Path) -> int:
    """Where the rows of a segment end and the space ahead of others begins."""
    return len(path.read_bytes().split(b"\0", 1)[0])


def _is_free(path: Path) -> bool:
    """Whether no replica writes the segment any more: each holds a lock on its own."""
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


def _microseconds(seconds: Iterable[float]) -> list[int]:
    values: list[int] = (np.array(list(seconds), np.float64) * 1e6).round().astype(np.int64).tolist()
    return values


def _table_vocabulary(output: str, served: Vocabulary) -> Vocabulary:
    filesystem, root = pafs.FileSystem.from_uri(output if "://" in output else str(Path(output).resolve()))
    filesystem.create_dir(root, recursive=True)
    path = f"{root}/{VOCABULARY_FILE}"
    if filesystem.get_file_info(path).type == pafs.FileType.NotFound:
        with filesystem.open_output_stream(path) as stream:
            stream.write(yaml.safe_dump(json.loads(json.dumps(served.to_dict())), sort_keys=False).encode())
        return served
    with filesystem.open_input_stream(path) as stream:
        own = Vocabulary.from_dict(yaml.safe_load(stream.read()), source=VOCABULARY_FILE)
    if own != served:
        logger.error("the table in %s has another vocabulary than the model that serves: rows that do not fit it go to "
                     "`events` as misfits; a new directory takes them", output)
    return own


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


@contextmanager
def only_mover(directory: str | Path, wait: bool) -> Iterator[None]:
    """Inside, nobody else moves this log; waits for that, or raises InvalidFieldError."""
    require(Path(directory).is_dir(), "decision_log", str(directory), "a directory that exists")
    with open(Path(directory) / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            raise InvalidFieldError("decision_log", str(directory), "a log that nobody else moves: serving does so "
                                    "itself where its config names a session_table") from None
        yield


class Background:
    """A process that moves this machine's log while the replica lives; of several replicas' one works, others wait.

    Args:
        log, output, models, window_seconds, seconds: see `Mover`; seconds between two passes.
        meters: get the age of the oldest row that waits, and the size of all that do.
    """

    def __init__(self, log: str, output: str, models: str, window_seconds: float, seconds: float,
                 meters: Meters) -> None:
        self._meters = meters
        # Low priority: moving can wait, requests cannot.
        self._process = subprocess.Popen(
            ["nice", "-n", "10", sys.executable, "-m", "serving.session_table", log, output, models,
             str(window_seconds), str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
        threading.Thread(target=self._read, name="session-table", daemon=True).start()

    def close(self) -> None:
        """Ends the process, which also ends by itself with this one."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            account = json.loads(line)
            lag = 0.0 if account["oldest"] is None else max(0.0, time.time() - account["oldest"])
            self._meters.record("recfuse_log_lag_s", lag)
            self._meters.record("recfuse_log_pending_bytes", account["waiting_bytes"])


def main(log: str, output: str, models: str, window: str, seconds: str) -> None:
    """Moves until the standard input ends, with the replica that started this process; prints an account a pass."""
    log_as_json()
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
    with only_mover(log, wait=True):
        mover = Mover(log, output, served_vocabulary(models), window_seconds=float(window))
        while True:
            try:
                account = mover.move()
            except Exception:  # a table that cannot be reached now may be so later; the log waits on disk
                logger.exception("moving the decision log failed")
            else:
                sys.stdout.write(json.dumps(asdict(account)) + "\n")
                sys.stdout.flush()
            time.sleep(float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
