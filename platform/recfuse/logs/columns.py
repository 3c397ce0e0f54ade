"""Whatever carries a value without loss becomes the one type that the checks work on.

What has to be assumed on the way (a time without zone is UTC) is noted, once a log.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recfuse.config import InvalidFieldError
from recfuse.logs.schema import CANDIDATES

# Columns of text: identities, and the two that the vocabulary may list.
IDENTITIES = ("session_id", "request_id", "user_id", "model_version", "scorer_version", "vocabulary_hash")
WORDS = ("stage", "scene")
NUMBER_LISTS = ("state", "mu", "sigma", "action")
FLAGS = ("last", "explored")
# What says nothing without the candidates: logs may have columns of these names that are something else.
_OF_CANDIDATES = ("candidates_total", "shown")
_types = pa.types


@dataclass(frozen=True)
class Plain:
    """Columns in the types of the checks.

    Attributes:
        table: text columns are `string`, times `timestamp[us, UTC]`, lists `list<float32>`, flags `bool`, feedback a
            struct of float32; columns that the log does not know are left out.
        notes: what was assumed or left out, in sentences.
    """

    table: pa.Table
    notes: tuple[str, ...]


def plain_columns(table: pa.Table, behaviours: tuple[str, ...], known: tuple[str, ...]) -> Plain:
    """Converts the columns of raw rows.

    Args:
        table: as it was read.
        behaviours: of the vocabulary; other fields of `feedback` are left out, and noted.
        known: names of the session log's columns; others are left out without a word, since logs carry more.

    Raises:
        InvalidFieldError: a column whose type cannot carry its values, or a name that occurs twice.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    notes: list[str] = []
    for name in known:
        count = table.column_names.count(name)
        if count > 1:
            raise InvalidFieldError(name, f"{count} columns of this name", "one")
        if count == 0 or (name in _OF_CANDIDATES and "candidates" not in table.column_names):
            continue
        column = decoded(table[name])
        if name == "ts":
            columns[name], note = _time(column)
            notes += note
        elif name == "feedback":
            columns[name], note = _feedback(column, behaviours)
            notes += note
        elif (converted := _converted(column, name)) is not None:
            columns[name] = converted
    return Plain(pa.table(columns) if columns else table.select([]), tuple(notes))


