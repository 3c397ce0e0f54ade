"""Sessions: the one rule that cuts them, for training and evaluation alike; and samples (design 3.2).

A session is one `session_id` of one user. Requests without an id fall into sessions by pauses. `last` ends a session
wherever it stands. A session that the end of the log cuts is truncated, not done.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recfuse.behaviours import Vocabulary
from recfuse.logs.candidates import replay_columns
from recfuse.logs.config import Cut, SessionRule
from recfuse.logs.schema import complete, sample_schema

# What tells where requests stand.
SESSION_KEYS = ["user_id", "session_id", "ts", "position", "request_id", "last"]
_OTHER_KEYS = ("session_id", "stage", "scene", "model_version", "explored", "last", "position")


@dataclass(frozen=True)
class Sessions:
    """Requests in the order of their users, sessions and times.

    Attributes:
        rows: checked rows, sorted.
        number: int64[n], of the session, from 0, in the order of the rows.
        end: bool[n], the last request that is known of its session.
        truncated: bool[n], such a request of a session that the end of the log cuts.
        ties: requests whose time is that of the request before them in the same session, and that no `position` orders.
    """

    rows: pa.Table
    number: NDArray[np.int64]
    end: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    ties: int


@dataclass(frozen=True)
class Samples:
    """Attributes:
        table: `sample_schema(vocabulary)`.
        left_out: last requests of truncated sessions, which are in no sample.
        truncated: sessions that the end of the log cuts.
        ties: see `Sessions`.
    """

    table: pa.Table
    left_out: int
    truncated: int
    ties: int


def repeated(identities: pa.ChunkedArray) -> NDArray[np.bool_]:
    """bool[n]: another row has the same text."""
    codes = identities.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return np.asarray(np.bincount(codes)[codes] > 1) if len(codes) else np.zeros(0, bool)


def keep_first(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(first row of every `request_id`, the others); first = earliest `ts`, whatever the order in the files."""
    again = repeated(rows["request_id"])
    if not again.any():
        return rows, rows.slice(0, 0)
    places = np.flatnonzero(again)
    other = places[~first_of_repeated(rows.take(pa.array(places)))]
    keep = np.ones(rows.num_rows, bool)
    keep[other] = False
    return rows.filter(pa.array(keep)), rows.take(pa.array(other))


def first_of_repeated(rows: pa.Table) -> NDArray[np.bool_]:
    """bool[n]: the row is the first of its `request_id`."""
    position = pa.array(np.arange(rows.num_rows))
    feedback = pa.table(rows["feedback"].combine_chunks().flatten(),
                        [f"feedback {field.name}" for field in rows.schema.field("feedback").type])
    keys = pa.table({"request_id": rows["request_id"], "ts": rows["ts"], "user_id": rows["user_id"],
                     "logp": rows["action_logp"], **{name: rows[name] for name in _OTHER_KEYS},
                     **{name: feedback[name] for name in feedback.column_names}})
    # The keys after `ts` make the choice between equal times independent of the order of the files.
    ordered = keys.append_column("place", position).sort_by([(name, "ascending") for name in keys.column_names])
    identity = ordered["request_id"].combine_chunks()
    first = np.ones(len(identity), bool)
    first[1:] = pc.not_equal(identity[1:], identity[:-1]).to_numpy(zero_copy_only=False)
    result = np.zeros(rows.num_rows, bool)
    result[ordered["place"].to_numpy()[first]] = True
    return result


@dataclass(frozen=True)
class Order:
    """Where requests stand, told by SESSION_KEYS alone.

    Attributes:
        places: int64[n], positions of the rows in the order of their users, sessions and times.
        number, end, truncated, ties: as in `Sessions`, in that order.
    """

    places: NDArray[np.int64]
    number: NDArray[np.int64]
    end: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    ties: int


def order_sessions(keys: pa.Table, rule: SessionRule) -> Order:
    """Sorts and cuts requests.

    Requests of equal time are ordered by `position` where the log has it, and otherwise by their ids as people count:
    `r2` before `r10`.

    Args:
        keys: SESSION_KEYS of checked rows, all requests of each of their users, in any order, no duplicates.
    """
    user, session = _ranks(keys["user_id"]), _ranks(pc.fill_null(keys["session_id"], ""))
    ts = keys["ts"].combine_chunks().cast(pa.int64()).to_numpy()
    both = user * (int(session.max(initial=0)) + 1) + session
    places = np.lexsort((ts, both))
    tied = _same(both[places]) & _same(ts[places])
    if tied.any():
        places = _by_position_and_id(keys, places, tied)
    user, both, ts = user[places], both[places], ts[places]
    together = _same(both)
    named = pc.not_equal(pc.fill_null(keys["session_id"], ""), "").to_numpy()[places]
    pause = np.append(np.diff(ts), 0) / 1e6
    marked = pc.fill_null(keys["last"], False).to_numpy()[places]
    end = ~together | (~named & (pause > rule.gap_seconds)) | marked
    number = np.concatenate([[0], np.cumsum(end)[:-1]]).astype(np.int64)
    truncated = np.zeros(len(end), bool)
    if rule.log_end is not None:
        # Only where the rows of a user end, or an id does, can something follow that the log does not have.
        truncated = ~together & ~marked & ((rule.log_end - ts) / 1e6 <= rule.gap_seconds) & _latest(user, ts)
    tied = together & ~end & (np.append(np.diff(ts), 1) == 0)
    known = pc.is_valid(keys["position"]).to_numpy()[places]
    return Order(places, number, end, truncated, int((tied & ~known).sum()))


