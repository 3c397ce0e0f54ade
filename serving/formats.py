"""JSON and MessagePack: bodies become requests, decoded once, and answers become bytes.

Both carry the same fields under the same rules. In MessagePack a column of numbers may also be a `bin` of little-endian
numbers of 8 bytes (float64; ids int64), which needs no decoding at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import msgpack
import numpy as np
import orjson
from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from serving.errors import RefusedError, refused_by_model

JSON, MESSAGE_PACK = "application/json", "application/msgpack"
_NAMES = (b"application/msgpack", b"application/x-msgpack", b"application/vnd.msgpack")
M = TypeVar("M", bound=BaseModel)


class Body(NamedTuple):
    """What a client sent.

    Attributes:
        content: its bytes.
        packed: they are MessagePack (Content-Type); everything else is taken for JSON.
        answer_packed: the answer shall be MessagePack (Accept). Refusals are JSON.
    """

    content: bytes
    packed: bool = False
    answer_packed: bool = False

    @classmethod
    def of(cls, content: bytes, headers: Mapping[bytes, bytes]) -> Body:
        """With the formats that the headers name; their names are in lower case."""
        return cls(content, _names_message_pack(headers.get(b"content-type")),
                   _names_message_pack(headers.get(b"accept")))


def _names_message_pack(value: bytes | None) -> bool:
    return value is not None and any(name in value.lower() for name in _NAMES)


def decode(model: type[M], body: Body) -> M:
    """A request from its body, decoded once.

    Raises:
        RefusedError: names the first bad field.
    """
    try:
        if not body.packed:
            return model.model_validate_json(body.content)
        return model.model_validate(_unpacked(body.content))
    except ValidationError as error:
        raise refused_by_model(error) from None


def _unpacked(content: bytes) -> Any:
    try:
        return msgpack.unpackb(content, ext_hook=_no_extension)
    except (ValueError, msgpack.UnpackException) as error:
        raise RefusedError(400, "body", f"{type(error).__name__}: {error}", "a MessagePack map") from None


def _no_extension(code: int, _: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def encode(answer: Mapping[str, Any], packed: bool) -> bytes:
    """The bytes of an answer; numpy's numbers and arrays are plain ones, what is no JSON otherwise its text."""
    if packed:
        packed_answer: bytes = msgpack.packb(answer, default=_plain)
        return packed_answer
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return str(value)


@dataclass(frozen=True)
class OrPacked:
    """Marks a list of numbers that MessagePack may send as a `bin`; `dtype` is `<f8` or `<i8`.

    A bin of finite float64 becomes an array that shares its memory; what is wrong is refused as in a list.
    """

    dtype: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        plain = handler(source)
        return core_schema.json_or_python_schema(
            json_schema=plain, python_schema=core_schema.no_info_wrap_validator_function(self._validate, plain))

    def _validate(self, value: Any, of_list: core_schema.ValidatorFunctionWrapHandler) -> Any:
        if not isinstance(value, bytes):
            return of_list(value)
        if len(value) % 8:
            name = {"name": "float64" if self.dtype == "<f8" else "int64"}
            raise PydanticCustomError("packed", "a list, or a bin of little-endian {name}, 8 bytes each", name)
        numbers = np.frombuffer(value, self.dtype)
        if self.dtype == "<i8":
            return numbers.tolist() or of_list([])  # every int64 is an id; whether none is enough is the list's rule
        return numbers if len(numbers) and np.isfinite(numbers).all() else of_list(numbers.tolist())
