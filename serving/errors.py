"""The one shape of every refusal: {"error": {"field", "value", "allowed", "reason"}}."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import orjson
from pydantic import ValidationError

from recfuse.config import InvalidFieldError, shorten

logger = logging.getLogger("recfuse.serving")
T = TypeVar("T")
_ALTERNATIVES = ("int", "str", "float", "bool", "none", "constrained-int", "constrained-str", "constrained-float")


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


def refusal(status: int, field: str | None, value: Any, allowed: str, retry_after: int | None = None) -> Reply:
    """The answer that names a field, its value and what is allowed."""
    shown = _plain(value)
    reason = f"{field or 'request'}: got {shorten(value)}; allowed: {allowed}"
    return Reply(status, orjson.dumps({"error": {
        "field": field, "value": shown, "allowed": allowed, "reason": _printable(reason),
    }}), retry_after)


async def answered(act: Callable[..., Awaitable[T]], *arguments: Any) -> T | Reply:
    """The result, or the refusal of a bad request; an error of ours is logged and answered as 500."""
    try:
        return await act(*arguments)
    except RefusedError as error:
        return refusal(error.status, error.field, error.value, error.allowed, 1 if error.status == 503 else None)
    except InvalidFieldError as error:
        return refusal(422, error.field, error.value, error.allowed)
    except Exception:
        logger.exception("request failed")
        return refusal(500, None, None, "nothing: the fault is the server's, see its log")


def refused_by_model(error: ValidationError) -> RefusedError:
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


def _plain(value: Any) -> Any:
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
