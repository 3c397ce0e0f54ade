"""User states in Redis, for serving on more than one machine; answers go on without it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from recfuse.config import InvalidFieldError, require
from recfuse.state.store import UserState, check_features

logger = logging.getLogger("recfuse")
_SCHEMES = ("redis://", "rediss://", "unix://")


def is_redis_url(text: str) -> bool:
    """Whether this names a Redis rather than a file."""
    return text.startswith(_SCHEMES)


class RedisUserStates:
    """User states by id under `PREFIX:ID:features` (a hash of JSON values) and `PREFIX:ID:history` (a list).

    Each update is one transaction on its own keys, so that processes add to a history without reading it. Where Redis
    does not answer, users are unknown and updates are lost, both counted and logged once; after `retry_seconds` it is
    asked again.

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
        self._client = redis.Redis.from_url(url, decode_responses=True, socket_timeout=timeout_seconds,
                                            socket_connect_timeout=timeout_seconds)
        self._failure = redis.RedisError
        self._history_size, self._prefix, self._retry_seconds = history_size, prefix, retry_seconds
        self._down_until = 0.0
        self.failures = 0

    @property
    def degraded(self) -> bool:
        """Whether Redis did not answer lately."""
        return self._down_until > 0.0

    def close(self) -> None:
        self._client.close()

    def get(self, user_id: str) -> UserState | None:
        """The state of a user, None where they are unknown or Redis does not answer."""
        features_key, history_key = self._keys(user_id)
        pipeline = self._client.pipeline(transaction=True)
        pipeline.hgetall(features_key)
        pipeline.lrange(history_key, 0, -1)
        replies = self._execute(pipeline)
        if replies is None or not any(replies):
            return None
        return UserState(features={name: json.loads(value) for name, value in replies[0].items()},
                         history=tuple(map(_item, replies[1])))

    def record(self, user_id: str, items: Sequence[int | str] = (), features: Mapping[str, Any] | None = None) -> None:
        """Adds items to the end of the history, and features over the known ones."""
        check_features(user_id, features or {})
        pipeline = self._client.pipeline(transaction=True)
        self._update(pipeline, user_id, items, features or {})
        self._execute(pipeline)

    def put_many(self, users: Iterable[tuple[str, UserState]]) -> int:
        """Writes states, replacing those of the same id; returns how many.

        Raises:
            redis.RedisError: a bulk load waits for nobody's answer, so it fails aloud.
        """
        count = 0
        pipeline = self._client.pipeline(transaction=False)
        for user_id, user in users:
            check_features(user_id, user.features)
            pipeline.delete(*self._keys(user_id))
            self._update(pipeline, user_id, user.history, user.features)
            count += 1
            if count % 500 == 0:
                pipeline.execute()
        pipeline.execute()
        return count

    def _keys(self, user_id: str) -> tuple[str, str]:
        return f"{self._prefix}:{user_id}:features", f"{self._prefix}:{user_id}:history"

    def _update(self, pipeline: Any, user_id: str, items: Sequence[int | str], features: Mapping[str, Any]) -> None:
        features_key, history_key = self._keys(user_id)
        if features:
            pipeline.hset(features_key, mapping={name: json.dumps(value) for name, value in features.items()})
        if items:
            pipeline.rpush(history_key, *(item if isinstance(item, str) else int(item) for item in items))
            pipeline.ltrim(history_key, -self._history_size, -1)

    def _execute(self, pipeline: Any) -> list[Any] | None:
        if time.monotonic() < self._down_until:
            self.failures += 1
            return None
        try:
            results: list[Any] = pipeline.execute()
        except self._failure as error:
            if not self.degraded:
                logger.error("user states: Redis does not answer, users are unknown until it does: %s", error)
            self.failures += 1
            self._down_until = time.monotonic() + self._retry_seconds
            return None
        if self.degraded:
            logger.warning("user states: Redis answers again")
            self._down_until = 0.0
        return results


def _item(text: str) -> int | str:
    """An item's id, which Redis keeps as text: 7 and "7" are one."""
    return int(text) if text.lstrip("-").isdecimal() and str(int(text)) == text else text
