"""What is known about users between requests: features and history by user id, in one SQLite file."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import orjson

from recfuse.config import InvalidFieldError, require

# Values are JSON text, so that nothing is ever unpickled and any tool can read the file.
_COLUMNS = ("user_id", "features", "history")
_SCHEMA = "CREATE TABLE IF NOT EXISTS users (user_id TEXT PRIMARY KEY, features TEXT NOT NULL, history TEXT NOT NULL)"
_PUT = "INSERT OR REPLACE INTO users VALUES (?, ?, ?)"
_BATCH = 500  # below SQLite's limit on the variables of one statement


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
    """A store of user states; SQLite here, Redis (recfuse.state.redis) where several machines serve."""

    @property
    def degraded(self) -> bool:
        """Whether it does not answer, so that users are unknown."""
        ...

    def get(self, user_id: str) -> UserState | None: ...

    def record(self, user_id: str, items: Sequence[int | str] = (),
               features: Mapping[str, Any] | None = None) -> None: ...


class UserStateStore:
    """User states in a SQLite file that several processes of one machine read and write (WAL).

    Args:
        path: the file; it is created where it is missing.
        history_size: how many of a user's latest items are kept.

    Raises:
        InvalidFieldError: the file is no SQLite database, or one of something else, which is left as it is.
    """

    def __init__(self, path: str | Path, history_size: int = 50) -> None:
        require(history_size > 0, "history_size", history_size, "an integer > 0")
        self._history_size = history_size
        self._lock = threading.Lock()
        path = Path(path)
        require(not path.is_dir(), "users", str(path), "a SQLite file, or none")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Autocommit: transactions are opened where they are meant. The lock makes one connection safe for threads.
        self._connection = sqlite3.connect(path, timeout=10.0, isolation_level=None, check_same_thread=False)
        try:
            self._require_own(path)
            self._connection.execute("PRAGMA journal_mode = WAL")
            # A lost last second of history is no harm: the decision log is the durable record, and this follows it.
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise InvalidFieldError("users", str(path), f"a SQLite file ({error})") from None
        except InvalidFieldError:
            self._connection.close()
            raise

    def _require_own(self, path: Path) -> None:
        """Refuses a database that has tables, and not that of user states alone."""
        tables = [f"{kind} {name}" for kind, name in self._connection.execute(
            "SELECT type, name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite_%'")]
        columns = [row[1] for row in self._connection.execute("PRAGMA table_info(users)")]
        own = tables in ([], ["table users"]) and columns in ([], list(_COLUMNS))
        require(own, "users", f"{path} with {', '.join(tables)}",
                f"a file of user states alone (a table users of {', '.join(_COLUMNS)}), or none")

    @property
    def degraded(self) -> bool:
        """Never: a file answers or raises."""
        return False

    def __enter__(self) -> UserStateStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self._lock:
            return int(self._connection.execute("SELECT count(*) FROM users").fetchone()[0])

    def close(self) -> None:
        self._connection.close()

    def get(self, user_id: str) -> UserState | None:
        """The state of a user, None where they are unknown."""
        with self._lock:
            row = self._connection.execute(
                "SELECT features, history FROM users WHERE user_id = ?", (user_id,)).fetchone()
        return None if row is None else _parse(*row)

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
        rows = [(user_id, *self._serialise(user_id, user)) for user_id, user in users]
        with self._lock:
            self._begin()
            try:
                self._connection.executemany(_PUT, rows)
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
        return len(rows)

    def record(self, user_id: str, items: Sequence[int | str] = (), features: Mapping[str, Any] | None = None) -> None:
        """Adds what feedback told: items to the end of the history, features over the known ones."""
        with self._lock:
            self._begin()
            try:
                row = self._connection.execute(
                    "SELECT features, history FROM users WHERE user_id = ?", (user_id,)).fetchone()
                known = UserState() if row is None else _parse(*row)
                user = UserState(features={**known.features, **(features or {})}, history=(*known.history, *items))
                self._connection.execute(_PUT, (user_id, *self._serialise(user_id, user)))
                self._connection.execute("COMMIT")
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise

    def _begin(self) -> None:
        # Taking the write lock first lets two processes update the same user one after the other.
        self._connection.execute("BEGIN IMMEDIATE")

    def _serialise(self, user_id: str, user: UserState) -> tuple[str, str]:
        check_features(user_id, user.features)
        history = user.history[-self._history_size:]
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
    return UserState(features=orjson.loads(features), history=tuple(orjson.loads(history)))
