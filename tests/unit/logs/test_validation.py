"""Every row is kept or quarantined with a reason that names field, value and what is allowed."""

from __future__ import annotations

import datetime
import decimal
import json
import math

import numpy as np
import pyarrow as pa
import pytest
from session_logs import loose_table, row, table, vocabulary

from recfuse.logs.schema import session_log_schema
from recfuse.logs.validation import check, quarantine_rows

GOOD = [row(1), row(2), row(3)]


def checked(content: pa.Table):
    result = check(content, vocabulary(), "log.parquet[0]")
    assert result.rows.num_rows + result.quarantine.num_rows == content.num_rows
    assert result.rows.schema.equals(session_log_schema(vocabulary()))
    return result


def test_good_rows_pass_unchanged():
    result = checked(table(GOOD))
    assert result.quarantine.num_rows == 0
    assert result.rows.equals(table(GOOD))


BAD_ROWS = [
    (dict(state=[1.0, 2.0]), "state", "[1.0, 2.0]", "a list of 3 numbers"),
    (dict(action=[1.0, 2.0, 3.0]), "action", "[1.0, 2.0, 3.0]", "a list of 2 numbers"),
    (dict(state=None), "state", "null", "a list of 3 numbers"),
    (dict(state=[1.0, math.nan, 0.0]), "state", "[1.0, NaN, 0.0]", "finite numbers"),
    (dict(action=[math.inf, 0.0]), "action", "[Infinity, 0.0]", "finite numbers"),
    (dict(state=[1.0, None, 0.0]), "state", "[1.0, null, 0.0]", "finite numbers"),
    (dict(sigma=[1.0, 0.0]), "sigma", "[1.0, 0.0]", "numbers > 0"),
    (dict(sigma=[1.0, -0.1]), "sigma", "[1.0, -0.1]", "numbers > 0"),
    (dict(action_logp=math.nan), "action_logp", "NaN", "a finite number"),
    (dict(action_logp=None, mu=None), "action_logp", "null", "mu and sigma to compute it from"),
    (dict(feedback={"watch_time": math.nan, "like": 0.0}), "feedback.watch_time", "NaN", "a finite number"),
    (dict(feedback={"watch_time": None, "like": 0.0}), "feedback.watch_time", "null", "a finite number"),
    (dict(feedback={"watch_time": -2.0, "like": 0.0}), "feedback.watch_time", "-2.0", "a number > −1"),
    (dict(feedback=None), "feedback", "null", "values of watch_time, like"),
    (dict(request_id=None), "request_id", "null", "a non-empty string"),
    (dict(user_id=""), "user_id", '""', "a non-empty string"),
    (dict(ts=None), "ts", "null", "a timestamp"),
    (dict(stage="polish"), "stage", '"polish"', "coarse, fine, rerank, mix"),
    (dict(scene="attic"), "scene", '"attic"', "feed, cart"),
]


@pytest.mark.parametrize(("change", "field", "value", "allowed"), BAD_ROWS, ids=[f"{b[1]}={b[2]}" for b in BAD_ROWS])
def test_a_bad_row_is_quarantined_alone(change, field, value, allowed):
    bad = row(4, **change)
    result = checked(loose_table([*GOOD[:2], bad, GOOD[2]]))
    assert result.rows["request_id"].to_pylist() == ["r1", "r2", "r3"]
    [reason] = result.quarantine.to_pylist()
    assert reason["source"] == "log.parquet[0]"
    assert reason["field"] == field
    assert reason["value"] == value
    assert allowed in reason["allowed"]
    kept = json.loads(reason["row"])
    assert set(kept) == set(bad), "the row is kept as it came"


def retyped(name: str, values: pa.Array) -> pa.Table:
    content = table(GOOD)
    return content.set_column(content.column_names.index(name), name, values)


