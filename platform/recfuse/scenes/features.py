"""Features: declared by name, fitted on training rows only, encoded as int32 ids into one embedding table and numbers.

Every categorical feature owns a contiguous range of the table; the first id of a range stands for anything the
training rows did not hold (or held too seldom). Row 0 of the table pads histories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recfuse.config import InvalidFieldError, require
from recfuse.logs.exposures import Exposures

Source = Literal["user", "item", "context"]
SOURCES: tuple[Source, ...] = ("user", "item", "context")
PADDING = 0
NO_ITEM = -1


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One declared feature.

    Attributes:
        name: its column in the users, the items or the rows (`context`).
        source: where the column is.
        kind: `categorical` (integers, exact in 64 bits, or strings), `numeric` (normalised to mean 0, deviation 1), or
            `bucketed` (a number that becomes a category by its quantiles).
        minimum_count: a category seen in fewer training rows shares the unknown bucket, which so is trained too.
        log: a number passes through log(1 + max(x, 0)) before it is normalised.
        buckets: how many quantiles.
        hash_buckets: categories share so many buckets by a hash instead of having a vocabulary; 0 for a vocabulary.
            Values that training never saw fall into some bucket too; only what is missing is unknown.
    """

    name: str
    source: Source
    kind: Literal["categorical", "numeric", "bucketed"] = "categorical"
    minimum_count: int = 2
    log: bool = False
    buckets: int = 20
    hash_buckets: int = 0

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "name", self.name, "a non-empty string")
        require(self.source in SOURCES, "source", self.source, ", ".join(SOURCES))
        kinds = ("categorical", "numeric", "bucketed")
        require(self.kind in kinds, "kind", self.kind, ", ".join(kinds))
        require(self.minimum_count >= 1, "minimum_count", self.minimum_count, "an integer ≥ 1")
        require(self.buckets >= 2, "buckets", self.buckets, "an integer ≥ 2")
        fine = self.hash_buckets == 0 or (self.hash_buckets >= 2 and self.kind == "categorical")
        require(fine, "hash_buckets", self.hash_buckets, "0, or an integer ≥ 2 for a categorical feature")


def declared_features(exposures: Exposures) -> tuple[Feature, ...]:
    """Every column of users and items, with scene and hour as context; numbers are given both ways."""
    features: list[Feature] = []
    tables: tuple[tuple[Source, pa.Table], ...] = (("user", exposures.users), ("item", exposures.items))
    for source, table in tables:
        for column in table.schema:
            if pa.types.is_floating(column.type):
                features += [Feature(name=column.name, source=source, kind="bucketed"),
                             Feature(name=column.name, source=source, kind="numeric", log=True)]
            else:
                features.append(Feature(name=column.name, source=source))
    return (*features, Feature(name="scene", source="context"), Feature(name="hour", source="context"))


@dataclass(frozen=True)
class FittedFeature:
    """A feature with what was learned about its column from the training rows.

    Attributes:
        values: categorical: sorted int64 or str categories, empty where they are hashed; bucketed: the inner quantiles,
            float64; numeric: empty.
        offset: first id of its range of the embedding table (the unknown bucket); −1 for numeric.
        mean, std: of a numeric feature, after `log`.
    """

    feature: Feature
    values: np.ndarray
    offset: int = -1
    mean: float = 0.0
    std: float = 1.0

    @property
    def size(self) -> int:
        """Rows of the embedding table that the feature owns."""
        if self.feature.kind == "numeric":
            return 0
        return len(self.values) + self.feature.hash_buckets + 1 + (self.feature.kind == "bucketed")

    def ids(self, column: Any) -> tuple[NDArray[np.int32], int]:
        """int32[N] ids into the embedding table, and how many of the values are unknown."""
        if self.feature.kind == "bucketed":
            numbers, valid = _numbers(column, self.feature)
            codes = np.where(valid, np.searchsorted(self.values, numbers, side="right") + 1, 0)
        else:
            codes = self._codes(column)
        return (codes + self.offset).astype(np.int32), int((codes == 0).sum())

    def _codes(self, column: Any) -> np.ndarray:
        values, valid = _categories(column, self.feature, integers=self.values.dtype.kind == "i")
        if self.feature.hash_buckets:
            hashed = pd.util.hash_array(values if values.dtype.kind == "i" else values.astype(object))
            return np.where(valid, (hashed % np.uint64(self.feature.hash_buckets)).astype(np.int64) + 1, 0)
        if not len(self.values):
            return np.zeros(len(values), np.int64)
        place = np.minimum(np.searchsorted(self.values, values), len(self.values) - 1)
        return np.where(valid & (self.values[place] == values), place + 1, 0)

    def numbers(self, column: Any) -> tuple[NDArray[np.float32], int]:
        """float32[N], normalised, missing ones at the mean; and how many are missing."""
        numbers, valid = _numbers(column, self.feature)
        normalised = np.where(valid, (numbers - self.mean) / self.std, 0.0)
        return normalised.astype(np.float32), int((~valid).sum())


