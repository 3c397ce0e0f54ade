"""From a decision log to the session-log table: decisions joined with their feedback, every row once.

A pass reads each segment from where the last one ended. A decision is moved when its window for feedback has passed,
with every event that named its request id until then, to the table `sessions`; each event follows a little later to the
table `events`, with what became of it.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import orjson

from recfuse.behaviours import Vocabulary
from recfuse.bundle import BundleError, read_bundle
from recfuse.bundle.pointer import read_pointer
from recfuse.config import InvalidFieldError, require
from recfuse.serving.decision_log import DECISION
from recfuse.serving.meanings import Meanings
from recfuse.serving.segments import TORN, Line, Places, delete_taken, read_lines, waiting_bytes
from recfuse.serving.session_table import EVENTS, SESSIONS, Event, SessionTable

_LOCK = ".moving.lock"
logger = logging.getLogger("recfuse.serving")
_MARGIN = 60.0  # seconds by which events follow decisions, more than clocks of one machine ever disagree
Row = dict[str, Any]
Status = Literal["joined", "late", "orphan", "duplicate", "misfit", "damaged", "torn"]
_COUNTERS: dict[Status, str] = {"joined": "joined", "late": "late", "orphan": "orphan", "misfit": "misfits",
                                "duplicate": "duplicates", "damaged": "damaged", "torn": "torn"}


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
        unnamed: moved decisions whose vocabulary nothing tells: they were taken for ones of the model that serves.
        misfits: decisions of a model whose numbers mean something else than the table's. Like late, orphan and repeated
            events they are kept in `events`, with the reason and the whole row.
        unknown_behaviours: behaviour that the table lacks → events that told it; their rows in `events` have it.
        damaged: lines that are no rows, holes of zeros, and rows that are stamped in the future. They are kept in
            `events` with their place, why, and what stands there.
        torn: lines cut off by the death of a replica, before any client was answered; kept likewise.
        unreadable: segment that could not be read in the last pass → why.
        waiting_bytes: of rows that are not moved yet, after the last pass.
        oldest: seconds since 1970 of the oldest of them, None where there is none.
    """

    written: int = 0
    without_feedback: int = 0
    unnamed: int = 0
    joined: int = 0
    late: int = 0
    orphan: int = 0
    duplicates: int = 0
    misfits: int = 0
    unknown_behaviours: dict[str, int] = field(default_factory=dict)
    damaged: int = 0
    torn: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    waiting_bytes: int = 0
    oldest: float | None = None


