"""What is known about users between requests: features and history by user id, in one SQLite file."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import orjson

from recfuse.config import InvalidFieldError, require

# Values are JSON text, so that nothing is ever unpickled and any tool can read the file.
_COLUMNS = ("user_id", "features", "history")
_SCHEMA = "CREATE TABLE IF NOT EXISTS users (user_id TEXT PRIMARY KEY, features TEXT NOT NULL, history TEXT NOT NULL)"
# Seconds since 1970 at which feedback last told something; files of earlier versions lack the column.
_TOLD = "told"
_ADD_TOLD = f"ALTER TABLE users ADD COLUMN {_TOLD} REAL"
_PUT = f"INSERT OR REPLACE INTO users (user_id, features, history, {_TOLD}) VALUES (?, ?, ?, ?)"
# The events that have been counted in a history, so that one that is sent again is not counted again.
_EVENTS = ("CREATE TABLE IF NOT EXISTS events (user_id TEXT NOT NULL, event TEXT NOT NULL, "
           "UNIQUE (user_id, event))")
_GET = "SELECT features, history FROM users WHERE user_id = ?"
_FORGET = ("DELETE FROM events WHERE user_id = ? AND rowid <= (SELECT rowid FROM events WHERE user_id = ? "
           "ORDER BY rowid DESC LIMIT 1 OFFSET ?)")
_BATCH = 500  # below SQLite's limit on the variables of one statement
REMEMBERED_EVENTS = 200  # of each user, the latest


class UserStateError(Exception):
    """The state of this user cannot be read or written now."""


class UnreadableFileError(InvalidFieldError):
    """The file of users is there and is damaged, or cannot be opened."""


@dataclass(frozen=True, kw_only=True)
class UserState:
    """One user as the store knows them.

    Attributes:
        features: name → number, string, boolean or None; read by the state encoder and by the scorer.
        history: item ids that the user watched, oldest first.
    """

    features: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[int | str, ...] = ()


class UserStates(Protocol):
    """A store of user states; SQLite here, Redis (recfuse.state.redis) where several machines serve. Both methods may
    be called by several threads."""

    def get(self, user_id: str) -> UserState | None:
        """The state of a user, None where they are unknown; raises UserStateError."""
        ...

    def record(self, user_id: str, items: Sequence[int | str] = (), features: Mapping[str, Any] | None = None, *,
               event: str | None = None, history_size: int | None = None) -> bool:
        """Adds what feedback told, once an `event`; whether it was new. Raises UserStateError."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class NearUserStates(UserStates, Protocol):
    """A store that is usually read within microseconds, in this process."""

    def get_at_once(self, user_id: str) -> UserState | None:
        """As `get`, without waiting for anybody; raises UserStateError where that would be needed."""
        ...