FLOATS = pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float32(), 2))
BAD_FILES = [
    (lambda: table(GOOD).drop_columns("state"), "state", "missing column", "request_id, user_id, ts"),
    (lambda: table(GOOD).drop_columns(["action_logp", "mu"]), "action_logp", "missing column", "both mu and sigma"),
    (lambda: retyped("state", FLOATS), "state", "fixed_size_list[2]", "fixed_size_list<float32>[3]"),
    (lambda: retyped("action", pa.array(["a", "b", "c"])), "action", "string", "a list of numbers"),
    (lambda: retyped("ts", pa.array([1, 2, 3])), "ts", "int64", "timestamp, of seconds to nanoseconds"),
    (lambda: retyped("user_id", pa.array([1.5, 2, 3])), "user_id", "double", "string, an integer, bytes or a UUID"),
    (lambda: retyped("feedback", pa.array([{"watch_time": 1.0}] * 3)), "feedback.like", "missing behaviour",
     "struct of watch_time, like"),
    (lambda: retyped("action_logp", pa.array(["-1.5", "high", ""])), "action_logp", "string", "a number"),
    (lambda: retyped("last", pa.array(["yes", "no", "maybe"])), "last", "string", "bool"),
    (lambda: retyped("model_version", pa.array([{"of": 1}] * 3)), "model_version", "struct<of: int64>", "string, an"),
    (lambda: table(GOOD).append_column("state", table(GOOD)["state"]), "state", "2 columns of this name", "one"),
]


@pytest.mark.parametrize(("make", "field", "value", "allowed"), BAD_FILES, ids=[f"{b[1]}:{b[2]}" for b in BAD_FILES])
def test_a_file_that_cannot_carry_the_log_is_quarantined_whole(make, field, value, allowed):
    result = checked(make())
    assert result.rows.num_rows == 0
    assert set(result.quarantine["field"].to_pylist()) == {field}
    assert set(result.quarantine["value"].to_pylist()) == {value}
    assert all(allowed in text for text in result.quarantine["allowed"].to_pylist())


def test_missing_density_is_computed_from_mu_and_sigma():
    # By hand: z = (0.5, −0.25), σ = (1, 2): −½(0.25 + 0.0625) − ln 1 − ln 2 − ln 2π = −2.6872743…
    change = dict(action_logp=None, mu=[0.0, 0.0], sigma=[1.0, 2.0], action=[0.5, -0.5])
    result = checked(table([row(1, **change)]))
    expected = -0.5 * (0.25 + 0.0625) - math.log(2) - math.log(2 * math.pi)
    np.testing.assert_allclose(result.rows["action_logp"].to_numpy(), [expected], rtol=1e-12)


def test_a_logged_density_is_kept_even_without_mu_and_sigma():
    result = checked(table([row(1, mu=None, sigma=None, action_logp=-1.25)]))
    assert result.rows["action_logp"].to_pylist() == [-1.25]


def test_a_row_of_another_vocabulary_is_quarantined():
    own, other = vocabulary().meaning, vocabulary().replace(fusion_parameters=("p1", "p0")).meaning
    result = checked(table([row(1, vocabulary_hash=own), row(2), row(3, vocabulary_hash=other)]))
    assert result.rows["request_id"].to_pylist() == ["r1", "r2"]
    [reason] = result.quarantine.to_pylist()
    assert (reason["field"], reason["value"]) == ("vocabulary_hash", f'"{other}"')
    assert reason["allowed"] == f"{own}, that of the log's vocabulary"


def test_optional_columns_may_be_absent():
    bare = table(GOOD).drop_columns(["session_id", "model_version", "last", "mu", "sigma"])
    assert checked(bare).rows["session_id"].null_count == 3


def test_a_log_without_densities_is_kept_where_they_are_optional():
    bare = table(GOOD).drop_columns(["action_logp", "mu", "sigma"])
    assert checked(bare).rows.num_rows == 0
    kept = check(bare, vocabulary(), "log.parquet[0]", need_density=False)
    assert np.isnan(kept.rows["action_logp"].to_numpy()).all()
    assert kept.quarantine.num_rows == 0
    assert kept.rows.num_rows == 3


