"""Sessions → samples: order, cuts, next state, done."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from session_logs import random_rows, row, table, vocabulary

from recfuse.logs.schema import sample_schema
from recfuse.logs.sessions import keep_first, to_samples

GAP = 1800.0


def samples(rows: list[dict]) -> pa.Table:
    result = to_samples(table(rows), vocabulary(), GAP)
    assert result.schema.equals(sample_schema(vocabulary()))
    return result


def first(column: str, result: pa.Table) -> list[float]:
    """First entry of every list of a column; for states it is the request's number."""
    return [values[0] for values in result[column].to_pylist()]


def test_a_session_is_sorted_and_chained():
    result = samples([row(3), row(1), row(2)])
    assert first("state", result) == [1, 2, 3]
    assert first("next_state", result) == [2, 3, 0]
    assert result["done"].to_pylist() == [0, 0, 1]
    assert first("feedback", result) == [1, 2, 3]


def test_sessions_do_not_leak_into_each_other():
    result = samples([row(1, session="a"), row(2, session="b"), row(3, session="a"), row(4, user="w", session="a")])
    assert first("state", result) == [1, 3, 2, 4]
    assert result["done"].to_pylist() == [0, 1, 1, 1]


def test_without_session_id_a_pause_ends_the_session():
    times = [0, GAP, 2 * GAP + 1, 2 * GAP + 2]  # exactly the gap is still the same session
    result = samples([row(k, session=None, seconds=t) for k, t in enumerate(times)])
    assert result["done"].to_pylist() == [0, 1, 0, 1]


def test_a_named_session_may_pause():
    result = samples([row(1, seconds=0), row(2, seconds=10 * GAP)])
    assert result["done"].to_pylist() == [0, 1]


def test_last_ends_a_session_early():
    result = samples([row(1, last=True), row(2)])
    assert result["done"].to_pylist() == [1, 1]
    assert first("next_state", result) == [0, 0]


def test_no_rows_give_no_samples():
    assert samples([]).num_rows == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 120))
def test_order_of_the_rows_does_not_matter(seed, count):
    rows = random_rows(count, seed)
    shuffled = [rows[k] for k in np.random.default_rng(seed).permutation(count)]
    assert samples(rows).equals(samples(shuffled))
    assert samples(rows).num_rows == count


def test_duplicates_keep_the_first_by_time():
    rows = [row(1, seconds=50, scene="cart"), row(1, seconds=10), row(2)]
    for order in ([0, 1, 2], [2, 1, 0]):
        kept, others = keep_first(table([rows[k] for k in order]))
        assert sorted(kept["request_id"].to_pylist()) == ["r1", "r2"]
        assert others["scene"].to_pylist() == ["cart"]