class Mover:
    """Moves one decision log.

    Args:
        directory: of the decision log.
        output: directory or URL of the tables, whose vocabulary lies beside them; the first pass writes it.
        vocabulary: of the model that serves; the table's own counts where there is one.
        window_seconds: feedback that comes later than this after its request is late.
        keep_seconds: how long a moved segment stays.
        models: directory of bundles, which tell the vocabularies of decisions that do not name theirs.
        refuse_unnamed: decisions whose vocabulary nothing tells are misfits.

    Raises:
        InvalidFieldError: the directory does not exist, or its vocabulary cannot be read.
    """

    def __init__(self, directory: str | Path, output: str | Path, vocabulary: Vocabulary, *,
                 window_seconds: float = 3600.0, keep_seconds: float = 86_400.0, models: str | Path | None = None,
                 refuse_unnamed: bool = False) -> None:
        self._directory = Path(directory)
        require(self._directory.is_dir(), "decision_log", str(directory), "a directory that exists")
        self._window, self._keep = window_seconds, keep_seconds
        self._table = SessionTable(self._directory, str(output), vocabulary, Meanings(directory, models),
                                   refuse_unnamed)

    def move(self, now: float | None = None) -> MoveAccount:
        """One pass; `now` (seconds since 1970) is the clock's where None."""
        now = time.time() if now is None else now
        account = MoveAccount()
        reading = read_lines(self._directory, self._table.places_of_both(), now - self._window, now)
        lines, account.unreadable = reading.lines, reading.unreadable
        self._move_decisions(lines, now - self._window, account)
        self._move_events(lines, now - self._window - _MARGIN, account)
        self._describe_waiting(lines, account)
        delete_taken(self._directory, self._table.places_of_both(), before=now - max(self._keep, self._window))
        return account

    def _move_decisions(self, lines: list[Line], horizon: float, account: MoveAccount) -> None:
        taken, _, after = _take(lines, self._table.places(SESSIONS), horizon, lambda row: row["kind"] == DECISION)
        decisions: dict[str, Row] = {}
        for row in taken:
            if self._table.misfit(row) is None and row["request_id"] not in decisions:
                decisions[row["request_id"]] = row
        feedback = {key: dict.fromkeys(self._table.vocabulary.behaviour_names, 0.0) for key in decisions}
        ended, answered = set[str](), set[str]()
        for event in _events_of(decisions, lines):
            key = event["request_id"]
            if event["ts"] <= decisions[key]["ts"] + self._window:
                answered.add(key)
                for name, value in event["feedback"].items():
                    if name in feedback[key]:
                        feedback[key][name] += value
                if event["session_end"]:
                    ended.add(key)
        rows = sorted(decisions.values(), key=lambda row: (row["ts"], row["request_id"]))
        self._table.commit_sessions(rows, feedback, ended, after)
        account.written += len(rows)
        account.without_feedback += len(decisions) - len(answered)
        unnamed = [row for row in rows if self._table.unnamed(row)]
        account.unnamed += len(unnamed)
        if unnamed:
            logger.warning("%d decisions, the first %s of model %s, have no vocabulary_hash, and neither their bundle "
                           "nor a vocabulary beside the log tells it: they are taken for ones of the model that serves",
                           len(unnamed), unnamed[0]["request_id"], unnamed[0].get("model_version"))

    def _move_events(self, lines: list[Line], horizon: float, account: MoveAccount) -> None:
        taken, damaged, after = _take(lines, self._table.places(EVENTS), horizon, lambda _: True)
        request_ids = {row["request_id"] for row in taken}
        decided = self._table.decision_times(request_ids, min((row["ts"] for row in taken), default=0.0))
        decisions, seen = set[str](), self._table.event_keys(request_ids)
        kept: list[tuple[Row, Status]] = []
        for row in sorted(taken, key=lambda row: float(row["ts"])):
            status = self._status(row, decided, decisions, seen)
            if status is not None:
                kept.append((row, status))
        self._table.commit_events([*(Event(row, status, self._reason(row, status), orjson.dumps(row).decode())
                                     for row, status in kept), *map(_quarantined, damaged)], after)
        kept += [({}, _status_of(line)) for line in damaged]
        for line in damaged:
            logger.warning("%s, bytes %d to %d: %s; kept in `events`", line.segment, line.begin, line.end, line.damage)
        for row, status in kept:
            counter = _COUNTERS[status]
            setattr(account, counter, getattr(account, counter) + 1)
            for name in self._unknown(row) if status != "duplicate" else ():
                account.unknown_behaviours[name] = account.unknown_behaviours.get(name, 0) + 1
        if account.unknown_behaviours:
            logger.warning("feedback of behaviours that the session table lacks is kept in `events` alone: %s",
                           account.unknown_behaviours)

    def _reason(self, row: Row, status: Status) -> str | None:
        """What is to be known of a row in `events` beside its status."""
        if status == "misfit":
            return self._table.misfit(row)
        if status == "damaged":
            return "ts: in the future when the decisions around it were moved"
        names = self._unknown(row)
        return f"feedback: the table lacks {', '.join(names)}" if names else None

    def _unknown(self, row: Row) -> list[str]:
        """Behaviours of an event that the table has no column for."""
        return sorted(set(row.get("feedback", ())) - set(self._table.vocabulary.behaviour_names))

    def _status(self, row: Row, decided: dict[str, float], decisions: set[str],
                seen: set[tuple[str, str]]) -> Status | None:
        """What becomes of a row in `events`; None for a decision that is in `sessions`.

        Args:
            decided: request id → time of its decision, of those in `sessions`.
            decisions: request ids of this pass's decisions so far; gets this one.
            seen: (request id, event id) of the events so far; gets this one.
        """
        if row["kind"] == DECISION:
            repeated = row["request_id"] in decisions
            decisions.add(row["request_id"])
            if repeated or self._table.misfit(row) is not None:
                return "duplicate" if repeated else "misfit"
            # The clock may have come to a row meanwhile that was stamped in the future and left out of `sessions`.
            return None if row["request_id"] in decided else "damaged"
        key = (row["request_id"], row["event_id"])
        if key in seen:
            return "duplicate"
        seen.add(key)
        if row["request_id"] not in decided:
            return "orphan"
        return "joined" if row["ts"] <= decided[row["request_id"]] + self._window else "late"

    def _describe_waiting(self, lines: list[Line], account: MoveAccount) -> None:
        places = self._table.places(EVENTS)
        account.oldest = min((line.row["ts"] for line in lines
                              if line.row is not None and line.end > places.get(line.segment, 0)), default=None)
        account.waiting_bytes = waiting_bytes(self._directory, places)


def _take(lines: Iterable[Line], places: Places, horizon: float,
          wanted: Callable[[Row], bool]) -> tuple[list[Row], list[Line], Places]:
    """Wanted rows, and damaged lines, from the places on, of each segment until its first wanted row that is younger;
    and where it ends."""
    taken, damaged, after, stopped = list[Row](), list[Line](), dict(places), set[str]()
    for line in lines:
        if line.segment in stopped or line.begin < after.get(line.segment, 0):
            continue
        if line.row is None:
            damaged.append(line)
        elif wanted(line.row):
            if line.row["ts"] > horizon:
                stopped.add(line.segment)
                continue
            taken.append(line.row)
        after[line.segment] = line.end
    return taken, damaged, after


def _status_of(line: Line) -> Status:
    return "torn" if line.damage == TORN else "damaged"


def _quarantined(line: Line) -> Event:
    """A line that is no row: its request where it tells one, its place, and what stands there."""
    row: Any = None
    with suppress(orjson.JSONDecodeError):
        row = orjson.loads(line.text)
    told = row.get("request_id") if isinstance(row, dict) else None
    return Event({"request_id": told if isinstance(told, str) else None}, _status_of(line),
                 f"{line.segment}, bytes {line.begin} to {line.end}: {line.damage}",
                 line.text.decode("utf-8", "backslashreplace"))


def _events_of(decisions: dict[str, Row], lines: Iterable[Line]) -> Iterable[Row]:
    """The events that name one of the decisions; of an event that was sent several times the earliest."""
    events: dict[tuple[str, str], Row] = {}
    for row in (line.row for line in lines if line.row is not None):
        if row["kind"] != DECISION and row["request_id"] in decisions:
            key = (row["request_id"], row["event_id"])
            if key not in events or row["ts"] < events[key]["ts"]:
                events[key] = row
    return events.values()


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
    """Inside, nobody else moves this log.

    Args:
        wait: until whoever moves it now has ended.

    Raises:
        InvalidFieldError: the directory does not exist, or somebody moves the log and `wait` is false.
    """
    require(Path(directory).is_dir(), "decision_log", str(directory), "a directory that exists")
    with open(Path(directory) / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            raise InvalidFieldError("decision_log", str(directory), "a log that nobody else moves: serving does so "
                                    "itself where its config names a session_table") from None
        yield
