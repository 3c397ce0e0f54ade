"""Columns of features as numpy arrays, whatever they come in: Arrow, numpy, or a list that a client sent."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recfuse.config import InvalidFieldError, require
from recfuse.logs.columns import decoded, floats, is_number
from recfuse.scenes.features import Feature

_NUMBERS = frozenset((int, float, bool, type(None)))
_LARGEST = np.iinfo(np.int64).max


def align(table: pa.Table, key: str, wanted: np.ndarray) -> pa.Table:
    """The table's row for each wanted key, the last one where there are several; a key that it lacks gets nulls."""
    require(key in table.column_names, f"{key}", table.column_names, f"a column {key}")
    kind = table.schema.field(key).type
    # A float would round ids beyond 2⁵³, and text sorts in another order.
    require(pa.types.is_integer(kind), f"{key.removesuffix('_id')}s.{key}", str(kind), "64-bit integers")
    keys = table[key].to_numpy()
    order = np.argsort(keys, kind="stable")
    if len(keys):
        place = np.maximum(np.searchsorted(keys[order], wanted, side="right") - 1, 0)
        index = pa.array(order[place], mask=keys[order][place] != wanted)
    else:
        index = pa.nulls(len(wanted), pa.int64())
    aligned = table.take(index)
    return aligned.set_column(aligned.column_names.index(key), key, pa.array(wanted))


def read_integers(column: Any, feature: Feature) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """int64[N] categories and valid: bool[N]. Integers stay exact, unsigned ones keep their bits; of text the decimal
    digits are read, and no other text is valid."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "iu":
        return column.astype(np.int64), np.ones(len(column), bool)
    array = _categories(column, feature)
    if _is_text(array):
        digits = pc.if_else(pc.match_substring_regex(array, r"^-?[0-9]{1,19}$"), array, None)
        numbers = pc.cast(digits, pa.decimal128(19, 0))
        ends = (pa.scalar(int(end)).cast(pa.decimal128(19, 0)) for end in (np.iinfo(np.int64).min, _LARGEST))
        fits = pc.and_(pc.greater_equal(numbers, next(ends)), pc.less_equal(numbers, next(ends)))
        array = pc.if_else(fits, numbers, None)
    filled = pc.fill_null(array.cast(pa.int64(), safe=False), 0)
    return filled.to_numpy(zero_copy_only=False), pc.is_valid(array).to_numpy(zero_copy_only=False)


def read_texts(column: Any, feature: Feature) -> tuple[NDArray[np.object_], NDArray[np.int64]]:
    """The different texts, str[D], and int64[N]: which of them each row has, −1 where it has none. Numbers are read as
    their digits."""
    coded = _categories(column, feature).cast(pa.large_string()).dictionary_encode()
    places = pc.fill_null(coded.indices.cast(pa.int64()), -1).to_numpy(zero_copy_only=False)
    return coded.dictionary.to_numpy(zero_copy_only=False).astype(object), places


def read_numbers(column: Any, feature: Feature) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """float64[N], after `log`, and valid: bool[N] (null and NaN are not). Integers beyond 2⁵³ are rounded."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "iufb":
        numbers = column.astype(np.float64)
    elif not isinstance(column, (pa.Array, pa.ChunkedArray)) and _NUMBERS.issuperset(map(type, column)):
        numbers = np.array([np.nan if value is None else value for value in column], np.float64)
    else:
        array = _arrow(column, feature)
        if not (is_number(array.type) or pa.types.is_boolean(array.type) or pa.types.is_null(array.type)):
            raise InvalidFieldError(f"{feature.source}.{feature.name}", str(array.type), "numbers")
        numbers = floats(array).to_numpy(zero_copy_only=False)
    valid = np.isfinite(numbers)
    numbers = np.where(valid, numbers, 0.0)
    return np.log1p(np.maximum(numbers, 0.0)) if feature.log else numbers, valid


def _categories(column: Any, feature: Feature) -> pa.Array:
    """Integers, booleans or text."""
    array = _arrow(column, feature)
    fine = (pa.types.is_integer, pa.types.is_boolean, pa.types.is_null)
    if not (_is_text(array) or any(test(array.type) for test in fine)):
        raise InvalidFieldError(f"{feature.source}.{feature.name}", str(array.type), "integers or strings")
    return array


def _arrow(column: Any, feature: Feature) -> pa.Array:
    """One array without dictionaries; of a client's integers some may be unsigned."""
    if isinstance(column, pa.Array):
        column = pa.chunked_array([column])
    if isinstance(column, pa.ChunkedArray):
        return decoded(column).combine_chunks()
    for kind in (None, pa.uint64()):
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            return pa.array(column, kind)
    raise InvalidFieldError(f"{feature.source}.{feature.name}", column, "values of one type") from None


def _is_text(array: pa.Array) -> bool:
    return pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
