"""One value is encoded as a column of it is, for every kind of feature and whatever a client sends."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recfuse.config import InvalidFieldError
from recfuse.scenes.config import Feature
from recfuse.scenes.encoder import FeatureEncoder, FittedFeature

INTEGERS = np.array([-2**63, -5, 0, 1, 7, 2**53 + 1, 2**63 - 1])
TEXTS = np.array(["", "1", "7", "007", "a", "true", "ü", "x\0"], object)
EDGES = np.array([-1.0, 0.0, 0.5, 1.0, 7.0, 1e9])
NONE = np.zeros(0)


def feature(name: str, **options: Any) -> Feature:
    return Feature(name=name, source="user", **options)


FEATURES = [
    FittedFeature(feature("integer"), INTEGERS, 1),
    FittedFeature(feature("no integer"), np.zeros(0, np.int64), 20),
    FittedFeature(feature("text"), TEXTS, 30),
    FittedFeature(feature("hashed integer", hash_buckets=7), np.zeros(0, np.int64), 50),
    FittedFeature(feature("hashed text", hash_buckets=7), np.zeros(0, object), 60),
    FittedFeature(feature("bucket", kind="bucketed"), EDGES, 70),
    FittedFeature(feature("log bucket", kind="bucketed", log=True), EDGES, 80),
    FittedFeature(feature("number", kind="numeric"), NONE, mean=0.3, std=1.7),
    FittedFeature(feature("log number", kind="numeric", log=True), NONE, mean=0.3, std=1.7),
]
ENCODER = FeatureEncoder(tuple(FEATURES), 0, 100)
PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-2**70, 2**70), st.sampled_from([*INTEGERS.tolist(), 2**64 - 1, 10**400]),
    st.floats(), st.sampled_from(EDGES.tolist()), st.text(max_size=5), st.sampled_from(TEXTS.tolist()),
    st.integers(-2**65, 2**65).map(str), st.from_regex(r"-?0{0,3}[0-9]{1,21}\n?", fullmatch=True))
VALUES = st.one_of(PLAIN, st.lists(PLAIN, max_size=2), st.dictionaries(st.text(max_size=2), PLAIN, max_size=1),
                   st.sampled_from([b"x", Decimal("1.5"), np.int64(7), np.float32(.1), np.str_("a"), np.bool_(True)]))


def outcome(encode: Any) -> Any:
    """The encoding, or the refusal's words, or the kind of the failure."""
    try:
        encoded = encode()
    except InvalidFieldError as error:
        return str(error)
    except Exception as error:
        return type(error)
    return encoded.ids.tolist(), encoded.numbers.tolist(), encoded.unknown


@given(VALUES)
@example("１")
@example("1\n")
@example(-0.0)
@settings(max_examples=400, deadline=None)
def test_one_value_is_a_column_of_one(value: Any) -> None:
    for entry in FEATURES:
        alone = FeatureEncoder((entry,), 0, 100)
        name = entry.feature.name
        assert outcome(lambda: alone.encode_one("user", {name: value})) == outcome(  # noqa: B023
            lambda: alone.encode("user", {name: [value]}, 1))  # noqa: B023


@given(st.dictionaries(st.sampled_from([entry.feature.name for entry in FEATURES]), st.sampled_from([1, 7, None])))
@settings(max_examples=50, deadline=None)
def test_rows_are_those_of_columns(values: dict[str, Any]) -> None:
    found = ENCODER.encode_one("user", values)
    expected = ENCODER.encode("user", {name: [value] for name, value in values.items()}, 1)
    np.testing.assert_array_equal(found.ids, expected.ids)
    np.testing.assert_array_equal(found.numbers, expected.numbers)
    assert found.unknown == expected.unknown
    assert (found.ids.dtype, found.numbers.dtype) == (np.int32, np.float32)


def test_a_source_without_features_has_an_empty_row() -> None:
    found = ENCODER.encode_one("context", {"hour": 3})
    assert (found.ids.shape, found.numbers.shape, found.unknown) == ((1, 0), (1, 0), {})


@pytest.mark.parametrize("name", ["integer", "text"])
def test_a_fraction_is_no_category(name: str) -> None:
    with pytest.raises(InvalidFieldError, match=f"user.{name}: got 'double'; allowed: integers or strings"):
        ENCODER.encode_one("user", {name: 1.5})
