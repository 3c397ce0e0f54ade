"""Users of a hash partition, from their sessions: what each did in the test, day by day since their first decision, and
before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

DAY = 86_400_000_000  # microseconds
Vector = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class Users:
    """Users with a decision in the test, U of them; m measures: behaviours, requests, sessions, returns.

    Attributes:
        treated: bool[U].
        columns: float64[U, 2m + 1]: the measures in the test and before it, and whether anything was before.
        whole_days: int64[U], complete days since the first decision, `days` at most.
        halves: float64[U, 2m]: the measures a day in the first and in the last half of the complete days.
        daily: float64[2, days, m, 3]: of users who had the whole day: how many, sums, sums of squares.
        decisions, strays: of the test. last: time of its last decision, 0 where there is none.
    """

    treated: NDArray[np.bool_]
    columns: Vector
    whole_days: Places
    halves: Vector
    daily: Vector
    decisions: int
    strays: int
    last: int


def users_of(rows: pa.Table, behaviours: int, begin: int, end: int, gap_seconds: float, days: int) -> Users:
    """Of the rows of `served.session_rows`, all of each of their users.

    A session belongs to the day on which it begins. A return is a day after the first with a decision.

    Args:
        begin, end: of the test, in microseconds since 1970.
    """
    sessions = _sessions(rows, behaviours, gap_seconds)
    inside = sessions.phase == 1
    exposed, place = np.unique(sessions.user[inside], return_inverse=True)
    treated = np.zeros(len(exposed), bool)
    treated[place] = sessions.treated[inside]
    entry = np.full(len(exposed), np.iinfo(np.int64).max)
    np.minimum.at(entry, place, sessions.first[inside])
    whole = np.clip((end - entry) // DAY, 0, days)
    in_test = _days_of(sessions, inside, place, (sessions.first[inside] - entry[place]) // DAY)
    before, of_known = _before(sessions, ~inside, exposed)
    known = np.zeros(len(exposed))
    known[of_known] = 1.0
    columns = np.column_stack([
        _sums(in_test, len(exposed)), _sums(before, len(exposed)), known])
    return Users(treated, columns, whole, _halves(in_test, whole), _daily(in_test, whole, treated, days),
                 int(sessions.requests[inside].sum()), int(sessions.strays[inside].sum()),
                 int(sessions.last[inside].max(initial=0)))


@dataclass(frozen=True)
class _Sessions:
    """S sessions, of the rows that belong together; `sums` [S, behaviours]."""

    user: NDArray[np.uint64]
    treated: NDArray[np.bool_]
    phase: Places
    first: Places
    last: Places
    requests: Places
    strays: Places
    sums: Vector


@dataclass(frozen=True)
class _UserDays:
    """Days of users with a decision; `values` [n, m] are their measures."""

    user: Places
    day: Places
    values: Vector


def _sessions(rows: pa.Table, behaviours: int, gap_seconds: float) -> _Sessions:
    """Joins the rows of a session that lay in several row groups."""
    ordered = rows.sort_by([(name, "ascending") for name in ("user", "phase", "session", "first", "last")])
    column = {name: ordered[name].to_numpy() for name in ordered.column_names}
    user, phase, session = column["user"], column["phase"], column["session"]
    other = np.ones(len(user), bool)
    other[1:] = (user[1:] != user[:-1]) | (phase[1:] != phase[:-1]) | (session[1:] != session[:-1])
    so_far = pd.Series(column["last"]).groupby(np.cumsum(other)).cummax().to_numpy()
    pause = np.zeros(len(user), bool)
    pause[1:] = (column["first"][1:] - so_far[:-1] > gap_seconds * 1e6) | column["closed"][:-1]
    starts = np.flatnonzero(other | ((session == 0) & pause))
    if not len(starts):
        empty = np.zeros(0, np.int64)
        return _Sessions(np.zeros(0, np.uint64), np.zeros(0, bool), empty, empty, empty, empty, empty,
                         np.zeros((0, behaviours)))
    sums = np.column_stack([column[f"sum_{place}"] for place in range(behaviours)])
    return _Sessions(
        user[starts], column["treated"][starts], phase[starts].astype(np.int64), column["first"][starts],
        np.maximum.reduceat(column["last"], starts), np.add.reduceat(column["requests"], starts),
        np.add.reduceat(column["strays"], starts), np.add.reduceat(sums, starts))


def _days_of(sessions: _Sessions, chosen: NDArray[np.bool_], place: Places, day: Places) -> _UserDays:
    """The measures of each user's days, of the chosen sessions, whose users and days are given."""
    span = int(day.max(initial=0)) + 1
    keys, of = np.unique(place * span + day, return_inverse=True)
    values = np.column_stack([sessions.sums[chosen], sessions.requests[chosen], np.ones(int(chosen.sum()))])
    summed = np.column_stack([np.bincount(of, column, len(keys)) for column in values.T])
    return _UserDays(keys // span, keys % span, np.column_stack([summed, keys % span > 0]))


def _before(sessions: _Sessions, chosen: NDArray[np.bool_], exposed: NDArray[np.uint64]) -> tuple[_UserDays, Places]:
    """The same of what exposed users did before, whose days begin with their first there; and who they are."""
    place = np.searchsorted(exposed, sessions.user)
    chosen = chosen & (place < len(exposed))
    chosen[chosen] = exposed[place[chosen]] == sessions.user[chosen]
    place = place[chosen]
    entry = np.full(len(exposed), np.iinfo(np.int64).max)
    np.minimum.at(entry, place, sessions.first[chosen])
    return _days_of(sessions, chosen, place, (sessions.first[chosen] - entry[place]) // DAY), np.unique(place)


def _sums(of: _UserDays, users: int) -> Vector:
    """float64[U, m]"""
    return np.column_stack([np.bincount(of.user, column, users) for column in of.values.T])


def _halves(of: _UserDays, whole: Places) -> Vector:
    """float64[U, 2m], measures a day in the first and in the last `whole // 2` days."""
    half = whole // 2
    per_day = 1 / np.maximum(half, 1)
    first = of.day < half[of.user]
    last = (of.day < whole[of.user]) & (of.day >= (whole - half)[of.user])
    parts = (_UserDays(of.user[part], of.day[part], of.values[part]) for part in (first, last))
    return np.column_stack([per_day[:, None] * _sums(part, len(whole)) for part in parts])


def _daily(of: _UserDays, whole: Places, treated: NDArray[np.bool_], days: int) -> Vector:
    """float64[2, days, m, 3] of `Users`."""
    found = np.zeros((2, days, of.values.shape[1], 3))
    complete = of.day < whole[of.user]
    for arm in (0, 1):
        mine = treated == bool(arm)
        found[arm, :, :, 0] = (whole[mine][None] > np.arange(days)[:, None]).sum(1)[:, None]
        part = complete & mine[of.user]
        for place, column in enumerate(of.values[part].T):
            found[arm, :, place, 1] = np.bincount(of.day[part], column, days)
            found[arm, :, place, 2] = np.bincount(of.day[part], column**2, days)
    return found
