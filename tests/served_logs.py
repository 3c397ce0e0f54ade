"""What a server with a canary would have logged, for tests: users with a pace of their own, over some days."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import session_logs

from recfuse.bundle.arms import Canary
from recfuse.logs.schema import VOCABULARY_FILE, complete, session_log_schema

BASE, CANARY = "fusion-base", "fusion-canary"
DAY = 86_400
BEGIN = int(session_logs.EPOCH.timestamp())  # of the test


@dataclass(frozen=True)
class Traffic:
    """Users who ask about `pace` times a day, `before` days without a canary and `days` with it, from `begin` on.

    Attributes:
        watch, like: factors of what the canary's users do.
        served: share of the canary's users who get the canary.
        lost: share of the canary's users who are not in the log.
        novelty: factor of watch time on the day after a user's first decision.
    """

    users: int = 1_000
    before: int = 3
    days: int = 3
    share: float = .5
    watch: float = 1.0
    like: float = 1.0
    pace: float = 2.0
    served: float = 1.0
    lost: float = 0.0
    novelty: float = 1.0
    seed: int = 0
    base: str = BASE
    canary: str = CANARY
    begin: float = BEGIN

    @property
    def treated(self) -> np.ndarray:
        """bool[users]"""
        canary = Canary(None, self.canary, self.share)
        return np.array([canary.takes(f"u{user}") for user in range(self.users)])

    def table(self) -> pa.Table:
        """One row a request, a session each, in the order of time."""
        rng = np.random.default_rng(self.seed)
        liking = rng.gamma(2.0, .5, self.users)
        requests = rng.poisson(self.pace * (self.before + self.days), self.users)
        user = np.repeat(np.arange(self.users), requests)
        ts = self.begin + rng.uniform(-self.before * DAY, self.days * DAY, len(user))
        user, ts = user[np.argsort(ts)], np.sort(ts)
        inside, treated = ts >= self.begin, self.treated[user]
        changed = inside & treated
        watch = rng.gamma(2.0, 5.0 * liking[user]) * np.where(changed, self.watch, 1.0)
        entry = np.full(self.users, np.inf)
        np.minimum.at(entry, user[inside], ts[inside])
        watch = watch * np.where(changed & (ts - entry[user] < DAY), self.novelty, 1.0)
        like = rng.random(len(user)) < np.clip(.2 * liking[user] * np.where(changed, self.like, 1.0), 0, 1)
        version = np.where(changed & (rng.random(len(user)) < self.served), self.canary, self.base)
        kept = ~(treated & (rng.random(self.users) < self.lost)[user])
        return rows_of(user[kept], ts[kept], version[kept], watch[kept], like[kept])


def rows_of(user: Iterable[int], ts: np.ndarray, version: Iterable[str], watch: np.ndarray, like: np.ndarray,
            session: Iterable[str | None] | None = None) -> pa.Table:
    """Rows in the native schema; `ts` in seconds since 1970."""
    number = len(ts)
    names = [f"s{k}" for k in range(number)] if session is None else list(session)
    behaviours = [np.asarray(values, np.float32) for values in (watch, like)]
    return complete({
        "user_id": pa.array([f"u{each}" for each in user]), "request_id": pa.array([f"r{k}" for k in range(number)]),
        "session_id": pa.array(names, pa.string()),
        "ts": pa.array((np.asarray(ts) * 1e6).round().astype(np.int64)).cast(pa.timestamp("us", "UTC")),
        "model_version": pa.array(list(version)),
        "feedback": pa.StructArray.from_arrays([pa.array(values) for values in behaviours], ["watch_time", "like"]),
        "last": pa.array(np.zeros(number, bool))}, session_log_schema(session_logs.vocabulary()))


def write(directory: Path, table: pa.Table, row_group: int = 10_000, name: str = "log") -> str:
    """A log directory of one file, or one file more of it."""
    directory.mkdir(parents=True, exist_ok=True)
    session_logs.vocabulary().save(directory / VOCABULARY_FILE)
    pq.write_table(table, directory / f"{name}.parquet", row_group_size=row_group)
    return str(directory)
