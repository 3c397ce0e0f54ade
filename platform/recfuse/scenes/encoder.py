"""Features fitted on training rows only, and encoded as int32 ids into one embedding table and numbers.

Every categorical feature owns a contiguous range of the table; the first id of a range stands for anything the
training rows did not hold (or held too seldom). Row 0 of the table pads histories.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.logs.exposures import Exposures
from recfuse.scenes.columns import align, read_integers, read_numbers, read_texts
from recfuse.scenes.config import SOURCES, Feature, Source
from recfuse.scenes.histories import NO_ITEM

PADDING = 0
_DIGITS = re.compile("-?[0-9]{1,19}")


@dataclass(frozen=True)
class FittedFeature:
    """A feature with what was learned about its column from the training rows.

    Attributes:
        values: categorical: sorted categories, int64 or Python's str, empty where they are hashed; bucketed: the inner
            quantiles, float64; numeric: empty.
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

    def ids(self, column: Any) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """int32[N] ids into the embedding table, and which of the values are unknown, bool[N]."""
        if self.feature.kind == "bucketed":
            numbers, valid = read_numbers(column, self.feature)
            codes = np.where(valid, np.searchsorted(self.values, numbers, side="right") + 1, 0)
        else:
            codes = self._codes(column)
        return (codes + self.offset).astype(np.int32), codes == 0

    def _codes(self, column: Any) -> NDArray[np.int64]:
        """int64[N], 0 for the unknown bucket. Of text every value is looked up once, however many rows have it."""
        if self.values.dtype.kind == "i":
            values, valid = read_integers(column, self.feature)
            return np.where(valid, self._codes_of(values), 0)
        texts, places = read_texts(column, self.feature)
        return np.append(self._codes_of(texts), 0)[places]

    def _codes_of(self, values: np.ndarray) -> NDArray[np.int64]:
        """int64[N] of integers or of texts, none missing."""
        if self.feature.hash_buckets:
            hashed = pd.util.hash_array(values, categorize=False) % np.uint64(self.feature.hash_buckets)
            return hashed.astype(np.int64) + 1
        if values.dtype.kind != "i":
            return np.array([self._places.get(value, 0) for value in values], np.int64)
        if not len(self.values):
            return np.zeros(len(values), np.int64)
        place = np.minimum(np.searchsorted(self.values, values), len(self.values) - 1)
        return np.where(self.values[place] == values, place + 1, 0)

    @cached_property
    def _places(self) -> dict[str, int]:
        """Text → its code."""
        return {value: place for place, value in enumerate(self.values, start=1)}

    def numbers(self, column: Any) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """float32[N], normalised, missing ones at the mean; and which are missing, bool[N]."""
        numbers, valid = read_numbers(column, self.feature)
        normalised = np.where(valid, (numbers - self.mean) / self.std, 0.0)
        return normalised.astype(np.float32), ~valid

    def encode(self, column: Any) -> tuple[np.ndarray, NDArray[np.bool_]]:
        """`ids` of categories, `numbers` of numbers."""
        return self.ids(column) if self.offset >= 0 else self.numbers(column)

    def encode_one(self, value: Any) -> tuple[float, bool]:
        """What `encode` makes of a column with this value alone, some fifty times as fast for plain values."""
        found = self._number_of(value) if self.feature.kind != "categorical" else self._code_of(value)
        if found is None:
            values, missing = self.encode([value])
            return values[0].item(), bool(missing[0])
        if self.feature.kind == "numeric":
            return (0.0, True) if math.isnan(found) else ((found - self.mean) / self.std, False)
        if self.feature.kind == "bucketed":
            found = 0 if math.isnan(found) else int(self.values.searchsorted(found, side="right")) + 1
        return found + self.offset, found == 0

    def _number_of(self, value: Any) -> float | None:
        """A number after `log`, NaN where it is missing; None where only a column tells."""
        if value is None:
            return math.nan
        # Beyond 2⁵³ a column of integers is rounded in its own way.
        if type(value) is not float and (type(value) not in (int, bool) or abs(value) > 2**53):
            return None
        if not math.isfinite(value):
            return math.nan
        number = float(value)
        return float(np.log1p(max(number, 0.0))) if self.feature.log else number

    def _code_of(self, value: Any) -> int | None:
        """A category's code, 0 for the unknown bucket; None where only a column tells."""
        if value is None:
            return 0
        integers = self.values.dtype.kind == "i"
        if type(value) is int and -2**63 <= value < 2**63:
            return self._code_of_integer(value) if integers else self._code_of_text(str(value))
        if type(value) is str:
            if not integers:
                return self._code_of_text(value)
            number = int(value) if _DIGITS.fullmatch(value) else 2**63
            return self._code_of_integer(number) if -2**63 <= number < 2**63 else 0
        return None

    def _code_of_integer(self, value: int) -> int:
        if self.feature.hash_buckets:
            return int(self._codes_of(np.array([value]))[0])
        # A dictionary of the ids of millions of users would take more memory than the table of their embeddings.
        place = int(self.values.searchsorted(value))
        return place + 1 if place < len(self.values) and self.values[place] == value else 0

    def _code_of_text(self, text: str) -> int:
        return int(self._codes_of(np.array([text], object))[0]) if self.feature.hash_buckets else \
            self._places.get(text, 0)


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
            entry = _fitted(feature, table[feature.name], offset)
            fitted.append(entry)
            offset += entry.size
        require(offset < 2**31, "features", offset, "fewer than 2³¹ categories in all")
        encoder = cls(tuple(fitted), history_length, offset)
        require(encoder.fields > 0, "features", [f.name for f in features],
                "at least one categorical or bucketed feature, whose embeddings the network reads")
        require(history_length == 0 or encoder.item_feature is not None, "features", [f.name for f in features],
                "a categorical item feature item_id, which histories are made of")
        return encoder

    @property
    def item_feature(self) -> FittedFeature | None:
        """The feature of the items' ids, whose embeddings histories pool."""
        for entry in self.fitted:
            if entry.feature.source == "item" and entry.feature.name == "item_id" and entry.offset >= 0:
                return entry
        return None

    @property
    def fields(self) -> int:
        """Ids a row has."""
        return sum(entry.offset >= 0 for entry in self.fitted)

    @property
    def numeric(self) -> int:
        """Numbers a row has."""
        return len(self.fitted) - self.fields

    @cached_property
    def by_source(self) -> dict[Source, tuple[FittedFeature, ...]]:
        """The fitted features of each source."""
        return {source: tuple(entry for entry in self.fitted if entry.feature.source == source) for source in SOURCES}

    @cached_property
    def item_columns(self) -> tuple[tuple[FittedFeature, int], ...]:
        """Each feature of items with its position among the items' ids, or among their numbers."""
        seen, columns = {True: 0, False: 0}, []
        for entry in self.by_source["item"]:
            columns.append((entry, seen[entry.offset >= 0]))
            seen[entry.offset >= 0] += 1
        return tuple(columns)

    def sizes(self, source: Source) -> tuple[int, int]:
        """How many ids and numbers a row has of one source."""
        entries = self.by_source[source]
        fields = sum(entry.offset >= 0 for entry in entries)
        return fields, len(entries) - fields

    def encode(self, source: Source, columns: Mapping[str, Any], rows: int) -> Encoded:
        """The features of one source; a column that is absent counts as unknown in every row."""
        ids: list[np.ndarray] = []
        numbers: list[np.ndarray] = []
        unknown: list[int] = []
        for entry, values, missing in self.encode_columns(source, columns, rows):
            (ids if entry.offset >= 0 else numbers).append(values)
            unknown.append(int(missing.sum()))
        return Encoded(side_by_side(ids, rows, np.int32), side_by_side(numbers, rows, np.float32),
                       counts_by_name(self.by_source[source], unknown))

    def encode_one(self, source: Source, values: Mapping[str, Any]) -> Encoded:
        """One row of a source: what `encode` makes of columns with one value each."""
        ids: list[float] = []
        numbers: list[float] = []
        unknown: list[int] = []
        for entry in self.by_source[source]:
            found, missing = entry.encode_one(values.get(entry.feature.name))
            (ids if entry.offset >= 0 else numbers).append(found)
            unknown.append(missing)
        return Encoded(np.array([ids], np.int32), np.array([numbers], np.float32),
                       counts_by_name(self.by_source[source], unknown))

    def encode_columns(self, source: Source, columns: Mapping[str, Any],
                       rows: int) -> Iterator[tuple[FittedFeature, np.ndarray, NDArray[np.bool_]]]:
        """Each feature of a source with its ids or numbers [rows], and which values are missing or unknown."""
        for entry in self.by_source[source]:
            column = columns.get(entry.feature.name)
            column = [None] * rows if column is None else column
            require(len(column) == rows, f"{source}.{entry.feature.name}", len(column), f"{rows} values")
            yield entry, *entry.encode(column)

    def encode_history(self, items: np.ndarray) -> NDArray[np.int32]:
        """int32[N, L] ids of item ids int64[N, L]; what is absent or unknown is padding, so that it is not pooled."""
        if self.item_feature is None or not self.history_length:
            return np.zeros((len(items), 0), np.int32)
        ids = self.item_feature.ids(items.reshape(-1))[0].reshape(items.shape)
        return np.where((ids == self.item_feature.offset) | (items == NO_ITEM), PADDING, ids).astype(np.int32)


