"""Raw rows → checked ones: every value usable, every other row quarantined with field, value and what is allowed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.logs.candidates import check_candidates, no_candidates
from recfuse.logs.columns import plain_columns, without_views
from recfuse.logs.densities import Densities, contradictions, likeness, notes
from recfuse.logs.precision import Precision
from recfuse.logs.schema import session_log_schema

# A quarantined row as it came, beside what was wrong with it.
QUARANTINE_SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "field", "value", "allowed", "row")])
# Of the years 1 and 9999, in seconds: beyond them microseconds run over, and Python has no such time.
_EARLIEST, _LATEST = -62_135_596_800, 253_402_300_799
REQUIRED = ("request_id", "user_id", "ts", "stage", "scene", "state", "action", "feedback")
_JSON = json.JSONEncoder(default=str, ensure_ascii=False)
DUPLICATE = ("request_id", "unique: the first row of a request is kept")


@dataclass(frozen=True)
class Checked:
    """Rows in = `rows` + `quarantine`.

    Attributes:
        rows: `session_log_schema(vocabulary)`; every value is usable, `action_logp` is filled, `explored` is filled
            where it is known.
        quarantine: QUARANTINE_SCHEMA.
        notes: what was assumed on the way, in sentences.
    """

    rows: pa.Table
    quarantine: pa.Table
    notes: tuple[str, ...] = ()


def check(table: pa.Table, vocabulary: Vocabulary, source: str, need_density: bool = True,
          order_column: str = "") -> Checked:
    """Splits raw rows of one file into canonical and quarantined ones.

    Args:
        table: columns as they were read.
        source: the file, for the quarantine.
        need_density: quarantines a row that has neither `action_logp` nor the `mu` and `sigma` to compute it from;
            otherwise it is kept with NaN, for the learner to estimate.
        order_column: column of integers that orders requests with equal `ts`; empty takes `position` where it exists.
    """
    raw = table = without_views(table)
    schema = session_log_schema(vocabulary)
    try:
        if order_column and order_column != "position":
            table = _renamed(table, order_column)
        plain = plain_columns(table, vocabulary.behaviour_names, tuple(schema.names))
        _require_columns(plain.table.schema, vocabulary, need_density)
    except InvalidFieldError as error:
        return Checked(schema.empty_table(), quarantine_rows(raw, source, error.field, error.allowed,
                                                             value=str(error.value)))
    except pa.ArrowException as error:
        return Checked(schema.empty_table(), quarantine_rows(
            raw, source, "columns", "columns that Arrow can convert", value=str(error).splitlines()[0]))
    return _Checker(plain.table, raw, vocabulary, source, need_density).run(plain.notes)


def _renamed(table: pa.Table, order_column: str) -> pa.Table:
    """The column that orders requests under the name of the schema.

    Raises:
        InvalidFieldError: there is no such column.
    """
    if order_column not in table.column_names:
        raise InvalidFieldError(order_column, "missing column", "the column of integers that order_column names")
    if "position" in table.column_names:
        table = table.drop_columns("position")
    return table.rename_columns(["position" if name == order_column else name for name in table.column_names])


def _require_columns(schema: pa.Schema, vocabulary: Vocabulary, need_density: bool) -> None:
    names = set(schema.names)
    for name in REQUIRED:
        if name not in names:
            raise InvalidFieldError(name, "missing column", f"columns {', '.join(REQUIRED)}")
    if need_density and "action_logp" not in names and not {"mu", "sigma"} <= names:
        raise InvalidFieldError("action_logp", "missing column",
                                "a column action_logp, or both mu and sigma to compute it from")
    for name in ("state", "mu", "sigma", "action"):
        size = vocabulary.state_size if name == "state" else vocabulary.action_size
        kind = schema.field(name).type if name in names else None
        if kind is not None and pa.types.is_fixed_size_list(kind) and kind.list_size != size:
            raise InvalidFieldError(name, f"fixed_size_list[{kind.list_size}]", f"fixed_size_list<float32>[{size}]")


def quarantine_rows(table: pa.Table, source: str, field: str, allowed: str, value: str | None = None) -> pa.Table:
    """Quarantined form of raw rows; `value` is taken from the field of each row where it is not given."""
    texts = {name: _texts(column) for name, column in zip(table.column_names, table.columns, strict=True)}
    members = [[f"{_plain(name)}: {text}" for text in column] for name, column in texts.items()]
    rows = [f"{{{', '.join(row)}}}" for row in zip(*members, strict=True)]
    name, _, within = field.partition(".")
    values = texts.get(name, ["null"] * len(rows))
    if within and value is None:
        values = [_plain(_dig(json.loads(text), within)) for text in values]
    return pa.table({
        "source": [source] * len(rows),
        "field": [field] * len(rows),
        "value": values if value is None else [value] * len(rows),
        "allowed": [allowed] * len(rows),
        "row": rows,
    }, schema=QUARANTINE_SCHEMA)


def _texts(column: pa.ChunkedArray) -> list[str]:
    """The values of a column as JSON."""
    kind = column.type
    if (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)) and (
            kind.value_type in (pa.float32(), pa.float64())):
        lists = column.combine_chunks()
        flat = lists.flatten()
        if not flat.null_count:
            return _texts_of_lists(lists, flat.to_numpy().astype(np.float64))
    return [_plain(value) for value in _values(column)]


def _texts_of_lists(lists: pa.Array, flat: np.ndarray) -> list[str]:
    """Lists of floats as JSON; where both write the same digits, by the faster of two encoders."""
    size = np.abs(flat)
    alike = np.append(0, np.cumsum((size == 0) | ((size >= 1e-4) & (size < 1e16))))
    ends = np.append(0, np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)))
    missing, values = pc.is_null(lists).to_pylist(), flat.tolist()
    result = []
    for absent, begin, end in zip(missing, ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        if absent:
            result.append("null")
        elif alike[end] - alike[begin] == end - begin:
            result.append(orjson.dumps(values[begin:end]).decode().replace(",", ", "))
        else:
            result.append(_plain(values[begin:end]))
    return result


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
    return _JSON.encode(value)


class _Checker:
    """One pass over the columns of a table; each bad row keeps the first reason that was found for it."""

    def __init__(self, table: pa.Table, raw: pa.Table, vocabulary: Vocabulary, source: str,
                 need_density: bool) -> None:
        self._need_density = need_density
        self._table, self._raw_table = table.combine_chunks(), raw
        self._vocabulary = vocabulary
        self._source = source
        self._schema = session_log_schema(vocabulary)
        self._reason = np.full(table.num_rows, -1, np.int32)  # index into self._reasons; −1 = fine
        self._reasons: list[tuple[str, str]] = []
        self._columns: dict[str, pa.Array] = {}
        self._notes: tuple[str, ...] = ()  # on how exactly numbers were logged

    def run(self, notes: tuple[str, ...]) -> Checked:
        self._strings()
        self._time()
        matrices = {name: self._matrix(name) for name in ("state", "action", "mu", "sigma")}
        self._density(matrices["action"], matrices["mu"], matrices["sigma"])
        self._feedback()
        self._optional()
        self._candidates(matrices["action"], matrices["mu"])
        good = self._reason < 0
        rows = pa.table([self._columns[name] for name in self._schema.names], schema=self._schema)
        return Checked(rows.filter(pa.array(good)),
                       pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *self._bad()]), notes + self._notes)

    def _bad(self) -> Iterator[pa.Table]:
        for index, (field, allowed) in enumerate(self._reasons):
            chosen = np.flatnonzero(self._reason == index)
            if len(chosen):
                yield quarantine_rows(self._raw_table.take(pa.array(chosen)), self._source, field, allowed)

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
            column = self._raw(name)
            assert column is not None
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
        # Digits beyond microseconds are cut.
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
        if (values := _whole_matrix(column)) is not None:
            return self._checked(name, values, column.cast(kind))
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

    def _checked(self, name: str, matrix: np.ndarray, column: pa.Array) -> np.ndarray:
        """As `_matrix`, of lists that all are there and of the right length."""
        finite = np.isfinite(matrix)
        if finite.all():
            wild = np.zeros(len(matrix), bool)
        else:
            wild = ~finite.all(axis=1)
            self._refuse(wild, name, "finite numbers")
            matrix = np.where(wild[:, None], np.float32(0), matrix)
            column = _lists(matrix)
        if name == "sigma":
            self._refuse(~wild & (matrix <= 0).any(axis=1), name, "numbers > 0")
        self._columns[name] = column
        return np.where(wild[:, None], np.float32("nan"), matrix) if wild.any() and name in ("mu", "sigma") else matrix

    def _density(self, action: np.ndarray | None, mu: np.ndarray | None, sigma: np.ndarray | None) -> None:
        """`action_logp` as logged, or computed from μ and σ where it is absent; and whether the action was drawn."""
        rows = self._table.num_rows
        raw = self._raw("action_logp")
        logged = np.full(rows, np.nan)
        given = np.zeros(rows, bool)
        if raw is not None:
            given = ~_numpy(pc.is_null(raw))
            logged[given] = raw.drop_null().to_numpy(zero_copy_only=False)
            self._refuse(given & ~np.isfinite(logged), "action_logp", "a finite number")
        drawn = np.ones(rows, bool)
        if mu is not None and sigma is not None and action is not None:
            known = Densities.of(action, mu, sigma, self._vocabulary.action_range)
            precision = Precision.of(logged)
            self._notes = known.notes + tuple(notes("action_logp", precision))
            wrong = contradictions(logged, known, precision)
            self._refuse(wrong, "action_logp", "log N(action; mu, sigma²), within .001" +
                         likeness(logged[wrong], known.log_density[wrong], self._vocabulary.action_size))
            logged = np.where(given, logged, known.log_density)
            drawn = known.drawn
        missing = ~given & ~np.isfinite(logged)
        self._refuse(missing & self._need_density, "action_logp", "a finite number, or mu and sigma to compute it from")
        self._columns["action_logp"] = pa.array(logged, pa.float64())
        said = self._raw("explored")
        inferred = pa.array(drawn)
        self._columns["explored"] = inferred if said is None else pc.coalesce(said, inferred)

    def _feedback(self) -> None:
        column = self._raw("feedback")
        missing = _numpy(pc.is_null(column))
        self._refuse(missing, "feedback", f"values of {', '.join(self._vocabulary.behaviour_names)}")
        fields = []
        for behaviour in self._vocabulary.behaviours:
            # struct_field, unlike StructArray.field, honours the validity of the struct itself.
            values = pc.struct_field(column, behaviour.name)
            numbers = values.to_numpy(zero_copy_only=False)
            name = f"feedback.{behaviour.name}"
            self._refuse(~np.isfinite(numbers), name, "a finite number")
            if behaviour.transform == "log1p":
                self._refuse(np.asarray(numbers <= -1), name, "a number > −1 (its transform is log1p)")
            fields.append(values)
        self._columns["feedback"] = pa.StructArray.from_arrays(
            fields, fields=list(self._schema.field("feedback").type))

    def _optional(self) -> None:
        for name in ("session_id", "model_version", "scorer_version", "vocabulary_hash", "last", "position"):
            raw = self._raw(name)
            kind = self._schema.field(name).type
            self._columns[name] = pa.nulls(self._table.num_rows, kind) if raw is None else pc.cast(raw, kind)
        of_another = pc.not_equal(self._columns["vocabulary_hash"], self._vocabulary.meaning)
        self._refuse(_numpy(pc.fill_null(of_another, False)), "vocabulary_hash",
                     f"{self._vocabulary.meaning}, that of the log's vocabulary")

    def _candidates(self, action: np.ndarray | None, mu: np.ndarray | None) -> None:
        """What there was to rank, and that the action ranks it to what was shown."""
        rows, candidates = self._table.num_rows, self._raw("candidates")
        if candidates is None or action is None or candidates.null_count == rows:
            self._columns |= no_candidates(rows)
            return
        total, shown = self._raw("candidates_total"), self._raw("shown")
        total = pa.nulls(rows, pa.int64()) if total is None else total
        shown = pa.nulls(rows, pa.large_list(pa.int64())) if shown is None else shown
        checked = check_candidates(candidates, total, shown, self._vocabulary, action, mu, self._reason < 0)
        for fault in checked.faults:
            self._refuse(*fault)
        self._columns |= checked.columns


def _numpy(array: pa.Array) -> np.ndarray:
    return array.to_numpy(zero_copy_only=False)


def _whole_matrix(column: pa.Array) -> np.ndarray | None:
    """float32[n, size] of fixed lists that all are there, in place; None of others."""
    if not pa.types.is_fixed_size_list(column.type) or column.type.value_type != pa.float32() or not len(column):
        return None
    values = column.flatten()
    if column.null_count or values.null_count:
        return None
    return np.asarray(values.to_numpy().reshape(-1, column.type.list_size))


def _lists(matrix: np.ndarray, missing: np.ndarray | None = None) -> pa.FixedSizeListArray:
    mask = None if missing is None or not missing.any() else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1], mask=mask)
