"""What is published, from what was trained and logged."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from recfuse.state.store import UserState
from serving.export import user_states


def test_user_states_by_hand() -> None:
    """Features of the logs, over them those of the state; NaN is no JSON and becomes null."""
    users = pa.table({"user_id": [1, 2], "age": [30.0, float("nan")], "city": ["a", None]})
    history = pa.table({"user_id": [2], "items": pa.array([[5, 6]])})
    states = user_states(users, history, {"seen": np.array([4])}, np.array([1]))
    assert states == {"1": UserState(features={"age": 30.0, "city": "a", "seen": 4}),
                      "2": UserState(features={"age": None, "city": None}, history=(5, 6))}
