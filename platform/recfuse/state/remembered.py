"""What serving knows of users, asked off the event loop: a store that is locked, damaged, slow or full costs those who
are hit their state, and nobody an answer."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar

from recfuse.state.store import NearUserStates, UnreadableFileError, UserState, UserStateError, UserStates

logger = logging.getLogger("recfuse")
Source = Literal["store", "default", "degraded"]
T = TypeVar("T")
# What a request itself says, or the clock: no feature that is stored of a user speaks for it.
REQUEST_FIELDS = frozenset(("scene", "stage", "hour", "weekday", "user_id", "history"))
_READERS = 4
_QUICK_SECONDS, _AWAY_SECONDS = 0.02, 1.0


@dataclass(frozen=True)
class Known:
    """What is known of one user.

    Attributes:
        state: without `REQUEST_FIELDS`; empty where nothing is known.
        source: `store`; `default` where nobody has told anything; `degraded` where the store did not answer.
    """

    state: UserState
    source: Source


class RememberedUsers:
    """A store behind threads of its own; one that is near is read by the event loop itself while that is quick.

    Args:
        store: None where nobody is remembered.
        read_seconds, write_seconds: how long a request waits for the store.
    """

    def __init__(self, store: UserStates | None, read_seconds: float = 0.25, write_seconds: float = 2.0) -> None:
        self._store, self._read_seconds, self._write_seconds = store, read_seconds, write_seconds
        self._near = store if isinstance(store, NearUserStates) else None
        self._away_until = 0.0  # Monotonic seconds.
        self._readers = _Threads(_READERS, "users-read")
        self._writer = _Threads(1, "users-write")

    async def get(self, user_id: str) -> Known:
        """What is known of a user; never an error."""
        if self._store is None:
            return Known(UserState(), "default")
        try:
            known, state = self._at_once(user_id)
            if not known:
                state = await self._readers.call(partial(self._store.get, user_id), self._read_seconds)
        except Exception as error:
            logger.warning("the state of a user is unknown: %s", error)
            return Known(UserState(), "degraded")
        if state is None:
            return Known(UserState(), "default")
        if not REQUEST_FIELDS.isdisjoint(state.features):
            state = replace(state, features={name: value for name, value in state.features.items()
                                             if name not in REQUEST_FIELDS})
        return Known(state, "store")

    def _at_once(self, user_id: str) -> tuple[bool, UserState | None]:
        """Whether a near store has answered, and what; one that did not, or took long, is left to the threads for a
        while."""
        begin = time.monotonic()
        if self._near is None or begin < self._away_until:
            return False, None
        try:
            found = True, self._near.get_at_once(user_id)
        except UserStateError:  # The threads wait for a lock, and say what is wrong otherwise.
            found = False, None
        if not found[0] or time.monotonic() - begin > _QUICK_SECONDS:
            self._away_until = time.monotonic() + _AWAY_SECONDS
        return found

    async def record(self, user_id: str, items: Sequence[int | str], features: Mapping[str, Any] | None, *, event: str,
                     history_size: int) -> Source:
        """Adds what feedback told, once an event; `degraded` where it may not have been stored."""
        if self._store is None:
            return "default"
        write = partial(self._store.record, user_id, items, features, event=event, history_size=history_size)
        try:
            await self._writer.call(write, self._write_seconds)
        except Exception as error:
            logger.warning("the state of a user is not updated: %s", error)
            return "degraded"
        return "store"


class _Threads:
    """Threads that calls wait for at most so long; while all of them are stuck nobody waits."""

    def __init__(self, count: int, name: str) -> None:
        self._count, self._stuck, self._lock = count, 0, threading.Lock()
        self._pool = ThreadPoolExecutor(count, name)

    async def call(self, act: Callable[[], T], seconds: float) -> T:
        """Raises UserStateError after so many seconds, or what the call raises."""
        if self._stuck >= self._count:
            raise UserStateError("the store of users has not answered yet")
        future = self._pool.submit(act)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), seconds)
        except TimeoutError:
            if not future.cancel() and not future.done():
                with self._lock:
                    self._stuck += 1
                future.add_done_callback(self._recover)
            raise UserStateError(f"the store of users has not answered within {seconds:g} s") from None

    def _recover(self, _: Future[Any]) -> None:
        with self._lock:
            self._stuck -= 1


class ReopenedUsers:
    """A near store whose file cannot be read for a while: it is opened again and again until it can.

    Args:
        open_store: raises UnreadableFileError while it cannot.
        retry_seconds: between two attempts.

    Raises:
        InvalidFieldError: the file is one of something else.
    """

    def __init__(self, open_store: Callable[[], NearUserStates], retry_seconds: float = 5.0) -> None:
        self._open, self._retry_seconds, self._next = open_store, retry_seconds, 0.0
        self._store: NearUserStates | None = None
        self._lock = threading.Lock()
        try:
            self._opened()
        except UserStateError as error:
            logger.error("users are unknown until their store can be read: %s", error)

    def get(self, user_id: str) -> UserState | None:
        """See `UserStates`."""
        return self._opened().get(user_id)

    def get_at_once(self, user_id: str) -> UserState | None:
        """See `NearUserStates`; a file that is not open is opened by others."""
        store = self._store
        if store is None:
            raise UserStateError("the store of users is not open")
        return store.get_at_once(user_id)

    def record(self, user_id: str, items: Sequence[int | str] = (), features: Mapping[str, Any] | None = None, *,
               event: str | None = None, history_size: int | None = None) -> bool:
        """See `UserStates`."""
        return self._opened().record(user_id, items, features, event=event, history_size=history_size)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _opened(self) -> NearUserStates:
        with self._lock:
            if self._store is None:
                if time.monotonic() < self._next:
                    raise UserStateError("the store of users could not be opened lately")
                try:
                    self._store = self._open()
                except UnreadableFileError as error:
                    self._next = time.monotonic() + self._retry_seconds
                    raise UserStateError(str(error)) from None
            return self._store
