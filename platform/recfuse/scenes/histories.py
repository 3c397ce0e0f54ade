"""Which items a row's user had watched before it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recfuse.logs.exposures import Exposures

# No text has this key, and −1 is an item of some teams.
NO_ITEM = int(np.iinfo(np.int64).min)


def row_histories(exposures: Exposures, length: int) -> NDArray[np.int64]:
    """int64[N, length]: the last items that each row's user watched strictly before it, newest last, NO_ITEM in front.

    What counts as watched: the history that comes along, and every earlier row whose item was opened.
    """
    n = exposures.rows.num_rows
    if length == 0 or n == 0:
        return np.full((n, length), NO_ITEM, np.int64)
    users, ts = exposures.column("user_id"), exposures.rows["ts"].cast(pa.int64()).to_numpy()
    watched = exposures.column(exposures.opened) == 1
    lists = exposures.history["items"].combine_chunks()
    before = np.repeat(exposures.history["user_id"].to_numpy(), pc.list_value_length(lists).to_numpy())
    event_user = np.concatenate([before, users[watched]])
    event_time = np.concatenate([np.full(len(before), np.iinfo(np.int64).min), ts[watched]])
    event_item = np.concatenate([lists.flatten().to_numpy(), exposures.column("item_id")[watched]])
    # The sort is stable, so that a user's history keeps its order among equal times.
    order = np.lexsort((event_time, event_user))
    event_user, event_time, event_item = event_user[order], event_time[order], event_item[order]
    first = np.searchsorted(event_user, users, side="left")
    end = _events_before(event_user, event_time, users, ts)
    slots = end[:, None] + np.arange(-length, 0)[None, :]
    padded = np.append(event_item, NO_ITEM)
    return padded[np.where(slots >= first[:, None], slots, len(event_item))]


def _events_before(event_user: np.ndarray, event_time: np.ndarray, users: np.ndarray, ts: np.ndarray) -> np.ndarray:
    """For each row the position after the last event of its user with a time strictly before the row's."""
    # Rows are merged into the sorted events: at an equal time the row comes first, so the event is not before it.
    user = np.concatenate([event_user, users])
    time = np.concatenate([event_time, ts])
    is_event = np.concatenate([np.ones(len(event_user), np.int8), np.zeros(len(users), np.int8)])
    order = np.lexsort((is_event, time, user))
    events_so_far = np.cumsum(is_event[order])
    position = np.empty(len(order), np.int64)
    position[order] = events_so_far
    return position[len(event_user):]