@dataclass(frozen=True)
class Encoded:
    """Columns of one source, encoded: `ids` int32[N, fields], `numbers` float32[N, numeric features].

    `unknown` counts, by feature, values that fell into the unknown bucket or were missing.
    """

    ids: NDArray[np.int32]
    numbers: NDArray[np.float32]
    unknown: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class FeatureEncoder:
    """The fitted features; order of ids and numbers: users', items', context's.

    Attributes:
        fitted: one a feature, by source.
        history_length: how many of the last items are pooled; 0 for none.
        table_rows: rows of the embedding table.
    """

    fitted: tuple[FittedFeature, ...]
    history_length: int
    table_rows: int

    @classmethod
    def fit(cls, features: Sequence[Feature], exposures: Exposures, training: np.ndarray,
            history_length: int) -> FeatureEncoder:
        """Learns vocabularies, quantiles and normalisation from the training rows alone.

        Args:
            training: bool[rows].

        Raises:
            InvalidFieldError: a column is missing or of the wrong type, there is no training row, or no item_id.
        """
        rows = exposures.rows.filter(pa.array(training))
        require(rows.num_rows > 0, "training", rows.num_rows, "at least one training row")
        names = [(feature.name, feature.source, feature.kind == "numeric") for feature in features]
        require(len(set(names)) == len(names), "features", names, "each column once a kind")
        tables = {"user": align(exposures.users, "user_id", rows["user_id"].to_numpy()),
                  "item": align(exposures.items, "item_id", rows["item_id"].to_numpy()), "context": rows}
        fitted, offset = [], PADDING + 1
        for feature in sorted(features, key=lambda f: SOURCES.index(f.source)):
            table = tables[feature.source]
            require(feature.name in table.column_names, f"{feature.source}s.{feature.name}", table.column_names,
                    f"a column {feature.name}")
            one = _fit_one(feature, table[feature.name], offset)
            fitted.append(one)
            offset += one.size
        require(offset < 2**31, "features", offset, "fewer than 2³¹ categories in all")
        encoder = cls(tuple(fitted), history_length, offset)
        require(history_length == 0 or encoder.item_feature is not None, "features", [f.name for f in features],
                "a categorical item feature item_id, which histories are made of")
        return encoder

    @property
    def item_feature(self) -> FittedFeature | None:
        """The feature of the items' ids, whose embeddings histories pool."""
        for one in self.fitted:
            if one.feature.source == "item" and one.feature.name == "item_id" and one.offset >= 0:
                return one
        return None

    @property
    def fields(self) -> int:
        """Ids a row has."""
        return sum(one.offset >= 0 for one in self.fitted)

    @property
    def numeric(self) -> int:
        """Numbers a row has."""
        return len(self.fitted) - self.fields

    def encode(self, source: Source, columns: Mapping[str, Any], rows: int) -> Encoded:
        """The features of one source; a column that is absent counts as unknown in every row."""
        ids: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        unknown: dict[str, int] = {}
        for one in self.fitted:
            if one.feature.source != source:
                continue
            column = columns.get(one.feature.name)
            column = [None] * rows if column is None else column
            require(len(column) == rows, f"{source}.{one.feature.name}", len(column), f"{rows} values")
            if one.offset >= 0:
                codes, missing = one.ids(column)
                ids.append(codes)
            else:
                values, missing = one.numbers(column)
                numbers.append(values)
            if missing:
                unknown[one.feature.name] = max(missing, unknown.get(one.feature.name, 0))
        return Encoded(_stack(ids, rows, np.int32), _stack(numbers, rows, np.float32), unknown)

    def encode_history(self, items: np.ndarray) -> NDArray[np.int32]:
        """int32[N, L] ids of item ids int64[N, L]; what is absent or unknown is padding, so that it is not pooled."""
        if self.item_feature is None or not self.history_length:
            return np.zeros((len(items), 0), np.int32)
        ids = self.item_feature.ids(items.reshape(-1))[0].reshape(items.shape)
        return np.where((ids == self.item_feature.offset) | (items == NO_ITEM), PADDING, ids).astype(np.int32)


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


