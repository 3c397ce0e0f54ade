"""Ids become keys: integers are their own, text has a hash, and every way to write an id gives the same key."""

from __future__ import annotations

from decimal import Decimal
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest

from recfuse.config import InvalidFieldError
from recfuse.logs.ids import keys_of, read_keys

LARGEST, SMALLEST = 2**63 - 1, -(2**63)
EDGES = ["0", "7", "-7", "007", "+7", "-0", " 7", "7.0", "٧", "sku-1", "é", "1e3", str(LARGEST), str(LARGEST + 1),
         str(SMALLEST), str(SMALLEST - 1), "9" * 19, "-" + "9" * 19, str(2**64 - 1), "9" * 20, "a\0", "a"]


def test_integers_are_their_own_keys_and_digits_too() -> None:
    plain = [0, 7, -7, 2**53 + 1, LARGEST, SMALLEST]
    assert keys_of(plain).tolist() == plain
    assert keys_of([str(number) for number in plain]).tolist() == plain
    assert keys_of(["x", 7, "7"])[1:].tolist() == [7, 7]


def test_other_texts_differ_from_all_numbers_and_one_another() -> None:
    keys = keys_of(EDGES)
    assert len(set(keys.tolist())) == len(EDGES)
    many = keys_of([f"item-{number}" for number in range(100_000)])
    assert len(np.unique(many)) == 100_000


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(),
                                  pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_columns_of_text_have_the_keys_of_requests(kind: pa.DataType) -> None:
    keys, valid = read_keys(pa.chunked_array([pa.array([*EDGES, None, ""]).cast(kind)]), "rows.user_id")
    assert keys[:len(EDGES)].tolist() == keys_of(EDGES).tolist()
    assert valid.tolist() == [True] * len(EDGES) + [False] * 2


@pytest.mark.parametrize(("array", "ids"), [
    (pa.array([1, None, -2], pa.int8()), [1, -2]),
    (pa.array([LARGEST + 1, None, 5], pa.uint64()), [LARGEST + 1, 5]),
    (pa.array([5, None, 6], pa.uint64()), [5, 6]),
    (pa.array([Decimal(2**64), None, Decimal(8)], pa.decimal128(30, 0)), [str(2**64), 8]),
    (pa.array([UUID(int=1).bytes, None, UUID(int=2).bytes], pa.uuid()), [str(UUID(int=1)), str(UUID(int=2))]),
], ids=["int8", "unsigned", "small unsigned", "decimal", "uuid"])
def test_columns_of_other_types(array: pa.Array, ids: list[int | str]) -> None:
    keys, valid = read_keys(pa.chunked_array([array]), "rows.user_id")
    assert valid.tolist() == [True, False, True]
    assert keys[valid].tolist() == keys_of(ids).tolist()


def test_empty_columns_have_no_keys() -> None:
    assert keys_of([]).tolist() == []
    for kind in (pa.string(), pa.int64(), pa.null()):
        assert len(read_keys(pa.chunked_array([], kind), "x")[0]) == 0
    assert read_keys(pa.chunked_array([pa.nulls(2)]), "x")[1].tolist() == [False, False]


@pytest.mark.parametrize("array", [pa.array([1.0]), pa.array([b"a"]), pa.array([True]), pa.array([[1]]),
                                   pa.array([Decimal("1.5")])], ids=lambda array: str(array.type))
def test_what_is_no_id_is_named(array: pa.Array) -> None:
    with pytest.raises(InvalidFieldError, match=r"rows.user_id: got .*; allowed: 64-bit integers or strings"):
        read_keys(pa.chunked_array([array]), "rows.user_id")
