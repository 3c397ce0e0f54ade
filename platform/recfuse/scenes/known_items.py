"""The items of a catalogue, encoded once for all requests, with a precomputed row each."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recfuse.config import require
from recfuse.scenes.config import Precision
from recfuse.scenes.encoder import Encoded, FeatureEncoder, counts_by_name, side_by_side
from recfuse.scenes.request import ItemRows, RequestNetwork
from recfuse.scenes.row_files import RowFiles

logger = logging.getLogger("recfuse")

PRECISIONS: dict[Precision, torch.dtype] = {"float16": torch.float16, "float32": torch.float32}
_BLOCK = 4096
_NOTHING = np.zeros((0, 0), np.int32), np.zeros((0, 0), np.float32)


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
        keys: int64[M], ascending, of the items' ids (recfuse.logs.ids).
        ids: int32[M + 1, fields]; numbers: float32[M + 1, numeric]; unknown: bool[M + 1, features].
        apart: features that the rows lack, so that a request adds their part: such as an age, which changes every day.
        rows: float16 or float32 [M + 1, outputs]; None where a request computes the items' part itself.
        made_by: hash of the weights and precision that the rows were made with.
    """

    keys: NDArray[np.int64]
    ids: NDArray[np.int32]
    numbers: NDArray[np.float32]
    unknown: NDArray[np.bool_]
    apart: frozenset[str] = frozenset()
    rows: Tensor | None = None
    made_by: str = ""

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
        for place, (entry, column) in enumerate(encoder.item_columns):
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
        if not fields and not numbers:
            return _NOTHING
        absent_fields, absent_numbers = self.columns_apart(encoder)
        ids, kept = self.ids[places][:, fields], self.numbers[places][:, numbers]
        ids[:, [field in absent_fields for field in fields]] = -1
        kept[:, [number in absent_numbers for number in numbers]] = 0.0
        return ids, kept

    def columns_apart(self, encoder: FeatureEncoder) -> tuple[list[int], list[int]]:
        """Positions of the ids and of the numbers that the rows lack."""
        apart = [(entry.offset >= 0, column) for entry, column in encoder.item_columns
                 if entry.feature.name in self.apart]
        return [column for is_id, column in apart if is_id], [column for is_id, column in apart if not is_id]


class RowMaker:
    """Makes the rows of known items with one network.

    Args:
        encoder, network: of one scorer.
        precision: of the rows.
        files: where they lie; None keeps them in this process alone.
    """

    def __init__(self, encoder: FeatureEncoder, network: RequestNetwork, precision: torch.dtype,
                 files: RowFiles | None = None) -> None:
        self._encoder, self._network, self._precision, self._files = encoder, network, precision, files

    def with_rows(self, known: KnownItems, before: KnownItems | None = None) -> KnownItems:
        """The items with their rows, on the device of the network.

        Args:
            before: of an earlier catalogue; rows that are the same here are taken from it.

        Raises:
            InvalidFieldError: float16 does not hold a number.
        """
        made_by = self._made_by(known)
        if before is not None and before.made_by != made_by:
            before = None
        return replace(known, rows=self._rows(known, made_by, before).to(self._network.device), made_by=made_by)

    def _rows(self, known: KnownItems, made_by: str, before: KnownItems | None) -> Tensor:
        shape = len(known.ids), self._network.outputs
        if self._files is not None:
            try:
                dtype = np.dtype(str(self._precision).removeprefix("torch."))
                return self._files.rows(self._key(known, made_by), shape, dtype,
                                        lambda: (block.cpu().numpy() for block in self._blocks(known, before)))
            except OSError as error:
                logger.warning("the rows of items are kept in this process alone: %s", error)
        rows, start = torch.empty(shape, dtype=self._precision), 0
        for block in self._blocks(known, before):
            rows[start:start + len(block)] = block
            start += len(block)
        return rows

    def _blocks(self, known: KnownItems, before: KnownItems | None) -> Iterator[Tensor]:
        """The rows of some items after the others."""
        places = np.full(len(known.ids), -1) if before is None else self._unchanged(known, before)
        for start in range(0, len(known.ids), _BLOCK):
            kept = places[start:start + _BLOCK]
            changed = np.flatnonzero(kept < 0)
            if before is None or before.rows is None or len(changed) == len(kept):
                yield self._computed(known, slice(start, start + _BLOCK))
                continue
            rows = before.rows.index_select(0, torch.from_numpy(np.maximum(kept, 0)).to(before.rows.device))
            rows[changed] = self._computed(known, start + changed).to(rows.device)
            yield rows

    def _unchanged(self, known: KnownItems, before: KnownItems) -> NDArray[np.int64]:
        """int64[M + 1]: where the same row stands in an earlier catalogue, −1 where none does."""
        # The last row, of an item of which nothing is known, is the same in both.
        nearest = np.minimum(np.searchsorted(before.keys, known.keys), max(len(before.keys) - 1, 0))
        same = before.keys[nearest] == known.keys if len(before.keys) else np.zeros(len(known.keys), bool)
        places = np.append(np.where(same, nearest, -1), len(before.keys))
        for now, then in zip(self._kept(known), self._kept(before), strict=True):
            places[(now != then[places]).any(1)] = -1
        return places

    def _kept(self, known: KnownItems) -> list[np.ndarray]:
        """The ids and the numbers that are in the rows."""
        absent = known.columns_apart(self._encoder)
        return [np.ascontiguousarray(np.delete(values, columns, axis=1))
                for values, columns in zip((known.ids, known.numbers), absent, strict=True)]

    def _computed(self, known: KnownItems, which: slice | NDArray[np.int64]) -> Tensor:
        """The rows of these items."""
        ids, numbers = (torch.from_numpy(part[which]).to(self._network.device) for part in (known.ids, known.numbers))
        with torch.inference_mode():
            rows = self._network.item_rows((ids, numbers), *known.columns_apart(self._encoder)).to(self._precision)
        # One pass: a sum is finite where all is, and a number beyond float16 has become infinite.
        whole = bool(torch.isfinite(rows.sum(dtype=torch.float32)))
        require(whole, "item_rows", "float16", "float32: a number is beyond 65,504")
        return rows

    def _made_by(self, known: KnownItems) -> str:
        """Hash of all of the scorer that rows follow from."""
        digest = hashlib.sha256(repr((str(self._precision), known.columns_apart(self._encoder))).encode())
        for part in self._network.item_weights():
            digest.update(part.cpu().numpy().data)
        return digest.hexdigest()

    def _key(self, known: KnownItems, made_by: str) -> str:
        """Hash of all that the rows follow from: of the scorer, and what is in the row of each item."""
        digest = hashlib.sha256(made_by.encode())
        for values in self._kept(known):
            digest.update(repr(values.shape).encode())
            digest.update(values.data)
        return digest.hexdigest()[:24]


def item_rows(known: KnownItems, chosen: ChosenItems, tensor: Callable[[np.ndarray], Tensor]) -> ItemRows | None:
    """The rows of chosen items; None where the items have none. `tensor` puts an array on the device of the rows."""
    if known.rows is None:
        return None
    ids, numbers = chosen.before
    return ItemRows(known.rows, tensor(chosen.places), chosen.fields, chosen.numbers, (tensor(ids), tensor(numbers)))
