"""One request, encoded: a user's row, a context's, a history, and the items to score."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.logs.ids import ALLOWED, keys_of
from recfuse.scenes.encoder import Encoded, FeatureEncoder
from recfuse.scenes.histories import NO_ITEM


@dataclass(frozen=True)
class EncodedRequest:
    """One user's N items, encoded.

    Attributes:
        user, context: one row each; items: N rows.
        history: int32[1, L], 0 pads.
        scene: its index.
    """

    user: Encoded
    items: Encoded
    context: Encoded
    history: NDArray[np.int32]
    scene: int

    def rows(self) -> tuple[np.ndarray, ...]:
        """Ids, numbers, histories and scenes [N, …], for networks that take whole rows."""
        count = len(self.items.ids)
        ids = [_repeat(self.user.ids, count), self.items.ids, _repeat(self.context.ids, count)]
        numbers = [_repeat(self.user.numbers, count), self.items.numbers, _repeat(self.context.numbers, count)]
        return (np.concatenate(ids, axis=1), np.concatenate(numbers, axis=1), _repeat(self.history, count),
                np.full(count, self.scene))


def encode_request(encoder: FeatureEncoder, scene: str, user: Mapping[str, Any], items: Encoded,
                   index: int) -> EncodedRequest:
    """A request for encoded items.

    Args:
        scene: its name; index: its place among the model's.
        user: features and context by name, with `user_id` and `history`; without an hour it is the clock's in UTC.

    Raises:
        InvalidFieldError: a value of a type that its feature does not take.
    """
    given = {name: value for name, value in user.items() if name != "history"}
    if user.get("user_id") is not None:
        given["user_id"] = int(id_keys([given["user_id"]], "user_id")[0])
    now = {"hour": datetime.datetime.now(datetime.UTC).hour}
    history = encoder.encode_history(last_items(user.get("history"), encoder.history_length))
    return EncodedRequest(encoder.encode_one("user", given), items,
                          encoder.encode_one("context", {**now, **given, "scene": scene}), history, index)


def _repeat(row: np.ndarray, count: int) -> np.ndarray:
    return np.repeat(row, count, axis=0)


def last_items(history: Sequence[int | str] | None, length: int) -> NDArray[np.int64]:
    """int64[1, length], padded in front."""
    given = [] if history is None else history
    require(isinstance(given, (Sequence, np.ndarray)), "history", given, f"a list of {ALLOWED}")
    items = id_keys(given[max(len(given) - length, 0):], "history")
    return np.concatenate([np.full(length - len(items), NO_ITEM, np.int64), items])[None, :]


def id_keys(ids: Any, field: str) -> NDArray[np.int64]:
    """int64[N] keys of ids (recfuse.logs.ids); an array of integers holds keys.

    Raises:
        InvalidFieldError: something else than integers and texts.
    """
    if isinstance(ids, np.ndarray) and ids.dtype.kind == "i":
        return ids.astype(np.int64, copy=False)
    listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    plain = not isinstance(ids, str) and (
        set(map(type, listed)) <= {int, str} or all(isinstance(each, (int, str)) for each in listed))
    require(plain, field, ids, f"a list of {ALLOWED}")
    return keys_of(listed)
