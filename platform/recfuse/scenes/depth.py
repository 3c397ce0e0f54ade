"""How far a user goes on browsing: a label that exposures with times have without any source having to log it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recfuse.logs.exposures import Exposures
from recfuse.logs.sessions import SessionRule

DEPTH = "depth"
# A longer pause ends a session, as everywhere where a log names none.
PAUSE_MINUTES = SessionRule().gap_seconds / 60


def browsing_depth(users: NDArray[np.int64], ts: NDArray[np.int64],
                   pause_minutes: float = PAUSE_MINUTES) -> NDArray[np.float32]:
    """How many exposures of the same user still follow each row in its session, float32[N].

    Args:
        users: [N]; ts: [N], µs, in any order. At equal times the earlier row is followed by the later one.
        pause_minutes: a longer pause between two exposures of a user ends the session.
    """
    order = np.lexsort((ts, users))
    user, time = users[order], ts[order]
    ends = np.ones(len(order), bool)
    ends[:-1] = (user[1:] != user[:-1]) | (np.diff(time) > pause_minutes * 60e6)
    last = np.flatnonzero(ends)
    depth = np.empty(len(order), np.float32)
    depth[order] = last[np.searchsorted(last, np.arange(len(order)))] - np.arange(len(order))
    return depth


def with_depth(exposures: Exposures) -> Exposures:
    """The exposures with a column `depth` in their rows; one that is there already stays.

    Rows of every scene count, so that it has to be taken before the rows of some scenes are.
    """
    rows = exposures.rows
    if DEPTH in rows.column_names:
        return exposures
    ts = rows["ts"].cast(pa.int64()).to_numpy()
    found = browsing_depth(exposures.column("user_id"), ts)
    return replace(exposures, rows=rows.append_column(DEPTH, pa.array(found)))
