"""Columns of features as numpy arrays, whatever they come in: Arrow, numpy, or a list that a client sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recfuse.config import InvalidFieldError, require
from recfuse.scenes.features import Feature


def align(table: pa.Table, key: str, wanted: np.ndarray) -> pa.Table:
    """The table's row for each wanted key; a key that it lacks gets nulls."""
    require(key in table.column_names, f"{key}", table.column_names, f"a column {key}")
    kind = table.schema.field(key).type
    # A float would round ids beyond 2⁵³, and text sorts in another order.
    require(pa.types.is_integer(kind), f"{key.removesuffix('_id')}s.{key}", str(kind), "64-bit integers")
    keys = table[key].to_numpy()
    order = np.argsort(keys, kind="stable")
    if len(keys):
        place = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
        index = pa.array(order[place], mask=keys[order][place] != wanted)
    else:
        index = pa.nulls(len(wanted), pa.int64())
    aligned = table.take(index)
    return aligned.set_column(aligned.column_names.index(key), key, pa.array(wanted))


def read_categories(column: Any, feature: Feature, integers: bool) -> tuple[np.ndarray, np.ndarray]:
    """int64[N] or str[N] and valid: bool[N]. Integers stay exact; digits in strings are read as integers."""
    if isinstance(column, np.ndarray) and column.dtype.kind in "iu" and integers:
        return column.astype(np.int64), np.ones(len(column), bool)
    array = _arrow(column, feature)
    if pa.types.is_floating(array.type) or not (_is_text(array) or pa.types.is_integer(array.type)
                                                or pa.types.is_null(array.type) or pa.types.is_boolean(array.type)):
        raise InvalidFieldError(f"{feature.source}.{feature.name}", str(array.type), "integers or strings")
    if integers:
        if _is_text(array):
            array = pc.if_else(pc.match_substring_regex(array, r"^-?[0-9]{1,18}$"), array, None)
        filled = pc.fill_null(array.cast(pa.int64()), 0)
        return filled.to_numpy(zero_copy_only=False), pc.is_valid(array).to_numpy(zero_copy_only=False)
    filled = pc.fill_null(array.cast(pa.string()), "")
    return filled.to_numpy(zero_copy_only=False).astype(str), pc.is_valid(array).to_numpy(zero_copy_only=False)


def read_numbers(column: Any, feature: Feature) -> tuple[np.ndarray, np.ndarray]:
    """float64[N], after `log`, and valid: bool[N] (null and NaN are not)."""
    array = _arrow(column, feature)
    if _is_text(array):
        raise InvalidFieldError(f"{feature.source}.{feature.name}", str(array.type), "numbers")
    numbers = array.cast(pa.float64()).to_numpy(zero_copy_only=False)
    valid = np.isfinite(numbers)
    numbers = np.where(valid, numbers, 0.0)
    return np.log1p(np.maximum(numbers, 0.0)) if feature.log else numbers, valid


def _arrow(column: Any, feature: Feature) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks()
    if isinstance(column, pa.Array):
        return column
    try:
        return pa.array(column)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise InvalidFieldError(f"{feature.source}.{feature.name}", column, "values of one type") from None


def _is_text(array: pa.Array) -> bool:
    return pa.types.is_string(array.type) or pa.types.is_large_string(array.type)