def row_histories(exposures: Exposures, length: int) -> NDArray[np.int64]:
    """int64[N, length]: the last items that each row's user watched strictly before it, newest last, NO_ITEM in front.

    What counts as watched: the source's history, and every earlier row with a click.
    """
    n = exposures.rows.num_rows
    if length == 0 or n == 0:
        return np.full((n, length), NO_ITEM, np.int64)
    users, ts = exposures.column("user_id"), exposures.rows["ts"].cast(pa.int64()).to_numpy()
    watched = exposures.column("click") == 1
    lists = exposures.history["items"].combine_chunks()
    before = np.repeat(exposures.history["user_id"].to_numpy(), pc.list_value_length(lists).to_numpy())
    event_user = np.concatenate([before, users[watched]])
    event_time = np.concatenate([np.full(len(before), np.iinfo(np.int64).min), ts[watched]])
    event_item = np.concatenate([lists.flatten().to_numpy(), exposures.column("item_id")[watched]])
    # Stable, so that a user's history keeps its order among equal times.
    order = np.lexsort((event_time, event_user))
    event_user, event_time, event_item = event_user[order], event_time[order], event_item[order]
    first = np.searchsorted(event_user, users, side="left")
    end = _events_before(event_user, event_time, users, ts)
    slots = end[:, None] + np.arange(-length, 0)[None, :]
    padded = np.append(event_item, NO_ITEM)
    return padded[np.where(slots >= first[:, None], slots, len(event_item))]


def _events_before(event_user: np.ndarray, event_time: np.ndarray, users: np.ndarray, ts: np.ndarray) -> np.ndarray:
    """For each row the position after the last event of its user with a time strictly before the row's."""
    # Rows are merged into the sorted events: at an equal time the row comes first, so the event is not before it.
    user = np.concatenate([event_user, users])
    time = np.concatenate([event_time, ts])
    is_event = np.concatenate([np.ones(len(event_user), np.int8), np.zeros(len(users), np.int8)])
    order = np.lexsort((is_event, time, user))
    events_so_far = np.cumsum(is_event[order])
    position = np.empty(len(order), np.int64)
    position[order] = events_so_far
    return position[len(event_user):]


def _fit_one(feature: Feature, column: pa.ChunkedArray, offset: int) -> FittedFeature:
    if feature.kind == "categorical":
        integers = pa.types.is_integer(column.type)
        values, valid = _categories(column, feature, integers)
        if feature.hash_buckets:  # integers and strings hash differently: remember which they are
            return FittedFeature(feature, values[:0], offset)
        seen, counts = np.unique(values[valid], return_counts=True)
        return FittedFeature(feature, seen[counts >= feature.minimum_count], offset)
    numbers, valid = _numbers(column, feature)
    numbers = numbers[valid]
    if feature.kind == "bucketed":
        shares = np.linspace(0, 1, feature.buckets + 1)[1:-1]
        return FittedFeature(feature, np.unique(np.quantile(numbers, shares)) if len(numbers) else numbers, offset)
    std = float(numbers.std()) if len(numbers) else 1.0
    return FittedFeature(feature, np.zeros(0), mean=float(numbers.mean()) if len(numbers) else 0.0,
                         std=std if std > 1e-12 else 1.0)


def _categories(column: Any, feature: Feature, integers: bool) -> tuple[np.ndarray, np.ndarray]:
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


def _numbers(column: Any, feature: Feature) -> tuple[np.ndarray, np.ndarray]:
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


def _stack(columns: list[np.ndarray], rows: int, dtype: type) -> np.ndarray:
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0), dtype)
