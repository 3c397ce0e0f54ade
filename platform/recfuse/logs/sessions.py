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


def keep_first(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(first row of every `request_id`, the others); first = earliest `ts`, whatever the order in the files."""
    if rows.num_rows == 0:
        return rows, rows
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
    chosen = ordered["place"].to_numpy()
    return rows.take(pa.array(np.sort(chosen[first]))), rows.take(pa.array(np.sort(chosen[~first])))


def cut_sessions(rows: pa.Table, rule: SessionRule) -> Sessions:
    """Sorts and cuts requests.

    Requests of equal time are ordered by `position` where the log has it, and otherwise by their ids as people count:
    `r2` before `r10`.

    Args:
        rows: checked rows (`session_log_schema`), all requests of each of their users, in any order, no duplicates.
    """
    if rows.num_rows == 0:
        return Sessions(rows, np.zeros(0, np.int64), np.zeros(0, bool), np.zeros(0, bool), 0)
    keys = pa.table({"user_id": rows["user_id"], "session": pc.fill_null(rows["session_id"], ""), "ts": rows["ts"],
                     "position": rows["position"], "length": pc.utf8_length(rows["request_id"]),
                     "request_id": rows["request_id"]})
    order = pc.sort_indices(keys, [(name, "ascending") for name in keys.column_names])
    rows, keys = rows.take(order).combine_chunks(), keys.take(order).combine_chunks()
    ts = keys["ts"].cast(pa.int64()).to_numpy()
    together = _same_as_next(keys["user_id"]) & _same_as_next(keys["session"])
    named = pc.not_equal(keys["session"], "").to_numpy()
    pause = np.append(np.diff(ts), 0) / 1e6
    marked = pc.fill_null(rows["last"], False).to_numpy()
    end = ~together | (~named & (pause > rule.gap_seconds)) | marked
    number = np.concatenate([[0], np.cumsum(end)[:-1]]).astype(np.int64)
    truncated = np.zeros(len(end), bool)
    if rule.log_end is not None:
        # Only where the rows of a user end, or an id does, can something follow that the log does not have.
        truncated = ~together & ~marked & ((rule.log_end - ts) / 1e6 <= rule.gap_seconds) & _latest(keys["user_id"], ts)
    tied = together & ~end & (np.append(np.diff(ts), 1) == 0)
    known = pc.is_valid(keys["position"]).to_numpy(zero_copy_only=False)
    return Sessions(rows, number, end, truncated, int((tied & ~known).sum()))


def what_stays(sessions: Sessions, cut: Cut) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
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


def _latest(user: pa.ChunkedArray, ts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[n]: no request of the same user is later, so that no other session shows that this one has ended."""
    starts = np.flatnonzero(np.concatenate([[True], ~_same_as_next(user)[:-1]]))
    latest = np.maximum.reduceat(ts, starts)
    return np.asarray(ts >= np.repeat(latest, np.diff(np.append(starts, len(ts)))))


def to_samples(rows: pa.Table, vocabulary: Vocabulary, rule: SessionRule) -> Samples:
    """Samples of whole users.

    A request is `done` where it is the last of its session; its `next_state` is then zeros, which maths 1.2 multiplies
    by 1 − d = 0. Of a truncated session no request is done.

    Args:
        rows: as `cut_sessions`.
    """
    sessions = cut_sessions(rows, rule)
    rows, end, truncated = sessions.rows, sessions.end, sessions.truncated
    if rows.num_rows == 0:
        return Samples(sample_schema(vocabulary).empty_table(), 0, 0, 0)
    state = rows["state"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    state = state.reshape(rows.num_rows, vocabulary.state_size)
    next_state = np.zeros_like(state)
    next_state[:-1][~end[:-1]] = state[1:][~end[:-1]]
    keep, closes = what_stays(sessions, rule.cut)
    if rule.cut == "bootstrap":
        next_state[truncated] = state[truncated]
    feedback = np.stack([pc.struct_field(rows["feedback"].combine_chunks(), name).to_numpy(zero_copy_only=False)
                         for name in vocabulary.behaviour_names], axis=1)
    table = complete({
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
    return Samples(table.filter(pa.array(keep)), int((~keep).sum()), int(truncated.sum()), sessions.ties)


def _same_as_next(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    array = column.combine_chunks()
    same = np.zeros(len(array), bool)
    same[:-1] = pc.equal(array[1:], array[:-1]).to_numpy(zero_copy_only=False)
    return same


def _fixed(matrix: NDArray[np.float32]) -> pa.FixedSizeListArray:
    flat = pa.array(np.ascontiguousarray(matrix, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, matrix.shape[1])
