"""What users of two served models did, from a log of what was served, in sums that add up (maths 7.9).

Row groups become rows per user and session; those of a hash partition of the users become moments. Nothing is held of
single users but within a partition, so that the size of a log is no matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recfuse.bundle.arms import Canary
from recfuse.config import InvalidFieldError, require
from recfuse.evaluation.served_users import Users, users_of
from recfuse.logs.columns import plain_columns
from recfuse.logs.schema import session_log_schema
from recfuse.logs.source import LogSource, Piece, piece_span, pieces, read_piece
from recfuse.stats.moments import Moments

VERSIONS = {"fusion": "model_version", "scenes": "scorer_version"}
OWN_MEASURES = ("requests", "sessions", "returns")
MOST_DAYS = 14  # whose effects are told apart
_NEEDED = ("user_id", "session_id", "ts", "feedback", "last")
# Of so many rows it takes longer to start Ray than to read them.
_FEW_ROWS = 1_000_000
_PARTITION_ROWS = 500_000
# The exchange holds about 50 bytes a decision in memory, so that longer logs are read again for each slice of users.
_SLICE_ROWS = 20_000_000
_PARTITION = "partition"
_BEFORE, _INSIDE, _BAD = 0, 1, 2
_WANTED = "decisions of the time of the test"


class NothingServedError(InvalidFieldError):
    """A log without a decision of the time of a test."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Whom an A/B test compares, and when; times in microseconds since 1970.

    Attributes:
        base, canary: versions. share: of the users that the canary's hash takes.
        begin, end: decisions of [begin, end) are the test's.
        known_from, known_until: what users did in [known_from, known_until) was before anybody had the canary.
        version: the column that says who decided.
        gap_seconds: without a session id, a longer pause ends a session.
    """

    base: str
    canary: str
    share: float
    begin: int
    end: int
    known_from: int
    known_until: int
    version: str = VERSIONS["fusion"]
    gap_seconds: float = 1800.0

    def takes(self, user_id: str) -> bool:
        """Whether a user is the canary's, by the hash that serving asks."""
        return Canary(None, self.canary, self.share).takes(user_id)


@dataclass(frozen=True)
class Served:
    """What both arms did.

    Attributes:
        measures: m names: the behaviours, and OWN_MEASURES.
        arms: of base and canary; columns are the m measures in the test, the m before it, and whether a user was known
            before it.
        halves: likewise of users of two complete days or more; columns are the m measures a day in the first half of
            their days, then in the second.
        days: float64[2, days, m, 3], of the days since a user's first decision: users who had the whole day, sums over
            them, sums of squares.
        decisions: of the test; strays: those that the other arm, or a third model, had decided.
        left_out: rows without user, time or finite feedback.
        last: time of the last decision of the test, in microseconds since 1970; 0 where there is none.
    """

    measures: tuple[str, ...]
    arms: tuple[Moments, Moments]
    halves: tuple[Moments, Moments]
    days: NDArray[np.float64]
    decisions: int
    strays: int
    left_out: int
    last: int

    def __add__(self, other: Served) -> Served:
        return Served(
            self.measures, (self.arms[0] + other.arms[0], self.arms[1] + other.arms[1]),
            (self.halves[0] + other.halves[0], self.halves[1] + other.halves[1]), self.days + other.days,
            self.decisions + other.decisions, self.strays + other.strays, self.left_out + other.left_out,
            max(self.last, other.last))


