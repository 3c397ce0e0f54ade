"""Sessions → samples: sort, cut, next state, done; columns in, columns out (design 3.2)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recfuse.behaviours import Vocabulary
from recfuse.logs.schema import sample_schema


def keep_first(rows: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(first row of every `request_id`, the others); first = earliest `ts`, whatever the order in the files."""
    if rows.num_rows == 0:
        return rows, rows
    position = pa.array(np.arange(rows.num_rows))
    keys = pa.table({"request_id": rows["request_id"], "ts": rows["ts"], "user_id": rows["user_id"],
                     "logp": rows["action_logp"], "position": position})
    # The keys after `ts` make the choice between equal times independent of the order of the files.
    ordered = keys.sort_by([("request_id", "ascending"), ("ts", "ascending"), ("user_id", "ascending"),
                            ("logp", "ascending")])
    identity = ordered["request_id"].combine_chunks()
    first = np.ones(len(identity), bool)
    first[1:] = pc.not_equal(identity[1:], identity[:-1]).to_numpy(zero_copy_only=False)
    chosen = ordered["position"].to_numpy()
    return rows.take(pa.array(np.sort(chosen[first]))), rows.take(pa.array(np.sort(chosen[~first])))


def to_samples(rows: pa.Table, vocabulary: Vocabulary, gap_seconds: float) -> pa.Table:
    """Samples of whole users.

    Args:
        rows: checked rows (`session_log_schema`), all requests of each of their users, in any order, no duplicates.
        gap_seconds: where `session_id` is absent, a pause longer than this ends the session.

    Returns:
        `sample_schema(vocabulary)`, sorted by user, session and time. A request is `done` where it is the last of its
        session or is marked `last`; its `next_state` is then zeros, which maths 1.2 multiplies by 1 − d = 0.
    """
    if rows.num_rows == 0:
        return sample_schema(vocabulary).empty_table()
    rows = rows.append_column("_named", pc.fill_null(rows["session_id"], ""))
    rows = rows.sort_by([("user_id", "ascending"), ("_named", "ascending"), ("ts", "ascending"),
                         ("request_id", "ascending")]).combine_chunks()
    ends = _session_ends(rows, gap_seconds)
    state = rows["state"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    state = state.reshape(rows.num_rows, vocabulary.state_size)
    next_state = np.zeros_like(state)
    next_state[:-1][~ends[:-1]] = state[1:][~ends[:-1]]
    feedback = np.stack([pc.struct_field(rows["feedback"].combine_chunks(), name).to_numpy(zero_copy_only=False)
                         for name in vocabulary.behaviour_names], axis=1)
    schema = sample_schema(vocabulary)
    return pa.table({
        "user_id": rows["user_id"],
        "state": rows["state"],
        "action": rows["action"],
        "action_logp": pc.cast(rows["action_logp"], pa.float32(), safe=False),
        "feedback": _fixed(feedback),
        "next_state": _fixed(next_state),
        "done": pa.array(ends.astype(np.float32)),
    }, schema=schema)


def _session_ends(rows: pa.Table, gap_seconds: float) -> np.ndarray:
    """bool[n]: the sorted row is the last of its session."""
    same_user = _same_as_next(rows["user_id"])
    same_session = _same_as_next(rows["_named"])
    named = pc.not_equal(rows["_named"], "").to_numpy()
    ts = rows["ts"].cast(pa.int64()).to_numpy()
    pause = np.append(np.diff(ts), 0) / 1e6
    ends = ~(same_user & same_session) | (~named & (pause > gap_seconds))
    return ends | pc.fill_null(rows["last"], False).to_numpy()


def _same_as_next(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    same = np.zeros(len(array), bool)
    same[:-1] = pc.equal(array[1:], array[:-1]).to_numpy(zero_copy_only=False)
    return same


def _fixed(matrix: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix, np.float32).reshape(-1)),
                                             matrix.shape[1])
