"""Whether held-out rows are apart from the samples that the policy was trained on: the check against leakage.

It compares identities, request ids and users. Equal values prove nothing: rounded actions in a few states repeat.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.evaluation.held_out import HeldOut, has_samples, microseconds
from recfuse.logs.reading import open_samples, read_samples

logger = logging.getLogger("recfuse")
Keys = NDArray[np.uint64]


@dataclass(frozen=True)
class Separation:
    """How the held-out rows are kept apart from the samples.

    Attributes:
        users: distinct held-out users; shared_users: of them, those whom the samples have too.
        shared_rows: held-out rows that are in the samples, by request, user and, where both know it, time; evaluation
            refuses any.
        namesakes: held-out rows whose request id the samples have of another user or time: of a counter, mostly.
        unknown: "held-out rows" or "samples", which carry no request ids, so that rows cannot be compared; "" where
            both have them.
        of_shared_users: bool[n], which held-out rows are theirs.
        shared: uint64[k], hashes of them.
    """

    users: int
    shared_users: int
    shared_rows: int
    of_shared_users: NDArray[np.bool_] = field(compare=False, repr=False)
    namesakes: int = 0
    unknown: str = ""
    shared: Keys = field(default_factory=lambda: np.zeros(0, np.uint64), compare=False, repr=False)

    def __str__(self) -> str:
        rows = (f"whether held-out rows are in the samples cannot be checked, since {self.unknown} carry no request ids"
                if self.unknown else f"{self.shared_rows} held-out rows")
        text = (f"{rows}; " if self.unknown else f"{rows} and ") + (
            f"{self.shared_users:,} of {self.users:,} held-out users are in the samples")
        namesakes = f"; {self.namesakes:,} request ids are there too, of other users or times"
        return text + (namesakes if self.namesakes else "")


class Identities:
    """Requests and users of the held-out rows, as hashes, so that those of a log beyond memory fit."""

    def __init__(self) -> None:
        self._users: list[Keys] = []
        self._rows: list[_Rows] = []
        self._nameless = False

    def add(self, request_id: NDArray[Any] | None, user_id: NDArray[Any], ts: NDArray[np.int64] | None) -> None:
        """Counts rows in; a request id may be null, and all times unknown."""
        users, rows = _keys(request_id, user_id, ts)
        self._users.append(np.unique(users))
        self._rows.append(rows)
        self._nameless |= len(rows.request) < len(users)

    def separate(self, samples: Iterable[pa.Table], users: NDArray[Any] | None = None) -> Separation:
        """Compares them with samples.

        Args:
            samples: tables with `request_id`, `user_id` and `ts`.
            users: [n], for `Separation.of_shared_users`; None for nobody.
        """
        timed = all(rows.timed for rows in self._rows)
        request, of_user, at_time = (np.concatenate([getattr(rows, name) for rows in self._rows])
                                     for name in ("request", "of_user", "at_time"))
        held_out = np.unique(np.concatenate(self._users))
        shared_users, nameless = np.zeros(len(held_out), bool), False
        same_id, same_row = np.zeros(len(request), bool), np.zeros(len(request), bool)
        for table in samples:
            if not table.num_rows:
                continue
            of_users, rows = _keys(table["request_id"].to_numpy(), table["user_id"].to_numpy(),
                                   microseconds(table["ts"]))
            nameless |= len(rows.request) < len(of_users)
            shared_users |= np.isin(held_out, of_users)
            same_id |= np.isin(request, rows.request)
            same_row |= np.isin(at_time, rows.at_time) if timed and rows.timed else np.isin(of_user, rows.of_user)
        shared = held_out[shared_users]
        of_shared = np.zeros(0, bool) if users is None else np.isin(hash_ids(users), shared)
        return Separation(len(held_out), int(shared_users.sum()), int(same_row.sum()), of_shared,
                          int((same_id & ~same_row).sum()),
                          "the held-out rows" if self._nameless else "the samples" if nameless else "", shared)


def separate(samples: str, log: HeldOut) -> Separation | None:
    """Compares held-out rows with the samples; None where there are no samples."""
    if not has_samples(samples):
        return None
    identities = Identities()
    identities.add(log.request_id, log.user_id, log.ts)
    return identities.separate(read_samples(open_samples(samples)), log.user_id)


def require_apart(separation: Separation, samples: str) -> None:
    """Says how held-out rows and samples are kept apart.

    Raises:
        InvalidFieldError: held-out rows are in the samples.
    """
    logger.log(logging.WARNING if separation.unknown else logging.INFO, "evaluate: %s", separation)
    require(separation.shared_rows == 0, "holdout", f"{separation.shared_rows} rows that are in {samples}",
            "rows that the policy was not trained on")


def require_new_users(separation: Separation | None, samples: str) -> Separation:
    """Raises InvalidFieldError: there are no samples to know the other users from, or no new users."""
    require(separation is not None, "new_users", True, f"samples in {samples} to know their users from")
    assert separation is not None
    require(separation.shared_users < separation.users, "holdout", f"{separation.users} users, all in the samples",
            "a user whom the samples lack")
    return separation


def keep_apart(samples: str, log: HeldOut, new_users: bool) -> tuple[HeldOut, Separation | None]:
    """The held-out requests that count, and how they are kept apart from the samples.

    Args:
        new_users: only requests of users whom the samples lack count.

    Raises:
        InvalidFieldError: held-out rows are in the samples; or new users are wanted, and there are no samples to know
            the others from, or no new users.
    """
    separation = separate(samples, log)
    if separation:
        require_apart(separation, samples)
    if not new_users:
        return log, separation
    log = log.take(~require_new_users(separation, samples).of_shared_users)
    return log, separate(samples, log)


@dataclass(frozen=True)
class _Rows:
    """Hashes of rows that have a request id: of it, of it with its user, of both with its time."""

    request: Keys
    of_user: Keys
    at_time: Keys
    timed: bool


def _keys(request_id: NDArray[Any] | None, user_id: NDArray[Any],
          ts: NDArray[np.int64] | None) -> tuple[Keys, _Rows]:
    """Of the users of all rows, and of the rows."""
    users = hash_ids(user_id)
    known = np.zeros(len(users), bool) if request_id is None else ~pd.isna(request_id)
    request = np.zeros(0, np.uint64) if request_id is None else hash_ids(request_id[known])
    of_user = _mixed(request) ^ users[known]
    at_time = _mixed(of_user) ^ (np.zeros(len(request), np.uint64) if ts is None else ts[known].astype(np.uint64))
    return users, _Rows(request, of_user, at_time, ts is not None)


def _mixed(keys: Keys) -> Keys:
    """Other keys of as many bits, so that their differences to further ones are no accident."""
    return np.asarray(pd.util.hash_array(keys, categorize=False), np.uint64)


def hash_ids(ids: NDArray[Any]) -> Keys:
    """Keys of ids, uint64[n], of 64 bits, so that two ids of a log share one by no chance that matters."""
    words = ids if ids.dtype == object else ids.astype(str).astype(object)
    return np.asarray(pd.util.hash_array(words, categorize=False), np.uint64)
