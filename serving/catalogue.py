"""The catalogue: what is known of each item; features for the scorer, and the entry that a client shows; and a scorer
with the catalogue whose items it scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from recfuse.config import InvalidFieldError, require
from recfuse.logs.columns import decoded, floats
from recfuse.logs.ids import ALLOWED, keys_of, read_keys
from recfuse.serving.formats import encode

if TYPE_CHECKING:
    from recfuse.scenes.inference import SceneScorer
    from recfuse.scenes.known_items import KnownItems

ENTRY_FIELDS = ("price", "price_before", "image")
_READY_ENTRIES = 20_000  # About 10 MB.


class Catalogue:
    """Items in memory, looked up by id.

    Args:
        table: `item_id` (unique integers or text) and any columns of numbers, strings, booleans, times or lists of
            them. `price` (now), `price_before` and `image` have their own place in an entry, the others are its
            parameters; decimals are answered as floats.

    Raises:
        InvalidFieldError: names the column.
    """

    def __init__(self, table: pa.Table) -> None:
        require("item_id" in table.column_names, "catalogue", table.column_names, "a column item_id")
        table = pa.table({name: _without_decimals(decoded(column)) if name != "item_id" else column
                          for name, column in zip(table.column_names, table.columns, strict=True)})
        for field in table.schema:
            require(field.name == "item_id" or _is_plain(field.type), f"catalogue.{field.name}", str(field.type),
                    "numbers, strings, booleans, times or lists of them")
        keys, valid = read_keys(table["item_id"], "catalogue.item_id")
        require(bool(valid.all()), "catalogue.item_id", None, f"{ALLOWED}, none missing")
        order = np.argsort(keys, kind="stable")
        self._table, self._keys = table.take(pa.array(order)).combine_chunks(), keys[order]
        repeated = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        require(len(repeated) == 0, "catalogue.item_id", self._table["item_id"].take(repeated[:3]).to_pylist(),
                "each id once")
        self._parameters = [name for name in table.column_names if name not in ("item_id", *ENTRY_FIELDS)]
        self._features = {name: _feature(self._table[name]) for name in table.column_names
                          if name != "item_id" and not pa.types.is_list(table.schema.field(name).type)}
        self._ready: dict[int, orjson.Fragment] = {}

    @classmethod
    def load(cls, path: str | Path) -> Catalogue:
        """Reads a Parquet file."""
        try:
            return cls(pq.read_table(path))
        except (OSError, pa.ArrowException) as error:
            raise InvalidFieldError("catalogue", str(path), f"a Parquet file ({error})") from None

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> np.ndarray:
        """int64[M], ascending, of all items; `positions` point into them."""
        return self._keys

    def positions(self, keys: np.ndarray) -> np.ndarray:
        """int64[N]: where each item stands by the key of its id (recfuse.logs.ids), −1 where it is unknown."""
        if len(self._keys) == 0:
            return np.full(len(keys), -1)
        nearest = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[nearest] == keys, nearest, -1)

    def features(self, positions: np.ndarray) -> dict[str, np.ndarray]:
        """Every column but lists, one value a position; unknown items have NaN or None."""
        known = positions >= 0
        columns = {name: column[positions] if len(self) else np.full(len(positions), None)
                   for name, column in self._features.items()}
        if not known.all():
            for name, column in columns.items():
                number = column.dtype.kind == "f"
                columns[name] = column if number else column.astype(object)
                columns[name][~known] = np.nan if number else None
        return columns

    def entries(self, positions: Iterable[int]) -> list[dict[str, Any] | None]:
        """{price, price_before, image, parameters} of each position; None where the item is unknown."""
        positions = list(positions)
        rows = iter(self._table.take(pa.array([p for p in positions if p >= 0], pa.int64())).to_pylist())
        return [self._entry(next(rows)) if position >= 0 else None for position in positions]

    def ready_entries(self, positions: Sequence[int]) -> list[orjson.Fragment | None]:
        """`entries` as JSON that an answer takes as it stands; those of the latest items are kept."""
        found = {position: self._ready.get(position) for position in positions if position >= 0}
        missing = [position for position, entry in found.items() if entry is None]
        if missing:
            made = {position: orjson.Fragment(encode(entry or {}, packed=False))
                    for position, entry in zip(missing, self.entries(missing), strict=True)}
            if len(self._ready) + len(made) > _READY_ENTRIES:
                self._ready = {}
            self._ready.update(made)
            found.update(made)
        return [found.get(position) for position in positions]

    def _entry(self, row: dict[str, Any]) -> dict[str, Any]:
        entry = {name: row.get(name) for name in ENTRY_FIELDS}
        entry["parameters"] = {name: row[name] for name in self._parameters}
        return entry


class CurrentCatalogue(Protocol):
    """The catalogue that serves now; None where items are known by their ids alone."""

    @property
    def current(self) -> Catalogue | None: ...


@dataclass(frozen=True)
class FixedCatalogue:
    """The same catalogue for good."""

    current: Catalogue | None = None


class Scores(Protocol):
    """What a scorer says of N items (recfuse.scenes.inference.Scores)."""

    @property
    def probabilities(self) -> Mapping[str, np.ndarray]: ...

    @property
    def unknown(self) -> Mapping[str, int]: ...


class Scorer(Protocol):
    """What a scenes bundle gives (recfuse.scenes.inference.SceneScorer)."""

    @property
    def version(self) -> str | None: ...

    @property
    def tasks(self) -> Mapping[str, tuple[str, ...]]: ...

    @property
    def history_length(self) -> int: ...

    def check_user(self, features: Mapping[str, Any]) -> None: ...

    def score(self, scene: str, user: Mapping[str, Any], items: Mapping[str, np.ndarray]) -> Scores: ...


@dataclass(frozen=True)
class CatalogueScorer:
    """A scorer, the catalogue whose items it scores, and their rows: one value, so that a request mixes nothing.

    Attributes:
        scorer: of the pointer, or of its canary.
        catalogue: None where items are known by their ids alone.
        known: the catalogue's items, encoded by this scorer, a SceneScorer, with their rows; None encodes them in each
            request.
    """

    scorer: Scorer
    catalogue: Catalogue | None = None
    known: KnownItems | None = None

    @property
    def version(self) -> str | None:
        """Of the scorer."""
        return self.scorer.version

    @property
    def tasks(self) -> Mapping[str, tuple[str, ...]]:
        """Of the scorer, by scene."""
        return self.scorer.tasks

    def score(self, scene: str, user: Mapping[str, Any], keys: np.ndarray, sent: Mapping[str, np.ndarray]) -> Scores:
        """Scores of N items.

        Args:
            keys: int64[N] of their ids; sent: features that go before the catalogue's, [N] each.

        Raises:
            InvalidFieldError: a value that the scorer does not take.
        """
        items = {**sent, "item_id": keys}
        if self.catalogue is None:
            return self.scorer.score(scene, user, items)
        positions = self.catalogue.positions(keys)
        if self.known is not None:
            return cast("SceneScorer", self.scorer).score(scene, user, items, self.known, positions)
        return self.scorer.score(scene, user, {**self.catalogue.features(positions), **items})


def entries_of(catalogue: Catalogue | None, item_ids: Sequence[int | str],
               packed: bool) -> Sequence[dict[str, Any] | orjson.Fragment | None]:
    """The entry of each item, None where it is unknown or there is no catalogue; as JSON for an answer that is not
    `packed` in MessagePack."""
    if catalogue is None:
        return [None] * len(item_ids)
    positions = catalogue.positions(keys_of(item_ids)).tolist()
    return catalogue.entries(positions) if packed else catalogue.ready_entries(positions)


def _is_plain(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _is_plain(kind.value_type)
    return any(test(kind) for test in (pa.types.is_integer, pa.types.is_floating, pa.types.is_string,
                                       pa.types.is_large_string, pa.types.is_boolean, pa.types.is_timestamp,
                                       pa.types.is_date, pa.types.is_null))


def _without_decimals(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Floats in the place of decimals, which JSON has not."""
    return floats(column) if pa.types.is_decimal(column.type) else column


def _feature(column: pa.ChunkedArray) -> np.ndarray:
    """float64, int64 where none is missing; objects (Python values, None where missing) of all others."""
    if pa.types.is_floating(column.type):
        return np.array(column.cast(pa.float64()).to_numpy(), np.float64)
    if pa.types.is_integer(column.type) and column.null_count == 0 and column.type != pa.uint64():
        return np.array(column.to_numpy(), np.int64)
    values = np.empty(len(column), object)
    values[:] = column.to_pylist()
    return values
