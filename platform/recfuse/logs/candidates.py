"""The candidates of logged requests: their widths and positions, and the proof that the log is whole.

Whoever logs candidates ranks by the numbers that are logged (maths 5). So the logged action, applied to the logged
predictions by the vocabulary's formula, must give the page that was shown; where it does not, something in the row is
not what it says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recfuse.behaviours import Curve, Formula, Vocabulary, curved
from recfuse.logs.schema import CANDIDATES

COLUMNS = ("candidates", "candidates_total", "shown")
# So many predictions are ranked at a time.
_AT_ONCE = 1 << 22
# Rows that do not give their page are looked at for what they look like; of them, so many must fit.
_LOOKED_AT, _MOST = 1_000, .9
_EPSILON = float(np.finfo(np.float32).eps)
Fault = tuple[NDArray[np.bool_], str, str]


@dataclass(frozen=True)
class Lists:
    """A list in each of n rows.

    Attributes:
        values: of all rows, one after the other.
        start, length: int64[n], where a row's values are, and how many; missing: bool[n].
    """

    values: NDArray[Any]
    start: NDArray[np.int64]
    length: NDArray[np.int64]
    missing: NDArray[np.bool_]

    @classmethod
    def of(cls, array: pa.Array) -> Lists:
        """Of an Arrow array of lists; null elements are NaN, −1 or false."""
        length = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        values = array.flatten()
        if not pa.types.is_floating(values.type):
            values = pc.fill_null(values, False if pa.types.is_boolean(values.type) else -1)
        return cls(values.to_numpy(zero_copy_only=False), np.cumsum(length) - length, length,
                   pc.is_null(array).to_numpy(zero_copy_only=False))

    def every(self, good: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """bool[n]: all values of a row are good; `good` is of all values."""
        bad = np.concatenate([[0], np.cumsum(~good)])
        return np.asarray(bad[self.start + self.length] == bad[self.start])

    def padded(self, rows: NDArray[np.int64], width: int, fill: Any) -> NDArray[Any]:
        """[len(rows), width] of these rows; `fill` behind the end of each."""
        if len(self.values) == len(rows) * width and np.array_equal(rows, np.arange(len(self.length))) and (
                self.length == width).all():
            return self.values.reshape(len(rows), width)
        places = np.arange(width)
        there = places < self.length[rows, None]
        if not there.any():
            return np.full(there.shape, fill, self.values.dtype)
        result: NDArray[Any] = self.values[np.where(there, self.start[rows, None] + places, 0)]
        result[~there] = fill
        return result

    def to_arrow(self, kind: pa.DataType) -> pa.Array:
        """A list array of this type."""
        ends = pa.array(np.concatenate([[0], np.cumsum(self.length)]).astype(np.int32))
        values = pa.array(self.values).cast(kind.value_type)
        return pa.ListArray.from_arrays(ends, values, mask=pa.array(self.missing)).cast(kind)


@dataclass(frozen=True)
class CheckedCandidates:
    """Attributes:
        columns: of COLUMNS, by the types of the session log.
        faults: rows bool[n], field and what is allowed, of each thing that can be wrong.
    """

    columns: dict[str, pa.Array]
    faults: list[Fault]


def no_candidates(rows: int) -> dict[str, pa.Array]:
    """COLUMNS of a log that keeps none."""
    return {"candidates": pa.nulls(rows, CANDIDATES), "candidates_total": pa.nulls(rows, pa.int32()),
            "shown": pa.nulls(rows, pa.list_(pa.int16()))}


def check_candidates(candidates: pa.StructArray, total: pa.Array, shown: pa.Array, vocabulary: Vocabulary,
                     action: NDArray[np.float32], mu: NDArray[np.float32] | None,
                     good: NDArray[np.bool_]) -> CheckedCandidates:
    """Checks candidates as `plain_columns` gives them.

    Args:
        action: [n, M]; mu: likewise, NaN where it is not logged.
        good: bool[n], rows in which nothing else is wrong: these must give their page.
    """
    check = _Check(candidates, total, shown, vocabulary)
    check.widths()
    check.positions()
    check.ranking(action, mu, good)
    return CheckedCandidates(check.columns(), check.faults)


class _Check:
    """One pass over the candidates of a table."""

    def __init__(self, candidates: pa.StructArray, total: pa.Array, shown: pa.Array, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._item_ids = pc.struct_field(candidates, "item_ids")
        self._predictions = Lists.of(pc.struct_field(candidates, "predictions"))
        self._seen = Lists.of(pc.struct_field(candidates, "seen"))
        self._shown, self._total = Lists.of(shown), total
        self._present = ~pc.is_null(candidates).to_numpy(zero_copy_only=False)
        self._count = self._predictions.length // vocabulary.action_size
        with np.errstate(over="ignore"):
            self._half = self._predictions.values.astype(np.float16)
        self._bad = np.zeros(len(candidates), bool)
        self.faults: list[Fault] = []

    def _refuse(self, wrong: NDArray[np.bool_], field: str, allowed: str) -> None:
        wrong = wrong & self._present & ~self._bad
        self._bad |= wrong
        self.faults.append((wrong, field, allowed))

    def widths(self) -> None:
        """What there is of each candidate."""
        lists, parameters, count = self._predictions, self._vocabulary.action_size, self._count
        self._refuse((lists.length == 0) | (lists.length % parameters != 0), "candidates.predictions",
                     f"{parameters} numbers a candidate, those of one fusion parameter after those of another")
        self._refuse(~lists.every(np.isfinite(self._half)), "candidates.predictions",
                     "finite numbers within ±65,504, the range of half precision")
        if self._vocabulary.formula != "linear":
            offset = self._vocabulary.offset
            self._refuse(~lists.every(self._half.astype(np.float64) > -offset), "candidates.predictions",
                         f"numbers > −{offset} (formula {self._vocabulary.formula})")
        ids = pc.coalesce(pc.list_value_length(self._item_ids), pa.array(count)).to_numpy(zero_copy_only=False)
        self._refuse(ids != count, "candidates.item_ids", "one id a candidate")
        self._refuse(~self._seen.missing & (self._seen.length != count), "candidates.seen", "one flag a candidate")
        total = pc.fill_null(self._total, np.iinfo(np.int32).max).to_numpy(zero_copy_only=False)
        self._refuse((total < count) | (total > np.iinfo(np.int32).max), "candidates_total",
                     "at least as many as there are candidates")

    def positions(self) -> None:
        """Where the shown ones are."""
        shown, seen = self._shown, self._seen
        row = np.repeat(np.arange(len(shown.length)), shown.length)
        inside = (shown.values >= 0) & (shown.values < self._count[row])
        self._refuse(shown.missing, "shown", "positions of candidates, where there are candidates")
        self._refuse(~shown.every(inside) | (self._count > np.iinfo(np.int16).max), "shown",
                     "positions of candidates, from 0")
        key = row * (1 << 32) + shown.values.astype(np.int64)
        again = np.zeros(len(key), bool)
        order = np.argsort(key, kind="stable")
        again[order[1:]] = key[order[1:]] == key[order[:-1]]
        self._refuse(~shown.every(~again), "shown", "every position once")
        if len(seen.values):
            checkable = inside & ~seen.missing[row] & ~self._bad[row]
            place = np.where(checkable, seen.start[row] + shown.values.astype(np.int64), 0)
            self._refuse(~shown.every(~(checkable & seen.values[place])), "shown",
                         "candidates that the session had not seen")

    def ranking(self, action: NDArray[np.float32], mu: NDArray[np.float32] | None, good: NDArray[np.bool_]) -> None:
        """The logged action gives the page that was shown."""
        formula, offset = self._vocabulary.formula, self._vocabulary.offset
        rows = np.flatnonzero(good & self._present & ~self._bad)
        wrong = np.zeros(len(good), bool)
        for some, predictions, is_open, shown in self._blocks(rows, self._half):
            wrong[some] = ~reproduces(predictions, is_open, action[some], shown, formula, offset,
                                      self._vocabulary.curves)
        words = self._likeness(np.flatnonzero(wrong)[:_LOOKED_AT], action, mu) if wrong.any() else ""
        self._refuse(wrong, "shown", f"the page that the action ranks the predictions to, by the formula {formula} in "
                                     f"descending order{words}")

    def _blocks(self, rows: NDArray[np.int64], values: NDArray[Any], by_candidate: bool = False
                ) -> Iterator[tuple[NDArray[np.int64], NDArray[Any], NDArray[np.bool_], NDArray[np.int64]]]:
        """Rows, predictions [k, M, N], open [k, N] and shown [k, L] of rows with equally many candidates."""
        parameters = self._vocabulary.action_size
        for count in np.unique(self._count[rows]):
            alike = rows[self._count[rows] == count]
            at_once = max(1, _AT_ONCE // int(count * parameters))
            for first in range(0, len(alike), at_once):
                some = alike[first:first + at_once]
                flat = values[self._predictions.start[some, None] + np.arange(count * parameters)]
                predictions = (flat.reshape(len(some), count, parameters).transpose(0, 2, 1) if by_candidate else
                               flat.reshape(len(some), parameters, count))
                is_open = ~self._seen.padded(some, count, False).astype(bool)
                shown = self._shown.padded(some, int(self._shown.length[some].max(initial=0)), -1).astype(np.int64)
                yield some, predictions, is_open, shown

    def _likeness(self, rows: NDArray[np.int64], action: NDArray[np.float32], mu: NDArray[np.float32] | None) -> str:
        """Words on what most pages look like that the action does not give; empty where nothing fits."""
        formula, offset = self._vocabulary.formula, self._vocabulary.offset
        other: Formula = "log_sum" if formula == "linear" else "linear"
        mean = action if mu is None else np.nan_to_num(mu)
        guesses: dict[str, tuple[NDArray[Any], NDArray[np.float32], Formula, bool]] = {
            "order ascending": (self._half, -action, formula, False),
            f"the formula {other}": (self._half, action, other, False),
            "the predictions of one candidate after those of another": (self._half, action, formula, True),
            "a ranking by mu instead of the action": (self._half, mean, formula, False),
            "a ranking by predictions that were not rounded to half precision": (self._predictions.values, action,
                                                                               formula, False),
        }
        for words, (values, vector, by, by_candidate) in guesses.items():
            # To a vector of zeros all pages are equal.
            curves = self._vocabulary.curves if by == formula else None
            fit = sum(int((reproduces(predictions, is_open, vector[some], shown, by, offset, curves)
                           & vector[some].any(1)).sum())
                      for some, predictions, is_open, shown in self._blocks(rows, values, by_candidate))
            if fit >= _MOST * len(rows):
                return f" (the numbers look like {words})"
        return ""

    def columns(self) -> dict[str, pa.Array]:
        """The columns in the types of the session log; what is wrong in them is in rows that are refused."""
        kinds = {field.name: field.type for field in CANDIDATES}
        predictions = Lists(self._half, self._predictions.start, self._predictions.length, self._predictions.missing)
        candidates = pa.StructArray.from_arrays(
            [self._item_ids.cast(kinds["item_ids"]), predictions.to_arrow(kinds["predictions"]),
             self._seen.to_arrow(kinds["seen"])], fields=list(CANDIDATES), mask=pa.array(~self._present))
        absent = ~self._present
        shown = Lists(self._shown.values.clip(-1, np.iinfo(np.int16).max).astype(np.int16), self._shown.start,
                      self._shown.length, self._shown.missing)
        column = shown.to_arrow(pa.list_(pa.int16()))
        if absent.any():  # positions among nothing
            column = pc.if_else(pa.array(self._present), column, pa.scalar(None, column.type))
        total = pc.if_else(pa.array(self._present & ~self._bad), self._total, pa.scalar(None, pa.int64()))
        return {"candidates": candidates, "candidates_total": total.cast(pa.int32()), "shown": column}


def scores_of(predictions: NDArray[Any], action: NDArray[np.float32], formula: Formula, offset: float,
              curves: Sequence[Curve] | None = None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of candidates (maths 2), float64[n, N], and how far those of a writer in single precision may be off, [n].

    `power` orders as `log_sum` does, whose score it is here.

    Args:
        predictions: [n, M, N]; action: [n, M].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = _terms(predictions, formula, offset, curves)
        weight = action.astype(np.float64)
        scores = np.matmul(weight[:, None], terms)[:, 0]
        # A logarithm near 0 carries the rounding of its argument, which is near 1.
        size = np.abs(terms).max(2, initial=0.0) + (0.0 if formula == "linear" else 1.0)
    return scores, (action.shape[1] + 4) * _EPSILON * (np.abs(weight) * size).sum(1)


def _terms(predictions: NDArray[Any], formula: Formula, offset: float,
           curves: Sequence[Curve] | None) -> NDArray[np.float64]:
    """What the fusion parameters weigh, float64."""
    if formula == "linear":
        return curved(predictions, curves)
    if predictions.dtype == np.float16:  # there are few of them: to look a logarithm up is much faster
        every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)
        looked_up: NDArray[np.float64] = np.log(every + offset)[np.ascontiguousarray(predictions).view(np.uint16)]
        return looked_up
    return np.log(predictions.astype(np.float64) + offset)


def reproduces(predictions: NDArray[Any], is_open: NDArray[np.bool_], action: NDArray[np.float32],
               shown: NDArray[np.int64], formula: Formula, offset: float,
               curves: Sequence[Curve] | None = None) -> NDArray[np.bool_]:
    """bool[n]: the action ranks the candidates to the page that was shown, but for places whose scores are equal within
    single precision.

    Args:
        predictions: [n, M, N]; is_open: bool[n, N]; action: [n, M].
        shown: [n, L], positions, best place first, −1 behind the end.
    """
    scores, rounding = scores_of(predictions, action, formula, offset, curves)
    there = shown >= 0
    taken = np.take_along_axis(scores, shown.clip(0), 1)
    rest = is_open.copy()
    rows, places = np.nonzero(there)
    rest[rows, shown[rows, places]] = False
    worst = np.where(there, taken, np.inf).min(1, initial=np.inf)
    best_of_rest = np.where(rest, scores, -np.inf).max(1, initial=-np.inf)
    falling = (taken[:, 1:] <= taken[:, :-1] + rounding[:, None]) | ~there[:, 1:]
    known = np.isfinite(np.where(is_open, scores, 0.0)).all(1)
    return np.asarray(known & falling.all(1) & ((best_of_rest <= worst + rounding) | ~there.any(1)), bool)


def without_candidates(rows: pa.Table) -> pa.Table:
    """The same rows for whoever does not replay them."""
    return _replaced(rows, lambda name: pa.nulls(rows.num_rows, rows.schema.field(name).type), COLUMNS)


def without_item_ids(rows: pa.Table) -> pa.Table:
    """The same rows without the names of the candidates, once these have been checked."""
    def nameless(name: str) -> pa.Array:
        column = rows[name].combine_chunks()
        fields = [pc.struct_field(column, field.name) for field in CANDIDATES]
        fields[0] = pa.nulls(len(column), CANDIDATES[0].type)
        return pa.StructArray.from_arrays(fields, fields=list(CANDIDATES), mask=pc.is_null(column))
    return _replaced(rows, nameless, COLUMNS[:1])


def _replaced(rows: pa.Table, column: Callable[[str], pa.Array], names: tuple[str, ...]) -> pa.Table:
    for name in names:
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column(name))
    return rows


def replay_columns(rows: pa.Table, vocabulary: Vocabulary) -> dict[str, pa.Array]:
    """What samples keep for replay: `mu`, `sigma`, `predictions`, `open`, `shown`; nothing where no row has
    candidates."""
    column = rows["candidates"].combine_chunks()
    if column.null_count == len(column):
        return {}
    predictions = pc.struct_field(column, "predictions")
    seen = Lists.of(pc.struct_field(column, "seen"))
    lists = Lists.of(predictions)
    count = lists.length // vocabulary.action_size
    is_open = np.ones(int(count.sum()), bool)
    is_open[np.repeat(~seen.missing, count)] = ~seen.values.astype(bool)
    flags = Lists(is_open, np.cumsum(count) - count, count, lists.missing).to_arrow(pa.list_(pa.bool_()))
    return {"mu": rows["mu"], "sigma": rows["sigma"], "predictions": predictions, "open": flags,
            "shown": rows["shown"]}
