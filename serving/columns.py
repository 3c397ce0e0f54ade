"""Columns of numbers in a JSON body, read straight into bytes as MessagePack brings them (serving.formats)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import simdjson

Kind = Literal["i", "d"]
_WORTH_BYTES = 4_000  # Below that the decoder of all other fields is as fast.


def packed_columns(content: bytes, ids: Sequence[str], numbers: Sequence[str]) -> dict[str, Any] | None:
    """A JSON object whose columns are little-endian bytes, or None: it is to be decoded another way, which also says
    what may be wrong with it.

    A path that leads to an object of columns means each of them.

    Args:
        ids, numbers: paths (`candidates.predictions`) of columns of int64 and float64; such as are missing, or hold
            anything else, stay lists.
    """
    # The parser takes a mark of byte order in front of the object, and JSON has none.
    if len(content) < _WORTH_BYTES or not content.startswith(b"{"):
        return None
    try:
        # A parser of its own: one that is kept would keep the memory of the largest body.
        read = _Reading(ids, numbers)
        known = read.known(simdjson.Parser().parse(content))
    except (ValueError, RuntimeError, TypeError, UnicodeError):
        return None
    # A list within a column of numbers is read as if its numbers stood in the column: whoever has more brackets than
    # lists, be it in a text, is decoded the other way.
    return known if content.count(b"[") == read.lists else None


class _Reading:
    """Attributes:
        lists: so many have been read.
    """

    def __init__(self, ids: Sequence[str], numbers: Sequence[str]) -> None:
        self._kinds: dict[str, Kind] = {**dict.fromkeys(ids, "i"), **dict.fromkeys(numbers, "d")}
        self.lists = 0

    def known(self, document: Any) -> dict[str, Any]:
        """Raises ValueError where a name stands twice."""
        return self._object(document, "", None)

    def _object(self, source: simdjson.Object, path: str, kind: Kind | None) -> dict[str, Any]:
        names = list(source.keys())
        if len({*names}) < len(names):
            raise ValueError("repeated names")
        return {name: self._value(source[name], f"{path}{name}", kind) for name in names}

    def _value(self, value: Any, path: str, kind: Kind | None) -> Any:
        kind = kind or self._kinds.get(path)
        if isinstance(value, simdjson.Object):
            return self._object(value, f"{path}.", kind)
        if not isinstance(value, simdjson.Array):
            return value
        if kind:
            try:
                column = bytes(value.as_buffer(of_type=kind))
                self.lists += 1
                return column
            except (TypeError, ValueError):  # Something else than such numbers stands in it.
                pass
        return self._plain(value.as_list())

    def _plain(self, value: Any) -> Any:
        if isinstance(value, dict):
            raise ValueError("an object in a list, whose names may stand twice")
        if isinstance(value, list):
            self.lists += 1
            for each in value:
                self._plain(each)
        return value
