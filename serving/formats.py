"""What crosses the wire: bodies in JSON and MessagePack, answers as bytes, and the one shape of every refusal.

Both formats carry the same fields under the same rules. In MessagePack a column of numbers may also be a `bin` of
little-endian numbers of 8 bytes (float64; ids int64), which needs no decoding at all. A refusal is JSON:
{"error": {"field", "value", "allowed", "reason"}}.
"""

from __future__ import annotations

import functools
import logging
import math
import zlib
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Concatenate, Literal, NamedTuple, ParamSpec, Protocol, TypeVar

import msgpack
import numpy as np
import orjson
import simdjson
from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from recfuse.config import InvalidFieldError, shorten
from recfuse.serving.meters import Meters

logger = logging.getLogger("recfuse.serving")
JSON, MESSAGE_PACK = "application/json", "application/msgpack"
_NAMES = (b"application/msgpack", b"application/x-msgpack", b"application/vnd.msgpack")
_ALTERNATIVES = ("int", "str", "float", "bool", "none", "constrained-int", "constrained-str", "constrained-float")
_Kind = Literal["i", "d"]
_WORTH_BYTES = 4_000  # Below that the decoder of all other fields is as fast.
M = TypeVar("M", bound=BaseModel)
P = ParamSpec("P")
T = TypeVar("T")


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


class Reply(NamedTuple):
    """An answer that is ready for the socket: JSON, or MessagePack where it is `packed`."""

    status: int
    body: bytes
    retry_after: int | None = None
    packed: bool = False


class RefusedError(Exception):
    """A request that gets a 4xx or 503 with this field, value and what is allowed."""

    def __init__(self, status: int, field: str | None, value: Any, allowed: str) -> None:
        self.status, self.field, self.value, self.allowed = status, field, value, allowed
        super().__init__(f"{field}: got {shorten(value)}; allowed: {allowed}")


def _names_message_pack(value: bytes | None) -> bool:
    return value is not None and any(name in value.lower() for name in _NAMES)


def decode(model: type[M], body: Body, ids: Sequence[str] = (), numbers: Sequence[str] = ()) -> M:
    """A request from its body, decoded once.

    Args:
        ids, numbers: paths of columns that become arrays without a Python number each.

    Raises:
        RefusedError: names the first bad field.
    """
    try:
        if body.packed:
            return model.model_validate(_unpacked(body.content))
        if (known := _packed_columns(body.content, ids, numbers) if numbers else None) is not None:
            with suppress(ValidationError):  # The whole decoder says what is wrong.
                return model.model_validate(known)
        return model.model_validate_json(body.content)
    except ValidationError as error:
        raise _first_complaint(error) from None


def _packed_columns(content: bytes, ids: Sequence[str], numbers: Sequence[str]) -> dict[str, Any] | None:
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
        self._kinds: dict[str, _Kind] = {**dict.fromkeys(ids, "i"), **dict.fromkeys(numbers, "d")}
        self.lists = 0

    def known(self, document: Any) -> dict[str, Any]:
        """Raises ValueError where a name stands twice."""
        return self._object(document, "", None)

    def _object(self, source: simdjson.Object, path: str, kind: _Kind | None) -> dict[str, Any]:
        names = list(source.keys())
        if len({*names}) < len(names):
            raise ValueError("repeated names")
        return {name: self._value(source[name], f"{path}{name}", kind) for name in names}

    def _value(self, value: Any, path: str, kind: _Kind | None) -> Any:
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


def _unpacked(content: bytes) -> Any:
    try:
        return msgpack.unpackb(content, ext_hook=_no_extension)
    except (ValueError, msgpack.UnpackException) as error:
        raise RefusedError(400, "body", f"{type(error).__name__}: {error}", "a MessagePack map") from None


