"""Sessions → samples: order, cuts, next state, done."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from session_logs import EPOCH, random_rows, row, table, vocabulary

from recfuse.logs.schema import sample_schema
from recfuse.logs.sessions import SessionRule, cut_sessions, keep_first, to_samples

GAP = 1800.0


def samples(rows: list[dict]) -> pa.Table:
    result = to_samples(table(rows), vocabulary(), SessionRule(gap_seconds=GAP)).table
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


def cut(rows, **rule):
    return to_samples(table(rows), vocabulary(), SessionRule(gap_seconds=GAP, **rule))


def micros(seconds):
    return int(EPOCH.timestamp() * 1e6 + seconds * 1e6)


def test_a_session_that_the_end_of_the_log_cuts_is_truncated_not_done():
    rows = [row(1, seconds=0, session="a"), row(2, seconds=10, session="a"),
            row(3, user="w", seconds=9_000, session="b"), row(4, user="w", seconds=9_010, session="b")]
    result = cut(rows, log_end=micros(9_100))
    assert first("state", result.table) == [1, 2, 3]
    assert result.table["done"].to_pylist() == [0, 1, 0]
    assert result.table["truncated"].to_pylist() == [False, False, True]
    assert first("next_state", result.table) == [2, 0, 4], "the last that is known bootstraps from what is left out"
    assert (result.left_out, result.truncated) == (1, 1)
    kept = cut(rows, log_end=micros(9_100), cut="bootstrap")
    assert kept.table["truncated"].to_pylist() == [False, False, False, True]
    assert kept.table["done"].to_pylist() == [0, 1, 0, 0]
    assert first("next_state", kept.table) == [2, 0, 4, 4]
    assert (kept.left_out, kept.truncated) == (0, 1)


def test_a_session_is_not_cut_where_it_is_marked_or_a_later_one_follows_or_the_log_goes_on():
    marked = [row(1, seconds=0, last=True)]
    followed = [row(1, seconds=0, session="a"), row(2, seconds=100, session="b", last=True)]
    for rows, end in ((marked, 10), (followed, 100), ([row(1, seconds=0)], 2 * GAP)):
        assert cut(rows, log_end=micros(end)).truncated == 0


def test_requests_of_equal_time_are_counted_and_ordered_as_people_count():
    rows = [row(number, seconds=0) for number in (10, 2, 1)]
    result = cut(rows)
    assert first("state", result.table) == [1, 2, 10]
    assert result.ties == 2
    placed = cut([each | {"position": place} for place, each in enumerate(rows)])
    assert first("state", placed.table) == [10, 2, 1]
    assert placed.ties == 0


def test_sessions_of_one_user_with_and_without_an_id():
    rows = [row(1, session=None, seconds=0), row(2, session="1", seconds=10), row(3, session=None, seconds=20),
            row(4, session=None, seconds=20 + GAP + 1), row(5, user="w", session="1", seconds=10)]
    sessions = cut_sessions(table(rows), SessionRule(gap_seconds=GAP))
    assert sessions.rows["request_id"].to_pylist() == ["r1", "r3", "r4", "r2", "r5"]
    assert sessions.number.tolist() == [0, 0, 1, 2, 3]