def _ranks(texts: pa.ChunkedArray) -> NDArray[np.int64]:
    """int64[n]: equal texts have equal numbers, which are in the order of their bytes."""
    coded = texts.combine_chunks().dictionary_encode()
    order = pc.sort_indices(coded.dictionary).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return np.asarray(rank[coded.indices.to_numpy()])


def _by_position_and_id(keys: pa.Table, places: NDArray[np.int64], tied: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The same order with rows of equal user, session and time ordered among themselves."""
    run = np.cumsum(~np.concatenate([[False], tied[:-1]]))
    among = np.flatnonzero(tied | np.concatenate([[False], tied[:-1]]))
    some = keys.select(["position", "request_id"]).take(pa.array(places[among]))
    within = pa.table({"run": run[among], "position": some["position"],
                       "length": pc.utf8_length(some["request_id"]), "request_id": some["request_id"]})
    order = pc.sort_indices(within, [(name, "ascending") for name in within.column_names]).to_numpy()
    result = places.copy()
    result[among] = places[among][order]
    return result


def cut_sessions(rows: pa.Table, rule: SessionRule) -> Sessions:
    """The requests in the order of their sessions.

    Args:
        rows: checked rows (`session_log_schema`); as of `order_sessions`.
    """
    if rows.num_rows == 0:
        return Sessions(rows, np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, bool), 0)
    order = order_sessions(rows.select(SESSION_KEYS), rule)
    return Sessions(rows.take(pa.array(order.places)).combine_chunks(), order.number, order.end, order.truncated,
                    order.ties)


def what_stays(sessions: Sessions | Order, cut: Cut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of sessions that the end of the log cuts: bool[n], which requests stay by the rule; and which of these is then
    the last known one of such a session."""
    keep, closes = np.ones(len(sessions.end), bool), sessions.truncated.copy()
    if cut == "leave_out" and len(keep):
        keep = ~sessions.truncated
        # The request before it is now the last that is known, and bootstraps from the state that is left out.
        closes[:-1] = sessions.truncated[1:] & (sessions.number[1:] == sessions.number[:-1])
        closes[-1] = False
    return keep, closes


def without_cut_requests(sessions: Sessions, cut: Cut) -> Sessions:
    """The requests that samples are made of, in the same sessions."""
    keep, closes = what_stays(sessions, cut)
    number = np.unique(sessions.number[keep], return_inverse=True)[1].astype(np.int64)
    return Sessions(sessions.rows.filter(pa.array(keep)), number, (sessions.end | closes)[keep], closes[keep],
                    sessions.ties)


def _latest(user: NDArray[np.int64], ts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[n]: no request of the same user is later, so that no other session shows that this one has ended."""
    starts = np.flatnonzero(np.concatenate([[True], ~_same(user)[:-1]]))
    latest = np.maximum.reduceat(ts, starts)
    return np.asarray(ts >= np.repeat(latest, np.diff(np.append(starts, len(ts)))))


def to_samples(rows: pa.Table, vocabulary: Vocabulary, rule: SessionRule) -> Samples:
    """Samples of whole users.

    Args:
        rows: as `cut_sessions`.
    """
    if rows.num_rows == 0:
        return Samples(sample_schema(vocabulary).empty_table(), 0, 0, 0)
    order = order_sessions(rows.select(SESSION_KEYS), rule)
    keep, closes = what_stays(order, rule.cut)
    table = transitions(rows.take(pa.array(order.places)).combine_chunks(), vocabulary, rule.cut, order.end,
                        order.truncated, closes)
    return Samples(table if keep.all() else table.filter(pa.array(keep)), int((~keep).sum()),
                   int(order.truncated.sum()), order.ties)


def transitions(rows: pa.Table, vocabulary: Vocabulary, cut: Cut, end: NDArray[np.bool_],
                truncated: NDArray[np.bool_], closes: NDArray[np.bool_]) -> pa.Table:
    """Samples of the first n rows, those of which the flags bool[n] are.

    A request is `done` where it is the last of its session; its `next_state` is then zeros, which maths 1.2 multiplies
    by 1 − d = 0. Of a truncated session no request is done.

    Args:
        rows: in the order of their sessions; where the last of the n does not end its session, one more follows.
        end, truncated: as in `Sessions`; closes: as of `what_stays`.
    """
    size = len(end)
    state = rows["state"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    state = state.reshape(rows.num_rows, vocabulary.state_size)
    next_state = np.empty((size, vocabulary.state_size), np.float32)
    next_state[:len(state) - 1] = state[1:size + 1]
    next_state[end] = state[:size][end] if cut == "bootstrap" else 0.0
    next_state[end & ~truncated] = 0.0
    rows = rows.slice(0, size)
    feedback = np.stack([pc.struct_field(rows["feedback"].combine_chunks(), name).to_numpy(zero_copy_only=False)
                         for name in vocabulary.behaviour_names], axis=1)
    return complete({
        **{name: rows[name] for name in ("user_id", "request_id", "ts", "stage", "scene", "state", "action")},
        "action_logp": pc.cast(rows["action_logp"], pa.float32(), safe=False),
        "explored": rows["explored"],
        "feedback": _fixed(feedback),
        "next_state": _fixed(next_state),
        "done": pa.array((end & ~truncated).astype(np.float32)),
        "truncated": pa.array(closes),
        "model_version": rows["model_version"],
        **replay_columns(rows, vocabulary),
    }, sample_schema(vocabulary))


def _same(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[n]: the next one is equal."""
    return np.append(values[1:] == values[:-1], False)


def _fixed(matrix: NDArray[np.float32]) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(matrix, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])