def _fitted(feature: Feature, column: pa.ChunkedArray, offset: int) -> FittedFeature:
    """The feature with what its column of the training rows says; `offset` is the first free row of the table."""
    if feature.kind == "categorical":
        # Integers and texts differ where they are hashed too: the empty array's type tells which they are.
        if pa.types.is_integer(column.type):
            values, valid = read_integers(column, feature)
            integers, counts = np.unique(values[valid], return_counts=True)
            seen: np.ndarray = integers
        else:
            seen, places = read_texts(column, feature)
            order = np.argsort(seen)
            seen, counts = seen[order], np.bincount(places[places >= 0], minlength=len(seen))[order]
        return FittedFeature(feature, seen[(counts >= feature.minimum_count) & (feature.hash_buckets == 0)], offset)
    numbers, valid = read_numbers(column, feature)
    numbers = numbers[valid]
    if feature.kind == "bucketed":
        shares = np.linspace(0, 1, feature.buckets + 1)[1:-1]
        return FittedFeature(feature, np.unique(np.quantile(numbers, shares)) if len(numbers) else numbers, offset)
    std = float(numbers.std()) if len(numbers) else 1.0
    return FittedFeature(feature, np.zeros(0), mean=float(numbers.mean()) if len(numbers) else 0.0,
                         std=std if std > 1e-12 else 1.0)


def side_by_side(columns: list[np.ndarray], rows: int, dtype: type) -> np.ndarray:
    """[rows, columns]."""
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0), dtype)


def counts_by_name(entries: Sequence[FittedFeature], counts: Iterable[int]) -> dict[str, int]:
    """Name → how many of its values are unknown, where there are some; of two features of a name the larger count."""
    unknown: dict[str, int] = {}
    for entry, count in zip(entries, counts, strict=True):
        if count:
            unknown[entry.feature.name] = max(int(count), unknown.get(entry.feature.name, 0))
    return unknown
