"""Whatever carries a value without loss is taken; what was assumed is noted."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid

import numpy as np
import pyarrow as pa
import pytest

from recfuse.config import InvalidFieldError
from recfuse.logs.columns import plain_columns

BEHAVIOURS = ("watch_time", "like")
KNOWN = ("session_id", "request_id", "user_id", "ts", "stage", "scene", "state", "mu", "sigma", "action", "action_logp",
         "feedback", "last", "explored")
IDS = [uuid.UUID(int=k) for k in (1, 2, 2**127)]


def read(**columns):
    return plain_columns(pa.table(columns), BEHAVIOURS, KNOWN)


TEXTS = [
    (pa.array([1, -2, 2**62]), ["1", "-2", str(2**62)]),
    (pa.array([2**63], pa.uint64()), [str(2**63)]),
    (pa.array(["a", None, "b"]).dictionary_encode(), ["a", None, "b"]),
    (pa.array([7, 8, 7], pa.int64()).dictionary_encode(), ["7", "8", "7"]),
    (pa.array(["ä", "b"], pa.string_view()), ["ä", "b"]),
    (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
    (pa.array([b"a", None, "ä".encode()], pa.binary()), ["a", None, "ä"]),
    (pa.array([b"a", b"\xff\x00"], pa.binary_view()), ["a", "0xff00"]),
    (pa.array([each.bytes for each in IDS], pa.binary(16)), [str(each) for each in IDS]),
    (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([each.bytes for each in IDS], pa.binary(16))),
     [str(each) for each in IDS]),
    (pa.array([decimal.Decimal(12345678901234567890), None], pa.decimal128(20, 0)), ["12345678901234567890", None]),
]


@pytest.mark.parametrize(("column", "expected"), TEXTS, ids=lambda value: str(getattr(value, "type", "")))
def test_identities_of_any_type_keep_their_values(column, expected):
    table = read(user_id=column, session_id=column).table
    assert table["user_id"].to_pylist() == table["session_id"].to_pylist() == expected
    assert table["user_id"].type == pa.string()


def test_the_same_bytes_are_the_same_user_in_every_file():
    """A file with an id that is no UTF-8 must not rename the others."""
    alone = read(user_id=pa.array([b"u1"])).table["user_id"].to_pylist()
    assert read(user_id=pa.array([b"u1", b"\xfe"])).table["user_id"].to_pylist()[:1] == alone


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Shanghai"])
def test_times_of_every_unit_and_zone_are_the_same_moment(unit, zone):
    moment = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
    kind = pa.timestamp(unit, zone)
    value = moment if zone else moment.replace(tzinfo=None)
    plain = read(ts=pa.array([value, None], kind))
    assert plain.table["ts"].cast(pa.timestamp("us", "UTC")).to_pylist() == [moment, None]
    assert plain.notes == (() if zone else ("ts: times without a zone, taken as UTC",))


def test_digits_beyond_microseconds_are_noted():
    assert read(ts=pa.array([1_500], pa.timestamp("ns", "UTC"))).notes == ("ts: digits beyond microseconds, cut",)
    assert read(ts=pa.array([2_000], pa.timestamp("ns", "UTC"))).notes == ()


LISTS = [pa.list_(pa.float16()), pa.large_list(pa.float64()), pa.list_(pa.int32(), 2), pa.list_view(pa.float32()),
         pa.list_(pa.decimal128(10, 3))]


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_lists_of_any_numbers_keep_their_values(kind):
    values = [[1, 2], [3, 4]]
    if pa.types.is_decimal(kind.value_type):
        values = [[decimal.Decimal(number) for number in row] for row in values]
    elif kind.value_type == pa.float16():
        values = [[np.float16(number) for number in row] for row in values]
    state = read(state=pa.array(values, kind)).table["state"]
    assert [[float(number) for number in row] for row in state.to_pylist()] == [[1.0, 2.0], [3.0, 4.0]]


def test_a_map_of_feedback_is_read_by_its_keys():
    column = pa.array([[("like", 1.0), ("watch_time", 3.0)], [("watch_time", 2.0)], None],
                      pa.map_(pa.string(), pa.float64()))
    assert read(feedback=column).table["feedback"].to_pylist() == [
        {"watch_time": 3.0, "like": 1.0}, {"watch_time": 2.0, "like": None}, None]


def test_a_new_field_of_feedback_is_noted_and_kept_out():
    column = pa.array([{"watch_time": 1, "like": True, "share": 1.0}, None])
    plain = read(feedback=column)
    assert plain.table["feedback"].to_pylist() == [{"watch_time": 1.0, "like": 1.0}, None]
    assert plain.notes == ("feedback: share left out, which the vocabulary does not have",)


def test_columns_that_the_log_does_not_know_are_left_out():
    assert read(user_id=["a"], weather=["rain"]).table.column_names == ["user_id"]


REFUSED = [
    ({"user_id": pa.array([1.5])}, "user_id: got 'double'; allowed: string, an integer, bytes or a UUID"),
    ({"ts": pa.array(["2024-05-01"])}, "ts: got 'string'; allowed: timestamp"),
    ({"state": pa.array([1.0])}, "state: got 'double'; allowed: a list of numbers"),
    ({"state": pa.array([["a"]])}, "state: got 'list<item: string>'"),
    ({"action_logp": pa.array(["x"])}, "action_logp: got 'string'; allowed: a number"),
    ({"last": pa.array(["yes"])}, "last: got 'string'; allowed: bool"),
    ({"feedback": pa.array([1.0])}, "feedback: got 'double'; allowed: struct or map of watch_time, like"),
    ({"feedback": pa.array([{"like": 1.0}])}, "feedback.watch_time: got 'missing behaviour'"),
    ({"feedback": pa.array([{"watch_time": "1", "like": 1.0}])}, "feedback.watch_time: got 'string'"),
]


@pytest.mark.parametrize(("columns", "message"), REFUSED)
def test_a_column_that_cannot_carry_the_log_is_refused_in_a_line(columns, message):
    with pytest.raises(InvalidFieldError) as caught:
        read(**columns)
    assert message in str(caught.value)


@pytest.mark.parametrize("values", [pa.array([0, 1, None], pa.int8()), pa.array([0.0, 1.0, None]),
                                    pa.array([False, True, None])])
def test_flags_are_bools_or_zero_and_one(values):
    assert read(last=values).table["last"].to_pylist() == [False, True, None]


@pytest.mark.parametrize("values", [pa.array([0, 2]), pa.array([.5, 1.0]), pa.array([float("nan"), 1.0])])
def test_numbers_that_are_no_flags_are_refused(values):
    with pytest.raises(InvalidFieldError, match=r"last: got .* among its numbers'; allowed: bool, or 0 and 1"):
        read(last=values)


def test_a_list_column_of_nulls_alone_has_their_type():
    """So pandas writes a column in which every value is absent."""
    read_mu = read(mu=pa.nulls(2)).table["mu"]
    assert read_mu.type == pa.list_(pa.float32())
    assert read_mu.to_pylist() == [None, None]


def test_a_map_with_dictionary_keys_is_read():
    keys = pa.array(["watch_time", "like"] * 2).dictionary_encode()
    column = pa.MapArray.from_arrays(pa.array([0, 2, 4], pa.int32()), keys, pa.array([1.0, 0.0, 2.0, 1.0]))
    assert read(feedback=column).table["feedback"].to_pylist() == [
        {"watch_time": 1.0, "like": 0.0}, {"watch_time": 2.0, "like": 1.0}]
