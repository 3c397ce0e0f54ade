"""User states in Redis, for serving on more than one machine; answers go on without it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from recfuse.config import InvalidFieldError, require
from recfuse.state.store import REMEMBERED_EVENTS, UserState, UserStateError, check_features

logger = logging.getLogger("recfuse")
# Keys: features, history, events, told. Values: event or "", history size, time, number of items, the items, features
# and values.
_RECORD = f"""
if ARGV[1] ~= '' then
  if redis.call('LPOS', KEYS[3], ARGV[1]) then return 0 end
  redis.call('RPUSH', KEYS[3], ARGV[1])
  redis.call('LTRIM', KEYS[3], -{REMEMBERED_EVENTS}, -1)
end
redis.call('SET', KEYS[4], ARGV[3])
local items = tonumber(ARGV[4])
for place = 5, 4 + items do redis.call('RPUSH', KEYS[2], ARGV[place]) end
if items > 0 then redis.call('LTRIM', KEYS[2], -tonumber(ARGV[2]), -1) end
for place = 5 + items, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[place], ARGV[place + 1]) end
return 1
"""
# The same keys. Values: time since which feedback goes before, or "" for all feedback; the others as above.
_UPDATE = """
local told = redis.call('GET', KEYS[4])
if told and (ARGV[1] == '' or tonumber(told) > tonumber(ARGV[1])) then return 0 end
if not told then redis.call('DEL', KEYS[1]) end
local items = tonumber(ARGV[3])
if items > 0 then redis.call('DEL', KEYS[2]) end
for place = 4, 3 + items do redis.call('RPUSH', KEYS[2], ARGV[place]) end
redis.call('LTRIM', KEYS[2], -tonumber(ARGV[2]), -1)
for place = 4 + items, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[place], ARGV[place + 1]) end
return 1
"""
_BATCH = 500  # commands that are sent at a time
_SCHEMES = ("redis://", "rediss://", "unix://")


def is_redis_url(text: str) -> bool:
    """Whether this names a Redis rather than a file."""
    return text.startswith(_SCHEMES)


class RedisUserStates:
    """User states by id under `PREFIX:ID:features` (a hash of JSON values), `PREFIX:ID:history` (a list),
    `PREFIX:ID:events` (the events that are in them) and `PREFIX:ID:told` (seconds since 1970 of the last feedback).

    Each update is one script on its user's keys, so that processes add to a history without reading it. Where Redis
    does not answer, everybody's state is an error, logged once; after `retry_seconds` it is asked again. A command that
    Redis refuses (a key of another type, no memory) is an error of that user alone.

    Args:
        url: redis://, rediss:// or unix://.
        history_size: how many of a user's latest items are kept.
        timeout_seconds: of each command; a request waits for it at most twice.
        retry_seconds: pause after a failure, in which nobody waits.

    Raises:
        InvalidFieldError: no such URL, or the package `redis` is not installed.
    """

    def __init__(self, url: str, history_size: int = 50, *, prefix: str = "recfuse", timeout_seconds: float = 0.05,
                 retry_seconds: float = 1.0) -> None:
        require(is_redis_url(url), "users", url, f"a URL that begins with {', '.join(_SCHEMES)}")
        require(history_size > 0, "history_size", history_size, "an integer > 0")
        try:
            import redis
        except ImportError:
            raise InvalidFieldError("users", url, "a SQLite file, or the package `redis` installed") from None
        # Bytes are decoded here: a value that is no text would leave the rest of an answer to the next request.
        self._client = redis.Redis.from_url(url, socket_timeout=timeout_seconds,
                                            socket_connect_timeout=timeout_seconds)
        self._failure, self._refusal = (redis.RedisError, OSError), redis.ResponseError
        self._history_size, self._prefix, self._retry_seconds = history_size, prefix, retry_seconds
        self._down_until = 0.0
        self.failures = 0

    def close(self) -> None:
        self._client.close()

    def get(self, user_id: str) -> UserState | None:
        """The state of a user, None where they are unknown.

        Raises:
            UserStateError: Redis does not answer, or what it has of this user is no state.
        """
        features_key, history_key, *_ = self._keys(user_id)
        # No transaction: a Redis that takes no writes may refuse one.
        pipeline = self._client.pipeline(transaction=False)
        pipeline.hgetall(features_key)
        pipeline.lrange(history_key, 0, -1)
        replies = self._ask(lambda: pipeline.execute())
        if not any(replies):
            return None
        try:
            return UserState(features={name.decode(): json.loads(value) for name, value in replies[0].items()},
                             history=tuple(_item(item.decode()) for item in replies[1]))
        except ValueError as error:
            raise UserStateError(f"the state of user {user_id!r}: {error}") from None

    def record(self, user_id: str, items: Sequence[int | str] = (), features: Mapping[str, Any] | None = None, *,
               event: str | None = None, history_size: int | None = None) -> bool:
        """Adds items to the end of the history, and features over the known ones; see `UserStateStore.record`."""
        check_features(user_id, features or {})
        size = max(self._history_size, history_size or 0)
        arguments = [event or "", size, time.time(), *_arguments(items, features or {})]
        return bool(self._ask(lambda: self._client.eval(_RECORD, 4, *self._keys(user_id), *arguments)))

    def update_many(self, users: Iterable[tuple[str, UserState]], since: float | None) -> int:
        """Brings known users up to date, and adds the others; see `UserStateStore.update_many`.

        Raises:
            InvalidFieldError: what a store cannot give back.
            UserStateError: Redis does not answer, or refuses; what it has taken before stays.
        """
        states = dict(users)
        for user_id, user in states.items():
            check_features(user_id, user.features)  # What cannot be stored is refused before anything is written.
        names, written = list(states), 0
        for start in range(0, len(names), _BATCH):
            pipeline = self._client.pipeline(transaction=False)
            for name in names[start:start + _BATCH]:
                user = states[name]
                pipeline.eval(_UPDATE, 4, *self._keys(name), "" if since is None else since, self._history_size,
                              *_arguments(user.history, user.features))
            written += sum(self._ask(pipeline.execute))
        return written

    def put_many(self, users: Iterable[tuple[str, UserState]]) -> int:
        """Writes states, replacing those of the same id; returns how many.

        Raises:
            redis.RedisError: a bulk load waits for nobody's answer, so it fails aloud.
        """
        count = 0
        pipeline = self._client.pipeline(transaction=False)
        for user_id, user in users:
            check_features(user_id, user.features)
            features_key, history_key, _, told = self._keys(user_id)
            pipeline.delete(features_key, history_key, told)
            self._update(pipeline, user_id, user.history, user.features)
            count += 1
            if count % _BATCH == 0:
                pipeline.execute()
        pipeline.execute()
        return count

    def _keys(self, user_id: str) -> tuple[str, str, str, str]:
        return tuple(f"{self._prefix}:{user_id}:{name}"  # type: ignore[return-value]
                     for name in ("features", "history", "events", "told"))

    def _update(self, pipeline: Any, user_id: str, items: Sequence[int | str], features: Mapping[str, Any]) -> None:
        features_key, history_key, *_ = self._keys(user_id)
        if features:
            pipeline.hset(features_key, mapping={name: json.dumps(value) for name, value in features.items()})
        if items:
            pipeline.rpush(history_key, *(item if isinstance(item, str) else int(item) for item in items))
            pipeline.ltrim(history_key, -self._history_size, -1)

    def _ask(self, command: Callable[[], Any]) -> Any:
        """Raises UserStateError."""
        if time.monotonic() < self._down_until:
            self.failures += 1
            raise UserStateError("Redis did not answer lately")
        try:
            result = command()
        except self._refusal as error:
            self.failures += 1
            raise UserStateError(f"Redis refuses: {error}") from None
        except self._failure as error:
            if not self._down_until:
                logger.error("user states: Redis does not answer, users are unknown until it does: %s", error)
            self.failures += 1
            self._down_until = time.monotonic() + self._retry_seconds
            raise UserStateError(f"Redis does not answer: {error}") from None
        if self._down_until:
            logger.warning("user states: Redis answers again")
            self._down_until = 0.0
        return result


def _arguments(items: Sequence[int | str], features: Mapping[str, Any]) -> list[Any]:
    """Number of items, the items, features and values, as the scripts take them."""
    ids = [item if isinstance(item, str) else int(item) for item in items]
    return [len(ids), *ids, *(part for name, value in features.items() for part in (name, json.dumps(value)))]


def _item(text: str) -> int | str:
    """An item's id, which Redis keeps as text: 7 and "7" are one."""
    return int(text) if text.lstrip("-").isdecimal() and str(int(text)) == text else text