@dataclass(frozen=True)
class Slicing:
    """Hash partitions of the users, and slices of these, which are read one after the other.

    Attributes:
        partitions: how many; slices: how many, at most as many.
    """

    partitions: int
    slices: int

    def partition_of(self, keys: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Of users by their hashes."""
        return (keys % np.uint64(self.partitions)).astype(np.int32)

    def has(self, keys: NDArray[np.uint64], number: int) -> NDArray[np.bool_]:
        """Whether users are of the `number`-th slice."""
        return np.asarray(self.partition_of(keys) % self.slices == number, bool)


@dataclass(frozen=True)
class _Named:
    """Whose rows are: codes [n] of the users; their ids and the hashes of these [U]."""

    codes: NDArray[np.int64]
    users: NDArray[Any]
    keys: NDArray[np.uint64]


def measure_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The behaviours of a vocabulary and OWN_MEASURES; of equal names that of the behaviour stays as it is."""
    return (*names, *(f"{name} (counted)" if name in names else name for name in OWN_MEASURES))


def read_served(source: LogSource, split: Split) -> Served:
    """Reads the rows of a test and before it; more than `_FEW_ROWS` on Ray, and more than `_SLICE_ROWS` once for each
    slice of the users, so that memory does not grow with the log.

    Raises:
        NothingServedError: no row is of the test.
        InvalidFieldError: a column cannot be read.
    """
    listing = [piece for piece in pieces(source)[0] if _is_near(source, piece, split)]
    rows = sum(piece.kept for piece in listing)
    if not rows:
        raise NothingServedError("logs", source.location.uri, _WANTED)
    partitions = max(1, rows // _PARTITION_ROWS)
    slicing = Slicing(partitions, min(partitions, math.ceil(rows / _SLICE_ROWS)))
    read = partial(session_rows, source, split, slicing)
    merge = partial(_merged, source, split)
    folded = _folded_here if rows <= _FEW_ROWS else _folded_on_ray
    # A table may hold the rows of several partitions; sorted, sums do not depend on which came first.
    parts = sorted((row for table in folded(listing, read, merge, slicing) for row in table.to_pylist()),
                   key=lambda row: int(row[_PARTITION]))
    names = measure_names(source.vocabulary.behaviour_names)
    first, *others = (_unpacked(row, names) for row in parts)
    for other in others:
        first = first + other
    if not first.decisions:
        raise NothingServedError("logs", source.location.uri, _WANTED)
    return first


def first_decision(source: LogSource, version: str, name: str) -> int | None:
    """Time of the first decision of a model, in microseconds since 1970; None where it has none."""
    others = {*session_log_schema(source.vocabulary).names} - {"ts", version}
    times = []
    for piece in pieces(source)[0]:
        table = plain_columns(read_piece(source, piece, others), (), ("ts", version)).table
        if {"ts", version} <= {*table.column_names}:
            first = pc.min(table["ts"].filter(pc.equal(table[version], name)))
            times += [int(first.cast(pa.int64()).as_py())] if first.is_valid else []
    return min(times, default=None)


def session_rows(source: LogSource, split: Split, slicing: Slicing, number: int, piece: Piece) -> pa.Table:
    """Of a row group and the users of a slice: a row per user, phase and session, with its times and sums; and one that
    counts bad rows, which are of the first slice."""
    names = source.vocabulary.behaviour_names
    wanted = (*_NEEDED, split.version)
    table = plain_columns(read_piece(source, piece, {*session_log_schema(source.vocabulary).names} - {*wanted}),
                          names, wanted).table
    for name in ("user_id", "ts", "feedback"):
        require(name in table.column_names, "logs", f"no column {name}", f"a session log with a column {name}")
    table = table.combine_chunks()
    feedback = np.stack([pc.struct_field(table["feedback"].combine_chunks(), name).to_numpy(zero_copy_only=False)
                         for name in names], 1).astype(np.float64)
    good = (np.isfinite(feedback).all(1) & table["user_id"].is_valid().to_numpy(zero_copy_only=False)
            & table["ts"].is_valid().to_numpy(zero_copy_only=False))
    left_out = int((~good).sum())
    table, feedback = table.filter(pa.array(good)), feedback[good]
    ts = table["ts"].cast(pa.int64()).to_numpy()
    phase = np.where((ts >= split.begin) & (ts < split.end), _INSIDE, np.where(
        (ts >= split.known_from) & (ts < split.known_until), _BEFORE, _BAD))
    codes, users = pd.factorize(table["user_id"].to_numpy(zero_copy_only=False))
    keys = pd.util.hash_array(users.astype(object), categorize=False)
    near = (phase != _BAD) & slicing.has(keys, number)[codes]
    named = _Named(codes[near], users, keys)
    frame = _grouped(table.filter(pa.array(near)), named, ts[near], phase[near], feedback[near], split)
    frame[_PARTITION] = slicing.partition_of(frame["user"])
    counted = {name: np.zeros(1, frame[name].dtype) for name in frame}
    counted["phase"][:], counted["requests"][:], counted[_PARTITION][:] = _BAD, left_out * (number == 0), number
    return pa.table({name: pa.array(np.concatenate([frame[name], counted[name]])) for name in frame})


def _grouped(table: pa.Table, named: _Named, ts: NDArray[np.int64], phase: NDArray[np.int64],
             feedback: NDArray[np.float64], split: Split) -> dict[str, NDArray[Any]]:
    """Columns of `session_rows` of the good rows: sums over the runs of a user's session."""
    codes, keys, treated = named.codes, named.keys, np.zeros(len(named.users), bool)
    some = np.unique(codes)
    treated[some] = np.fromiter((split.takes(user) for user in named.users[some]), bool, len(some))
    session, last = np.zeros(len(ts), np.uint64), np.zeros(len(ts), bool)
    if "session_id" in table.column_names:
        ids = pc.fill_null(table["session_id"], "").to_numpy(zero_copy_only=False).astype(object)
        session = np.where(ids == "", np.uint64(0), pd.util.hash_array(ids))
    if "last" in table.column_names:
        last = pc.fill_null(table["last"], False).to_numpy(zero_copy_only=False)
    version = (pc.fill_null(table[split.version], "").to_numpy(zero_copy_only=False)
               if split.version in table.column_names else np.full(len(ts), ""))
    stray = (version != np.where(treated[codes], split.canary, split.base)) & (phase == _INSIDE)
    order = np.lexsort((ts, session, phase, codes))
    codes, ts, phase, session, last = codes[order], ts[order], phase[order], session[order], last[order]
    new = np.ones(len(ts), bool)
    pause = (np.diff(ts) > split.gap_seconds * 1e6) | last[:-1]
    new[1:] = ((np.diff(codes) != 0) | (np.diff(phase) != 0) | (session[1:] != session[:-1])
               | ((session[1:] == 0) & pause))
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], len(ts)) - 1 if len(starts) else starts
    sums = np.add.reduceat(np.column_stack([feedback, stray])[order], starts) if len(starts) else np.zeros(
        (0, feedback.shape[1] + 1))
    return {"user": keys[codes[starts]], "treated": treated[codes[starts]], "phase": phase[starts].astype(np.int8),
            "session": session[starts], "first": ts[starts], "last": ts[ends], "closed": last[ends],
            "requests": ends - starts + 1, "strays": sums[:, -1].astype(np.int64),
            **{f"sum_{place}": sums[:, place] for place in range(feedback.shape[1])}}


