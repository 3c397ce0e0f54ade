"""The items of a catalogue, encoded once for all requests, with a precomputed row each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recfuse.config import require
from recfuse.scenes.encoder import Encoded, FeatureEncoder, FittedFeature, counts_by_name, side_by_side
from recfuse.scenes.request import ItemRows, RequestNetwork

Precision = Literal["float16", "float32", "none"]
PRECISIONS = {"float16": torch.float16, "float32": torch.float32}
_BLOCK = 4096


@dataclass(frozen=True)
class ChosenItems:
    """The items of one request, taken from the known ones.

    Attributes:
        encoded: their ids, numbers and unknown values, with what was sent in place of what is known.
        places: int64[N], rows of the known items; the last one is that of an item of which nothing is known.
        fields, numbers: positions of the ids and numbers that may differ from those that the rows were made of.
        before: these ids and numbers, [N, fields] and [N, numbers]; an id of −1 is in no row.
    """

    encoded: Encoded
    places: NDArray[np.int64]
    fields: Sequence[int]
    numbers: Sequence[int]
    before: tuple[NDArray[np.int32], NDArray[np.float32]]


@dataclass(frozen=True)
class KnownItems:
    """M items, and behind them one of which nothing is known: requests for items that are not here begin with it.

    Attributes:
        keys: int64[M], of the items' ids (recfuse.logs.ids).
        ids: int32[M + 1, fields]; numbers: float32[M + 1, numeric]; unknown: bool[M + 1, features].
        apart: features that the rows lack, so that a request adds their part: such as an age, which changes every day.
        rows: float16 or float32 [M + 1, outputs]; None where a request computes the items' part itself.
    """

    keys: NDArray[np.int64]
    ids: NDArray[np.int32]
    numbers: NDArray[np.float32]
    unknown: NDArray[np.bool_]
    apart: frozenset[str] = frozenset()
    rows: Tensor | None = None

    @classmethod
    def of(cls, encoder: FeatureEncoder, keys: NDArray[np.int64], columns: Mapping[str, Any],
           apart: Sequence[str] = ()) -> KnownItems:
        """Encodes items, without rows.

        Args:
            keys: [M]; columns: feature → its values [M].

        Raises:
            InvalidFieldError: a column whose values its feature does not take.
        """
        parts: list[tuple[np.ndarray, ...]] = []
        for given, count in (({**columns, "item_id": keys}, len(keys)), ({}, 1)):
            encoded = list(encoder.encode_columns("item", given, count))
            parts.append((side_by_side([values for entry, values, _ in encoded if entry.offset >= 0], count, np.int32),
                          side_by_side([values for entry, values, _ in encoded if entry.offset < 0], count, np.float32),
                          side_by_side([missing for _, _, missing in encoded], count, np.bool_)))
        ids, numbers, unknown = (np.concatenate(part) for part in zip(*parts, strict=True))
        return cls(keys, ids, numbers, unknown, frozenset(apart))

    def choose(self, encoder: FeatureEncoder, positions: NDArray[np.int64], items: Mapping[str, Any]) -> ChosenItems:
        """The items of a request.

        Args:
            positions: [N] among the known items, −1 where an item is not among them.
            items: `item_id`, keys [N], and the features that were sent, which go before what is known.

        Raises:
            InvalidFieldError: a column of another length, or whose values its feature does not take.
        """
        outside = positions < 0
        any_outside = bool(outside.any())
        places = np.where(outside, len(self.keys), positions) if any_outside else positions
        ids, numbers, unknown = self.ids[places], self.numbers[places], self.unknown[places]
        fields: list[int] = []
        numeric: list[int] = []
        for place, (entry, column) in enumerate(_columns(encoder)):
            name, values = entry.feature.name, ids if entry.offset >= 0 else numbers
            # The id of a known item is the one that its row was made of.
            sent = any_outside if name == "item_id" else name in items
            if sent:
                given = items[name]
                require(len(given) == len(places), f"item.{name}", len(given), f"{len(places)} values")
                chosen = outside if name == "item_id" else slice(None)
                values[chosen, column], unknown[chosen, place] = entry.encode(given[chosen])
            if sent or name in self.apart:
                (fields if entry.offset >= 0 else numeric).append(column)
        encoded = Encoded(ids, numbers, counts_by_name(encoder.by_source["item"], unknown.sum(0)))
        return ChosenItems(encoded, places, fields, numeric, self._before(encoder, places, fields, numeric))

    def _before(self, encoder: FeatureEncoder, places: NDArray[np.int64], fields: Sequence[int],
                numbers: Sequence[int]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Ids [N, fields] and numbers [N, numbers] that the rows were made of."""
        absent_fields, absent_numbers = self.columns_apart(encoder)
        ids, kept = self.ids[places][:, fields], self.numbers[places][:, numbers]
        ids[:, [field in absent_fields for field in fields]] = -1
        kept[:, [number in absent_numbers for number in numbers]] = 0.0
        return ids, kept

    def columns_apart(self, encoder: FeatureEncoder) -> tuple[list[int], list[int]]:
        """Positions of the ids and of the numbers that the rows lack."""
        apart = [(entry.offset >= 0, column) for entry, column in _columns(encoder) if entry.feature.name in self.apart]
        return [column for is_id, column in apart if is_id], [column for is_id, column in apart if not is_id]

    def with_rows(self, rows: Tensor) -> KnownItems:
        """The same items with their rows."""
        return replace(self, rows=rows)


def computed_rows(known: KnownItems, encoder: FeatureEncoder, network: RequestNetwork,
                  precision: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The rows of the items, a block of them after the other, on the device of the network.

    Raises:
        InvalidFieldError: float16 does not hold a number.
    """
    apart = known.columns_apart(encoder)
    for start in range(0, len(known.ids), _BLOCK):
        block = slice(start, min(start + _BLOCK, len(known.ids)))
        ids, numbers = (torch.from_numpy(part[block]).to(network.device) for part in (known.ids, known.numbers))
        with torch.inference_mode():
            rows = network.item_rows((ids, numbers), *apart).to(precision)
        require(bool(torch.isfinite(rows).all()), "item_rows", "float16", "float32: a number is beyond 65,504")
        yield block, rows


def rows_in_memory(known: KnownItems, encoder: FeatureEncoder, network: RequestNetwork,
                   precision: torch.dtype) -> KnownItems:
    """The items with rows that this process alone has, on the device of the network."""
    rows = torch.empty(len(known.ids), network.outputs, dtype=precision, device=network.device)
    for block, values in computed_rows(known, encoder, network, precision):
        rows[block] = values
    return known.with_rows(rows)


def item_rows(known: KnownItems, chosen: ChosenItems, device: torch.device) -> ItemRows | None:
    """The rows of chosen items; None where the items have none."""
    if known.rows is None:
        return None
    places, *before = (torch.from_numpy(part).to(device) for part in (chosen.places, *chosen.before))
    return ItemRows(known.rows, places, chosen.fields, chosen.numbers, (before[0], before[1]))


def _columns(encoder: FeatureEncoder) -> list[tuple[FittedFeature, int]]:
    """Each feature of items with its position among the ids, or among the numbers."""
    seen, columns = {True: 0, False: 0}, []
    for entry in encoder.by_source["item"]:
        columns.append((entry, seen[entry.offset >= 0]))
        seen[entry.offset >= 0] += 1
    return columns
