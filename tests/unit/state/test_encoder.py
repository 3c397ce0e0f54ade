"""The state encoder against numbers computed by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recfuse.behaviours import Behaviour, StateFeature, Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.state.encoder import StateEncoder

VOCABULARY = Vocabulary(
    behaviours=(Behaviour(name="watch_time", kind="long_term"),),
    fusion_parameters=("click",),
    state_size=5,
    state_features=(
        StateFeature(name="age", mean=30.0, std=10.0, default=40.0),
        StateFeature(name="watched", log=True, mean=1.0, std=2.0),
        StateFeature(name="device", categories=("phone", "tablet")),
    ),
)


def test_encode_by_hand() -> None:
    """age (50 − 30)/10 = 2, watched (ln(1 + e − 1) − 1)/2 = 0; then the defaults: age (40 − 30)/10, watched −1/2."""
    states = StateEncoder(VOCABULARY).encode({
        "age": [50, None], "watched": [math.e - 1, None], "device": ["tablet", None], "other": ["ignored", "x"],
    })
    np.testing.assert_allclose(states, [[2, 0, 0, 1, 0], [1, -0.5, 0, 0, 1]], atol=1e-7)
    assert states.dtype == np.float32


def test_missing_columns_take_defaults() -> None:
    np.testing.assert_allclose(StateEncoder(VOCABULARY).encode_one({}), [1, -0.5, 0, 0, 1])
    np.testing.assert_allclose(StateEncoder(VOCABULARY).encode({}, rows=2), [[1, -0.5, 0, 0, 1]] * 2)


def test_category_codes_may_be_integers() -> None:
    vocabulary = Vocabulary(
        behaviours=VOCABULARY.behaviours, fusion_parameters=("click",), state_size=3,
        state_features=(StateFeature(name="tab", categories=("0", "1")),),
    )
    encoder = StateEncoder(vocabulary)
    np.testing.assert_array_equal(encoder.encode({"tab": np.array([0, 1, 7])}), np.eye(3, dtype=np.float32))
    np.testing.assert_array_equal(encoder.encode({"tab": ["0", "1", "7"]}), np.eye(3, dtype=np.float32))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(
    st.one_of(st.none(), st.integers(-1000, 1000), st.floats(-1e6, 1e6)),
    st.one_of(st.none(), st.floats(0, 1e9)),
    st.one_of(st.none(), st.sampled_from(["phone", "tablet", "tv", ""])),
), min_size=1, max_size=20))
def test_batch_equals_one_by_one(rows: list[tuple[object, object, object]]) -> None:
    encoder = StateEncoder(VOCABULARY)
    names = ("age", "watched", "device")
    batch = encoder.encode(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
    single = np.stack([encoder.encode_one(dict(zip(names, row, strict=True))) for row in rows])
    np.testing.assert_array_equal(batch, single)


@pytest.mark.parametrize(("context", "field", "allowed"), [
    ({"age": float("nan")}, "age", "a finite number"),
    ({"age": float("inf")}, "age", "a finite number"),
    ({"age": "old"}, "age", "a finite number"),
    ({"age": [1, 2]}, "age", "a finite number"),
    ({"age": 10 ** 400}, "age", "fits float64"),
    ({"age": 1e300}, "age", "fits float32"),
    ({"watched": -0.5}, "watched", "a finite number ≥ 0"),
    ({"device": 1.5}, "device", "a string, an integer, a boolean or null"),
    ({"device": ["phone"]}, "device", "a string"),
    ({"device": {}}, "device", "a string"),
])
def test_bad_values_are_named(context: dict[str, object], field: str, allowed: str) -> None:
    with pytest.raises(InvalidFieldError, match=allowed) as caught:
        StateEncoder(VOCABULARY).encode_one(context)
    assert caught.value.field == field


def test_arrays_are_checked_too() -> None:
    encoder = StateEncoder(VOCABULARY)
    with pytest.raises(InvalidFieldError, match="one number a row"):
        encoder.encode({"age": np.zeros((2, 2))})
    with pytest.raises(InvalidFieldError, match="3 values"):
        encoder.encode({"age": [1, 2, 3], "device": ["phone"]})
    with pytest.raises(InvalidFieldError, match="at least one of age"):
        encoder.encode({"tall": [1]})
    with pytest.raises(InvalidFieldError, match=r"age: got nan"):
        encoder.encode({"age": np.array([1.0, np.nan])})


def test_vocabulary_without_features_is_refused() -> None:
    vocabulary = Vocabulary(behaviours=VOCABULARY.behaviours, fusion_parameters=("click",), state_size=3)
    with pytest.raises(InvalidFieldError, match="state_features"):
        StateEncoder(vocabulary)