def _converted(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray | None:
    """A column of which there is nothing to note; None for one that no job reads."""
    if name in IDENTITIES or name in WORDS:
        return _text(column, name)
    if name in NUMBER_LISTS:
        return _number_list(column, name)
    if name == "action_logp":
        return _number(column, name, pa.float64())
    if name in FLAGS:
        return _flag(column, name)
    if name in ("position", "candidates_total"):
        return _integer(column, name)
    if name == "candidates":
        return _candidates(column)
    return _lists(column, name, _integer) if name == "shown" else None


def without_views(table: pa.Table) -> pa.Table:
    """The same rows with string and binary views as plain columns, since Arrow cannot take rows of a view."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string_view(field.type) or field.type == pa.binary_view():
            kind = pa.large_string() if pa.types.is_string_view(field.type) else pa.large_binary()
            table = table.set_column(place, field.name, pc.cast(table.column(place), kind))
    return table


def is_number(kind: pa.DataType) -> bool:
    """Whether a type carries numbers: integers, floats (halves too), decimals."""
    return bool(_types.is_floating(kind) or _types.is_integer(kind) or _types.is_decimal(kind))


def floats(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """Numbers and booleans as float64; integers beyond 2⁵³ are rounded, decimals are read by their digits."""
    if _types.is_decimal(column.type):
        column = pc.cast(column, pa.string())
    return column.cast(pa.float64(), safe=False)


def decoded(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without dictionaries, run-length codes, extension types and views."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        column = pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type)
        return _uuids(column) if kind.extension_name == "arrow.uuid" else decoded(column)
    if _types.is_dictionary(kind):
        return decoded(pc.cast(column, kind.value_type))
    if _types.is_run_end_encoded(kind):
        return decoded(pa.chunked_array([pc.run_end_decode(chunk) for chunk in column.chunks], kind.value_type))
    if _types.is_string_view(kind):
        return pc.cast(column, pa.large_string())
    if kind == pa.binary_view():
        return pc.cast(column, pa.large_binary())
    return column


def _text(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """Strings; integers in decimal digits, decimals without fraction likewise, 16 bytes as a UUID, other bytes as UTF-8
    or, where they are none, in hexadecimal digits behind `0x`. Each value keeps a name of its own."""
    kind = column.type
    if _types.is_string(kind) or _types.is_large_string(kind) or _types.is_null(kind):
        return pc.cast(column, pa.string())
    if _types.is_integer(kind):
        return pc.cast(column, pa.string())
    if _types.is_decimal(kind) and kind.scale == 0:
        return pc.cast(column, pa.string())
    if _types.is_fixed_size_binary(kind) and kind.byte_width == 16:
        return _uuids(column)
    if _types.is_binary(kind) or _types.is_large_binary(kind) or _types.is_fixed_size_binary(kind):
        return _bytes_as_text(column)
    raise InvalidFieldError(name, str(kind), "string, an integer, bytes or a UUID")


def _uuids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return _mapped(column, lambda value: str(uuid.UUID(bytes=value)))


def _bytes_as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if not _types.is_large_binary(column.type):
        column = pc.cast(column, pa.large_binary())
    try:
        return pc.cast(pc.cast(column, pa.large_string()), pa.string())
    except pa.ArrowInvalid:  # some are no UTF-8; each value is still written the same way in every file
        return _mapped(column, _utf8_or_hex)


def _utf8_or_hex(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return f"0x{value.hex()}"


def _mapped(column: pa.ChunkedArray, text: Callable[[bytes], str]) -> pa.ChunkedArray:
    """Each distinct value is converted once."""
    encoded = column.combine_chunks().dictionary_encode()
    words = pa.array([text(value) for value in encoded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([pc.cast(pa.DictionaryArray.from_arrays(encoded.indices, words), pa.string())])


def _time(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[str]]:
    """`timestamp` of the unit it has; a date begins at midnight. What has no zone is taken as UTC, which is noted.

    The unit stays, since the years that microseconds cannot hold are for the checks to refuse.
    """
    kind = column.type
    if _types.is_date(kind):
        return pc.cast(column, pa.timestamp("s", "UTC")), ["ts: dates without a time of day, taken as midnight UTC"]
    if not _types.is_timestamp(kind):
        raise InvalidFieldError("ts", str(kind), "timestamp, of seconds to nanoseconds, with or without zone")
    notes = []
    if kind.tz is None:
        notes.append("ts: times without a zone, taken as UTC")
        column = pc.cast(column, pa.timestamp(kind.unit, "UTC"))
    elif kind.tz != "UTC":
        column = pc.cast(column, pa.timestamp(kind.unit, "UTC"))
    if kind.unit == "ns" and pc.any(pc.not_equal(pc.subsecond(pc.cast(column, pa.timestamp("ns"))), 0)).as_py() and \
            not pc.cast(column, pa.timestamp("us", "UTC"), safe=False).cast(column.type).equals(column):
        notes.append("ts: digits beyond microseconds, cut")
    return column, notes


def _number_list(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    kind = column.type
    if _types.is_null(kind):
        return pc.cast(column, pa.list_(pa.float32()))
    if not _is_nested(kind) or not is_number(kind.value_type):
        raise InvalidFieldError(name, str(kind), "a list of numbers")
    if _types.is_list_view(kind) or _types.is_large_list_view(kind):
        column = pa.chunked_array([_without_views(chunk) for chunk in column.chunks], pa.large_list(kind.value_type))
    if _types.is_decimal(kind.value_type):
        column = pc.cast(column, pa.large_list(pa.float64()), safe=False)
    return column


def _is_nested(kind: pa.DataType) -> bool:
    return bool(_types.is_list(kind) or _types.is_large_list(kind) or _types.is_fixed_size_list(kind)
                or _types.is_list_view(kind) or _types.is_large_list_view(kind))


def _without_views(chunk: pa.Array) -> pa.Array:
    """pyarrow's cast of list views loses rows that lie behind a slice; their flattened values are right."""
    return pa.LargeListArray.from_arrays(_ends(chunk), chunk.flatten(), mask=pc.is_null(chunk))


def _ends(lists: pa.Array) -> pa.Array:
    """Offsets of the flattened values."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return pa.array(np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


def _number(column: pa.ChunkedArray, name: str, to: pa.DataType) -> pa.ChunkedArray:
    if not (is_number(column.type) or _types.is_null(column.type)):
        raise InvalidFieldError(name, str(column.type), "a number")
    return pc.cast(column, to, safe=False)


def _integer(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    if not (_types.is_integer(column.type) or _types.is_null(column.type)):
        raise InvalidFieldError(name, str(column.type), "an integer")
    return pc.cast(column, pa.int64())


def _candidates(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A struct of `item_ids`, `predictions` in half or single precision, and `seen`; the first and last may lack."""
    kind, parts = column.type, {"item_ids": _text, "predictions": _floats, "seen": _flag}
    if _types.is_null(kind):
        return pc.cast(column, CANDIDATES)
    if not _types.is_struct(kind) or [field.name for field in kind].count("predictions") != 1:
        raise InvalidFieldError("candidates", str(kind), f"a struct of {', '.join(parts)}")
    fields = []
    for name, convert in parts.items():
        known = kind.get_field_index(name) >= 0
        given = pc.struct_field(column, name) if known else pa.chunked_array([pa.nulls(len(column))])
        fields.append(_joined(_lists(given, f"candidates.{name}", convert)))
    return pa.chunked_array([pa.StructArray.from_arrays(fields, list(parts), mask=_joined(pc.is_null(column)))])


def _lists(column: pa.ChunkedArray, name: str, convert: Callable[[pa.ChunkedArray, str], pa.ChunkedArray]
           ) -> pa.ChunkedArray:
    """Large lists of converted elements."""
    column = decoded(column)
    if _types.is_null(column.type):
        column = pc.cast(column, pa.large_list(pa.null()))
    if not _is_nested(column.type):
        raise InvalidFieldError(name, str(column.type), "a list")
    whole = _joined(column)
    ends = _ends(whole)
    elements = _joined(convert(decoded(pa.chunked_array([whole.flatten()])), name))
    return pa.chunked_array([pa.LargeListArray.from_arrays(ends, elements, mask=pc.is_null(whole))])


def _floats(elements: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    return elements if _types.is_float16(elements.type) else _number(elements, name, pa.float32())


def _joined(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _flag(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    kind = column.type
    if is_number(kind):
        values = pc.unique(pc.cast(column, pa.float64(), safe=False).drop_null()).to_pylist()
        other = next((value for value in values if value not in (0.0, 1.0)), None)
        if other is not None:
            raise InvalidFieldError(name, f"{other:g} among its numbers", "bool, or 0 and 1")
        return pc.not_equal(column, pa.scalar(0, kind))
    if not (_types.is_boolean(kind) or _types.is_null(kind)):
        raise InvalidFieldError(name, str(kind), "bool")
    return pc.cast(column, pa.bool_())


def _feedback(column: pa.ChunkedArray, behaviours: tuple[str, ...]) -> tuple[pa.ChunkedArray, list[str]]:
    """A struct of float32 with the vocabulary's behaviours; a map is read by its keys, and a key that a row lacks is
    null there."""
    kind = column.type
    if _types.is_map(kind):
        return _of_map(column, behaviours)
    if not _types.is_struct(kind):
        raise InvalidFieldError("feedback", str(kind), f"struct or map of {', '.join(behaviours)}")
    names = [kind.field(index).name for index in range(kind.num_fields)]
    fields = []
    for name in behaviours:
        if names.count(name) != 1:
            problem = "missing behaviour" if name not in names else f"{names.count(name)} fields of this name"
            raise InvalidFieldError(f"feedback.{name}", problem, f"struct of {', '.join(behaviours)}")
        values = decoded(pc.struct_field(column, name))
        if not (is_number(values.type) or _types.is_boolean(values.type) or _types.is_null(values.type)):
            raise InvalidFieldError(f"feedback.{name}", str(values.type), "a number")
        fields.append(_float(values))
    return _struct(fields, behaviours, pc.is_null(column)), _unknown(set(names) - set(behaviours))


def _of_map(column: pa.ChunkedArray, behaviours: tuple[str, ...]) -> tuple[pa.ChunkedArray, list[str]]:
    column = _with_plain_keys(column)
    kind = column.type
    named = _types.is_string(kind.key_type) or _types.is_large_string(kind.key_type)
    if not named or not (is_number(kind.item_type) or _types.is_boolean(kind.item_type)):
        raise InvalidFieldError("feedback", str(kind), f"map of {', '.join(behaviours)} to numbers")
    fields = [_float(pc.map_lookup(column, pa.scalar(name, kind.key_type), "first")) for name in behaviours]
    keys: set[str] = set()
    for chunk in column.chunks:
        keys |= set(pc.unique(chunk.keys).to_pylist())
    return _struct(fields, behaviours, pc.is_null(column)), _unknown(keys - set(behaviours))


def _with_plain_keys(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A map whose keys are no codes of a dictionary, and no views."""
    plain = decoded(pa.chunked_array([chunk.keys for chunk in column.chunks], column.type.key_type)).type
    if plain == column.type.key_type:
        return column
    return pc.cast(column, pa.map_(plain, column.type.item_type))


def _float(values: pa.ChunkedArray) -> pa.ChunkedArray:
    if _types.is_decimal(values.type):
        values = pc.cast(values, pa.float64(), safe=False)
    return pc.cast(values, pa.float32(), safe=False)


def _struct(fields: list[pa.ChunkedArray], names: tuple[str, ...], missing: pa.ChunkedArray) -> pa.ChunkedArray:
    arrays = [_joined(field) for field in fields]
    return pa.chunked_array([pa.StructArray.from_arrays(arrays, list(names), mask=_joined(missing))])


def _unknown(names: set[str]) -> list[str]:
    if not names:
        return []
    return [f"feedback: {', '.join(sorted(map(str, names)))} left out, which the vocabulary does not have"]