def _no_extension(code: int, _: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def unzipped(content: bytes, most: int) -> bytes:
    """What a gzip body holds; one of several members is their sum.

    Raises:
        RefusedError: it is no gzip, ends too soon, or holds more than `most` bytes.
    """
    parts, room = list[bytes](), most + 1
    while content and room > 0:
        member = zlib.decompressobj(wbits=31)
        try:
            parts.append(member.decompress(content, room))
        except zlib.error as error:
            raise RefusedError(400, "body", str(error), "gzip, as content-encoding says") from None
        room -= len(parts[-1])
        if room > 0 and not member.eof:
            raise RefusedError(400, "body", "a gzip body that ends too soon", "a whole gzip body")
        content = member.unused_data
    if room <= 0:
        raise RefusedError(413, "body", "more than allowed", f"at most {most} bytes when unpacked")
    return b"".join(parts)


def encode(answer: Mapping[str, Any], packed: bool) -> bytes:
    """The bytes of an answer; numpy's numbers and arrays are plain ones, what is no JSON otherwise its text."""
    if packed:
        packed_answer: bytes = msgpack.packb(answer, default=_without_numpy)
        return packed_answer
    return orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY, default=str)


def _without_numpy(value: Any) -> Any:
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
            return numbers.tolist() or of_list([])  # Every int64 is an id; the list's rule says how many are enough.
        return numbers if len(numbers) and np.isfinite(numbers).all() else of_list(numbers.tolist())


class _Metered(Protocol):
    meters: Meters


S = TypeVar("S", bound=_Metered)


def answering(
    act: Callable[Concatenate[S, P], Awaitable[T]]
) -> Callable[Concatenate[S, P], Coroutine[Any, Any, T | Reply]]:
    """A service's method, with the refusal of a bad request as its answer, which the service's meters count."""
    @functools.wraps(act)
    async def answer(service: S, *arguments: P.args, **named: P.kwargs) -> T | Reply:
        try:
            return await act(service, *arguments, **named)
        except RefusedError as error:
            reply = refusal_of(error)
        except InvalidFieldError as error:
            reply = refusal(422, error.field, error.value, error.allowed)
        except Exception:
            logger.exception("request failed")
            reply = fault()
        service.meters.record("recfuse_refused", 1.0, {"status": str(reply.status)})
        logger.info("refused", extra={"status": reply.status, "answer": reply.body.decode("utf-8", "replace")})
        return reply
    return answer


def refusal(status: int, field: str | None, value: Any, allowed: str, retry_after: int | None = None) -> Reply:
    """The answer that names a field, its value and what is allowed."""
    shown = _shown(value)
    reason = f"{field or 'request'}: got {shorten(value)}; allowed: {allowed}"
    return Reply(status, orjson.dumps({"error": {
        "field": field, "value": shown, "allowed": allowed, "reason": _printable(reason),
    }}), retry_after)


def refusal_of(error: RefusedError) -> Reply:
    """What is raised, as an answer; after a 503 the client may come back in a second."""
    return refusal(error.status, error.field, error.value, error.allowed, 1 if error.status == 503 else None)


def overloaded(why: str) -> RefusedError:
    """There is no room for the request, or nobody to answer it."""
    return RefusedError(503, None, why, "fewer requests at a time; try again after a second")


def fault() -> Reply:
    """The answer to a request that an error of ours ended."""
    return refusal(500, None, None, "nothing: the fault is the server's, see its log")


def _first_complaint(error: ValidationError) -> RefusedError:
    """The first of pydantic's complaints."""
    errors = error.errors(include_url=False)
    first = errors[0]
    kind, path = first["type"], first["loc"]
    if kind == "json_invalid":
        return RefusedError(400, "body", first["ctx"]["error"], "a JSON object")
    if kind == "missing":
        return RefusedError(422, _name(path), None, "a value: the field is required")
    if kind in ("model_type", "dict_type"):
        return RefusedError(422, _name(path), first["input"], "an object")
    if kind == "extra_forbidden":
        return RefusedError(422, _name(path), first["input"], "no such field")
    if len(path) > 1 and path[-1] in _ALTERNATIVES:
        # Each alternative of a union complains, under its own name; what was sent has no such level.
        path = path[:-1]
        messages = [other["msg"] for other in errors if other["loc"][:-1] == path]
    else:
        messages = [first["msg"]]
    allowed = " or ".join(dict.fromkeys(message.removeprefix("Input should be ") for message in messages))
    return RefusedError(422, _name(path), first["input"], allowed)


def _name(path: tuple[int | str, ...]) -> str:
    """`candidates.predictions.click[3]`."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return name.removeprefix(".") or "body"


def _shown(value: Any) -> Any:
    """A JSON value: numbers and short strings as they are, everything else as a line of text."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**53:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, str) and len(value) <= 120:
        return _printable(value)
    return _printable(shorten(value))


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