ANY_TYPE = [
    pa.nulls(3), pa.array(["x", "y", "z"]), pa.array([b"\xff", b"b", b"c"]), pa.array([1.0, 2.0, 3.0], pa.float16()),
    pa.array([2**64 - 1] * 3, pa.uint64()), pa.array([True, False, None]), pa.array([decimal.Decimal("1.5")] * 3),
    pa.array([datetime.date(2022, 5, 1)] * 3), pa.array([10**15, 1, None], pa.timestamp("s")),
    pa.array([1, 2, 3], pa.timestamp("ns", "Europe/Berlin")), pa.array([2**62, 0, 1], pa.duration("s")),
    pa.array([{"a": 1}] * 3), pa.array([[("a", 1)]] * 3, pa.map_(pa.string(), pa.int32())),
    pa.array([["a", "b"]] * 3), pa.array([[[1.0]]] * 3), pa.array([[1e300, 1.0]] * 3), pa.array([[True, False]] * 3),
    pa.array([[1.0, 2.0]] * 3, pa.list_view(pa.float32())), pa.array([None, [1, 2], None], pa.list_(pa.float16(), 2)),
    pa.array([{"watch_time": 1e300, "like": 2**62}] * 3), pa.array([{"watch_time": True, "like": None}] * 3),
    pa.array(["fine", "feed", "attic"]).dictionary_encode(), pa.array(["a", None, "c"], pa.string_view()),
]


@pytest.mark.parametrize("name", session_log_schema(vocabulary()).names)
def test_no_type_of_a_column_loses_a_row_or_ends_the_read(name):
    for values in ANY_TYPE:
        checked(retyped(name, values))


def test_times_beyond_what_a_timestamp_can_say_are_quarantined_alone():
    result = checked(retyped("ts", pa.array([0, 10**15, 1], pa.timestamp("s"))))
    assert result.rows["request_id"].to_pylist() == ["r1", "r3"]
    [reason] = result.quarantine.to_pylist()
    assert (reason["field"], reason["value"]) == ("ts", '"timestamp[s]: 1000000000000000"')
    assert reason["allowed"] == "a timestamp of the years 1 to 9999"


def test_categories_of_pandas_are_strings():
    content = table(GOOD)
    for name in ("user_id", "stage", "scene"):
        content = content.set_column(content.column_names.index(name), name, content[name].dictionary_encode())
    assert checked(content).rows.equals(table(GOOD))


def test_numbers_of_any_writer_name_the_same_users_and_times():
    """Ids as integers, times in seconds without a zone: the same rows; what was assumed is noted."""
    content = retyped("user_id", pa.array([7, 8, 7])).set_column(3, "ts", pa.array([10, 20, 30], pa.timestamp("s")))
    result = checked(content)
    assert result.rows["user_id"].to_pylist() == ["7", "8", "7"]
    assert result.rows["ts"].cast(pa.int64()).to_pylist() == [10_000_000, 20_000_000, 30_000_000]
    assert result.notes == ("ts: times without a zone, taken as UTC",)


def test_a_new_behaviour_is_noted_once_and_costs_no_row():
    result = checked(retyped("feedback", pa.array([{"watch_time": 1.0, "like": 0.0, "hug": 1.0}] * 3)))
    assert result.rows.num_rows == 3
    assert result.notes == ("feedback: hug left out, which the vocabulary does not have",)


LOGGED = {
    "probabilities": lambda logp: math.exp(logp), "logarithms to base 2": lambda logp: logp / math.log(2),
    "the mean over the parameters instead of the sum": lambda logp: logp / 2, "zero everywhere": lambda logp: 0.0,
    "negative log densities": lambda logp: -logp,
}


