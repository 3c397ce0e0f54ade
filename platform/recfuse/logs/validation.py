"""Checks session-log rows: each becomes a canonical row, or a quarantined one with field, value and what is allowed.

Two levels: a *file* whose columns cannot carry the log (missing column, wrong type or list size, unknown behaviour) is
quarantined whole; a *row* with a bad value is quarantined alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recfuse.behaviours import Vocabulary
from recfuse.logs.schema import session_log_schema
from recfuse.stats.gaussian import gaussian_log_density

# A quarantined row as it came, beside what was wrong with it.
QUARANTINE_SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "field", "value", "allowed", "row")])
# Of the years 1 and 9999, in seconds: beyond them microseconds run over, and Python has no such time.
_EARLIEST, _LATEST = -62_135_596_800, 253_402_300_799
REQUIRED = ("request_id", "user_id", "ts", "stage", "scene", "state", "action", "feedback")
DUPLICATE = ("request_id", "unique: the first row of a request is kept")


@dataclass(frozen=True)
class Checked:
    """Rows in = `rows` + `quarantine`.

    Attributes:
        rows: `session_log_schema(vocabulary)`; every value is usable, `action_logp` is filled.
        quarantine: QUARANTINE_SCHEMA.
    """

    rows: pa.Table
    quarantine: pa.Table


def check(table: pa.Table, vocabulary: Vocabulary, source: str, need_density: bool = True) -> Checked:
    """Splits raw rows of one file into canonical and quarantined ones.

    Args:
        table: columns as they were read.
        source: the file, for the quarantine.
        need_density: quarantines a row that has neither `action_logp` nor the `mu` and `sigma` to compute it from;
            otherwise it is kept with NaN, for the learner to estimate.
    """
    table = _plain_strings(table)
    problem = schema_problem(table.schema, vocabulary, need_density)
    if problem is not None:
        field, value, allowed = problem
        return Checked(session_log_schema(vocabulary).empty_table(),
                       quarantine_rows(table, source, field, allowed, value=value))
    return _Checker(table, vocabulary, source, need_density).run()


def schema_problem(
    schema: pa.Schema, vocabulary: Vocabulary, need_density: bool = True
) -> tuple[str, str, str] | None:
    """(field, what was found, what is allowed) of the first column that cannot carry the log; None where all can."""
    names = set(schema.names)
    for name in session_log_schema(vocabulary).names:
        if (count := schema.names.count(name)) > 1:
            return name, f"{count} columns of this name", "one"
    for name in REQUIRED:
        if name not in names:
            return name, "missing column", f"columns {', '.join(REQUIRED)}"
    if need_density and "action_logp" not in names and not {"mu", "sigma"} <= names:
        return "action_logp", "missing column", "a column action_logp, or both mu and sigma to compute it from"
    for name in ("state", "mu", "sigma", "action"):
        if name in names and (problem := _list_problem(name, schema.field(name).type, vocabulary)):
            return problem
    if not pa.types.is_timestamp(schema.field("ts").type):
        return "ts", str(schema.field("ts").type), "timestamp[us, UTC]"
    for name in ("session_id", "request_id", "user_id", "stage", "scene"):
        if name in names and not _is_string(schema.field(name).type):
            return name, str(schema.field(name).type), "string"
    for name, allowed in (("action_logp", "float64"), ("last", "bool"), ("model_version", "string")):
        kind = schema.field(name).type if name in names else pa.null()
        if not _casts(kind, allowed):
            return name, str(kind), allowed
    return _feedback_problem(schema.field("feedback").type, vocabulary)


def _list_problem(name: str, kind: pa.DataType, vocabulary: Vocabulary) -> tuple[str, str, str] | None:
    size = vocabulary.state_size if name == "state" else vocabulary.action_size
    allowed = f"fixed_size_list<float32>[{size}]"
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not is_list or not _is_number(kind.value_type):
        return name, str(kind), allowed
    if pa.types.is_fixed_size_list(kind) and kind.list_size != size:
        return name, f"fixed_size_list[{kind.list_size}]", allowed
    return None


def _feedback_problem(kind: pa.DataType, vocabulary: Vocabulary) -> tuple[str, str, str] | None:
    allowed = f"struct of {', '.join(vocabulary.behaviour_names)}"
    if not pa.types.is_struct(kind):
        return "feedback", str(kind), allowed
    names = [kind.field(index).name for index in range(kind.num_fields)]
    for name in names:
        if name not in vocabulary.behaviour_names:
            return f"feedback.{name}", "unknown behaviour", allowed
    for name in vocabulary.behaviour_names:
        if name not in names:
            return f"feedback.{name}", "missing behaviour", allowed
        value_type = kind.field(names.index(name)).type
        if not (_is_number(value_type) or pa.types.is_boolean(value_type)):
            return f"feedback.{name}", str(value_type), "a number"
    return None


def _plain_strings(table: pa.Table) -> pa.Table:
    """Dictionary-encoded columns (pandas writes categories so) and string views as plain ones."""
    for place, field in enumerate(table.schema):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        plain = pa.large_string() if pa.types.is_string_view(kind) else kind
        if plain != field.type:
            table = table.set_column(place, field.name, pc.cast(table.column(place), plain))
    return table


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _casts(kind: pa.DataType, to: str) -> bool:
    """Whether every value of an optional column can be read as what is wanted."""
    types = pa.types
    if to == "float64":
        return _is_number(kind) or types.is_decimal(kind) or types.is_null(kind)
    return types.is_boolean(kind) or types.is_integer(kind) or types.is_null(kind) or (
        to == "string" and _is_string(kind))


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def quarantine_rows(table: pa.Table, source: str, field: str, allowed: str, value: str | None = None) -> pa.Table:
    """Quarantined form of raw rows; `value` is taken from the field of each row where it is not given."""
    columns = [_values(column) for column in table.columns]
    rows = [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]
    return pa.table({
        "source": [source] * len(rows),
        "field": [field] * len(rows),
        "value": [value if value is not None else _plain(_dig(row, field)) for row in rows],
        "allowed": [allowed] * len(rows),
        "row": [_plain(row) for row in rows],
    }, schema=QUARANTINE_SCHEMA)


def _values(column: pa.ChunkedArray) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):  # times that Python's types do not reach
        if not pa.types.is_temporal(column.type):
            return [str(column.type)] * len(column)
        return [f"{column.type}: {value}" for value in pc.cast(column, pa.int64()).to_pylist()]


def _dig(row: Any, field: str) -> Any:
    for part in field.split("."):
        row = row.get(part) if isinstance(row, dict) else None
    return row


def _plain(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


class _Checker:
    """One pass over the columns of a table; each bad row keeps the first reason that was found for it."""

    def __init__(self, table: pa.Table, vocabulary: Vocabulary, source: str, need_density: bool) -> None:
        self._need_density = need_density
        self._table = table.combine_chunks()
        self._vocabulary = vocabulary
        self._source = source
        self._schema = session_log_schema(vocabulary)
        self._reason = np.full(table.num_rows, -1, np.int32)  # index into self._reasons; −1 = fine
        self._reasons: list[tuple[str, str]] = []
        self._columns: dict[str, pa.Array] = {}

    def run(self) -> Checked:
        self._strings()
        self._time()
        matrices = {name: self._matrix(name) for name in ("state", "action", "mu", "sigma")}
        self._density(matrices)
        self._feedback()
        self._optional()
        good = self._reason < 0
        rows = pa.table([self._columns[name] for name in self._schema.names], schema=self._schema)
        return Checked(rows.filter(pa.array(good)), pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *self._bad()]))

    def _bad(self) -> Iterator[pa.Table]:
        for index, (field, allowed) in enumerate(self._reasons):
            chosen = np.flatnonzero(self._reason == index)
            if len(chosen):
                yield quarantine_rows(self._table.take(pa.array(chosen)), self._source, field, allowed)

    def _refuse(self, bad: np.ndarray, field: str, allowed: str) -> None:
        if bad.any():
            self._reasons.append((field, allowed))
            self._reason[bad & (self._reason < 0)] = len(self._reasons) - 1

    def _raw(self, name: str) -> pa.Array | None:
        if name not in self._table.column_names:
            return None
        column = self._table[name]
        return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column

    def _strings(self) -> None:
        vocabulary = self._vocabulary
        for name in ("request_id", "user_id", "stage", "scene"):
            column = pc.cast(self._raw(name), pa.string())
            self._refuse(_numpy(pc.equal(pc.fill_null(column, ""), "")), name, "a non-empty string")
            self._columns[name] = column
        allowed = {"stage": vocabulary.stages, "scene": vocabulary.scenes}
        for name, values in allowed.items():
            if values:
                known = pc.is_in(self._columns[name], value_set=pa.array(values, pa.string()))
                self._refuse(~_numpy(known), name, ", ".join(values))

    def _time(self) -> None:
        column = self._raw("ts")
        assert column is not None
        # Without a zone the values are taken as UTC. Sub-microsecond digits are cut.
        self._columns["ts"] = pc.cast(column, pa.timestamp("us", "UTC"), safe=False)
        self._refuse(_numpy(pc.is_null(column)), "ts", "a timestamp")
        seconds = pc.cast(pc.cast(column, pa.timestamp("s", column.type.tz), safe=False), pa.int64())
        inside = pc.and_(pc.greater_equal(seconds, _EARLIEST), pc.less_equal(seconds, _LATEST))
        self._refuse(~_numpy(pc.fill_null(inside, True)), "ts", "a timestamp of the years 1 to 9999")

    def _matrix(self, name: str) -> np.ndarray | None:
        """float32[n, size] with zeros in bad rows; None where the optional column is absent."""
        size = self._vocabulary.state_size if name == "state" else self._vocabulary.action_size
        kind = self._schema.field(name).type
        column = self._raw(name)
        rows = self._table.num_rows
        if column is None:
            self._columns[name] = pa.nulls(rows, kind)
            return None
        if pa.types.is_fixed_size_list(column.type):
            column = pc.cast(column, pa.list_(column.type.value_type))
        missing = _numpy(pc.is_null(column))
        short = ~missing & (_numpy(pc.fill_null(pc.list_value_length(column), size)) != size)
        optional = name in ("mu", "sigma")  # absent values are fine where action_logp is given
        if not optional:
            self._refuse(missing, name, f"a list of {size} numbers")
        self._refuse(short, name, f"a list of {size} numbers")
        fits = ~missing & ~short
        matrix = np.zeros((rows, size), np.float32)
        values = pc.cast(column.filter(pa.array(fits)).flatten(), pa.float32(), safe=False)
        matrix[fits] = values.to_numpy(zero_copy_only=False).reshape(-1, size)
        wild = np.asarray(~np.isfinite(matrix).all(axis=1))
        self._refuse(wild, name, "finite numbers")
        if name == "sigma":
            self._refuse(fits & ~wild & (matrix <= 0).any(axis=1), name, "numbers > 0")
        matrix[wild] = 0.0
        self._columns[name] = _lists(matrix, missing if optional else None)
        if optional:
            matrix[~fits | wild] = np.nan
        return matrix

    def _density(self, matrices: dict[str, np.ndarray | None]) -> None:
        """`action_logp` as logged, or computed from μ and σ where it is absent."""
        rows = self._table.num_rows
        raw = self._raw("action_logp")
        logged = np.full(rows, np.nan)
        given = np.zeros(rows, bool)
        if raw is not None:
            given = ~_numpy(pc.is_null(raw))
            logged[given] = pc.cast(raw, pa.float64(), safe=False).drop_null().to_numpy(zero_copy_only=False)
            self._refuse(given & ~np.isfinite(logged), "action_logp", "a finite number")
        mu, sigma, action = matrices["mu"], matrices["sigma"], matrices["action"]
        if mu is not None and sigma is not None and action is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                computed = gaussian_log_density(action, mu, sigma)
            logged = np.where(given, logged, computed)
        missing = ~given & ~np.isfinite(logged)
        self._refuse(missing & self._need_density, "action_logp", "a finite number, or mu and sigma to compute it from")
        self._columns["action_logp"] = pa.array(logged, pa.float64())

    def _feedback(self) -> None:
        column = self._raw("feedback")
        missing = _numpy(pc.is_null(column))
        self._refuse(missing, "feedback", f"values of {', '.join(self._vocabulary.behaviour_names)}")
        fields = []
        for behaviour in self._vocabulary.behaviours:
            # struct_field, unlike StructArray.field, honours the validity of the struct itself.
            values = pc.cast(pc.struct_field(column, behaviour.name), pa.float32(), safe=False)
            numbers = values.to_numpy(zero_copy_only=False)
            name = f"feedback.{behaviour.name}"
            self._refuse(~np.isfinite(numbers), name, "a finite number")
            if behaviour.transform == "log1p":
                self._refuse(np.asarray(numbers <= -1), name, "a number > −1 (its transform is log1p)")
            fields.append(values)
        self._columns["feedback"] = pa.StructArray.from_arrays(
            fields, fields=list(self._schema.field("feedback").type))

    def _optional(self) -> None:
        for name in ("session_id", "model_version", "last"):
            raw = self._raw(name)
            kind = self._schema.field(name).type
            self._columns[name] = pa.nulls(self._table.num_rows, kind) if raw is None else pc.cast(raw, kind)


def _numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)


def _lists(matrix: np.ndarray, missing: np.ndarray | None = None) -> pa.FixedSizeListArray:
    mask = None if missing is None or not missing.any() else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1], mask=mask)