class UserStateStore:
    """User states in a SQLite file that several processes of one machine read and write (WAL).

    Every thread reads by a connection of its own, so that nobody who reads waits for somebody who writes.

    Args:
        path: the file; it is created where it is missing.
        history_size: how many of a user's latest items are kept.
        read_seconds, write_seconds: how long a read or a write waits for a lock of another process.

    Raises:
        InvalidFieldError: the file is no SQLite database, or one of something else, which is left as it is.
    """

    def __init__(self, path: str | Path, history_size: int = 50, *, read_seconds: float = 10.0,
                 write_seconds: float = 10.0) -> None:
        require(history_size > 0, "history_size", history_size, "an integer > 0")
        self._history_size, self._read_seconds = history_size, read_seconds
        self._lock = threading.Lock()
        self._readers = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._path = path = Path(path)
        require(not path.is_dir(), "users", str(path), "a SQLite file, or none")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Autocommit: transactions are opened where they are meant. The lock makes one connection safe for threads.
            self._connection = sqlite3.connect(path, timeout=write_seconds, isolation_level=None,
                                               check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise UnreadableFileError("users", str(path), f"a SQLite file ({error})") from None
        try:
            self._require_own(path)
            self._connection.execute("PRAGMA journal_mode = WAL")
            # A lost last second of history is no harm: the decision log is the durable record, and this follows it.
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(_SCHEMA)
            self._add_told()
            self._connection.execute(_EVENTS)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise UnreadableFileError("users", str(path), f"a SQLite file ({error})") from None
        except InvalidFieldError:
            self._connection.close()
            raise

    def _require_own(self, path: Path) -> None:
        """Refuses a database that has tables, and not that of user states alone."""
        tables = [f"{kind} {name}" for kind, name in self._connection.execute(
            "SELECT type, name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'")]
        columns = [row[1] for row in self._connection.execute("PRAGMA table_info(users)")]
        own = ({*tables} <= {"table users", "table events"}
               and columns in ([], [*_COLUMNS], [*_COLUMNS, _TOLD]))
        require(own, "users", f"{path} with {', '.join(tables)}",
                f"a file of user states alone (a table users of {', '.join(_COLUMNS)}), or none")

    def _add_told(self) -> None:
        if all(row[1] != _TOLD for row in self._connection.execute("PRAGMA table_info(users)")):
            with suppress(sqlite3.OperationalError):  # Another process has just done it.
                self._connection.execute(_ADD_TOLD)

    def __enter__(self) -> UserStateStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self._lock:
            return int(self._connection.execute("SELECT count(*) FROM users").fetchone()[0])

    def close(self) -> None:
        with self._lock:
            for connection in (self._connection, *self._opened):
                connection.close()

    def get(self, user_id: str) -> UserState | None:
        """The state of a user, None where they are unknown.

        Raises:
            UserStateError: it cannot be read: a lock, a damaged page, a value that is no state.
        """
        return self._get(user_id, "waiting", self._read_seconds)

    def get_at_once(self, user_id: str) -> UserState | None:
        """As `get`, without waiting for a lock.

        Raises:
            UserStateError: as of `get`, or there is a lock.
        """
        return self._get(user_id, "hasty", 0.0)

    def _get(self, user_id: str, kind: str, wait_seconds: float) -> UserState | None:
        try:
            row = self._reader(kind, wait_seconds).execute(_GET, (user_id,)).fetchone()
            return None if row is None else _parse(*row)
        except sqlite3.Error as error:
            self._forget_reader(kind)
            raise UserStateError(f"{type(error).__name__}: {error}") from None
        except ValueError as error:
            raise UserStateError(f"the state of user {user_id!r}: {error}") from None

    def _reader(self, kind: str, wait_seconds: float) -> sqlite3.Connection:
        """This thread's connection of this kind."""
        connection: sqlite3.Connection | None = getattr(self._readers, kind, None)
        if connection is None:
            connection = sqlite3.connect(self._path, timeout=wait_seconds, isolation_level=None,
                                         check_same_thread=False)
            setattr(self._readers, kind, connection)
            with self._lock:
                self._opened.append(connection)
        return connection

    def _forget_reader(self, kind: str) -> None:
        """The next read opens the file anew, which somebody may have mended."""
        connection: sqlite3.Connection | None = getattr(self._readers, kind, None)
        if connection is not None:
            setattr(self._readers, kind, None)
            with self._lock:
                self._opened.remove(connection)
            with suppress(sqlite3.Error):
                connection.close()

    def get_many(self, user_ids: Sequence[str]) -> dict[str, UserState]:
        """The states of those users that are known."""
        known: dict[str, UserState] = {}
        for start in range(0, len(user_ids), _BATCH):
            batch = user_ids[start:start + _BATCH]
            marks = ", ".join("?" * len(batch))
            with self._lock:
                rows = self._connection.execute(
                    f"SELECT user_id, features, history FROM users WHERE user_id IN ({marks})", batch).fetchall()
            known.update((user_id, _parse(features, history)) for user_id, features, history in rows)
        return known

    def put_many(self, users: Iterable[tuple[str, UserState]]) -> int:
        """Writes states, replacing those of the same id, all or none; returns how many."""
        rows = [(user_id, *self._serialise(user_id, user), None) for user_id, user in users]
        with self._writing():
            self._connection.executemany(_PUT, rows)
        return len(rows)

    def update_many(self, users: Iterable[tuple[str, UserState]], since: float | None) -> int:
        """Brings known users up to date, and adds the others; returns how many rows were written.

        A user of whom feedback told after `since` (seconds since 1970; None is before all feedback) stays as they are.
        What feedback told before goes on where the new state does not say it, and so does a history.
        """
        states = dict(users)
        for user_id, user in states.items():
            self._serialise(user_id, user)  # What cannot be stored is refused before anything is written.
        names, written = list(states), 0
        for start in range(0, len(names), _BATCH):
            with self._writing():  # Feedback waits for one batch at most.
                written += sum(self._update(name, states[name], since) for name in names[start:start + _BATCH])
        return written

    def _update(self, user_id: str, user: UserState, since: float | None) -> int:
        row = self._connection.execute(
            f"SELECT features, history, {_TOLD} FROM users WHERE user_id = ?", (user_id,)).fetchone()
        told = None if row is None else row[2]
        if told is not None and (since is None or told > since):
            return 0
        if row is not None:
            known = _parse(*row[:2])
            user = UserState(features={**(known.features if told is not None else {}), **user.features},
                             history=user.history or known.history)
        self._connection.execute(_PUT, (user_id, *self._serialise(user_id, user), told))
        return 1

    def record(self, user_id: str, items: Sequence[int | str] = (), features: Mapping[str, Any] | None = None, *,
               event: str | None = None, history_size: int | None = None) -> bool:
        """Adds what feedback told: items to the end of the history, features over the known ones.

        Args:
            event: names it, so that it is added once; None adds it in any case.
            history_size: keeps so many items where these are more than the store's own.

        Returns:
            Whether it was new.

        Raises:
            InvalidFieldError: what a store cannot give back.
            UserStateError: it cannot be written: a lock, a full disk, a damaged page, a state that is none.
        """
        check_features(user_id, features or {})
        try:
            with self._writing():
                return self._record(user_id, items, features or {}, event, history_size or 0)
        except sqlite3.Error as error:
            raise UserStateError(f"{type(error).__name__}: {error}") from None
        except ValueError as error:
            raise UserStateError(f"the state of user {user_id!r}: {error}") from None

    def _record(self, user_id: str, items: Sequence[int | str], features: Mapping[str, Any], event: str | None,
                history_size: int) -> bool:
        connection = self._connection
        if event is not None:
            new = connection.execute("INSERT OR IGNORE INTO events VALUES (?, ?)", (user_id, event)).rowcount
            if not new:
                return False
            connection.execute(_FORGET, (user_id, user_id, REMEMBERED_EVENTS))
        row = connection.execute(_GET, (user_id,)).fetchone()
        known = UserState() if row is None else _parse(*row)
        user = UserState(features={**known.features, **features}, history=(*known.history, *items))
        connection.execute(_PUT, (user_id, *self._serialise(user_id, user, history_size), time.time()))
        return True

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """All of it or nothing."""
        with self._lock:
            # Taking the write lock first lets two processes update the same user one after the other.
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # A full disk may have ended the transaction already.
                    self._connection.execute("ROLLBACK")
                raise

    def _serialise(self, user_id: str, user: UserState, history_size: int = 0) -> tuple[str, str]:
        check_features(user_id, user.features)
        history = user.history[-max(self._history_size, history_size):]
        return _text(dict(user.features)), _text([item if isinstance(item, str) else int(item) for item in history])


def check_features(user_id: str, features: Mapping[str, Any]) -> None:
    """Refuses what a store cannot give back.

    Raises:
        InvalidFieldError: an empty id, or a value that is no number, string, boolean or null.
    """
    require(bool(user_id), "user_id", user_id, "a non-empty string")
    for name, value in features.items():
        plain = value is None or isinstance(value, (str, bool, int, float))
        require(plain, f"features.{name}", value, "a number, a string, a boolean or null")
        finite = not isinstance(value, float) or math.isfinite(value)
        require(finite, f"features.{name}", value, "finite numbers")


def _text(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def _parse(features: str, history: str) -> UserState:
    """Raises ValueError: it is no state."""
    known, items = orjson.loads(features), orjson.loads(history)
    if not isinstance(known, dict) or not isinstance(items, list):
        raise ValueError("features must be an object, and history a list")
    return UserState(features=known, history=tuple(items))
