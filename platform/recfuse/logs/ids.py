"""Ids of users and items, as teams have them, become keys: one rule for training, catalogue and serving.

An id is an integer of up to 64 bits, with or without a sign, or a text. Whatever reads as an int64 in plain decimal
digits is its own key, so that 7 and "7" are one id; "007" is another. Every other text, and an integer beyond int64,
has a 64-bit hash for a key: among ten million ids two share one with a chance below one in 100,000.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recfuse.config import InvalidFieldError
from recfuse.logs.columns import decoded

ALLOWED = "64-bit integers or strings"
_DIGITS = re.compile(r"0|-?[1-9][0-9]{0,18}")
_LARGEST = int(np.iinfo(np.int64).max)
_ENDS = str(_LARGEST), str(-_LARGEST - 1)


def keys_of(ids: Sequence[int | str]) -> NDArray[np.int64]:
    """int64[N]: the keys of ids that a client sent."""
    if set(map(type, ids)) <= {int}:
        try:
            return np.array(ids, np.int64)
        except OverflowError:
            pass
    texts = [str(each) for each in ids]
    numbers = [int(text) if _DIGITS.fullmatch(text) else _LARGEST + 1 for text in texts]
    plain = np.array([-_LARGEST - 1 <= number <= _LARGEST for number in numbers], bool)
    keys = np.array([number if fits else 0 for number, fits in zip(numbers, plain, strict=True)], np.int64)
    keys[~plain] = _hashes(np.array(texts, object)[~plain])
    return keys


def read_keys(column: pa.ChunkedArray, field: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """int64[N] keys, and where there is an id at all, bool[N]: null and the empty text are none.

    Raises:
        InvalidFieldError: the column holds no ids, such as floats, which would round them.
    """
    if pa.types.is_null(column.type):
        return np.zeros(len(column), np.int64), np.zeros(len(column), bool)
    whole = ids_of(column, field).combine_chunks()
    if pa.types.is_integer(whole.type):
        if whole.type != pa.uint64() or not pc.any(pc.greater(whole, pa.scalar(_LARGEST, pa.uint64()))).as_py():
            keys = pc.fill_null(whole.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
            return keys, pc.is_valid(whole).to_numpy(zero_copy_only=False)
        whole = whole.cast(pa.string())
    coded = whole.dictionary_encode()
    keys = np.append(_keys_of_text(coded.dictionary), 0)
    places = pc.fill_null(coded.indices, len(coded.dictionary)).to_numpy(zero_copy_only=False)
    empty = pc.fill_null(pc.equal(whole, ""), True).to_numpy(zero_copy_only=False)
    return keys[places], ~empty


def ids_of(column: pa.ChunkedArray, field: str) -> pa.ChunkedArray:
    """The ids as integers or text, without dictionaries; decimals without fraction are text.

    Raises:
        InvalidFieldError: as of `read_keys`.
    """
    plain = decoded(column)
    if pa.types.is_decimal(plain.type) and plain.type.scale == 0:
        return pc.cast(plain, pa.string())
    fine = (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string, pa.types.is_null)
    if not any(test(plain.type) for test in fine):
        raise InvalidFieldError(field, str(column.type), ALLOWED)
    return plain


def _keys_of_text(texts: pa.Array) -> NDArray[np.int64]:
    """int64[N] of texts, none of them null."""
    digits = pc.match_substring_regex(texts, f"^({_DIGITS.pattern})$")
    end = pc.if_else(pc.starts_with(texts, "-"), _ENDS[1], _ENDS[0])
    # Texts of one length sort like the numbers that they are.
    shorter = pc.less(pc.binary_length(texts), pc.binary_length(end))
    is_key = pc.and_(digits, pc.or_(shorter, pc.less_equal(pc.cast(texts, pa.large_string()),
                                                           pc.cast(end, pa.large_string()))))
    numbers = pc.cast(pc.if_else(is_key, texts, "0"), pa.int64()).to_numpy(zero_copy_only=False)
    plain = is_key.to_numpy(zero_copy_only=False)
    if plain.all():
        return np.asarray(numbers, np.int64)
    return np.where(plain, numbers, _hashes(texts.to_numpy(zero_copy_only=False)))


def _hashes(texts: NDArray[np.object_]) -> NDArray[np.int64]:
    hashes: NDArray[np.int64] = pd.util.hash_array(texts, categorize=False).view(np.int64)
    return hashes