def _merged(source: LogSource, split: Split, group: pa.Table) -> pa.Table:
    """Of the rows of a partition, one that `_unpacked` makes a `Served` of."""
    bad = group.filter(pc.equal(group["phase"], _BAD))
    behaviours = len(source.vocabulary.behaviours)
    users = users_of(group.filter(pc.not_equal(group["phase"], _BAD)), behaviours, split.begin, split.end,
                     split.gap_seconds, MOST_DAYS)
    return pa.Table.from_pylist([{
        _PARTITION: int(group[_PARTITION][0].as_py()), "left_out": int(pc.sum(bad["requests"]).as_py() or 0),
        "decisions": users.decisions, "strays": users.strays, "last": users.last,
        "arms": [moments.to_dict() for moments in _by_arm(users, users.columns)],
        "halves": [moments.to_dict() for moments in _by_arm(users, users.halves, users.whole_days >= 2)],
        "days": users.daily.ravel().tolist()}])


def _by_arm(users: Users, columns: NDArray[np.float64], chosen: NDArray[np.bool_] | None = None
            ) -> tuple[Moments, Moments]:
    counted = np.ones(len(users.treated), bool) if chosen is None else chosen
    return Moments.of(columns[counted & ~users.treated]), Moments.of(columns[counted & users.treated])


def _unpacked(row: dict[str, Any], measures: tuple[str, ...]) -> Served:
    arms, halves = ((Moments.from_dict(row[name][0]), Moments.from_dict(row[name][1])) for name in ("arms", "halves"))
    days = np.array(row["days"], np.float64).reshape(2, MOST_DAYS, len(measures), 3)
    return Served(measures, arms, halves, days, row["decisions"], row["strays"], row["left_out"], row["last"])


def _is_near(source: LogSource, piece: Piece, split: Split) -> bool:
    """Whether a row group may have rows of the test or of the time before it."""
    span = piece_span(source, piece)
    if span is None:
        return True
    first, last = span
    return any(first < end and last >= begin for begin, end in (
        (split.begin, split.end), (split.known_from, split.known_until)))


def _folded_here(listing: list[Piece], read: Callable[[int, Piece], pa.Table],
                 merge: Callable[[pa.Table], pa.Table], slicing: Slicing) -> Iterable[pa.Table]:
    for number in range(slicing.slices):
        rows = pa.concat_tables([read(number, piece) for piece in listing])
        for partition in range(number, slicing.partitions, slicing.slices):
            part = rows.filter(pc.equal(rows[_PARTITION], partition))
            if part.num_rows:
                yield merge(part)


def _folded_on_ray(listing: list[Piece], read: Callable[[int, Piece], pa.Table],
                   merge: Callable[[pa.Table], pa.Table], slicing: Slicing) -> Iterator[pa.Table]:
    from recfuse.logs.exchange import fold_pieces
    from recfuse.runtime.cluster import cluster

    with cluster():
        for number in range(slicing.slices):
            yield from fold_pieces(listing, partial(read, number), merge, _PARTITION,
                                   math.ceil(slicing.partitions / slicing.slices))