@pytest.mark.parametrize("words", LOGGED)
def test_a_density_that_contradicts_its_gaussian_is_quarantined_and_says_what_it_looks_like(words):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(50):
        action = np.float32(rng.normal(size=2) * .7).astype(float).tolist()
        logp = -.5 * sum(a * a for a in action) - math.log(2 * math.pi)
        rows.append(row(number, action=action, action_logp=LOGGED[words](logp)))
    result = checked(table(rows))
    assert result.quarantine.num_rows >= 45
    assert words in result.quarantine["allowed"][0].as_py()


@pytest.mark.parametrize("sigma", [3e-7, 1e-3, 1.0, 1e4])
def test_rounding_of_float32_is_no_contradiction(sigma):
    """The density was computed in double precision; what is logged of action and mean is not."""
    rng = np.random.default_rng(1)
    mu = rng.uniform(-2, 2, (200, 2))
    action = mu + sigma * rng.normal(size=(200, 2))
    logp = (-.5 * ((action - mu) / sigma) ** 2 - np.log(sigma) - .5 * np.log(2 * np.pi)).sum(1)
    rows = [row(k, mu=mu[k].tolist(), sigma=[sigma] * 2, action=action[k].tolist(), action_logp=float(logp[k]))
            for k in range(200)]
    assert checked(table(rows)).quarantine.num_rows == 0


def test_an_action_that_is_the_mean_was_not_drawn():
    rows = [row(1), row(2, action=[0.0, 0.0], action_logp=-math.log(2 * math.pi)),
            row(3, mu=None, sigma=None, action_logp=-1.0), row(4, action=[0.0, 0.5], action_logp=None)]
    content = table(rows).drop_columns("explored")
    assert checked(content).rows["explored"].to_pylist() == [True, False, True, True]
    said = table(rows).set_column(11, "explored", pa.array([False, None, None, True]))
    assert checked(said).rows["explored"].to_pylist() == [False, False, True, True]


def test_squashed_actions_are_checked_in_their_range():
    squashed = vocabulary().replace(action_range=(-2.0, 2.0))
    u = np.float32([0.5, -0.25]).astype(float)
    action = 2 * np.tanh(u)
    logp = float((-.5 * u**2 - .5 * np.log(2 * np.pi) - np.log(2 * (1 - np.tanh(u) ** 2))).sum())
    rows = [row(1, action=action.tolist(), action_logp=logp),
            row(2, action=[0.0, 0.0], action_logp=None, explored=None),
            row(3, action=action.tolist(), action_logp=logp + .01)]
    result = check(table(rows), squashed, "log")
    assert result.rows["request_id"].to_pylist() == ["r1", "r2"]
    assert result.rows["explored"].to_pylist() == [True, False]
    plain = check(table(rows[:1]), vocabulary(), "log")
    assert plain.quarantine["field"].to_pylist() == ["action_logp"]


def test_a_file_without_the_column_that_orders_requests_is_quarantined():
    result = check(table(GOOD), vocabulary(), "log", order_column="rank")
    assert result.rows.num_rows == 0
    assert set(result.quarantine["field"].to_pylist()) == {"rank"}
    assert "order_column names" in result.quarantine["allowed"][0].as_py()


def test_numbers_in_the_quarantine_have_the_digits_that_python_gives_them():
    lists = [[1e-5, 2.0], None, [float("nan"), float("inf")], [1e17, -0.0], [0.1, 123.0], []]
    feedback = [{"like": value} for value in range(6)]
    rows = pa.table({"state": pa.array(lists, pa.list_(pa.float64())), "feedback": feedback})
    found = quarantine_rows(rows.slice(1), "file", "state", "anything")
    assert found["value"].to_pylist() == [json.dumps(value) for value in lists[1:]]
    assert [json.loads(text)["feedback"] for text in found["row"].to_pylist()] == [{"like": k} for k in range(1, 6)]
    nested = quarantine_rows(rows, "file", "feedback.like", "anything")
    assert nested["value"].to_pylist() == list("012345")
